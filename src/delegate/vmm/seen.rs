//! What was last seen of each machine, so that one that is off or does not answer is still reported.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::qmp::QmpError;
use crate::delegate::ObservedMachine;

/// How long a machine without a socket is reported as stopped, in seconds.
const KEEP_S: i64 = 7 * 24 * 3600;

/// The machines by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Seen(BTreeMap<String, Known>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    #[serde(flatten)]
    machine: ObservedMachine,
    /// Since when it has no socket, seconds since 1970.
    #[serde(default)]
    gone_since: Option<i64>,
}

/// What came of looking at a machine that has a socket.
pub(super) type Look = (String, Result<ObservedMachine, QmpError>);

impl Seen {
    /// Takes in one look at every machine that has a socket.
    pub(super) fn update(&mut self, looks: Vec<Look>, now: i64) {
        for (name, known) in &mut self.0 {
            if looks.iter().any(|(there, _)| there == name) {
                known.gone_since = None;
            } else {
                known.stop();
                known.gone_since.get_or_insert(now);
            }
        }
        let mut live = Vec::new();
        for (name, look) in looks {
            match look {
                Ok(machine) => live.push(machine),
                Err(QmpError::NotRunning) => drop(self.0.get_mut(&name).map(Known::stop)),
                Err(e) => tracing::warn!(machine = name, error = %e, "a machine does not answer"),
            }
        }
        for machine in live {
            // What is off under another name is this machine, before it was renamed.
            self.0.retain(|_, known| known.machine.running || known.machine.uuid != machine.uuid);
            self.0.insert(machine.name.clone(), Known { machine, gone_since: None });
        }
        self.0.retain(|_, known| known.gone_since.is_none_or(|since| now - since < KEEP_S));
    }

    /// All of them.
    pub(super) fn machines(&self) -> Vec<ObservedMachine> {
        self.0.values().map(|known| known.machine.clone()).collect()
    }
}

impl Known {
    fn stop(&mut self) {
        self.machine.running = false;
        self.machine.paused = false;
        self.machine.disks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str, uuid: &str) -> Look {
        let machine = ObservedMachine {
            name: name.into(),
            uuid: uuid.into(),
            running: true,
            paused: false,
            started_at: 1,
            vcpus: 1,
            memory_mib: 128,
            disks: vec![],
        };
        (name.into(), Ok(machine))
    }

    fn names(seen: &Seen) -> Vec<(String, bool)> {
        seen.machines().into_iter().map(|machine| (machine.name, machine.running)).collect()
    }

    #[test]
    fn a_renamed_machine_is_reported_once_under_its_new_name() {
        for (old, new) in [("a", "b"), ("b", "a")] {
            for socket_stays in [true, false] {
                let mut seen = Seen::default();
                seen.update(vec![machine(old, "u1"), machine("c", "u2")], 0);
                let mut looks = vec![machine(new, "u1"), machine("c", "u2")];
                if socket_stays {
                    looks.push((old.into(), Err(QmpError::NotRunning)));
                }
                seen.update(looks, 1);
                assert_eq!(names(&seen), [(new.to_owned(), true), ("c".to_owned(), true)]);
            }
        }
    }

    #[test]
    fn a_machine_without_a_socket_is_off_for_a_week_and_then_forgotten() {
        let mut seen = Seen::default();
        seen.update(vec![machine("a", "u1"), machine("b", "u2")], 0);
        let mut kept: Seen = serde_json::from_str(&serde_json::to_string(&seen).unwrap()).unwrap();
        assert_eq!(kept, seen);
        let silent = || vec![("a".to_owned(), Err(QmpError::Silent("query-status".into())))];
        for now in [10, KEEP_S, KEEP_S + 9] {
            kept.update(silent(), now);
            assert_eq!(names(&kept), [("a".to_owned(), true), ("b".to_owned(), false)]);
        }
        kept.update(silent(), KEEP_S + 10);
        assert_eq!(names(&kept), [("a".to_owned(), true)]);
    }
}
