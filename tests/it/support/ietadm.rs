//! A double of `ietadm`, the IET daemon and its kernel part in one program that keeps its state in the directory it is
//! started from: what the command line does, what it says and with what status it ends are those of the real one (1.4.19, and where
//! others were seen to differ, theirs), the silent failures and the traps with them. Nobody can log in to it; `iet.rs` plays that part.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// All there is, newest target first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// Whether ietd runs.
    pub running: bool,
    /// The targets.
    pub targets: Vec<Target>,
    /// After so many commands from now all others fail and do nothing, as for a driver that was killed.
    #[serde(default)]
    pub dies_after: Option<usize>,
    /// Whether what is done is said to have failed.
    #[serde(default)]
    pub lies: bool,
    /// What it does when a target is to go that somebody is logged in to.
    #[serde(default)]
    pub in_use: InUse,
}

/// What releases do with a target in use that is to be deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InUse {
    /// 1.4.19 says that it is busy.
    #[default]
    Busy,
    /// Others say what they say of nearly everything.
    NotPermitted,
    /// In the last source there is ietd ends, and all targets with it.
    Dies,
}

/// A target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Its number.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Its units.
    pub units: Vec<Unit>,
    /// CHAP users with their secrets.
    pub users: Vec<(String, String)>,
    /// The initiators that are logged in.
    pub sessions: Vec<String>,
    /// One that logs in when the target is to be deleted, just before that.
    #[serde(default)]
    pub comes: Option<String>,
}

/// A logical unit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unit {
    /// Its number.
    pub lun: u32,
    /// The file behind it.
    pub path: String,
    /// `fileio` or `blockio`.
    pub kind: String,
    /// Its serial number.
    pub serial: String,
}

impl State {
    /// Reads what was kept in the directory.
    pub(crate) fn read(dir: &Path) -> Self {
        serde_json::from_slice(&std::fs::read(dir.join("state")).unwrap()).unwrap()
    }

    /// Keeps it, and shows it as the kernel does.
    pub(crate) fn write(&self, dir: &Path) {
        let (mut volume, mut session) = (Vec::new(), Vec::new());
        for Target { tid, name, units, sessions, .. } in &self.targets {
            let head = format!("tid:{tid} name:{name}\n");
            volume.push(head.clone());
            session.push(head);
            volume.extend(units.iter().map(|Unit { lun, kind, path, .. }| {
                format!("\tlun:{lun} state:0 iotype:{kind} iomode:wt blocks:2048 blocksize:512 path:{path}\n")
            }));
            session.extend(sessions.iter().zip(1..).map(|(initiator, sid)| {
                let connection = "\t\tcid:0 ip:127.0.0.1 state:active hd:none dd:none\n";
                format!("\tsid:{sid} initiator:{initiator}\n{connection}")
            }));
        }
        let state = serde_json::to_string(self).unwrap();
        for (name, text) in [("state", state), ("volume", volume.concat()), ("session", session.concat())] {
            std::fs::write(dir.join("new"), text).unwrap();
            std::fs::rename(dir.join("new"), dir.join(name)).unwrap();
        }
    }

    fn target(&mut self, tid: u32) -> Option<&mut Target> {
        self.targets.iter_mut().find(|target| target.tid == tid)
    }
}

