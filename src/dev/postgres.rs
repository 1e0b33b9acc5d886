//! A Postgres of our own under the data directory, from the server programs that are installed.
//!
//! It listens on a unix socket in a directory that only its user and root can enter, and on no network at all, so it needs
//! no password. Three things stand in the way and are met here: Postgres refuses to run as root; the user it then runs as
//! may not be able to reach the data directory (below `/root`, say); and a unix socket's path has 107 bytes at most.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;

use super::account::{self, User};
use super::children::{Child, Children, Spec};
use super::{DevError, sockets, write_atomically};

/// The name of its record and log.
pub const NAME: &str = "postgres";

/// The socket's file name is fixed by the port, and the port is a number only: nothing listens on TCP.
const SOCKET: &str = ".s.PGSQL.5432";
const DATABASE: &str = "vbs";
/// Recovery after a crash may take a while before the server answers.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long what is left of a killed Postgres may hold the data directory.
const LET_GO: Duration = Duration::from_secs(20);
const INITDB_DEADLINE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Where Debian keeps the programs, each version in a directory of its own.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Names the directory elsewhere, when there is one.
const LOCATION: &str = "postgres.location";
/// Where data goes that the unprivileged user could not reach in the directory it was meant for.
const ELSEWHERE: &str = "/var/lib/vbs-dev";

/// A Postgres that answers.
#[derive(Debug)]
pub struct Postgres {
    /// What to connect to.
    pub url: String,
    children: Children,
    spec: Spec,
    socket_dir: PathBuf,
}

/// Takes over the Postgres of `dir`, or starts it, making its files first when there are none; returns when it answers.
/// `options` go to the server's command line, such as `-c fsync=off` for data that nobody will miss.
pub async fn start(dir: &Path, children: &Children, options: &[&str]) -> Result<Postgres, DevError> {
    let user = account::unprivileged()?;
    let home = home(dir, user)?;
    let data = home.join("data");
    let version = fs::read_to_string(data.join("PG_VERSION")).ok();
    let programs = Programs::find(version.as_deref(), std::env::var_os("PATH").as_deref(), Path::new(DEBIAN))?;
    if !data.exists() {
        initialise(&programs, &home, &data, user).await?;
    }
    // The data directory itself is as closed to others as the socket must be.
    let socket_dir = sockets::directory(&data, SOCKET.len(), user)?;
    let url = url(&socket_dir, DATABASE)?;

    let mut args: Vec<OsString> = vec!["-D".into(), data.clone().into(), "-k".into(), socket_dir.clone().into()];
    args.extend(
        ["-c", "listen_addresses=", "-c", "max_connections=200", "-c", "logging_collector=off"].map(Into::into),
    );
    args.extend(options.iter().map(Into::into));
    let program = programs.dir.join("postgres");
    let spec = Spec { name: NAME.into(), program, args, env: Vec::new(), user };
    let postgres = Postgres { url, children: children.clone(), spec, socket_dir };
    postgres.await_answer().await?;
    postgres.ensure_database().await?;
    Ok(postgres)
}

impl Postgres {
    /// Starts it again each time it ends. Returns only when that fails.
    pub async fn keep_running(&self) -> DevError {
        loop {
            let round = async {
                if let Some(child) = self.children.adopt(NAME)? {
                    child.exited().await?;
                }
                tracing::warn!("Postgres has ended, it is started again");
                self.await_answer().await
            };
            if let Err(error) = round.await {
                return error;
            }
        }
    }

