//! Child processes that may outlive us.
//!
//! When `vbs dev` is killed outright, its Postgres, its tgtd and its guests run on, with the user's data behind them. The
//! next `vbs dev` on the same directory must take those over, and neither start a second set beside them nor touch a
//! stranger that happens to have the same name or number. So each child is known by what cannot be mistaken: its process
//! id together with its start time and the boot it is of, kept in `DIR/run/NAME.json`. A record is written *before* the
//! child is started, with a token that the child carries in its environment: if we die between the start and the second
//! record, which has the number, the token finds the child.
//!
//! Signals go through a pidfd that was checked against the start time, so a number that was given to another process in
//! the meantime is never signalled.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::DevError;
use super::account::User;

/// The environment variable that carries the token.
const TOKEN: &str = "VBS_CHILD";

/// The children of one data directory.
#[derive(Debug, Clone)]
pub struct Children {
    run_dir: PathBuf,
    log_dir: PathBuf,
}

/// A child to start, by argument vector; no shell ever sees it.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The name of its record and of its log file: letters, digits, `-`.
    pub name: String,
    /// The program's path.
    pub program: PathBuf,
    /// The arguments after the program's name.
    pub args: Vec<OsString>,
    /// Environment variables on top of ours.
    pub env: Vec<(String, OsString)>,
    /// The user to run as, when not ourselves.
    pub user: Option<User>,
}

/// A child that runs, or did a moment ago.
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: i32,
    /// Whether it was running already.
    pub adopted: bool,
    pidfd: AsyncFd<OwnedFd>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    program: PathBuf,
    token: String,
    boot: String,
    process: Option<Process>,
}

/// What tells a process from every other one of the same boot: the number, and when it started in clock ticks (field 22
/// of proc(5)'s `/proc/PID/stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    pid: i32,
    start_time: u64,
}

impl Children {
    /// Makes `DIR/run` and `DIR/log`.
    pub fn open(dir: &Path) -> Result<Self, DevError> {
        let children = Self { run_dir: dir.join("run"), log_dir: dir.join("log") };
        for dir in [&children.run_dir, &children.log_dir] {
            fs::create_dir_all(dir).map_err(|e| DevError::io(dir, &e))?;
        }
        Ok(children)
    }

    /// The file that a child's output is appended to.
    pub fn log(&self, name: &str) -> PathBuf {
        self.log_dir.join(format!("{name}.log"))
    }

