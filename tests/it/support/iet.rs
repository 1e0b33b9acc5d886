//! An IET of a test's own: the double of `ietadm`, and what ietd does at a log-in.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use vbs::config;
use vbs::delegate::ExportSpec;

use super::example;

#[path = "ietadm.rs"]
#[expect(dead_code, reason = "its main is the program's")]
mod ietadm;
pub use ietadm::InUse;
use ietadm::State;

/// A running ietd.
pub struct Iet {
    dir: TempDir,
    /// Takes the connections.
    portal: TcpListener,
}

/// What an initiator is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogIn {
    Done,
    /// There is no such target, or it is not for this initiator.
    NotFound,
    /// The user or the secret is wrong.
    Unauthorized,
}

impl Iet {
    /// Starts one, without a file that says who may log in.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(example::built("ietadm-double"), dir.path().join("ietadm")).unwrap();
        State { running: true, ..State::default() }.write(dir.path());
        Self { dir, portal: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    /// What a storage node's configuration says of it.
    pub fn config(&self) -> config::Iet {
        config::Iet {
            portal: self.portal(),
            ietadm: self.dir.path().join("ietadm"),
            proc_dir: self.dir.path().to_owned(),
            initiators_allow: self.dir.path().join("initiators.allow"),
        }
    }

    /// Where it listens.
    pub fn portal(&self) -> SocketAddr {
        self.portal.local_addr().unwrap()
    }

    /// A storage node of files that it serves.
    pub fn storage(&self, data_dir: &Path) -> config::Storage {
        let target = config::Target::Iet(self.config());
        config::Storage { data_dir: data_dir.to_owned(), volumes: config::Volumes::File, target }
    }

    /// Runs `ietadm` past the driver. Gives its status.
    pub fn ietadm(&self, args: &[&str]) -> Option<i32> {
        Command::new(self.dir.path().join("ietadm")).args(args).output().unwrap().status.code()
    }

    /// What there is.
    pub fn state(&self) -> State {
        State::read(self.dir.path())
    }

    /// Writes what is no part of `ietadm`.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.write(self.dir.path());
    }

    /// Ends ietd, and starts it again when told: nothing is left.
    pub fn crash(&self, restarts: bool) {
        State { running: restarts, ..State::default() }.write(self.dir.path());
    }

    /// Writes the file of rules.
    pub fn allow(&self, text: &str) {
        std::fs::write(self.dir.path().join("initiators.allow"), text).unwrap();
    }

    /// Logs in, as far as ietd lets in.
    pub fn log_in(&self, spec: &ExportSpec) -> LogIn {
        let mut state = self.state();
        let Some(target) = state.targets.iter_mut().find(|target| target.name == spec.iqn) else {
            return LogIn::NotFound;
        };
        if !state.running || !self.lets_in(&spec.iqn, &spec.initiator_iqn) {
            return LogIn::NotFound;
        }
        // Without users everybody is believed.
        let given = (spec.chap_user.clone(), spec.chap_secret.0.clone());
        if !target.users.is_empty() && !target.users.contains(&given) {
            return LogIn::Unauthorized;
        }
        target.sessions.push(spec.initiator_iqn.clone());
        state.write(self.dir.path());
        LogIn::Done
    }

    /// Ends every session.
    pub fn log_out(&self) {
        self.change(|state| state.targets.iter_mut().for_each(|target| target.sessions.clear()));
    }

    fn lets_in(&self, iqn: &str, initiator: &str) -> bool {
        let decides = |file: &str| {
            let text = std::fs::read_to_string(self.dir.path().join(file)).ok()?;
            let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let mut rules = lines.filter_map(|line| line.split_once(char::is_whitespace));
            let rule = rules.find(|(name, _)| *name == "ALL" || name.eq_ignore_ascii_case(iqn));
            Some(rule.is_some_and(|(_, patterns)| patterns.split(',').any(|pattern| fits(pattern.trim(), initiator))))
        };
        match (decides("initiators.allow"), decides("initiators.deny")) {
            (allowed, Some(denied)) => !denied || allowed == Some(true),
            (allowed, None) => allowed.unwrap_or(true),
        }
    }
}

/// As much of regular expressions as the driver uses.
fn fits(pattern: &str, initiator: &str) -> bool {
    pattern == "ALL" || (!pattern.replace("\\.", "").contains('.') && pattern.replace("\\.", ".") == initiator)
}