    async fn await_answer(&self) -> Result<(), DevError> {
        let start = Instant::now();
        // It may run although no record says so: who listens on the socket in its data directory is it.
        let found = match (self.children.adopt(NAME)?, self.listener().await) {
            (Some(child), _) => Some(child),
            (None, Some(pid)) => Some(self.children.take_over(&self.spec, pid)?),
            (None, None) => None,
        };
        // One that was found may be just about to end, and says nothing of why.
        let mut fresh = found.is_none();
        let mut child = found.map_or_else(|| self.children.adopt_or_spawn(&self.spec), Ok)?;
        loop {
            let Err(error) = self.connect("postgres").await else { return Ok(()) };
            if ended_within(&child, Duration::from_millis(20)).await? {
                // One that an earlier run has just started holds the data directory's lock, and will answer soon.
                if let Some(pid) = self.listener().await.filter(|pid| *pid != child.pid) {
                    self.children.take_over(&self.spec, pid)?;
                    continue;
                }
                let words = self.children.last_words(NAME);
                if (is_held(&words) || !fresh) && start.elapsed() < LET_GO {
                    sleep(Duration::from_millis(200)).await;
                    child = self.children.adopt_or_spawn(&self.spec)?;
                    fresh = true;
                    continue;
                }
                return Err(DevError::new(format!("Postgres ended:\n{words}")));
            }
            if start.elapsed() > START_DEADLINE {
                let words = self.children.last_words(NAME);
                return Err(DevError::new(format!("Postgres does not answer: {error}\n{words}")));
            }
        }
    }

    /// The process that listens on the socket: unix(7), `SO_PEERCRED`.
    async fn listener(&self) -> Option<i32> {
        UnixStream::connect(self.socket_dir.join(SOCKET)).await.ok()?.peer_cred().ok()?.pid()
    }

    async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, DevError> {
        let url = url(&self.socket_dir, database)?;
        let connecting = timeout(Duration::from_secs(5), tokio_postgres::connect(&url, NoTls)).await;
        let connected = connecting.map_err(|_| DevError::new("Postgres does not answer in time"))?;
        let (client, connection) = connected.map_err(|e| DevError::new(format!("Postgres: {e}")))?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn ensure_database(&self) -> Result<(), DevError> {
        let failed = |e: tokio_postgres::Error| DevError::new(format!("Postgres: {e}"));
        let client = self.connect("postgres").await?;
        let there = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&DATABASE]).await;
        if there.map_err(failed)?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Whether Postgres has refused to start because of what is left of one that was killed: the first process until somebody has
/// taken note of its end, the others until they notice that the first is gone.
fn is_held(words: &str) -> bool {
    words.contains("\"postmaster.pid\" already exists") || words.contains("pre-existing shared memory block")
}

/// Ends the Postgres of `dir` by a fast shutdown: sessions are cut off, everything committed is kept.
pub async fn stop(dir: &Path, children: &Children) -> Result<(), DevError> {
    children.stop(NAME, Signal::INT, STOP_PATIENCE).await?;
    sockets::remove_if_elsewhere(&recorded_home(dir).join("data"));
    Ok(())
}

async fn ended_within(child: &Child, time: Duration) -> Result<bool, DevError> {
    timeout(time, child.exited()).await.map_or(Ok(false), |ended| ended.map(|()| true))
}

/// The directory of Postgres's files: `DIR/postgres`, or, where its user cannot reach that, one elsewhere that
/// `DIR/postgres.location` names.
fn home(dir: &Path, user: Option<User>) -> Result<PathBuf, DevError> {
    let known = recorded_home(dir);
    let home = match user {
        Some(user) if !known.exists() && !let_in(user, dir)? => {
            let elsewhere = Path::new(ELSEWHERE).join(uuid::Uuid::new_v4().to_string());
            tracing::info!(
                "{} is closed to the user that Postgres runs as: its data goes to {}",
                dir.display(),
                elsewhere.display()
            );
            make_dir(Path::new(ELSEWHERE), 0o755)?;
            write_atomically(&dir.join(LOCATION), elsewhere.to_string_lossy().as_bytes(), 0o600)?;
            elsewhere
        }
        _ => known,
    };
    make_dir(&home, 0o700)?;
    if let Some(user) = user {
        user.own(&home)?;
    }
    Ok(home)
}

/// Opens `dir` itself to the user's group, where that takes nothing from anybody, as with one made by `mktemp -d`; tells
/// whether the user can get there now. What is above is not ours to open.
fn let_in(user: User, dir: &Path) -> Result<bool, DevError> {
    let mode = fs::metadata(dir).map_err(|e| DevError::io(dir, &e))?.permissions().mode();
    if !user.may_enter(dir) && mode & 0o070 == 0 && dir.parent().is_some_and(|above| user.may_enter(above)) {
        std::os::unix::fs::chown(dir, None, Some(user.gid)).map_err(|e| DevError::io(dir, &e))?;
        let opened = fs::Permissions::from_mode(mode & 0o7777 | 0o010);
        fs::set_permissions(dir, opened).map_err(|e| DevError::io(dir, &e))?;
    }
    Ok(user.may_enter(dir))
}

/// Where the files are, when there are any.
fn recorded_home(dir: &Path) -> PathBuf {
    fs::read_to_string(dir.join(LOCATION)).map_or_else(|_| dir.join("postgres"), |text| text.trim_end().into())
}

fn make_dir(path: &Path, mode: u32) -> Result<(), DevError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|e| DevError::io(path, &e))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| DevError::io(path, &e))
}