    /// The names that there are records of, dead or alive.
    pub fn names(&self) -> Result<Vec<String>, DevError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.run_dir).map_err(|e| DevError::io(&self.run_dir, &e))? {
            let path = entry.map_err(|e| DevError::io(&self.run_dir, &e))?.path();
            if path.extension() == Some(OsStr::new("json"))
                && let Some(name) = path.file_stem().and_then(OsStr::to_str)
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The child of that name, if one is running.
    pub fn adopt(&self, name: &str) -> Result<Option<Child>, DevError> {
        let path = self.record_path(name);
        let Some(mut record) = read_record(&path)? else { return Ok(None) };
        if record.boot != boot_id()? {
            return Ok(None);
        }
        if record.process.is_none() {
            record.process = find_by_token(&record.token)?;
            if record.process.is_some() {
                write_record(&path, &record)?;
            }
        }
        record.process.map_or(Ok(None), |process| open(process, true))
    }

    /// Takes over the child of that name when it runs, or starts it.
    pub fn adopt_or_spawn(&self, spec: &Spec) -> Result<Child, DevError> {
        match self.adopt(&spec.name)? {
            Some(child) => Ok(child),
            None => self.spawn(spec),
        }
    }

    /// Records a process that was found by other means, such as the peer of its socket, as the child of that name.
    pub fn take_over(&self, spec: &Spec, pid: i32) -> Result<Child, DevError> {
        let gone = || DevError::new(format!("{}: process {pid} is gone", spec.name));
        let process = Process { pid, start_time: start_time(pid).ok_or_else(gone)? };
        let record = Record { process: Some(process), ..Record::intent(spec)? };
        write_record(&self.record_path(&spec.name), &record)?;
        open(process, true)?.ok_or_else(gone)
    }

    fn spawn(&self, spec: &Spec) -> Result<Child, DevError> {
        let path = self.record_path(&spec.name);
        let mut record = Record::intent(spec)?;
        write_record(&path, &record)?;
        let log_path = self.log(&spec.name);
        let log = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
        let log = log.map_err(|e| DevError::io(&log_path, &e))?;
        let mut command = tokio::process::Command::new(&spec.program);
        command
            .args(&spec.args)
            .env("LC_ALL", "C")
            .env(TOKEN, &record.token)
            .envs(spec.env.iter().map(|(k, v)| (k, v)))
            // Ctrl-C goes to the terminal's process group: it is we who stop the children, in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| DevError::io(&log_path, &e))?)
            .stderr(log);
        if let Some(user) = &spec.user {
            command.uid(user.uid).gid(user.gid).current_dir("/");
        }
        let mut started = command.spawn().map_err(|e| DevError::io(&spec.program, &e))?;
        let died = || DevError::new(format!("{}: ended at once, see {}", spec.program.display(), log_path.display()));
        let pid = started.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(died)?;
        // Not reaped before `started` is waited for, so even a child that is dead by now has a start time and a pidfd.
        let process = Process { pid, start_time: start_time_of_any(pid).ok_or_else(died)? };
        record.process = Some(process);
        let written = write_record(&path, &record);
        let pidfd = pidfd(pid);
        tokio::spawn(async move { started.wait().await });
        written?;
        Ok(Child { pid, adopted: false, pidfd: pidfd?.ok_or_else(died)? })
    }

    /// Ends the child of that name, if one is running: the signal, time to obey it, then SIGKILL. Returns when it is gone.
    pub async fn stop(&self, name: &str, how: Signal, patience: Duration) -> Result<(), DevError> {
        if let Some(child) = self.adopt(name)? {
            child.signal(how)?;
            if tokio::time::timeout(patience, child.exited()).await.is_err() {
                tracing::warn!(name, pid = child.pid, "does not stop when asked, killed");
                child.signal(Signal::KILL)?;
                child.exited().await?;
            }
        }
        let path = self.record_path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DevError::io(&path, &e)),
            _ => Ok(()),
        }
    }

    /// The end of a child's log, for an error message.
    pub fn last_words(&self, name: &str) -> String {
        let text = fs::read(self.log(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.run_dir.join(format!("{name}.json"))
    }
}

impl Child {
    /// Sends a signal; a child that is gone already is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), DevError> {
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(DevError::new(format!("cannot signal process {}: {e}", self.pid))),
        }
    }

    /// Waits until it has ended.
    pub async fn exited(&self) -> Result<(), DevError> {
        // pidfd_open(2): a pidfd becomes readable when its process terminates.
        self.pidfd.readable().await.map(drop).map_err(|e| DevError::new(format!("process {}: {e}", self.pid)))
    }
}

impl Record {
    fn intent(spec: &Spec) -> Result<Self, DevError> {
        let token = uuid::Uuid::new_v4().to_string();
        Ok(Self { program: spec.program.clone(), token, boot: boot_id()?, process: None })
    }
}

/// Opens a process that was seen once, when it still is the one that was seen.
fn open(process: Process, adopted: bool) -> Result<Option<Child>, DevError> {
    let Some(pidfd) = pidfd(process.pid)? else { return Ok(None) };
    // Looked at after the pidfd is open: from here on the number cannot come to mean another process unnoticed.
    if start_time(process.pid) != Some(process.start_time) {
        return Ok(None);
    }
    Ok(Some(Child { pid: process.pid, adopted, pidfd }))
}

#[expect(deprecated, reason = "its replacement is unsafe for types that may change their descriptor; OwnedFd cannot")]
fn pidfd(pid: i32) -> Result<Option<AsyncFd<OwnedFd>>, DevError> {
    let failed = |e: io::Error| DevError::new(format!("cannot watch process {pid}: {e}"));
    let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(raw, PidfdFlags::NONBLOCK) {
        Ok(fd) => AsyncFd::with_interest(fd, Interest::READABLE).map(Some).map_err(failed),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(e) => Err(failed(e.into())),
    }
}

/// The start time of a process that lives; one that is dead but not yet reaped does not.
fn start_time(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?).filter(|s| s.alive).map(|s| s.start_time)
}

fn start_time_of_any(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?).map(|s| s.start_time)
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    alive: bool,
    parent: i32,
    start_time: u64,
}

/// Reads proc(5)'s `stat`: the name, field 2, may itself hold spaces and parentheses, so the fields count from the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let alive = !matches!(*fields.first()?, "Z" | "X");
    Some(Stat { alive, parent: fields.get(1)?.parse().ok()?, start_time: fields.get(19)?.parse().ok()? })
}

