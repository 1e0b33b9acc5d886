//! Nodes in memory: for tests, and for people who want the EC2 API with nothing behind it.
//!
//! A [`SimCloud`] holds the nodes of both kinds and the wires between them, and refuses what real parts refuse: a log-in with
//! the wrong name or secret, an un-export under a session, a log-out under a device. It also does what real parts do at their
//! worst: [`Fault`]s are injected per verb, guests hold on to their disks, target daemons forget everything, machines go
//! away. A volume's bytes are one number, its content, so that a test can tell whether a snapshot restores what was there.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{DelegateError, ExportSpec, Result, SnapshotMethod};
use crate::config;
use crate::ids::{SnapshotId, VolumeId};

pub mod fault;
mod storage;
mod vmm;

pub use fault::{Fault, FaultKind};
pub use storage::SimStorage;
pub use vmm::SimVmm;

/// What a simulated call takes, unless told otherwise.
const LATENCY: Duration = Duration::from_millis(1);

/// All simulated nodes that can reach each other. Clones are the same cloud.
#[derive(Clone, Default)]
pub struct SimCloud(Arc<Mutex<State>>);

struct State {
    storages: BTreeMap<String, StorageNode>,
    vmms: BTreeMap<String, BTreeMap<String, Machine>>,
    faults: Vec<Fault>,
    calls: HashMap<&'static str, u64>,
    snapshot_method: SnapshotMethod,
    latency: Duration,
    writes: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            storages: BTreeMap::new(),
            vmms: BTreeMap::new(),
            faults: Vec::new(),
            calls: HashMap::new(),
            snapshot_method: SnapshotMethod::Copy,
            latency: LATENCY,
            writes: 0,
        }
    }
}

#[derive(Default)]
struct StorageNode {
    capacity_bytes: u64,
    volumes: BTreeMap<VolumeId, Content>,
    snapshots: BTreeMap<SnapshotId, Content>,
    exports: BTreeMap<String, ExportSpec>,
}

/// The bytes of a volume or a snapshot.
#[derive(Clone, Copy)]
struct Content {
    size_bytes: u64,
    /// Zero, or which write was the last.
    token: u64,
    /// Copied while a guest could write: it may be of no one point in time.
    torn: bool,
}

struct Machine {
    uuid: String,
    started_at: i64,
    running: bool,
    holds_on: bool,
    paused_until: Option<Instant>,
    disks: BTreeMap<VolumeId, Disk>,
}

struct Disk {
    iqn: String,
    initiator: String,
    attached: bool,
}

impl SimCloud {
    /// A cloud without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The storage node of this name, made when it is not there.
    pub fn storage(&self, node: &str, config: &config::Sim) -> SimStorage {
        let mut state = self.state();
        let made = state.storages.entry(node.to_owned()).or_default();
        made.capacity_bytes = config.capacity_gib.map_or(u64::MAX, |gib| gib.saturating_mul(1 << 30));
        SimStorage { cloud: self.clone(), node: node.to_owned() }
    }

    /// The hypervisor node of this name, made when it is not there, with its machines running.
    pub fn vmm(&self, node: &str, config: &config::Sim) -> SimVmm {
        let mut state = self.state();
        let machines = state.vmms.entry(node.to_owned()).or_default();
        for name in &config.machines {
            machines.entry(name.clone()).or_insert_with(|| Machine::start(node, name));
        }
        SimVmm { cloud: self.clone(), node: node.to_owned() }
    }

