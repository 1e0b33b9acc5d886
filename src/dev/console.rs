//! Runs commands in a test guest, over the unix socket behind its serial line.
//!
//! The line is a plain stream of bytes that outlives its clients: an earlier client may have gone in the middle of a command.
//! So each command carries a token that no other has, and everything before its answer is somebody else's. What the guest
//! does with a line is in `guest_image/init.sh`.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The longest command, in bytes.
const MAX_COMMAND: usize = 2000;
/// The longest output that is taken, in bytes.
const MAX_OUTPUT: usize = 4 << 20;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The command cannot be sent: it is empty, too long or of more than one line.
    #[error("a command for a guest is one line of 1 to {MAX_COMMAND} bytes")]
    Command,
    /// The socket is not there or broke.
    #[error("the guest's serial line: {0}")]
    Line(#[from] std::io::Error),
    /// No answer in time.
    #[error("the guest has not answered in time")]
    Silent,
    /// More than [`MAX_OUTPUT`] bytes came.
    #[error("the guest says too much")]
    TooMuch,
}

/// Runs `command` by the guest's shell and returns what it printed, both streams in one, and its exit status. In the guest
/// too it is ended after `limit`, in whole seconds.
///
/// # Errors
/// See [`ConsoleError`]. After [`ConsoleError::Silent`] the command may still run.
pub async fn run(socket: &Path, command: &str, limit: Duration) -> Result<(String, i32), ConsoleError> {
    if command.trim().is_empty() || command.len() > MAX_COMMAND || command.contains(['\n', '\r', '\0']) {
        return Err(ConsoleError::Command);
    }
    timeout(limit, ask(socket, command, limit.as_secs().max(1))).await.unwrap_or(Err(ConsoleError::Silent))
}

async fn ask(socket: &Path, command: &str, seconds: u64) -> Result<(String, i32), ConsoleError> {
    let token = format!("t{:016x}", rand::random::<u64>());
    let mut line = UnixStream::connect(socket).await?;
    // The line end in front ends what a client before us may have left unfinished.
    line.write_all(format!("\n{token} {seconds} {command}\n").as_bytes()).await?;
    let mut heard = Vec::new();
    loop {
        if line.read_buf(&mut heard).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        if let Some(answer) = answer(&String::from_utf8_lossy(&heard), &token) {
            return Ok(answer);
        }
        if heard.len() > MAX_OUTPUT {
            return Err(ConsoleError::TooMuch);
        }
    }
}

/// The output and status, once the end marker is there.
fn answer(heard: &str, token: &str) -> Option<(String, i32)> {
    let (output, rest) = heard.split_once(&format!("\n{token} done "))?;
    let (status, _) = rest.split_once('\n')?;
    // An earlier command that was still running has ended first, with a marker of its own.
    let earlier = output.rmatch_indices(" done ").find_map(|(at, marker)| {
        let start = output[..at].rfind('\n')? + 1;
        let word = &output[start..at];
        let ours = word.len() == token.len() && word.starts_with('t') && !word.contains(' ');
        ours.then(|| output[at + marker.len()..].find('\n').map(|end| at + marker.len() + end + 1))?
    });
    Some((output[earlier.unwrap_or(0)..].to_owned(), status.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_stands_between_the_last_marker_and_ours() {
        let token = "t0000000000000001";
        assert_eq!(answer("/dev/vda\n\nt0000000000000001 done 0", token), None);
        assert_eq!(answer("/dev/vda\n\nt0000000000000001 done 0\n", token), Some(("/dev/vda\n".into(), 0)));
        let late = "late\n\nt0000000000000000 done 143\nall done now\n\nt0000000000000001 done 7\n";
        assert_eq!(answer(late, token), Some(("all done now\n".into(), 7)));
    }

    #[tokio::test]
    async fn a_command_that_is_not_one_line_is_not_sent() {
        for command in ["", " ", "a\nb", "a\0"] {
            let refused = run(Path::new("/nowhere"), command, Duration::from_secs(1)).await;
            assert!(matches!(refused, Err(ConsoleError::Command)), "{command:?}");
        }
    }
}
