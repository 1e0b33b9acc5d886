//! One connection: hyper drives the protocol, and this file holds the client to its times.
//!
//! hyper's own header time-out cannot tell a client that is silent between requests from one that sends its headers a byte
//! a minute, and arms a timer for every request. Here the stream is watched instead: each event notes what is waited for now
//! and since when, and one timer a connection looks at the note. In the normal course of a request no timer is touched.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::crowd::{Crowd, Member};
use super::exchange::MAX_DISCARDED;
use super::{Handler, Limits, Stage, exchange};

/// The most bytes a connection buffers, in each direction; headers must fit, and a target alone may have 64 KiB.
const MAX_BUFFER: usize = 128 << 10;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// For the rest of a request's headers.
    Head,
    /// For a request's body, which has a time-out of its own, since it ends with an answer.
    Body,
    /// For us.
    Serving,
    /// For the client to take the answer.
    Answering,
    /// For the client to send another request.
    Idle,
}

/// The note of what is waited for, and since when. Written by the connection's task alone; whoever needs a place reads it.
pub(super) struct Clock {
    start: Instant,
    limits: Limits,
    phase: AtomicU8,
    since_us: AtomicU64,
}

impl Clock {
    pub(super) fn new(limits: Limits) -> Self {
        let phase = AtomicU8::new(Phase::Head as u8);
        Self { start: Instant::now(), limits, phase, since_us: AtomicU64::new(0) }
    }

    pub(super) fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.since_us.store(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// When the client's time is over; never while it is our turn.
    fn due(&self) -> Option<Instant> {
        let limit = match self.phase.load(Relaxed) {
            p if p == Phase::Serving as u8 || p == Phase::Body as u8 => return None,
            p if p == Phase::Idle as u8 => self.limits.idle,
            _ => self.limits.read,
        };
        Some(self.since() + limit)
    }

    /// Since when it is the client's turn; `None` while it is ours.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        (!self.is(Phase::Serving)).then(|| self.since())
    }

    fn since(&self) -> Instant {
        self.start + Duration::from_micros(self.since_us.load(Relaxed))
    }
}

/// A stream that notes when a request begins to come and when an answer is gone.
///
/// What hyper itself answers, to a head that it cannot read, has no body. It is replaced by an answer of the handler, in the
/// role's own format.
struct Watched<'a, S, H> {
    stream: S,
    clock: &'a Clock,
    handler: &'a H,
    /// The rest of an answer that replaces one of hyper's.
    own: Option<Bytes>,
    /// How many bytes have been read and thrown away after it.
    discarded: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin, H: Handler> Watched<'_, S, H> {
    /// Whether hyper writes without having been told to: no request is being served or answered.
    fn is_hypers_own(&self) -> bool {
        self.own.is_some() || self.clock.is(Phase::Head) || self.clock.is(Phase::Idle)
    }

    fn replace(&mut self, head: &[u8]) {
        if self.own.is_none() {
            self.clock.enter(Phase::Answering);
            self.own = Some(exchange::refuse_unread(self.handler, head));
        }
    }

    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.own.as_mut().filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => rest.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what the client is still sending: a socket that is closed before takes the answer along.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [MaybeUninit::uninit(); 8 << 10];
        while self.discarded < MAX_DISCARDED {
            let mut buf = ReadBuf::uninit(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                break;
            }
            self.discarded += buf.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin, H> AsyncRead for Watched<'_, S, H>
where
    Self: Unpin,
{
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before && self.clock.is(Phase::Idle) {
            self.clock.enter(Phase::Head);
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, H: Handler> AsyncWrite for Watched<'_, S, H> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_hypers_own() {
            self.replace(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        // hyper flushes the stream only once all it had to write is written.
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if result.is_ready() && self.own.is_none() && self.clock.is(Phase::Answering) {
            self.clock.enter(Phase::Idle);
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        if self.own.is_some() { self.poll_discard(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_hypers_own() {
            self.replace(bufs.first().map_or(&[], |buf| buf));
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Serves a connection until either side ends it, a time is over, its place is needed, or the server stops. The request that is
/// being served then is answered first.
pub(super) async fn run<S, H>(
    stream: S,
    peer: SocketAddr,
    handler: &H,
    crowd: &Crowd,
    member: &Member,
    mut stage: watch::Receiver<Stage>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let (clock, limits) = (&member.clock, crowd.limits());
    // After a TLS handshake it is still the client's turn, with time of its own.
    clock.enter(Phase::Head);
    let told = &stage.clone();
    let service = service_fn(move |request| async move {
        Ok::<_, Infallible>(exchange::run(handler, crowd, clock, peer, request, told).await)
    });
    let io = TokioIo::new(Watched { stream, clock, handler, own: None, discarded: 0 });
    // The clock above replaces the header time-out.
    let mut http = http1::Builder::new();
    http.header_read_timeout(None).max_buf_size(MAX_BUFFER);
    let mut connection = pin!(http.serve_connection(io, service));
    let mut timer = pin!(tokio::time::sleep(limits.read.min(limits.idle)));
    let mut stop = pin!(async move { stage.wait_for(|stage| *stage == Stage::Stopped).await.is_ok() });
    let mut leave = pin!(member.leave.notified());
    let (mut stopping, mut leaving) = (false, false);
    let ended = poll_fn(|cx| {
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        // Only now: what the client has sent meanwhile has been looked at.
        if !leaving && leave.as_mut().poll(cx).is_ready() {
            if clock.waits_since().is_some() {
                return Poll::Ready(None);
            }
            leaving = true;
            connection.as_mut().graceful_shutdown();
        }
        if clock.due().is_some_and(|due| due < timer.deadline()) {
            timer.as_mut().reset(clock.due().unwrap_or_else(Instant::now));
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            match clock.due() {
                Some(due) if due <= now => return Poll::Ready(None),
                Some(due) => timer.as_mut().reset(due),
                None => timer.as_mut().reset(now + limits.read.max(Duration::from_secs(1))),
            }
        }
        Poll::Pending
    })
    .await;
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%peer, %error, "a connection broke"),
        None => tracing::debug!(%peer, "a connection is closed, its client took too long or its place is needed"),
    }
}