    /// Injects a fault. Of several that fit a call the first pushed strikes.
    pub fn push_fault(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// The faults that have not struck as often as they shall.
    pub fn faults_left(&self) -> usize {
        self.state().faults.len()
    }

    /// How often a verb was called, those that faults struck included.
    pub fn calls(&self, verb: &str) -> u64 {
        self.state().calls.get(verb).copied().unwrap_or(0)
    }

    /// Sets how snapshots are taken. [`SnapshotMethod::Copy`], the more delicate way, is what the cloud starts with.
    pub fn set_snapshot_method(&self, method: SnapshotMethod) {
        self.state().snapshot_method = method;
    }

    /// Sets what each call takes.
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Lets the guest on a machine write to a disk it has; gives the volume's new content. Does nothing when the guest has no
    /// such disk, or is paused.
    pub fn guest_writes(&self, machine: &str, volume: &VolumeId) -> Option<u64> {
        let mut state = self.state();
        let (_, found) = state.machine(machine)?;
        if found.is_paused() || !found.disks.get(volume).is_some_and(|disk| disk.attached) {
            return None;
        }
        state.writes += 1;
        let token = state.writes;
        let content = state.storages.values_mut().find_map(|node| node.volumes.get_mut(volume))?;
        content.token = token;
        Some(token)
    }

    /// The content of a volume: 0 when it reads as zeros, `None` when there is none.
    pub fn volume_content(&self, volume: &VolumeId) -> Option<u64> {
        self.state().storages.values().find_map(|node| node.volumes.get(volume)).map(|content| content.token)
    }

    /// The content of a snapshot that is of one point in time; `None` also for one that is torn.
    pub fn snapshot_content(&self, snapshot: &SnapshotId) -> Option<u64> {
        let state = self.state();
        let content = state.storages.values().find_map(|node| node.snapshots.get(snapshot))?;
        (!content.torn).then_some(content.token)
    }

    /// Lets the guest hold on to its disks when asked to let go, or no longer.
    pub fn hold_on(&self, machine: &str, holds_on: bool) {
        if let Some((_, machine)) = self.state().machine(machine) {
            machine.holds_on = holds_on;
        }
    }

    /// Powers a machine off: its disks, its log-ins and its pause are gone.
    pub fn stop_machine(&self, machine: &str) {
        if let Some((_, machine)) = self.state().machine(machine) {
            machine.running = false;
            machine.paused_until = None;
            machine.disks.clear();
        }
    }

    /// Starts a machine again, without the disks it was given while it ran before.
    pub fn start_machine(&self, machine: &str) {
        if let Some((node, found)) = self.state().machine(machine) {
            *found = Machine::start(&node, machine);
        }
    }

    /// Takes a machine away for good.
    pub fn remove_machine(&self, machine: &str) {
        for machines in self.state().vmms.values_mut() {
            machines.remove(machine);
        }
    }

    /// Lets a storage node's target daemon forget all exports, as tgtd does when it dies. Initiators keep trying, so those
    /// that were logged in are again as soon as the same export is back.
    pub fn forget_exports(&self, node: &str) {
        if let Some(node) = self.state().storages.get_mut(node) {
            node.exports.clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call: waits its time, lets a fault strike, has the effect.
    async fn call<T>(&self, verb: &'static str, effect: impl FnOnce(&mut State) -> Result<T> + Send) -> Result<T> {
        let (latency, fault) = {
            let mut state = self.state();
            *state.calls.entry(verb).or_default() += 1;
            (state.latency, fault::take(&mut state.faults, verb))
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let lost = || Err(DelegateError::retry(format!("{verb}: the answer was lost (injected)")));
        match fault {
            None => effect(&mut self.state()),
            Some(FaultKind::FailBefore(kind)) => {
                Err(DelegateError { kind, message: format!("{verb}: failed before it began (injected)") })
            }
            Some(FaultKind::EffectThenLost) => {
                let _ = effect(&mut self.state());
                lost()
            }
            Some(FaultKind::Hang(time)) => {
                tokio::time::sleep(time).await;
                effect(&mut self.state())
            }
            Some(FaultKind::EffectThenHang(time)) => {
                let _ = effect(&mut self.state());
                tokio::time::sleep(time).await;
                lost()
            }
            Some(FaultKind::Garbage) => Err(DelegateError::retry(fault::garbage(verb))),
        }
    }
}

impl State {
    fn machine(&mut self, name: &str) -> Option<(String, &mut Machine)> {
        self.vmms.iter_mut().find_map(|(node, machines)| Some((node.clone(), machines.get_mut(name)?)))
    }

    /// Who is logged in to a target.
    fn sessions(&self, iqn: &str) -> Vec<String> {
        let disks = self.vmms.values().flat_map(BTreeMap::values).flat_map(|machine| machine.disks.values());
        disks.filter(|disk| disk.iqn == iqn).map(|disk| disk.initiator.clone()).collect()
    }

    /// Whether a guest could write to the volume at this moment.
    fn is_live(&self, volume: &VolumeId) -> bool {
        self.vmms
            .values()
            .flat_map(BTreeMap::values)
            .any(|machine| !machine.is_paused() && machine.disks.get(volume).is_some_and(|disk| disk.attached))
    }
}

impl Machine {
    /// A machine's uuid comes from its name, so that it is the same machine in the next process.
    fn start(node: &str, name: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(format!("{node}/{name}")).into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self {
            uuid: uuid::Builder::from_random_bytes(bytes).into_uuid().to_string(),
            started_at: chrono::Utc::now().timestamp(),
            running: true,
            holds_on: false,
            paused_until: None,
            disks: BTreeMap::new(),
        }
    }

    fn is_paused(&self) -> bool {
        self.paused_until.is_some_and(|until| until > Instant::now())
    }
}
