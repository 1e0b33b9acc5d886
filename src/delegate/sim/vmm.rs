//! The simulated hypervisor node. As with QEMU, the initiator is a part of the machine.

use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Disk, Machine, SimCloud, State};
use crate::delegate::{
    ConnectSpec, DelegateError, Detach, DiskSpec, ErrorKind, Generation, ObservedDisk, ObservedMachine, Pause, Result,
    VmmDelegate, VmmObservation,
};

/// A hypervisor node of a [`SimCloud`].
#[derive(Clone)]
pub struct SimVmm {
    pub(super) cloud: SimCloud,
    pub(super) node: String,
}

impl SimVmm {
    /// Calls on a machine of the node that runs; `None` when there is none, or when it is off.
    async fn on_machine<T>(
        &self,
        verb: &'static str,
        name: &str,
        effect: impl FnOnce(Option<&mut Machine>) -> Result<T> + Send,
    ) -> Result<T> {
        self.cloud.call(verb, |state| effect(running(state, &self.node, name))).await
    }
}

fn running<'a>(state: &'a mut State, node: &str, name: &str) -> Option<&'a mut Machine> {
    state.vmms.get_mut(node)?.get_mut(name).filter(|machine| machine.running)
}

fn off(name: &str) -> DelegateError {
    DelegateError::retry(format!("the machine {name} does not run here"))
}

/// The name that a machine's initiator logs in with.
fn initiator_of(machine: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    format!("iqn.2026-01.sim:{}", machine.chars().map(allowed).collect::<String>())
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
        self.on_machine("initiator_iqn", machine, |_| Ok(initiator_of(machine))).await
    }

    async fn ensure_connected(&self, _: Generation, spec: &ConnectSpec) -> Result<()> {
        let connect = |state: &mut State| {
            let initiator = initiator_of(&spec.machine);
            let machine = running(state, &self.node, &spec.machine).ok_or_else(|| off(&spec.machine))?;
            match machine.disks.get(&spec.export.volume) {
                Some(disk) if disk.iqn == spec.export.iqn => return Ok(()),
                Some(disk) => return Err(DelegateError::retry(format!("still logged in to {}", disk.iqn))),
                None => {}
            }
            log_in(state, spec, &initiator)?;
            let disk = Disk { iqn: spec.export.iqn.clone(), initiator, attached: false };
            let machine = running(state, &self.node, &spec.machine).ok_or_else(|| off(&spec.machine))?;
            machine.disks.insert(spec.export.volume.clone(), disk);
            Ok(())
        };
        self.cloud.call("ensure_connected", connect).await
    }

    async fn ensure_disconnected(&self, _: Generation, spec: &DiskSpec) -> Result<()> {
        let disconnect = |machine: Option<&mut Machine>| {
            let Some(machine) = machine else { return Ok(()) };
            if machine.disks.get(&spec.volume).is_some_and(|disk| disk.attached) {
                return Err(DelegateError::retry(format!("{} still has {}", spec.machine, spec.volume)));
            }
            machine.disks.remove(&spec.volume);
            Ok(())
        };
        self.on_machine("ensure_disconnected", &spec.machine, disconnect).await
    }

    async fn ensure_attached(&self, _: Generation, spec: &DiskSpec) -> Result<()> {
        let attach = |machine: Option<&mut Machine>| {
            let machine = machine.ok_or_else(|| off(&spec.machine))?;
            let disk = machine.disks.get_mut(&spec.volume).filter(|disk| disk.iqn == spec.iqn);
            let disk = disk.ok_or_else(|| DelegateError::retry(format!("not logged in to {}", spec.iqn)))?;
            disk.attached = true;
            Ok(())
        };
        self.on_machine("ensure_attached", &spec.machine, attach).await
    }

    async fn ensure_detached(&self, _: Generation, spec: &DiskSpec, force: bool) -> Result<Detach> {
        let detach = |machine: Option<&mut Machine>| {
            let Some(machine) = machine else { return Ok(Detach::Gone) };
            let held = machine.holds_on || machine.is_paused();
            match machine.disks.get_mut(&spec.volume).filter(|disk| disk.attached) {
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

    async fn ensure_paused(&self, _: Generation, spec: &DiskSpec, seconds: u32) -> Result<()> {
        let pause = |machine: Option<&mut Machine>| {
            let machine = machine.ok_or_else(|| off(&spec.machine))?;
            machine.paused_until = Some(Instant::now() + Duration::from_secs(seconds.into()));
            Ok(())
        };
        self.on_machine("ensure_paused", &spec.machine, pause).await
    }

    async fn ensure_resumed(&self, _: Generation, spec: &DiskSpec) -> Result<Pause> {
        let resume = |machine: Option<&mut Machine>| {
            let Some(machine) = machine else { return Ok(Pause::Broken) };
            let held = machine.is_paused();
            machine.paused_until = None;
            Ok(if held { Pause::Held } else { Pause::Broken })
        };
        self.on_machine("ensure_resumed", &spec.machine, resume).await
    }

    async fn observe(&self) -> Result<VmmObservation> {
        let observe = |state: &mut State| {
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
            Ok(VmmObservation { machines: machines.collect() })
        };
        self.cloud.call("observe_vmm", observe).await
    }
}