/// Looks for the process that was started with the token, among those whose environment we may read. Its own children
/// have inherited the token; it is the one whose parent has not got it.
fn find_by_token(token: &str) -> Result<Option<Process>, DevError> {
    let wanted = format!("{TOKEN}={token}");
    let mut found: Vec<(Process, i32)> = Vec::new();
    for entry in fs::read_dir("/proc").map_err(|e| DevError::io(Path::new("/proc"), &e))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(environ) = fs::read(entry.path().join("environ")) else { continue };
        if !environ.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes()) {
            continue;
        }
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(stat) = parse_stat(&stat).filter(|s| s.alive) {
            found.push((Process { pid, start_time: stat.start_time }, stat.parent));
        }
    }
    let first = found.iter().find(|(_, parent)| !found.iter().any(|(other, _)| other.pid == *parent));
    Ok(first.map(|(process, _)| *process))
}

fn boot_id() -> Result<String, DevError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path).map(|text| text.trim_end().to_owned()).map_err(|e| DevError::io(path, &e))
}

fn read_record(path: &Path) -> Result<Option<Record>, DevError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(DevError::io(path, &e)),
    };
    // A record is renamed into place whole, so this is no half-written one: better to stop than to start a second child.
    serde_json::from_slice(&bytes).map(Some).map_err(|e| DevError::new(format!("{}: {e}", path.display())))
}

fn write_record(path: &Path, record: &Record) -> Result<(), DevError> {
    let text = serde_json::to_vec(record).map_err(|e| DevError::new(format!("{}: {e}", path.display())))?;
    super::write_atomically(path, &text, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, program: &str, args: &[&str]) -> Spec {
        Spec {
            name: name.into(),
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            env: Vec::new(),
            user: None,
        }
    }

    #[test]
    fn a_process_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let rest = "S 7 3 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 9 9";
        let stat = parse_stat(&format!("12 (a) Z 1 (b) {rest}")).unwrap();
        assert_eq!(stat, Stat { alive: true, parent: 7, start_time: 98765 });
        assert_eq!(parse_stat("12 (cut"), None);
    }

    #[tokio::test]
    async fn a_running_child_is_taken_over_and_a_dead_one_is_started_anew() {
        let dir = tempfile::tempdir().unwrap();
        let children = Children::open(dir.path()).unwrap();
        let spec = spec("sleeper", "sleep", &["600"]);
        let first = children.adopt_or_spawn(&spec).unwrap();
        assert!(!first.adopted);
        let second = Children::open(dir.path()).unwrap().adopt_or_spawn(&spec).unwrap();
        assert!(second.adopted);
        assert_eq!(first.pid, second.pid);
        second.signal(Signal::KILL).unwrap();
        first.exited().await.unwrap();
        let third = children.adopt_or_spawn(&spec).unwrap();
        assert!(!third.adopted);
        children.stop("sleeper", Signal::TERM, Duration::from_secs(5)).await.unwrap();
        assert!(children.adopt("sleeper").unwrap().is_none());
        assert!(children.names().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_child_whose_number_was_not_yet_recorded_is_found_by_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let children = Children::open(dir.path()).unwrap();
        let child = children.adopt_or_spawn(&spec("lost", "sleep", &["600"])).unwrap();
        let path = children.record_path("lost");
        let record = read_record(&path).unwrap().unwrap();
        write_record(&path, &Record { process: None, ..record }).unwrap();
        assert_eq!(children.adopt("lost").unwrap().unwrap().pid, child.pid);
        children.stop("lost", Signal::TERM, Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn another_process_with_the_recorded_number_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let children = Children::open(dir.path()).unwrap();
        let mut stranger = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let pid = i32::try_from(stranger.id().unwrap()).unwrap();
        let process = Process { pid, start_time: start_time(pid).unwrap() - 1 };
        let record = Record { process: Some(process), ..Record::intent(&spec("old", "sleep", &[])).unwrap() };
        write_record(&children.record_path("old"), &record).unwrap();
        children.stop("old", Signal::KILL, Duration::from_secs(5)).await.unwrap();
        assert_eq!(stranger.try_wait().unwrap(), None);
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_polite_signal_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let children = Children::open(dir.path()).unwrap();
        // SIGCHLD is ignored by default: it stands for a signal that the child does not obey.
        let child = children.adopt_or_spawn(&spec("deaf", "sleep", &["600"])).unwrap();
        children.stop("deaf", Signal::CHILD, Duration::from_millis(50)).await.unwrap();
        child.exited().await.unwrap();
    }
}