/// Makes a cluster beside its place and moves it there whole, so that one half made by a run that was killed is never
/// taken for one.
async fn initialise(programs: &Programs, home: &Path, data: &Path, user: Option<User>) -> Result<(), DevError> {
    for entry in fs::read_dir(home).map_err(|e| DevError::io(home, &e))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("new-") {
            fs::remove_dir_all(entry.path()).map_err(|e| DevError::io(&entry.path(), &e))?;
        }
    }
    let new = home.join(format!("new-{}", uuid::Uuid::new_v4()));
    make_dir(&new, 0o700)?;
    let program = programs.dir.join("initdb");
    let mut command = Command::new(&program);
    command.arg("-D").arg(&new).args(["--auth=trust", "--no-locale", "--encoding=UTF8", "--username=vbs"]);
    command.env("LC_ALL", "C").stdin(std::process::Stdio::null()).kill_on_drop(true);
    if let Some(user) = user {
        user.own(&new)?;
        command.uid(user.uid).gid(user.gid).current_dir("/");
    }
    let output = timeout(INITDB_DEADLINE, command.output()).await;
    let output = output.map_err(|_| DevError::new("initdb takes too long"))?.map_err(|e| DevError::io(&program, &e))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(DevError::new(format!("initdb: {}: {}", output.status, words.trim_end())));
    }
    fs::rename(&new, data).map_err(|e| DevError::io(data, &e))
}

fn url(socket_dir: &Path, database: &str) -> Result<String, DevError> {
    let dir = socket_dir.to_str().ok_or_else(|| DevError::new(format!("{}: not UTF-8", socket_dir.display())))?;
    Ok(format!("postgres:///{database}?user=vbs&host={}", utf8_percent_encode(dir, NON_ALPHANUMERIC)))
}

/// The server's programs, all of one version.
struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Those of the version that made the data, which no other can read; else those in `path`, which is written as PATH is;
    /// else the newest in `debian`.
    fn find(version: Option<&str>, path: Option<&OsStr>, debian: &Path) -> Result<Self, DevError> {
        let mut candidates: Vec<PathBuf> = Vec::new();
        if let Some(version) = version {
            candidates.push(debian.join(version.trim_end()).join("bin"));
        }
        candidates.extend(path.iter().flat_map(std::env::split_paths));
        candidates.extend(newest_first(fs::read_dir(debian).into_iter().flatten().flatten().map(|e| e.path())));
        let complete = |dir: &PathBuf| dir.join("postgres").is_file() && dir.join("initdb").is_file();
        candidates.into_iter().find(complete).map(|dir| Self { dir }).ok_or_else(|| {
            DevError::new(
                "no Postgres server programs in PATH or /usr/lib/postgresql/*/bin: install them \
                 (Debian: apt-get install postgresql), or run scripts/setup",
            )
        })
    }
}

/// Orders directories that versions name by number, 15 before 9.6, and appends `bin`.
fn newest_first(versions: impl Iterator<Item = PathBuf>) -> impl Iterator<Item = PathBuf> {
    let mut found: Vec<(f64, PathBuf)> =
        versions.filter_map(|dir| Some((dir.file_name()?.to_str()?.parse().ok()?, dir.join("bin")))).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, bin)| bin)
}

