//! Xen as the hypervisor, with the node's own initiator: the stack of 2009.
//!
//! A disk's way to a guest is a session of the node (the private module `open_iscsi`), a block device, a backend in the
//! node's kernel and a frontend in the guest's, the last two joined through xenstore. What the tools do not do for us shapes
//! this driver:
//!
//! - **Status 0 is not success, and failure leaves residue.** A disk is attached when both ends say 4 in xenstore. What an
//!   attempt that failed has left is taken away before the answer, and again before the next attempt.
//! - **`phy:` takes anything**, a regular file too, and by any path. What is attached here is the block device whose serial
//!   number was checked, by a path that is never another's.
//! - **A guest may keep a disk that it uses.** An old kernel (5.10) refuses to let go of a mounted disk, and the detach that
//!   was asked for stays pending: the attachment is busy, the disk works, and when the guest lets go at last it has to be
//!   detached again. A newer one (6.1) loses the disk at once, with what it had not written.
//! - **A domain's number is another after each start**, and its name may be another domain's. A machine is its uuid, and the
//!   uuid is looked at just before anything is done to the number.
//! - **Domains can outlive themselves.** While the kernel serves a device to anybody, named in xenstore or not, there is no
//!   log-out.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep};

use self::names::Place;
use self::store::{CLOSED, Vbd};
use self::throttle::{Held, Throttle};
use self::toolstack::Toolstack;
use self::view::{Use, View};
use super::open_iscsi::{self, Disk, Host, Initiator};
use crate::config;
use crate::delegate::{
    ConnectSpec, DelegateError, Detach, DiskSpec, Generation, Growth, MachineRef, Pause, PauseSpec, Result,
    VmmDelegate, VmmObservation, data_dir, target,
};

#[cfg(any(test, fuzzing))]
pub(in crate::delegate) mod fuzzing;
mod names;
mod store;
#[cfg(test)]
mod tests;
mod throttle;
mod toolstack;
mod view;
mod xenbus;

/// How long both ends get to connect once the tool has done its part. A guest that does not run yet takes longer, and the
/// attach is tried again.
const CONNECT: Duration = Duration::from_secs(15);
/// How long a disk gets to connect that the tool has given up: it may come after all.
const AFTER_ALL: Duration = Duration::from_secs(2);
/// How long an attach or detach that somebody else is at gets to end: `xl` runs on when we are killed.
const SETTLE: Duration = Duration::from_secs(20);
/// How long a device that was torn out gets to be gone from the kernel.
const TEAR: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The Xen driver.
pub struct Xen {
    toolstack: Toolstack,
    initiator: Initiator,
    throttle: Throttle,
    detach_wait: Duration,
    /// Whose turn it is at each machine: what is free in it is looked at before it is given away.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Held for as long as this lives.
    _lock: File,
}

impl Xen {
    /// Starts the driver. Whether Xen and open-iscsi are there is found out call by call.
    ///
    /// # Errors
    /// Retry when the data directory cannot be made or read, or another delegate has it; Fatal when a file in it is damaged.
    pub async fn start(dir: &Path, config: &config::Xen) -> Result<Self> {
        let program = match config.toolstack {
            config::Toolstack::Xl => "xl",
            config::Toolstack::Xm => "xm",
        };
        let toolstack =
            Toolstack { kind: config.toolstack, program: program.into(), xenstore: config.xenstore.clone() };
        Self::with(dir, config, Host::default(), toolstack).await
    }

    async fn with(dir: &Path, config: &config::Xen, host: Host, toolstack: Toolstack) -> Result<Self> {
        let cannot = |e: &dyn std::fmt::Display| DelegateError::retry(format!("cannot use {}: {e}", dir.display()));
        tokio::fs::create_dir_all(dir).await.map_err(|e| cannot(&e))?;
        let own = dir.to_owned();
        let lock = open_iscsi::sysfs::blocking(move || data_dir::take(&own)).await?.map_err(|e| cannot(&e))?;
        let throttle = Throttle::new(host.sysfs.sys.join("fs/cgroup"), host.proc.clone());
        Ok(Self {
            toolstack,
            throttle,
            initiator: Initiator::open(host, config.open_iscsi.clone(), dir.join("sessions.json")).await?,
            detach_wait: Duration::from_secs(config.detach_wait_s),
            turns: Mutex::default(),
            _lock: lock,
        })
    }

