//! Nodes in memory: for tests, and for people who want the EC2 API with nothing behind it.
//!
//! A [`SimCloud`] holds the nodes of both kinds and the wires between them, and refuses what real parts refuse: a log-in with
//! the wrong name or secret, an un-export under a session, a log-out under a device. It also does what real parts do at their
//! worst: [`Fault`]s are injected per verb, guests hold on to their disks, target daemons forget everything, machines go
//! away. A volume's bytes are one number, its content, so that a test can tell whether a snapshot restores what was there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{DelegateError, ExportSpec, Generation, Limits, Result, SnapshotMethod};
use crate::config;
use crate::ids::{SnapshotId, VolumeId};

pub mod fault;
mod spoil;
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
    /// See [`SimCloud::let_nodes_log_in`].
    nodes_log_in: bool,
    /// Log-ins of hypervisor nodes that no machine's disk is, by node and target.
    left: BTreeMap<(String, String), LogIn>,
    faults: Vec<Fault>,
    calls: HashMap<&'static str, u64>,
    snapshot_method: SnapshotMethod,
    /// See [`SimCloud::copy_in_background`].
    copied_a_call: Option<u8>,
    latency: Duration,
    writes: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            storages: BTreeMap::new(),
            vmms: BTreeMap::new(),
            nodes_log_in: false,
            left: BTreeMap::new(),
            faults: Vec::new(),
            calls: HashMap::new(),
            snapshot_method: SnapshotMethod::Copy,
            copied_a_call: None,
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
    /// Snapshots that are cut and still lean on their volume.
    copies: BTreeMap<SnapshotId, Copying>,
    /// Volumes that are being filled from other nodes, and how much of each is, in per cent.
    restores: BTreeMap<VolumeId, u8>,
    exports: BTreeMap<String, ExportSpec>,
    /// The names of exports that are not whole.
    broken: BTreeSet<String>,
}

/// A snapshot that is being copied out.
struct Copying {
    of: VolumeId,
    content: Content,
    progress: u8,
    overflowed: bool,
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
    /// For each volume and snapshot.
    pauses: BTreeMap<(VolumeId, SnapshotId), Rest>,
    disks: BTreeMap<VolumeId, Disk>,
}

/// A pause, and whose it is.
struct Rest {
    generation: Generation,
    until: Instant,
}

struct Disk {
    iqn: String,
    initiator: String,
    attached: bool,
    limits: Limits,
}

/// A log-in of a hypervisor node.
struct LogIn {
    volume: VolumeId,
    initiator: String,
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

    /// Lets no fault strike any more.
    pub fn end_faults(&self) {
        self.state().faults.clear();
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
        let mut state = self.state();
        (state.snapshot_method, state.copied_a_call) = (method, None);
    }

    /// From now on a snapshot is cut at one instant and then copied, as with thick logical volumes: each time it is asked for
    /// after the cut, so many per cent more are done, and so with volumes of other nodes' snapshots. With 0 all copies stand
    /// still.
    pub fn copy_in_background(&self, percent_a_call: u8) {
        let mut state = self.state();
        state.snapshot_method = SnapshotMethod::Atomic;
        state.copied_a_call = Some(percent_a_call);
    }

    /// Lets what keeps the snapshots that are being copied overflow: their bytes are lost.
    pub fn overflow(&self) {
        let mut state = self.state();
        let copies = state.storages.values_mut().flat_map(|node| node.copies.values_mut());
        copies.for_each(|copy| copy.overflowed = true);
    }

    /// Lets the snapshots that are being copied be gone, as when somebody has removed what they are made of.
    pub fn forget_copies(&self) {
        self.state().storages.values_mut().for_each(|node| node.copies.clear());
    }

    /// Lets the copies at work begin anew, as after a crash of their node.
    pub fn restart_copies(&self) {
        let mut state = self.state();
        let copies = state.storages.values_mut().flat_map(|node| node.copies.values_mut());
        copies.for_each(|copy| copy.progress = 0);
    }

