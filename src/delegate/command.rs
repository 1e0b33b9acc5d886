//! Programs that hang, babble, fail without a word, or show a secret in an error message.
//!
//! A [`Command`] is an argv, never a line for a shell. It runs with `LC_ALL=C` and next to no environment, without input,
//! in a process group of its own that is killed when the time-out strikes, and what it prints is kept up to a bound.
//! Arguments marked secret are left out of Debug, logs and errors. (They are still on the program's own command line, where
//! every user of the node can read them; that is the program's doing, see [`super::target::tgt`].)

use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::DelegateError;

/// What a program may print on one stream, in bytes. `tgtadm --op show` prints about 1,300 a target.
const MOST_OUTPUT: u64 = 16 << 20;

/// How much of stderr an error quotes, in bytes.
const LAST_WORDS: usize = 300;

/// Where programs are looked for; users other than root often lack the `sbin` directories in theirs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Clone)]
struct Arg {
    text: OsString,
    secret: bool,
}

/// A program with its arguments.
#[derive(Clone)]
pub struct Command {
    program: String,
    args: Vec<Arg>,
    env: Vec<(String, OsString)>,
    timeout: Duration,
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
#[error("{command}: {reason}{}", last_words(stderr))]
pub struct Failure {
    command: String,
    /// How it ended.
    pub reason: Reason,
    /// What it said on stderr; not UTF-8 is replaced.
    pub stderr: String,
}

/// How a program that failed ended.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It could not be started, or its output could not be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It was killed for running longer than this.
    #[error("no end after {0:?}")]
    TimedOut(Duration),
    /// It was killed for printing more than is ever right.
    #[error("printed more than {MOST_OUTPUT} bytes")]
    TooMuch,
    /// It ended with another status than 0.
    #[error("{0}")]
    Status(ExitStatus),
}

impl Command {
    /// A program, looked for in the usual directories, that gets ten seconds.
    pub fn new(program: &str) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new(), timeout: Duration::from_secs(10) }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, text: impl Into<OsString>) -> Self {
        self.args.push(Arg { text: text.into(), secret: false });
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<OsString>>(self, texts: impl IntoIterator<Item = T>) -> Self {
        texts.into_iter().fold(self, Self::arg)
    }

    /// Adds an argument that no error and no log may show.
    #[must_use]
    pub fn secret(mut self, text: impl Into<OsString>) -> Self {
        self.args.push(Arg { text: text.into(), secret: true });
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets how long it may run.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end and gives what it printed on stdout, when it ended with status 0.
    pub async fn run(&self) -> Result<String, Failure> {
        let started = Instant::now();
        let mut stderr = Vec::new();
        let result = self.run_inner(&mut stderr).await;
        let took_ms = started.elapsed().as_millis();
        match result {
            Ok(stdout) => {
                tracing::debug!(command = ?self, took_ms, "ran");
                Ok(stdout)
            }
            Err(reason) => {
                let stderr = self.redact(String::from_utf8_lossy(&stderr).into_owned());
                let failure = Failure { command: format!("{self:?}"), reason, stderr };
                tracing::debug!(%failure, took_ms, "command failed");
                Err(failure)
            }
        }
    }

    async fn run_inner(&self, stderr: &mut Vec<u8>) -> Result<String, Reason> {
        let mut child = tokio::process::Command::new(&self.program)
            .args(self.args.iter().map(|arg| &arg.text))
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let mut stdout = Vec::new();
        let work = async {
            tokio::try_join!(capture(out, &mut stdout), capture(err, stderr))?;
            Ok(child.wait().await?)
        };
        let ended = tokio::time::timeout(self.timeout, work).await.unwrap_or(Err(Reason::TimedOut(self.timeout)));
        match ended {
            Ok(status) if status.success() => Ok(String::from_utf8_lossy(&stdout).into_owned()),
            Ok(status) => Err(Reason::Status(status)),
            Err(reason) => {
                kill_group(group);
                Err(reason)
            }
        }
    }

    /// Takes the secrets out of what the program said: some repeat their arguments.
    fn redact(&self, mut text: String) -> String {
        for arg in self.args.iter().filter(|arg| arg.secret && !arg.text.is_empty()) {
            text = text.replace(&*arg.text.to_string_lossy(), "<secret>");
        }
        text
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.program)?;
        for arg in &self.args {
            if arg.secret {
                f.write_str(" <secret>")?;
            } else {
                write!(f, " {}", arg.text.to_string_lossy().escape_debug())?;
            }
        }
        Ok(())
    }
}

impl Failure {
    /// The exit status, when the program ended by itself.
    pub fn code(&self) -> Option<i32> {
        match &self.reason {
            Reason::Status(status) => status.code(),
            _ => None,
        }
    }
}

/// A command that failed is worth another try, unless the caller knows what its words mean.
impl From<Failure> for DelegateError {
    fn from(failure: Failure) -> Self {
        Self::retry(failure.to_string())
    }
}

/// Reads a stream to its end, or to one byte more than it may have.
async fn capture(stream: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> Result<(), Reason> {
    let Some(stream) = stream else { return Ok(()) };
    stream.take(MOST_OUTPUT + 1).read_to_end(into).await?;
    if into.len() as u64 > MOST_OUTPUT { Err(Reason::TooMuch) } else { Ok(()) }
}

/// Kills the program and what it has started. The child has not been waited for, so the id cannot be another's.
fn kill_group(group: Option<u32>) {
    let pid = group.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in between, which is as good.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

fn last_words(stderr: &str) -> String {
    let text = stderr.trim();
    let from = (text.len().saturating_sub(LAST_WORDS)..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    if text.is_empty() { String::new() } else { format!(": {}", text[from..].escape_debug()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_names_the_program_its_status_and_its_last_words_but_no_secret() {
        let failure = Command::new("ls").arg("--").secret("/no/such-hush").run().await.unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.code(), Some(2));
        assert!(text.starts_with("ls -- <secret>: exit status: 2: "), "{text}");
        assert!(text.contains("No such file or directory") && !text.contains("hush"), "{text}");
        assert!(!format!("{failure:?}").contains("hush"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let started = Instant::now();
        // `timeout` moves its child out of no group: both are ours to kill.
        let hang =
            Command::new("timeout").args(["--foreground", "60", "sleep", "60"]).timeout(Duration::from_millis(200));
        let failure = hang.run().await.unwrap_err();
        assert!(matches!(failure.reason, Reason::TimedOut(_)), "{failure}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn a_program_that_babbles_is_stopped() {
        let failure = Command::new("yes").run().await.unwrap_err();
        assert!(matches!(failure.reason, Reason::TooMuch), "{failure}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error_and_the_environment_is_bare() {
        assert!(matches!(Command::new("vbs-no-such-program").run().await.unwrap_err().reason, Reason::Io(_)));
        let printed = Command::new("env").env("VBS_TEST", "1").run().await.unwrap();
        let mut lines: Vec<_> = printed.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C", &format!("PATH={PATH}"), "VBS_TEST=1"]);
    }
}