    async fn look(&self) -> Result<View> {
        let sysfs = self.initiator.sysfs();
        let (store, sessions, backends) = tokio::try_join!(self.toolstack.store(), sysfs.sessions(), sysfs.backends())?;
        Ok(View::new(&store, sessions, backends))
    }

    /// Holds a disk to its limits if its machine has it.
    async fn hold(&self, spec: &DiskSpec, disk: &Disk) -> Result<()> {
        if !self.throttle.concerns(&spec.iqn, spec.limits) {
            return Ok(());
        }
        let view = self.look().await?;
        let Some(domain) = view.find(&spec.machine).map(|domain| domain.id) else { return Ok(()) };
        let uses = view.uses(&spec.iqn);
        match uses.iter().find(|used| used.domain == domain) {
            Some(Use { vdev, .. }) => {
                let held = Held { iqn: &spec.iqn, domain, vdev: *vdev, number: disk.block.number };
                self.throttle.hold(held, spec.limits).await
            }
            None => Ok(()),
        }
    }

    async fn turn(&self, uuid: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(turns.entry(uuid.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// Looks until something is so, or the time is up.
    async fn wait<T>(&self, limit: Duration, mut found: impl FnMut(&View) -> Option<T>) -> Result<Option<T>> {
        let end = Instant::now() + limit;
        loop {
            let what = found(&self.look().await?);
            if what.is_some() || Instant::now() >= end {
                return Ok(what);
            }
            sleep(LOOK).await;
        }
    }

    /// Takes away what an attach that came to nothing has left. A guest that has connected after all is asked, and not forced.
    async fn clear(&self, machine: &MachineRef, iqn: &str) -> Result<()> {
        let mut last = None;
        for force in [false, true] {
            let view = self.look().await?;
            let Some(domain) = view.find(machine) else { return Ok(()) };
            for residue in view.uses(iqn).into_iter().filter(|u| u.domain == domain.id) {
                if force && residue.vbd.as_ref().is_some_and(Vbd::held) {
                    return Err(DelegateError::retry(format!(
                        "the guest of {} was asked for a disk back",
                        machine.name
                    )));
                }
                let detached = self.toolstack.detach(domain.id, residue.vdev, force).await;
                last = detached.err().map(|failure| failure.to_string()).or(last);
            }
            let limit = if force { TEAR } else { Duration::ZERO };
            if self.wait(limit, |view| rid(view, machine, iqn).then_some(())).await?.is_some() {
                return Ok(());
            }
        }
        let why = last.unwrap_or_else(|| "it stays".into());
        Err(DelegateError::retry(format!("machine {}: what is left of an attach: {why}", machine.name)))
    }
}

/// How a disk stands that a machine has already, of a sort.
enum Found {
    Attached,
    Leaving,
    Residue,
}

/// Whether a machine has nothing of a target any more, neither in xenstore nor in the kernel.
fn rid(view: &View, machine: &MachineRef, iqn: &str) -> bool {
    view.find(machine).is_none_or(|domain| view.uses(iqn).iter().all(|u| u.domain != domain.id))
}

/// Who else has a disk that one machine shall have or lose.
enum Others {
    /// Nobody.
    None,
    /// A machine that runs.
    Machine(String),
    /// The kernel still serves it to a domain that xenstore has no machine for.
    Zombie(u32),
}

fn others(view: &View, uses: &[Use], machine: &MachineRef) -> Others {
    let mut others = Others::None;
    for used in uses {
        match view.domain(used.domain) {
            Some(domain) if domain.uuid == machine.uuid => {}
            Some(domain) => others = Others::Machine(domain.name.clone()),
            None => return Others::Zombie(used.domain),
        }
    }
    others
}

/// Whether the tool is to be run for a disk that shall go. A guest that was asked is not asked again; when it has let go, the
/// tool has to clear up.
fn must_ask(vbd: &Vbd, force: bool, asked: u32) -> bool {
    if force { asked < 2 } else { vbd.online || vbd.backend == CLOSED }
}

#[async_trait]
impl VmmDelegate for Xen {
    /// The node's own, whatever the machine.
    async fn initiator_iqn(&self, _: &str) -> Result<String> {
        self.initiator.name().await
    }

    async fn ensure_connected(&self, _: Generation, spec: &ConnectSpec) -> Result<()> {
        let export = &spec.export;
        target::check(export)?;
        let name = self.initiator.name().await?;
        if export.initiator_iqn != name {
            return Err(DelegateError::fatal(format!("the export is for {}, not for {name}", export.initiator_iqn)));
        }
        let view = self.look().await?;
        view.machine(&spec.machine)?;
        let uses = view.uses(&export.iqn);
        if uses.is_empty() {
            return self.initiator.connect(spec).await;
        }
        // Nothing is done to a session that somebody uses. It mends itself when its target is back.
        let up = view.sessions.iter().any(|s| s.iqn == export.iqn && s.unit(&export.volume.serial()).is_some());
        if up { Ok(()) } else { Err(DelegateError::retry(format!("the disk of {} is used and not there", export.iqn))) }
    }

    async fn ensure_disconnected(&self, _: Generation, spec: &DiskSpec) -> Result<()> {
        open_iscsi::check(&spec.iqn, &spec.volume)?;
        let view = self.look().await?;
        let uses = view.uses(&spec.iqn);
        let own = |u: &Use| view.domain(u.domain).is_some_and(|domain| domain.uuid == spec.machine.uuid);
        if uses.iter().any(own) {
            return Err(DelegateError::retry(format!("machine {} still has {}", spec.machine.name, spec.volume)));
        }
        match others(&view, &uses, &spec.machine) {
            Others::None => self.initiator.disconnect(&spec.iqn).await,
            // What is another's is not this one's to end.
            Others::Machine(_) => Ok(()),
            Others::Zombie(id) => Err(DelegateError::retry(format!(
                "domain {id} is gone, and the kernel still serves {} to it",
                spec.volume
            ))),
        }
    }

    async fn ensure_attached(&self, _: Generation, spec: &DiskSpec) -> Result<()> {
        open_iscsi::check(&spec.iqn, &spec.volume)?;
        let place = Place::parse(&spec.device).ok_or_else(|| {
            let name = spec.device.escape_debug();
            DelegateError::fatal(format!("Xen has no disk {name}: sda to sdz, xvda to xvddz, partitions 1 to 15"))
        })?;
        let MachineRef { name, .. } = &spec.machine;
        let _turn = self.turn(&spec.machine.uuid).await;
        let mut view = self.look().await?;
        let domain = view.machine(&spec.machine)?.id;
        match others(&view, &view.uses(&spec.iqn), &spec.machine) {
            Others::None => {}
            Others::Machine(other) => {
                return Err(DelegateError::retry(format!("machine {other} has {}", spec.volume)));
            }
            Others::Zombie(id) => {
                return Err(DelegateError::retry(format!("domain {id} is gone, and the kernel still serves it")));
            }
        }
        let Some(disk) = self.initiator.disk(&spec.iqn, &spec.volume).await? else {
            return Err(DelegateError::retry(format!("this node is not connected to {}", spec.iqn)));
        };
        let own = |view: &View| view.uses(&spec.iqn).into_iter().find(|u| u.domain == domain);
        if own(&view).is_some() {
            // Perhaps an earlier life of ours has just begun it.
            let settled = |view: &View| match own(view).and_then(|used| used.vbd) {
                Some(vbd) if vbd.connected() => Some(Found::Attached),
                Some(vbd) if !vbd.online && vbd.held() => Some(Found::Leaving),
                Some(vbd) if vbd.online && vbd.backend < store::CONNECTED => None,
                _ => Some(Found::Residue),
            };
            match self.wait(SETTLE, settled).await? {
                Some(Found::Attached) => return self.hold(spec, &disk).await,
                Some(Found::Leaving) => {
                    return Err(DelegateError::retry(format!(
                        "the guest of {name} was asked for {} back",
                        spec.volume
                    )));
                }
                Some(Found::Residue) | None => self.clear(&spec.machine, &spec.iqn).await?,
            }
            view = self.look().await?;
        }
        let domain = view.machine(&spec.machine)?.id;
        let places = view.vbds.iter().filter(|vbd| vbd.domain == domain).filter_map(|vbd| Place::of(vbd.vdev));
        if let Some(taken) = places.into_iter().find(|taken| taken.clashes(place)) {
            return Err(DelegateError::fatal(format!("machine {name} has another disk as {taken}")));
        }
        let path = self.initiator.path(&spec.iqn, &disk).await?;
        if self.initiator.disk(&spec.iqn, &spec.volume).await?.as_ref() != Some(&disk) {
            return Err(DelegateError::retry(format!("the disk of {} has just changed", spec.iqn)));
        }
        let done = self.toolstack.attach(domain, &path, place).await;
        let mut complaint = done.err().map(|failure| failure.to_string());
        let limit = if complaint.is_some() { AFTER_ALL } else { CONNECT };
        let ended = |view: &View| {
            let own = view.uses(&spec.iqn).into_iter().find(|u| u.domain == domain).and_then(|used| used.vbd);
            let Some(vbd) = own else { return Some(false) };
            complaint = complaint.take().or_else(|| vbd.complaint.clone());
            if vbd.connected() {
                return Some(true);
            }
            // On the way down: the guest will not have it.
            (vbd.backend > store::CONNECTED).then_some(false)
        };
        if self.wait(limit, ended).await? == Some(true) {
            return self.hold(spec, &disk).await;
        }
        self.clear(&spec.machine, &spec.iqn).await?;
        let why = complaint.unwrap_or_else(|| "the guest has not connected".into());
        Err(DelegateError::retry(format!("machine {name}: {why}")))
    }

    async fn ensure_detached(&self, _: Generation, spec: &DiskSpec, force: bool) -> Result<Detach> {
        open_iscsi::check(&spec.iqn, &spec.volume)?;
        let _turn = self.turn(&spec.machine.uuid).await;
        let end = Instant::now() + if force { TEAR } else { self.detach_wait };
        let (mut asked, mut last) = (0, None);
        loop {
            let view = self.look().await?;
            let uses = view.uses(&spec.iqn);
            let domain = view.find(&spec.machine).map(|domain| domain.id);
            let own: Vec<&Vbd> =
                uses.iter().filter(|u| Some(u.domain) == domain).filter_map(|u| u.vbd.as_ref()).collect();
            // In the kernel alone, or of a domain that is not there any more: nobody can be asked.
            let zombie = uses.iter().any(|u| Some(u.domain) == domain || view.domain(u.domain).is_none());
            if own.is_empty() && !zombie {
                return Ok(Detach::Gone);
            }
            let ask: Vec<&&Vbd> = own.iter().filter(|vbd| must_ask(vbd, force, asked)).collect();
            if Instant::now() >= end && (asked > 0 || ask.is_empty()) {
                return match last {
                    Some(failure) if force => Err(DelegateError::from(failure)),
                    _ => Ok(Detach::Busy),
                };
            }
            if ask.is_empty() {
                sleep(LOOK).await;
                continue;
            }
            asked += 1;
            for vbd in ask {
                last = self.toolstack.detach(vbd.domain, vbd.vdev, force).await.err().or(last);
            }
        }
    }

    async fn ensure_grown(&self, _: Generation, spec: &DiskSpec, size_bytes: u64) -> Result<Growth> {
        open_iscsi::check(&spec.iqn, &spec.volume)?;
        let Some(disk) = self.initiator.disk(&spec.iqn, &spec.volume).await? else {
            return Ok(Growth::AtNextAttach);
        };
        self.hold(spec, &disk).await?;
        // The backend looks at the device's size by itself, and tells the guest.
        Ok(if self.initiator.grown(&disk, size_bytes).await? { Growth::Online } else { Growth::AtNextAttach })
    }

    async fn ensure_paused(&self, _: Generation, _: &PauseSpec) -> Result<()> {
        Err(DelegateError::fatal("a Xen node rests no guest: its storage node must take snapshots at one instant"))
    }

    async fn ensure_resumed(&self, _: Generation, _: &PauseSpec) -> Result<Pause> {
        Ok(Pause::Broken)
    }

    async fn observe(&self) -> Result<VmmObservation> {
        let view = self.look().await?;
        self.throttle.tend(&view).await?;
        let mut made_for = HashMap::new();
        for target in view.targets() {
            if let Some(machine) = self.initiator.machine_of(&target.iqn).await {
                made_for.insert(target.iqn, machine);
            }
        }
        let unused = view.targets().into_iter().filter(|target| view.uses(&target.iqn).is_empty());
        Ok(VmmObservation {
            machines: view.machines(|iqn| made_for.get(iqn).cloned(), |_| false),
            sessions: unused.collect(),
            drivers: vec!["xen".into(), "open-iscsi".into()],
        })
    }
}
