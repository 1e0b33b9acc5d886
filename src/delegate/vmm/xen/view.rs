//! One look at everything a decision rests on: xenstore, the node's sessions, and what the kernel itself serves to domains.
//!
//! A disk of ours is known by what is behind it: the device of a session with its target, or a path with the target's name.
//! The kernel's own list is asked beside xenstore, because a domain that dies slowly (a zombie) can hold a device that
//! xenstore no longer tells of, and because a forced detach takes the nodes away first and the device after.

use super::store::{Domain, Store, Vbd};
use crate::delegate::vmm::open_iscsi::sysfs::{Backend, Session};
use crate::delegate::{DelegateError, Result, target};
use crate::delegate::{MachineRef, ObservedDisk, ObservedMachine, ObservedSession};

/// What was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) domains: Vec<Domain>,
    pub(super) vbds: Vec<Vbd>,
    pub(super) sessions: Vec<Session>,
    pub(super) backends: Vec<Backend>,
}

/// A use of a target's disk by a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) domain: u32,
    pub(super) vdev: u32,
    /// What xenstore tells of it.
    pub(super) vbd: Option<Vbd>,
}

impl View {
    pub(super) fn new(store: &Store, sessions: Vec<Session>, backends: Vec<Backend>) -> Self {
        Self { domains: store.domains(), vbds: store.vbds(), sessions, backends }
    }

    /// The machine that is meant, by its uuid. One that only has the name is another (Fatal).
    pub(super) fn machine(&self, meant: &MachineRef) -> Result<&Domain> {
        if let Some(domain) = self.find(meant) {
            return Ok(domain);
        }
        let MachineRef { name, uuid } = meant;
        Err(if self.domains.iter().any(|domain| domain.name == *name) {
            DelegateError::fatal(format!("machine {name} is another one than that of uuid {uuid}"))
        } else {
            DelegateError::retry(format!("machine {name} does not run here"))
        })
    }

    /// The machine that is meant, if it runs. While one moves or is saved, two have its uuid.
    pub(super) fn find(&self, meant: &MachineRef) -> Option<&Domain> {
        let mut same = self.domains.iter().filter(|domain| domain.uuid == meant.uuid);
        same.clone().find(|domain| domain.name == meant.name).or_else(|| same.next())
    }

    pub(super) fn domain(&self, id: u32) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.id == id)
    }

    /// Every use of a target's disk.
    pub(super) fn uses(&self, iqn: &str) -> Vec<Use> {
        let blocks: Vec<_> = self.sessions.iter().filter(|s| s.iqn == iqn).flat_map(Session::blocks).collect();
        let infix = format!("-iscsi-{iqn}-lun-");
        let behind = |vbd: &&Vbd| {
            let by_number = blocks.iter().any(|block| vbd.number == Some(block.number));
            let by_name = blocks.iter().any(|block| vbd.params.rsplit('/').next() == Some(&block.name));
            // A name alone is believed only as long as no number says otherwise.
            by_number || vbd.params.contains(&infix) || (vbd.number.is_none() && by_name)
        };
        let stored = self.vbds.iter().filter(behind);
        let mut uses: Vec<Use> =
            stored.map(|vbd| Use { domain: vbd.domain, vdev: vbd.vdev, vbd: Some(vbd.clone()) }).collect();
        for backend in &self.backends {
            let known = uses.iter().any(|u| (u.domain, u.vdev) == (backend.domain, backend.vdev));
            if !known && blocks.iter().any(|block| backend.number == Some(block.number)) {
                uses.push(Use { domain: backend.domain, vdev: backend.vdev, vbd: None });
            }
        }
        uses
    }

    /// The targets of ours that this node is logged in to.
    pub(super) fn targets(&self) -> Vec<ObservedSession> {
        let mut targets: Vec<ObservedSession> = Vec::new();
        for session in &self.sessions {
            let Some(volume) = target::volume_of(&session.iqn) else { continue };
            if targets.iter().all(|known| known.iqn != session.iqn) {
                targets.push(ObservedSession { volume, iqn: session.iqn.clone() });
            }
        }
        targets
    }

    /// The machines, with the disks of ours that each has. `made_for` tells the machine that a log-in was made for; `paused`,
    /// which of them rest.
    pub(super) fn machines(
        &self,
        made_for: impl Fn(&str) -> Option<MachineRef>,
        paused: impl Fn(&MachineRef) -> bool,
    ) -> Vec<ObservedMachine> {
        let targets = self.targets();
        let of = |domain: &Domain| {
            let disk = |target: &ObservedSession| {
                let uses = self.uses(&target.iqn);
                let has = uses.iter().any(|u| u.domain == domain.id);
                let meant = uses.is_empty() && made_for(&target.iqn).is_some_and(|machine| machine.uuid == domain.uuid);
                let held = |u: &Use| u.domain == domain.id && u.vbd.as_ref().is_some_and(Vbd::held);
                let attached = uses.iter().any(held);
                let (volume, iqn) = (target.volume.clone(), target.iqn.clone());
                (has || meant).then_some(ObservedDisk { volume, iqn, attached })
            };
            ObservedMachine {
                name: domain.name.clone(),
                uuid: domain.uuid.clone(),
                running: true,
                paused: paused(&MachineRef { name: domain.name.clone(), uuid: domain.uuid.clone() }),
                started_at: domain.started_at,
                vcpus: domain.vcpus,
                memory_mib: domain.memory_mib,
                disks: targets.iter().filter_map(disk).collect(),
            }
        };
        self.domains.iter().map(of).collect()
    }
}