    /// How many snapshots are being copied, those that overflowed included.
    pub fn copies(&self) -> usize {
        self.state().storages.values().map(|node| node.copies.len()).sum()
    }

    /// How many volumes are being filled from other nodes.
    pub fn restores(&self) -> usize {
        self.state().storages.values().map(|node| node.restores.len()).sum()
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

    /// The size of a volume in bytes, `None` when there is none.
    pub fn volume_bytes(&self, volume: &VolumeId) -> Option<u64> {
        self.state().storages.values().find_map(|node| node.volumes.get(volume)).map(|content| content.size_bytes)
    }

    /// The content of a snapshot that is of one point in time; `None` also for one that is torn.
    pub fn snapshot_content(&self, snapshot: &SnapshotId) -> Option<u64> {
        let state = self.state();
        let content = state.storages.values().find_map(|node| node.snapshots.get(snapshot))?;
        (!content.torn).then_some(content.token)
    }

    /// What a machine's disk is held to.
    pub fn limits(&self, machine: &str, volume: &VolumeId) -> Option<Limits> {
        self.state().machine(machine).and_then(|(_, machine)| machine.disks.get(volume).map(|disk| disk.limits))
    }

    /// Lets the guest hold on to its disks when asked to let go, or no longer.
    pub fn hold_on(&self, machine: &str, holds_on: bool) {
        if let Some((_, machine)) = self.state().machine(machine) {
            machine.holds_on = holds_on;
        }
    }

    /// From now on the initiator is the hypervisor node's and no machine's, as with Xen and open-iscsi: a log-in outlives the
    /// machine that it was made for.
    pub fn let_nodes_log_in(&self) {
        self.state().nodes_log_in = true;
    }

    /// Leaves a hypervisor node logged in to a target, as a delegate does that said it had logged out.
    pub fn leave_log_in(&self, node: &str, volume: &VolumeId, iqn: &str) {
        let log_in = LogIn { volume: volume.clone(), initiator: vmm::initiator_of(node) };
        self.state().left.insert((node.to_owned(), iqn.to_owned()), log_in);
    }

    /// Leaves a machine with a disk, as a delegate does that said it had taken it away.
    pub fn leave_disk(&self, machine: &str, volume: &VolumeId, iqn: &str) {
        let disk = Disk {
            iqn: iqn.to_owned(),
            initiator: vmm::initiator_of(machine),
            attached: true,
            limits: Limits::default(),
        };
        if let Some((_, machine)) = self.state().machine(machine) {
            machine.disks.insert(volume.clone(), disk);
        }
    }

    /// Powers a machine off: its disks, its own log-ins and its pause are gone.
    pub fn stop_machine(&self, machine: &str) {
        let mut state = self.state();
        let nodes_log_in = state.nodes_log_in;
        let Some((node, machine)) = state.machine(machine) else { return };
        machine.running = false;
        machine.pauses.clear();
        let disks = std::mem::take(&mut machine.disks);
        if nodes_log_in {
            let kept = disks
                .into_iter()
                .map(|(volume, disk)| ((node.clone(), disk.iqn), LogIn { volume, initiator: disk.initiator }));
            state.left.extend(kept);
        }
    }

    /// Restarts a machine under another name.
    pub fn rename_machine(&self, machine: &str, name: &str) {
        for machines in self.state().vmms.values_mut() {
            if let Some(found) = machines.remove(machine) {
                machines.insert(name.to_owned(), Machine { uuid: found.uuid, ..Machine::start("", name) });
            }
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

    /// Takes a machine away, and starts another of the same name.
    pub fn replace_machine(&self, machine: &str) {
        if let Some((node, found)) = self.state().machine(machine) {
            *found = Machine { uuid: uuid::Uuid::new_v4().to_string(), ..Machine::start(&node, machine) };
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
            Some(FaultKind::HangUntil(told)) => {
                told.notified().await;
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
        let disks = disks.filter(|disk| disk.iqn == iqn).map(|disk| disk.initiator.clone());
        let left =
            self.left.iter().filter(|((_, target), _)| target == iqn).map(|(_, log_in)| log_in.initiator.clone());
        disks.chain(left).collect()
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
            pauses: BTreeMap::new(),
            disks: BTreeMap::new(),
        }
    }

    fn is_paused(&self) -> bool {
        self.pauses.values().any(|rest| rest.until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::guard::Guarded;
    use crate::delegate::{
        ConnectSpec, Detach, DiskSpec, ErrorKind, Generation, MachineRef, Pause, PauseSpec, Secret, SnapshotSpec,
        VmmDelegate, VolumeDelegate, VolumeSpec,
    };

    const G: Generation = Generation(1);

    struct Attached {
        cloud: SimCloud,
        storage: SimStorage,
        vmm: SimVmm,
        disk: DiskSpec,
    }

    /// A cloud with one machine that has one disk.
    async fn attached() -> Attached {
        let cloud = SimCloud::new();
        let config = config::Sim { machines: vec!["m1".into()], capacity_gib: Some(1) };
        let (storage, vmm) = (cloud.storage("s", &config), cloud.vmm("v", &config));
        let volume = VolumeId::generate();
        storage.ensure_volume(G, &new(&volume, 1 << 20)).await.unwrap();
        let export = ExportSpec {
            iqn: format!("iqn.2026-01.sim:{volume}.1"),
            volume: volume.clone(),
            lun: 1,
            chap_user: "user".into(),
            chap_secret: Secret("secret-enough".into()),
            initiator_iqn: vmm.initiator_iqn("m1").await.unwrap(),
            beside: Vec::new(),
        };
        let uuid = vmm.observe().await.unwrap().machines[0].uuid.clone();
        let machine = MachineRef { name: "m1".into(), uuid };
        let disk = DiskSpec {
            volume,
            iqn: export.iqn.clone(),
            machine: machine.clone(),
            device: "/dev/sdf".into(),
            limits: Limits::default(),
        };
        let portal = storage.ensure_exported(G, &export).await.unwrap();
        vmm.ensure_connected(G, &ConnectSpec { export, portal, machine }).await.unwrap();
        vmm.ensure_attached(G, &disk).await.unwrap();
        Attached { cloud, storage, vmm, disk }
    }

    /// A pause for a snapshot of the disk's volume.
    fn pause(disk: &DiskSpec) -> PauseSpec {
        PauseSpec { disk: disk.clone(), snapshot: SnapshotId::generate(), seconds: 60 }
    }

    fn new(volume: &VolumeId, size_bytes: u64) -> VolumeSpec {
        VolumeSpec { volume: volume.clone(), size_bytes, snapshot: None }
    }

    #[tokio::test]
    async fn a_copy_is_of_one_point_in_time_only_while_the_guest_rests() {
        let Attached { cloud, storage, vmm, disk } = attached().await;
        let token = cloud.guest_writes("m1", &disk.volume).unwrap();
        let [torn, whole, cut] = [(); 3].map(|()| SnapshotSpec {
            snapshot: SnapshotId::generate(),
            volume: disk.volume.clone(),
            cut: false,
        });
        storage.ensure_snapshot(G, &torn).await.unwrap();
        let rest = pause(&disk);
        vmm.ensure_paused(G, &rest).await.unwrap();
        assert_eq!(cloud.guest_writes("m1", &disk.volume), None, "its writes wait");
        storage.ensure_snapshot(G, &whole).await.unwrap();
        assert_eq!(vmm.ensure_resumed(G, &rest).await.unwrap(), Pause::Held);
        cloud.set_snapshot_method(SnapshotMethod::Atomic);
        storage.ensure_snapshot(G, &cut).await.unwrap();
        let contents = [&torn, &whole, &cut].map(|spec| cloud.snapshot_content(&spec.snapshot));
        assert_eq!(contents, [None, Some(token), Some(token)]);

        let restored = VolumeId::generate();
        let spec = VolumeSpec { snapshot: Some(whole.snapshot), ..new(&restored, 1 << 20) };
        storage.ensure_volume(G, &spec).await.unwrap();
        assert_eq!(cloud.volume_content(&restored), Some(token));
    }

    #[tokio::test]
    async fn a_guest_holds_on_until_it_lets_go_or_is_forced_and_a_machine_that_stops_has_nothing() {
        let Attached { cloud, storage, vmm, disk } = attached().await;
        cloud.hold_on("m1", true);
        assert_eq!(vmm.ensure_detached(G, &disk, false).await.unwrap(), Detach::Busy);
        assert_eq!(vmm.ensure_detached(G, &disk, true).await.unwrap(), Detach::Gone);
        let rest = pause(&disk);
        vmm.ensure_paused(G, &rest).await.unwrap();
        cloud.stop_machine("m1");
        assert_eq!(vmm.ensure_resumed(G, &rest).await.unwrap(), Pause::Broken);
        storage.ensure_not_exported(G, &disk.volume, &[]).await.expect("its log-in went with it");
        let before = vmm.observe().await.unwrap().machines;
        cloud.start_machine("m1");
        let after = vmm.observe().await.unwrap().machines;
        assert_eq!((before[0].running, after[0].running), (false, true));
        assert_eq!(before[0].uuid, after[0].uuid);
    }

    #[tokio::test]
    async fn faults_do_what_they_say_to_the_call_they_strike() {
        let cloud = SimCloud::new();
        let config = config::Sim { machines: vec![], capacity_gib: Some(1) };
        let storage = Guarded::in_memory(Arc::new(cloud.storage("s", &config)));
        let late = Duration::from_millis(100);
        for (kind, error, done) in [
            (FaultKind::FailBefore(ErrorKind::Fatal), ErrorKind::Fatal, false),
            (FaultKind::Garbage, ErrorKind::Retry, false),
            (FaultKind::EffectThenLost, ErrorKind::Retry, true),
            (FaultKind::EffectThenHang(late), ErrorKind::Retry, true),
        ] {
            let volume = VolumeId::generate();
            cloud.push_fault(Fault::once("ensure_volume", kind));
            assert_eq!(storage.ensure_volume(G, &new(&volume, 1)).await.unwrap_err().kind, error);
            assert_eq!(cloud.volume_content(&volume).is_some(), done);
            storage.ensure_volume(G, &new(&volume, 1)).await.unwrap();
        }
        // The caller gives up; the call does not, and its retry waits for it.
        let volume = VolumeId::generate();
        cloud.push_fault(Fault::once("ensure_volume", FaultKind::Hang(late)));
        let spec = new(&volume, 1);
        assert!(tokio::time::timeout(late / 10, storage.ensure_volume(G, &spec)).await.is_err());
        assert_eq!(cloud.volume_content(&volume), None);
        storage.ensure_no_volume(G, &volume).await.unwrap();
        assert_eq!(cloud.volume_content(&volume), None, "what came late came before the removal");
        assert_eq!((cloud.faults_left(), cloud.calls("ensure_no_volume")), (0, 1));
    }

    #[tokio::test]
    async fn a_node_gives_out_no_more_than_it_has() {
        let cloud = SimCloud::new();
        let storage = cloud.storage("s", &config::Sim { machines: vec![], capacity_gib: Some(1) });
        storage.ensure_volume(G, &new(&VolumeId::generate(), 1 << 29)).await.unwrap();
        let refused = storage.ensure_volume(G, &new(&VolumeId::generate(), (1 << 29) + 1)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::NoRoom);
        assert_eq!(VolumeDelegate::observe(&storage).await.unwrap().free_bytes, 1 << 29);
    }
}
