//! QEMU's machine protocol: one JSON text a line over a unix socket (QEMU manual, "QEMU Machine Protocol Specification").
//!
//! A monitor socket serves one client at a time. A second one is accepted by the kernel and hears nothing until the first
//! hangs up, so a connection is made for a verb, used and dropped; two delegate processes then merely queue. Events that
//! nobody is connected for are lost: callers ask for the state they wait for, and events are read past.
//!
//! Three failures that look alike must be told apart. A refused or missing socket means that no QEMU is there. Silence
//! means that it is there and does not answer (stopped by a debugger, or draining I/O to a target that is away). A refused
//! command means that it answers.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

/// The longest line taken from a monitor, in bytes; a list of block nodes is a few hundred bytes a node.
const MAX_LINE: u64 = 8 << 20;

/// Why a command has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens on the socket, or there is none: the machine is not running.
    #[error("the machine is not running")]
    NotRunning,
    /// No answer in time. Whether the command has been or will be carried out is unknown.
    #[error("no answer to {0} in time")]
    Silent(String),
    /// The connection broke, or what came over it is not QMP.
    #[error("{0}")]
    Broken(String),
    /// QEMU says no. The text is for people, but QEMU gives nothing else to tell the reasons apart.
    #[error("{command}: {text}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words (`desc`).
        text: String,
    },
}

impl QmpError {
    /// Whether QEMU refused with words that contain `text`.
    pub fn says(&self, text: &str) -> bool {
        matches!(self, Self::Refused { text: said, .. } if said.contains(text))
    }
}

/// A connection to one machine's monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    limit: Duration,
    last_id: u64,
}

impl Qmp {
    /// Connects, waits for the greeting and leaves negotiation mode. `limit` is the longest wait for the greeting, and
    /// then for each command.
    pub async fn connect(socket: &Path, limit: Duration) -> Result<Self, QmpError> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    return Err(QmpError::NotRunning);
                }
                // The queue of clients that wait for the monitor is full.
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(e) => return Err(QmpError::Broken(format!("cannot connect to the monitor: {e}"))),
            }
        };
        let mut qmp = Self { stream: BufReader::new(stream), limit, last_id: 0 };
        let greeting = qmp.line(end, "the connection").await?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Broken("the greeting is not QMP".into()));
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returns. After any error but [`QmpError::Refused`] the connection is of no
    /// more use.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let end = Instant::now() + self.limit;
        self.last_id += 1;
        let id = self.last_id;
        let mut text = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        text.push('\n');
        match timeout_at(end, self.stream.get_mut().write_all(text.as_bytes())).await {
            Err(_) => return Err(QmpError::Silent(command.into())),
            Ok(Err(e)) => return Err(QmpError::Broken(format!("{command}: {e}"))),
            Ok(Ok(())) => {}
        }
        loop {
            let answer = self.line(end, command).await?;
            if let Some(returned) = returned(command, id, answer)? {
                return Ok(returned);
            }
        }
    }

    async fn line(&mut self, end: Instant, what: &str) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(MAX_LINE);
        match timeout_at(end, bounded.read_until(b'\n', &mut line)).await {
            Err(_) => Err(QmpError::Silent(what.into())),
            Ok(Err(e)) => Err(QmpError::Broken(format!("{what}: {e}"))),
            Ok(Ok(_)) if line.last() != Some(&b'\n') => Err(QmpError::Broken(format!("{what}: the monitor hung up"))),
            Ok(Ok(_)) => serde_json::from_slice(&line)
                .map_err(|e| QmpError::Broken(format!("{what}: an answer is no JSON: {e}"))),
        }
    }
}

/// What a command returns by this answer; `None` when it is an event, and the answer is still to come.
pub(super) fn returned(command: &str, id: u64, mut answer: Value) -> Result<Option<Value>, QmpError> {
    if answer.get("id") != Some(&json!(id)) {
        // An error about text that QEMU could not read has no id either.
        if answer.get("event").is_some() {
            return Ok(None);
        }
        return Err(QmpError::Broken(format!("{command}: an answer to something else")));
    }
    if let Some(error) = answer.get("error") {
        let text = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
        return Err(QmpError::Refused { command: command.into(), text: text.to_owned() });
    }
    Ok(Some(answer.get_mut("return").map(Value::take).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::net::{UnixListener, UnixSocket};

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    /// A monitor that greets, gives one answer of the script for each command it gets, and hangs up.
    fn monitor(dir: &tempfile::TempDir, script: Vec<&'static str>) -> PathBuf {
        let path = dir.path().join("m.qmp");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.get_mut().write_all(GREETING.as_bytes()).await.unwrap();
            for answer in script {
                stream.read_line(&mut String::new()).await.unwrap();
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        });
        path
    }

    #[tokio::test]
    async fn events_are_read_past_and_a_refusal_keeps_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let socket = monitor(
            &dir,
            vec![
                "{\"return\": {}, \"id\": 1}\n",
                "{\"event\": \"STOP\", \"data\": {}}\n{\"return\": {\"status\": \"paused\"}, \"id\": 2}\n",
                "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"Node vol1 is in use\"}}\n",
            ],
        );
        let mut qmp = Qmp::connect(&socket, Duration::from_secs(5)).await.unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).await.unwrap()["status"], "paused");
        assert!(qmp.execute("blockdev-del", json!({})).await.unwrap_err().says("is in use"));
    }

    #[tokio::test]
    async fn a_machine_that_is_not_there_is_told_from_one_that_keeps_silent_or_hangs_up() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(50);
        let none = dir.path().join("none.qmp");
        assert_eq!(Qmp::connect(&none, limit).await.unwrap_err(), QmpError::NotRunning);

        let dead = dir.path().join("dead.qmp");
        // Bound, and never listening: a listener that is dropped lives on for a moment in whatever another test forks.
        let _socket = UnixSocket::new_stream().and_then(|socket| socket.bind(&dead).map(|()| socket)).unwrap();
        assert_eq!(Qmp::connect(&dead, limit).await.unwrap_err(), QmpError::NotRunning);

        let silent = dir.path().join("silent.qmp");
        let _listener = UnixListener::bind(&silent).unwrap();
        assert!(matches!(Qmp::connect(&silent, limit).await.unwrap_err(), QmpError::Silent(_)));

        let socket = monitor(&dir, vec!["{\"return\": {}, \"id\": 1}\n", "{\"retu"]);
        let mut qmp = Qmp::connect(&socket, Duration::from_secs(5)).await.unwrap();
        assert!(matches!(qmp.execute("stop", json!({})).await.unwrap_err(), QmpError::Broken(_)));
    }
}
