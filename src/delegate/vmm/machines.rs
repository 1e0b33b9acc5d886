//! The machines of a node: every `NAME.qmp` socket in one directory is one.
//!
//! A name reaches us over the network and becomes part of a path and of an initiator's name, so it is checked first.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::qmp::{Qmp, QmpError};
use crate::delegate::{DelegateError, Result};

/// What the name of a machine's socket ends in.
const SUFFIX: &str = ".qmp";

/// Whether a machine may be called this: 1 to 32 of `a-z`, `0-9` and `-`.
pub(super) fn is_name(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// The directory of monitor sockets, and whose turn it is at each.
#[derive(Debug)]
pub(super) struct Machines {
    dir: PathBuf,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The right to talk to one machine; nobody else of this process does while it lives.
pub(super) struct Turn {
    socket: PathBuf,
    _turn: OwnedMutexGuard<()>,
}

impl Machines {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, turns: Mutex::default() }
    }

    /// The names of the machines that have a socket, in order. Whether anybody listens is another question.
    pub(super) async fn names(&self) -> Result<Vec<String>> {
        let cannot = |e: std::io::Error| DelegateError::retry(format!("cannot list {}: {e}", self.dir.display()));
        let mut names = Vec::new();
        let mut entries = tokio::fs::read_dir(&self.dir).await.map_err(cannot)?;
        while let Some(entry) = entries.next_entry().await.map_err(cannot)? {
            let file = entry.file_name();
            if let Some(name) = file.to_str().and_then(|f| f.strip_suffix(SUFFIX)).filter(|n| is_name(n)) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The socket of a machine, which need not exist.
    pub(super) fn socket(&self, machine: &str) -> Result<PathBuf> {
        if is_name(machine) {
            Ok(self.dir.join(format!("{machine}{SUFFIX}")))
        } else {
            Err(DelegateError::fatal("not the name of a machine: 1 to 32 of a-z, 0-9 and - are expected"))
        }
    }

    /// Waits for our turn at a machine.
    pub(super) async fn turn(&self, machine: &str) -> Result<Turn> {
        let socket = self.socket(machine)?;
        let lock = Arc::clone(
            self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(machine.to_owned()).or_default(),
        );
        Ok(Turn { socket, _turn: lock.lock_owned().await })
    }
}

impl Turn {
    /// Connects to the machine's monitor.
    pub(super) async fn connect(&self, limit: Duration) -> std::result::Result<Qmp, QmpError> {
        Qmp::connect(&self.socket, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_well_formed_names_with_a_socket_are_machines() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["vm-2.qmp", "vm-1.qmp", "vm-1.log", "UP.qmp", ".qmp", "a b.qmp"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let machines = Machines::new(dir.path().to_owned());
        assert_eq!(machines.names().await.unwrap(), ["vm-1", "vm-2"]);
        for name in ["", "../etc", "a/b", "vm.1", &"a".repeat(33)] {
            assert!(machines.socket(name).is_err(), "{name:?}");
        }
    }
}