/// `vbs postgres`: a Postgres in a temporary directory for as long as standard input stays open, without durability; for
/// tests. Prints its URL, and stops it, and removes everything, when the process at the other end of the pipe ends in
/// whatever way, or at SIGINT or SIGTERM.
pub async fn serve_until_stdin_closes() -> Result<(), DevError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |e: std::io::Error| DevError::new(format!("cannot wait for signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;

    let dir = std::env::temp_dir().join(format!("vbs-postgres-{}", uuid::Uuid::new_v4()));
    make_dir(&dir, 0o755)?;
    let children = Children::open(&dir)?;
    let forgetful = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"];
    let started = start(&dir, &children, &[&forgetful[..], &["-c", "max_connections=500"]].concat()).await;
    if let Ok(postgres) = &started {
        println!("{}", postgres.url);
        // A thread, and not tokio's stdin: at a signal nothing must wait for a read that never ends.
        let (closed, stdin_closed) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = closed.send(());
        });
        tokio::select! {
            _ = stdin_closed => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    // Nobody will miss the data: SIGQUIT, an immediate shutdown, spares the last checkpoint.
    children.stop(NAME, Signal::QUIT, STOP_PATIENCE).await?;
    fs::remove_dir_all(&dir).map_err(|e| DevError::io(&dir, &e))?;
    started.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_those_of_the_data_else_in_the_path_else_of_the_newest_version() {
        let dir = tempfile::tempdir().unwrap();
        let (debian, own) = (dir.path().join("postgresql"), dir.path().join("own"));
        let install = |bin: &Path, names: &[&str]| {
            fs::create_dir_all(bin).unwrap();
            for name in names {
                fs::write(bin.join(name), "").unwrap();
            }
        };
        let empty = dir.path().join("empty");
        install(&empty, &[]);
        let found = |version: Option<&str>, path: &[&PathBuf]| {
            let path = std::env::join_paths(path).unwrap();
            Programs::find(version, Some(&path), &debian).map(|programs| programs.dir)
        };
        let missing = found(None, &[&empty]).unwrap_err().to_string();
        assert!(missing.contains("apt-get install postgresql") && missing.contains("scripts/setup"), "{missing}");
        assert!(Programs::find(Some("15\n"), None, &debian).is_err());

        for version in ["9.6", "15", "17"] {
            install(&debian.join(version).join("bin"), &["initdb", "postgres"]);
        }
        // The clients alone, as postgresql-client leaves them; and what is no version.
        install(&debian.join("18/bin"), &["psql"]);
        install(&debian.join("common/bin"), &["initdb", "postgres"]);
        assert_eq!(found(None, &[&empty]).unwrap(), debian.join("17/bin"));
        assert_eq!(Programs::find(None, None, &debian).unwrap().dir, debian.join("17/bin"));
        assert_eq!(found(Some("15\n"), &[&empty]).unwrap(), debian.join("15/bin"));

        install(&own, &["postgres"]);
        assert_eq!(found(None, &[&empty, &own]).unwrap(), debian.join("17/bin"), "half of them is of no use");
        install(&own, &["initdb", "postgres"]);
        assert_eq!(found(None, &[&empty, &own]).unwrap(), own);
        assert_eq!(found(Some("15\n"), &[&own]).unwrap(), debian.join("15/bin"));
        assert_eq!(found(Some("14\n"), &[&own]).unwrap(), own);
    }

    #[tokio::test]
    async fn it_starts_is_taken_over_stops_and_keeps_its_data() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Long enough that the socket needs a directory elsewhere.
        let dir = dir.path().join("d".repeat(100));
        make_dir(&dir, 0o755).unwrap();
        let children = Children::open(&dir).unwrap();
        let first = start(&dir, &children, &[]).await.unwrap();
        first.connect(DATABASE).await.unwrap().batch_execute("CREATE TABLE kept (n int)").await.unwrap();
        let pid = children.adopt(NAME).unwrap().unwrap().pid;

        // The record is lost, as when the machine lost power; the server is not.
        fs::remove_file(dir.join("run/postgres.json")).unwrap();
        let second = start(&dir, &children, &[]).await.unwrap();
        assert_eq!(children.adopt(NAME).unwrap().unwrap().pid, pid);
        stop(&dir, &children).await.unwrap();
        assert!(children.adopt(NAME).unwrap().is_none());
        assert!(!second.socket_dir.exists());

        let third = start(&dir, &children, &[]).await.unwrap();
        third.connect(DATABASE).await.unwrap().batch_execute("SELECT * FROM kept").await.unwrap();
        stop(&dir, &children).await.unwrap();
    }
}
