//! The simulated hypervisor node. As with QEMU, the initiator is a part of the machine, unless the cloud is told otherwise.

use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Disk, Machine, Rest, SimCloud, State};
use crate::delegate::{
    ConnectSpec, DelegateError, Detach, DiskSpec, ErrorKind, Generation, Growth, Limits, MachineRef, ObservedDisk,
    ObservedMachine, ObservedSession, Pause, PauseSpec, Result, VmmDelegate, VmmObservation,
};
use crate::ids::{SnapshotId, VolumeId};

/// A hypervisor node of a [`SimCloud`].
#[derive(Clone)]
pub struct SimVmm {
    pub(super) cloud: SimCloud,
    pub(super) node: String,
}

impl SimVmm {
    /// Calls on a machine that runs here; `None` when it is off or gone.
    async fn on_machine<T>(
        &self,
        verb: &'static str,
        meant: &MachineRef,
        effect: impl FnOnce(Option<&mut Machine>) -> Result<T> + Send,
    ) -> Result<T> {
        self.cloud.call(verb, |state| effect(find(state, &self.node, meant).ok())).await
    }
}

/// The machine that is meant, when it runs.
fn find<'a>(state: &'a mut State, node: &str, meant: &MachineRef) -> Result<&'a mut Machine> {
    let name = &meant.name;
    let machine = state.vmms.get_mut(node).and_then(|machines| machines.get_mut(name));
    let machine = machine.filter(|machine| machine.running);
    let machine = machine.ok_or_else(|| DelegateError::retry(format!("the machine {name} does not run here")))?;
    if machine.uuid == meant.uuid {
        Ok(machine)
    } else {
        Err(DelegateError::fatal(format!("the machine {name} is another one: {}", machine.uuid)))
    }
}

/// The name that the initiator of a machine, or of a node, logs in with.
pub(super) fn initiator_of(machine: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    format!("iqn.2026-01.sim:{}", machine.chars().map(allowed).collect::<String>())
}

fn key(spec: &PauseSpec) -> (VolumeId, SnapshotId) {
    (spec.disk.volume.clone(), spec.snapshot.clone())
}

/// What the target would say to this log-in. A cloud with no storage node in it has its targets in other processes; there is
/// nothing to ask then.
fn log_in(state: &State, spec: &ConnectSpec, initiator: &str) -> Result<()> {
    if state.storages.is_empty() {
        return Ok(());
    }
    let served = state.storages.iter().filter(|(node, _)| spec.portal.address == format!("{node}.sim:3260"));
    let Some(export) = served.flat_map(|(_, node)| node.exports.values()).find(|export| export.iqn == spec.export.iqn)
    else {
        return Err(DelegateError::retry(format!("no target {} at {}", spec.export.iqn, spec.portal.address)));
    };
    if export.initiator_iqn != initiator {
        return Err(DelegateError::retry(format!("the target {} does not know {initiator}", export.iqn)));
    }
    if (&export.chap_user, &export.chap_secret) != (&spec.export.chap_user, &spec.export.chap_secret) {
        let message = format!("the target {} refuses the user {} or its secret", export.iqn, spec.export.chap_user);
        return Err(DelegateError { kind: ErrorKind::Retry, message });
    }
    Ok(())
}

#[async_trait]
impl VmmDelegate for SimVmm {
    async fn initiator_iqn(&self, machine: &str) -> Result<String> {
        let name = |state: &mut State| Ok(initiator_of(if state.nodes_log_in { &self.node } else { machine }));
        self.cloud.call("initiator_iqn", name).await
    }

    async fn ensure_connected(&self, _: Generation, spec: &ConnectSpec) -> Result<()> {
        let connect = |state: &mut State| {
            let initiator = initiator_of(if state.nodes_log_in { &self.node } else { &spec.machine.name });
            let machine = find(state, &self.node, &spec.machine)?;
            match machine.disks.get(&spec.export.volume) {
                Some(disk) if disk.iqn == spec.export.iqn => return Ok(()),
                Some(disk) => return Err(DelegateError::retry(format!("still logged in to {}", disk.iqn))),
                None => {}
            }
            if state.left.remove(&(self.node.clone(), spec.export.iqn.clone())).is_none() {
                log_in(state, spec, &initiator)?;
            }
            let disk = Disk { iqn: spec.export.iqn.clone(), initiator, attached: false, limits: Limits::default() };
            let machine = find(state, &self.node, &spec.machine)?;
            machine.disks.insert(spec.export.volume.clone(), disk);
            Ok(())
        };
        self.cloud.call("ensure_connected", connect).await
    }