/// A status, and what is said on stderr.
type Refusal = (i32, &'static str);

const PERMITTED: Refusal = (255, "Operation not permitted.\n");
const INVALID: Refusal = (234, "Invalid argument.\n");
const SILENT: Refusal = (234, "");
const ABSENT: Refusal = (254, "No such file or directory.\n");
const BUSY: Refusal = (240, "Device or resource busy.\n");
const AWAY: Refusal = (145, "Connection refused.\n");
const BROKEN: Refusal = (251, "Input/output error.\n");

/// A command line.
#[derive(Default)]
struct Args {
    op: String,
    tid: Option<u32>,
    lun: Option<u32>,
    user: bool,
    params: Option<String>,
}

impl Args {
    fn read(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let mut args = Self::default();
        while let Some(word) = words.next() {
            let (key, value) =
                word.split_once('=').map_or((word.clone(), None), |(k, v)| (k.into(), Some(v.to_owned())));
            if key == "--user" {
                args.user = true;
                continue;
            }
            let value = value.or_else(|| words.next())?;
            match key.as_str() {
                "--op" => args.op = value,
                "--tid" => args.tid = Some(value.parse().unwrap_or(0)),
                "--lun" => args.lun = Some(value.parse().unwrap_or(0)),
                "--params" => args.params = Some(value),
                _ => return None,
            }
        }
        ["new", "delete", "update", "show"].contains(&args.op.as_str()).then_some(args)
    }

    fn param(&self, key: &str) -> Option<String> {
        let params = self.params.as_deref()?.split(',').filter_map(|param| param.split_once('='));
        params.filter(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.to_owned()).next()
    }
}

fn main() {
    let mut words = std::env::args();
    let dir = PathBuf::from(words.next().unwrap()).parent().unwrap().to_owned();
    let Some(args) = Args::read(words) else { end((255, "Try `ietadm --help' for more information.\n")) };
    let mut state = State::read(&dir);
    match &mut state.dies_after {
        Some(0) => end(PERMITTED),
        Some(left) => *left -= 1,
        None => {}
    }
    let done = run(&mut state, &args);
    state.write(&dir);
    match done {
        Ok(said) => {
            print!("{said}");
            if state.lies && !args.user {
                end(PERMITTED);
            }
        }
        Err(refusal) => end(refusal),
    }
}

fn end((status, said): Refusal) -> ! {
    eprint!("{said}");
    std::process::exit(status)
}

fn run(state: &mut State, args: &Args) -> Result<String, Refusal> {
    if args.user {
        return user(state, args);
    }
    if let Some(lun) = args.lun {
        return unit(state, args, lun);
    }
    if !state.running {
        return Err(AWAY);
    }
    match (args.op.as_str(), args.tid) {
        // Everything stops, and showing everything is not safe either.
        ("delete" | "show", None) => *state = State::default(),
        (_, None) => {}
        ("new", Some(tid)) => new_target(state, args, tid)?,
        ("delete", Some(tid)) => {
            let in_use = state.in_use;
            let target = state.target(tid).ok_or(ABSENT)?;
            let comes = target.comes.take();
            target.sessions.extend(comes);
            if !target.sessions.is_empty() {
                return Err(match in_use {
                    InUse::Busy => BUSY,
                    InUse::NotPermitted => PERMITTED,
                    InUse::Dies => {
                        *state = State::default();
                        BROKEN
                    }
                });
            }
            state.targets.retain(|target| target.tid != tid);
        }
        (_, Some(tid)) => drop(state.target(tid).ok_or(PERMITTED)?),
    }
    Ok(String::new())
}

fn new_target(state: &mut State, args: &Args, tid: u32) -> Result<(), Refusal> {
    let name = args.params.as_deref().and_then(|params| params.strip_prefix("Name=")).ok_or(SILENT)?;
    if state.targets.iter().any(|target| target.name.eq_ignore_ascii_case(name)) {
        return Err(INVALID);
    }
    let next = state.targets.iter().map(|target| target.tid).max().unwrap_or(0) + 1;
    let tid = if tid == 0 { next } else { tid };
    if state.target(tid).is_some() {
        return Err(PERMITTED);
    }
    let target = Target { tid, name: name.to_owned(), units: vec![], users: vec![], sessions: vec![], comes: None };
    state.targets.insert(0, target);
    Ok(())
}

fn unit(state: &mut State, args: &Args, lun: u32) -> Result<String, Refusal> {
    if args.op == "update" {
        return Err((234, "Unsupported.\n"));
    }
    let tid = args.tid.ok_or(SILENT)?;
    if args.op == "new" && args.params.is_none() {
        // It reads what is not there.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::SEGV).unwrap();
    }
    if !state.running {
        return Err(AWAY);
    }
    let target = state.target(tid).ok_or(PERMITTED)?;
    let there = target.units.iter().position(|unit| unit.lun == lun);
    match args.op.as_str() {
        "new" => {
            let path = args.param("Path").filter(|path| Path::new(path).exists()).ok_or(PERMITTED)?;
            let kind = args.param("Type").unwrap_or_else(|| "fileio".into());
            let serial = args.param("ScsiSN").unwrap_or_default();
            let id = args.param("ScsiId").unwrap_or_default();
            // It takes 16 bytes of a serial number as well, and a kernel that checks lengths stops when that is asked for.
            if there.is_some() || serial.len() > 15 || id.len() > 16 || !["fileio", "blockio"].contains(&kind.as_str())
            {
                return Err(PERMITTED);
            }
            target.units.push(Unit { lun, path, kind, serial });
        }
        // Also under a session.
        "delete" => drop(target.units.remove(there.ok_or(PERMITTED)?)),
        _ => {}
    }
    Ok(String::new())
}

fn user(state: &mut State, args: &Args) -> Result<String, Refusal> {
    let name = args.param("IncomingUser");
    if args.op == "update" {
        eprintln!("Unsupported");
        return Ok(String::new());
    }
    if args.op == "new" && (name.is_none() || args.param("Password").is_none()) {
        return Err((234, "Username and password must be specified\n"));
    }
    if args.op == "delete" && name.is_none() {
        return Err((234, "Username must be specified\n"));
    }
    if !state.running {
        return Err(AWAY);
    }
    let mut none = Vec::new();
    let tid = args.tid.unwrap_or(0);
    // A user of a target that is not there is taken, and of no use.
    let users = state.target(tid).map_or(&mut none, |target| &mut target.users);
    let at = users.iter().position(|(user, _)| Some(user) == name.as_ref());
    let line = |(user, secret): &(String, String), shown: bool| {
        if shown { format!("IncomingUser {user} {secret}\n") } else { format!("IncomingUser {user}\n") }
    };
    match (args.op.as_str(), name) {
        ("new", Some(name)) => users.insert(0, (name, args.param("Password").unwrap_or_default())),
        ("delete", _) => drop(users.remove(at.ok_or(ABSENT)?)),
        (_, Some(_)) => return Ok(line(&users[at.ok_or(ABSENT)?], true)),
        (_, None) => return Ok(users.iter().map(|user| line(user, false)).collect()),
    }
    Ok(String::new())
}
