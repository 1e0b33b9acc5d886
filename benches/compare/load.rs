//! A closed loop of keep-alive connections: each sends a request as soon as it has the answer to the one before.
//!
//! One thread, and no HTTP library: what the client takes from the processors it takes from the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::Result;

/// What runs before the clock starts: connections are made, caches filled.
const WARM_UP: Duration = Duration::from_millis(500);

/// An answer.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// Whether the server closes the connection now.
    closes: bool,
}

/// What to ask.
pub enum Requests {
    /// The same each time.
    Same(Vec<u8>),
    /// Each once, in order. The load ends when there are no more.
    Each(Vec<Vec<u8>>),
}

/// How it went.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Answers a second.
    pub rate: f64,
    /// Half of the answers took at most so many milliseconds.
    pub p50_ms: f64,
    /// Of a hundred answers 99 took at most so many milliseconds.
    pub p99_ms: f64,
    /// All answers, with those of the warm-up.
    pub answers: usize,
}

/// Asks over so many connections for so long. Every answer must have the status 200.
pub async fn run(address: SocketAddr, connections: usize, time: Duration, requests: Requests) -> Result<Measured> {
    let requests = Arc::new((requests, AtomicUsize::new(0)));
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, all(address, connections, time, &requests))
    })
    .await?
}

async fn all(
    address: SocketAddr,
    connections: usize,
    time: Duration,
    requests: &Arc<(Requests, AtomicUsize)>,
) -> Result<Measured> {
    let start = Instant::now() + WARM_UP;
    let end = start + time;
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let requests = requests.clone();
            tokio::task::spawn_local(async move { one(address, end, &requests).await })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.extend(task.await??);
    }
    let counted = |at: &&(Instant, Duration)| at.0 >= start && at.0 <= end;
    let mut took: Vec<Duration> = answers.iter().filter(counted).map(|(_, took)| *took).collect();
    took.sort_unstable();
    let share = |share: usize| took.get(took.len() * share / 100).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3);
    // When the requests ran out before the time.
    let last = answers.iter().map(|(at, _)| *at).max().unwrap_or(end).min(end);
    let seconds = last.saturating_duration_since(start).as_secs_f64().max(f64::MIN_POSITIVE);
    let rate = f64::from(u32::try_from(took.len())?) / seconds;
    Ok(Measured { rate, p50_ms: share(50), p99_ms: share(99), answers: answers.len() })
}

/// One connection's answers: when each came and how long it took.
async fn one(
    address: SocketAddr,
    end: Instant,
    requests: &(Requests, AtomicUsize),
) -> Result<Vec<(Instant, Duration)>> {
    let (requests, next) = requests;
    let mut answers = Vec::new();
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut stream = None;
    loop {
        let request = match requests {
            Requests::Same(request) => request,
            Requests::Each(all) => match all.get(next.fetch_add(1, Relaxed)) {
                Some(request) => request,
                None => return Ok(answers),
            },
        };
        let sent = Instant::now();
        if sent >= end {
            return Ok(answers);
        }
        if stream.is_none() {
            let fresh = TcpStream::connect(address).await?;
            fresh.set_nodelay(true)?;
            stream = Some(fresh);
        }
        let open = stream.as_mut().ok_or("not connected")?;
        open.write_all(request).await?;
        let answer = read_answer(open, &mut buffer).await?;
        if answer.status != 200 {
            return Err(format!("answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body)).into());
        }
        if answer.closes {
            stream = None;
        }
        let now = Instant::now();
        answers.push((now, now - sent));
    }
}

/// Reads one answer, which must say its length or end with the connection. Nothing may follow it.
pub async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Answer> {
    buffer.clear();
    let head_end = loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err("the connection was closed before an answer".into());
        }
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = std::str::from_utf8(&buffer[..head_end])?;
    let status = head.get(9..12).ok_or("no status")?.parse()?;
    let field = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let length: usize = field("content-length").ok_or("no Content-Length")?.parse()?;
    while buffer.len() < head_end + length {
        if stream.read_buf(buffer).await? == 0 {
            return Err("the connection was closed in an answer".into());
        }
    }
    Ok(Answer { status, body: buffer[head_end..].to_vec(), closes })
}