    async fn ensure_disconnected(&self, _: Generation, spec: &DiskSpec) -> Result<()> {
        let disconnect = |state: &mut State| {
            state.left.remove(&(self.node.clone(), spec.iqn.clone()));
            let Ok(machine) = find(state, &self.node, &spec.machine) else { return Ok(()) };
            let Some(disk) = machine.disks.get(&spec.volume).filter(|disk| disk.iqn == spec.iqn) else { return Ok(()) };
            if disk.attached {
                return Err(DelegateError::retry(format!("{} still has {}", spec.machine.name, spec.volume)));
            }
            machine.disks.remove(&spec.volume);
            Ok(())
        };
        self.cloud.call("ensure_disconnected", disconnect).await
    }

    async fn ensure_attached(&self, _: Generation, spec: &DiskSpec) -> Result<()> {
        let attach = |state: &mut State| {
            let machine = find(state, &self.node, &spec.machine)?;
            let disk = machine.disks.get_mut(&spec.volume).filter(|disk| disk.iqn == spec.iqn);
            let disk = disk.ok_or_else(|| DelegateError::retry(format!("not logged in to {}", spec.iqn)))?;
            (disk.attached, disk.limits) = (true, spec.limits);
            Ok(())
        };
        self.cloud.call("ensure_attached", attach).await
    }

    async fn ensure_detached(&self, _: Generation, spec: &DiskSpec, force: bool) -> Result<Detach> {
        let detach = |machine: Option<&mut Machine>| {
            let Some(machine) = machine else { return Ok(Detach::Gone) };
            let held = machine.holds_on || machine.is_paused();
            match machine.disks.get_mut(&spec.volume).filter(|disk| disk.attached && disk.iqn == spec.iqn) {
                Some(_) if held && !force => Ok(Detach::Busy),
                Some(disk) => {
                    disk.attached = false;
                    Ok(Detach::Gone)
                }
                None => Ok(Detach::Gone),
            }
        };
        self.on_machine("ensure_detached", &spec.machine, detach).await
    }

    async fn ensure_grown(&self, _: Generation, spec: &DiskSpec, _: u64) -> Result<Growth> {
        let grow = |machine: Option<&mut Machine>| {
            let disk = machine.and_then(|machine| machine.disks.get_mut(&spec.volume));
            let Some(disk) = disk.filter(|disk| disk.attached && disk.iqn == spec.iqn) else {
                return Ok(Growth::AtNextAttach);
            };
            disk.limits = spec.limits;
            Ok(Growth::Online)
        };
        self.on_machine("ensure_grown_disk", &spec.machine, grow).await
    }

    async fn ensure_paused(&self, generation: Generation, spec: &PauseSpec) -> Result<()> {
        let pause = |state: &mut State| {
            let machine = find(state, &self.node, &spec.disk.machine)?;
            let (key, now) = (key(spec), Instant::now());
            match machine.pauses.get(&key) {
                Some(rest) if rest.generation > generation => {
                    return Err(DelegateError::stale(rest.generation, generation));
                }
                Some(rest) if rest.generation == generation && rest.until <= now => {
                    machine.pauses.remove(&key);
                    return Err(DelegateError::retry("the pause has run out"));
                }
                _ => {}
            }
            machine.pauses.insert(key, Rest { generation, until: now + Duration::from_secs(spec.seconds.into()) });
            Ok(())
        };
        self.cloud.call("ensure_paused", pause).await
    }

    async fn ensure_resumed(&self, generation: Generation, spec: &PauseSpec) -> Result<Pause> {
        let resume = |machine: Option<&mut Machine>| {
            let Some(machine) = machine else { return Ok(Pause::Broken) };
            let own = |rest: &Rest| rest.generation <= generation;
            let ended = machine.pauses.get(&key(spec)).is_some_and(own).then(|| machine.pauses.remove(&key(spec)));
            let held = |rest: Rest| rest.generation == generation && rest.until > Instant::now();
            Ok(if ended.flatten().is_some_and(held) { Pause::Held } else { Pause::Broken })
        };
        self.on_machine("ensure_resumed", &spec.disk.machine, resume).await
    }

    async fn observe(&self) -> Result<VmmObservation> {
        let observe = |state: &mut State| {
            let left = state.left.iter().filter(|((node, _), _)| *node == self.node);
            let sessions = left
                .map(|((_, iqn), log_in)| ObservedSession { volume: log_in.volume.clone(), iqn: iqn.clone() })
                .collect();
            let machines = state.vmms.get(&self.node).into_iter().flatten();
            let machines = machines.map(|(name, machine)| ObservedMachine {
                name: name.clone(),
                uuid: machine.uuid.clone(),
                running: machine.running,
                paused: machine.is_paused(),
                started_at: machine.started_at,
                vcpus: 1,
                memory_mib: 128,
                disks: machine
                    .disks
                    .iter()
                    .map(|(volume, disk)| ObservedDisk {
                        volume: volume.clone(),
                        iqn: disk.iqn.clone(),
                        attached: disk.attached,
                    })
                    .collect(),
            });
            Ok(VmmObservation { machines: machines.collect(), sessions, drivers: vec!["sim".into()] })
        };
        self.cloud.call("observe_vmm", observe).await
    }
}
