//! QEMU as the hypervisor: machines that somebody else started, driven over their monitor sockets.
//!
//! The machine brings its own iSCSI initiator (libiscsi), so nothing on the node needs root or a kernel module, and a
//! machine that dies takes its sessions with it. Machines must be of a kind that hot-plugs PCI devices without preparation:
//! `-M pc` (observed: QEMU 7.2; q35 wants root ports that were there at start, microvm cannot at all).
//!
//! Attaching builds, from the bottom up, the parts that the private module `blocks` lists; detaching takes them down from
//! the top. Three things QEMU does not do for us shape this driver:
//!
//! - **A detach has no answer.** `device_del` asks the guest and returns; a guest that is stopped, has crashed or has not
//!   booted never lets go, and no error ever comes. So a detach waits a bounded time and is then `Busy`. An open file in the
//!   guest does not hold a virtio disk: it is gone in half a second, and the guest gets I/O errors.
//! - **A device cannot be torn out.** Force exchanges what is under it instead: `blockdev-reopen` drains the requests in
//!   flight and swaps the iSCSI node for one that answers everything with EIO. From then on the guest can do no harm to the
//!   volume, the session can end and the un-export is safe, though the guest may keep the dead device until it restarts.
//!   The same volume cannot go to the same machine before that; to another, it can.
//! - **A request in flight to a target that is away blocks the whole machine**, as soon as anything waits for it: a pause, a
//!   forced detach, a log-out. So the portal is tried first, and while it is away the answer is Retry. A target that
//!   vanishes or hangs just then still blocks the machine until it is back; it then goes on by itself.
//!
//! QEMU does not show the unit's serial number, so the unit is asked for it first (`inquiry`).

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::blocks::{self, Names, Parts, Under};
use super::inquiry::Inquiry;
use super::kept;
use super::machines::{self, Machines};
use super::pause::Pauses;
use super::qmp::{Qmp, QmpError};
use super::seen::Seen;
use super::throttle;
use crate::config;
use crate::delegate::{
    ConnectSpec, DelegateError, Detach, DiskSpec, Generation, Growth, Limits, MachineRef, ObservedMachine, Pause,
    PauseSpec, Portal, Result, VmmDelegate, VmmObservation, data_dir,
};

/// The longest wait for a monitor's greeting, and for each command. A log-in over the network takes its time.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// The longest that one machine may hold up an observation.
const OBSERVE_LIMIT: Duration = Duration::from_secs(3);
/// The longest wait for a target's TCP port.
const PORTAL_LIMIT: Duration = Duration::from_secs(2);
/// The wait for a guest to let go of a device that was cut off: most do at once, and then nothing is left over.
const CUT_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at whether a guest has let go.
const LOOK: Duration = Duration::from_millis(50);

/// The QEMU driver.
pub struct Qemu {
    machines: Arc<Machines>,
    pauses: Arc<Pauses>,
    pub(super) inquiry: Inquiry,
    iqn_prefix: String,
    detach_wait: Duration,
    /// What was last seen of each machine, and the file that keeps it.
    seen: tokio::sync::Mutex<(Seen, PathBuf)>,
    /// Held for as long as this lives: a second delegate would end the pauses of this one.
    _lock: File,
}

impl Qemu {
    /// Starts the driver. Machines that an earlier life left paused go on, in the background.
    ///
    /// # Errors
    /// Retry when the data directory cannot be made or read, or another delegate has it; Fatal when a file in it is damaged.
    pub async fn start(dir: &Path, config: &config::Qemu) -> Result<Self> {
        tokio::fs::create_dir_all(dir)
            .await
            .map_err(|e| DelegateError::retry(format!("cannot make {}: {e}", dir.display())))?;
        let lock = lock(dir.to_owned()).await?;
        let machines = Arc::new(Machines::new(config.qmp_dir.clone()));
        let seen = dir.join("machines.json");
        Ok(Self {
            pauses: Pauses::open(Arc::clone(&machines), dir.join("pauses.json")).await?,
            machines,
            inquiry: Inquiry::default(),
            iqn_prefix: config.iqn_prefix.clone(),
            detach_wait: Duration::from_secs(config.detach_wait_s),
            seen: tokio::sync::Mutex::new((kept::read(&seen).await?, seen)),
            _lock: lock,
        })
    }

    fn initiator(&self, machine: &str) -> Result<String> {
        if machines::is_name(machine) {
            Ok(format!("{}:{machine}", self.iqn_prefix))
        } else {
            Err(DelegateError::fatal("not the name of a machine"))
        }
    }

    async fn look_at(&self, name: &str) -> std::result::Result<ObservedMachine, QmpError> {
        let broken = |e: DelegateError| QmpError::Broken(e.message);
        let turn = self.machines.turn(name).await.map_err(broken)?;
        let mut qmp = turn.connect(OBSERVE_LIMIT).await?;
        let status = qmp.execute("query-status", json!({})).await?;
        let cpus = qmp.execute("query-cpus-fast", json!({})).await?;
        let memory = qmp.execute("query-memory-size-summary", json!({})).await?;
        let (nodes, devices) = lists(&mut qmp).await?;
        // QEMU makes its socket when it starts, and never again.
        let socket = tokio::fs::metadata(self.machines.socket(name).map_err(broken)?).await;
        let machine = MachineRef { name: name.to_owned(), uuid: uuid(&mut qmp).await? };
        Ok(ObservedMachine {
            running: status["status"] != "shutdown",
            paused: self.pauses.paused(&machine),
            name: machine.name,
            uuid: machine.uuid,
            started_at: socket.map_err(|e| QmpError::Broken(e.to_string()))?.mtime(),
            vcpus: cpus.as_array().map_or(0, |c| u32::try_from(c.len()).unwrap_or(u32::MAX)),
            memory_mib: memory["base-memory"].as_u64().unwrap_or(0) >> 20,
            disks: blocks::disks(&nodes, &devices),
        })
    }
}

#[async_trait]
impl VmmDelegate for Qemu {
    async fn initiator_iqn(&self, machine: &str) -> Result<String> {
        self.initiator(machine)
    }

    async fn ensure_connected(&self, _: Generation, spec: &ConnectSpec) -> Result<()> {
        let (export, machine) = (&spec.export, &spec.machine.name);
        if export.initiator_iqn != self.initiator(machine)? {
            return Err(DelegateError::fatal(format!("the export is not for the initiator of machine {machine}")));
        }
        let names = Names::of(&export.volume);
        let told = |e| error(machine, &e);
        let turn = self.machines.turn(machine).await?;
        let mut qmp = turn.connect(LIMIT).await.map_err(told)?;
        refuse_another(&mut qmp, &spec.machine).await?;
        let there = parts(&mut qmp, &names).await.map_err(told)?;
        match &there.session {
            Some(session) if session.iqn == export.iqn && session.portal == spec.portal => return Ok(()),
            Some(session) if there.in_use() => {
                return Err(DelegateError::retry(format!(
                    "machine {machine} has the volume as a disk through {}",
                    session.iqn
                )));
            }
            _ => log_out(&mut qmp, &names, &there, machine).await?,
        }
        portal_answers(&spec.portal).await?;
        self.inquiry.check_serial(export, &spec.portal).await?;
        let secret = json!({"qom-type": "secret", "id": names.chap, "data": export.chap_secret.0});
        qmp.execute("object-add", secret).await.map_err(told)?;
        let node = json!({
            "driver": "iscsi", "node-name": names.serial, "discard": "unmap", "transport": "tcp",
            "portal": spec.portal.address, "target": export.iqn, "lun": export.lun,
            "user": export.chap_user, "password-secret": names.chap, "initiator-name": export.initiator_iqn,
        });
        if let Err(e) = qmp.execute("blockdev-add", node).await {
            if matches!(e, QmpError::Refused { .. }) {
                forget_secret(&mut qmp, &names).await.map_err(told)?;
            }
            return Err(told(e));
        }
        Ok(())
    }

    async fn ensure_disconnected(&self, _: Generation, spec: &DiskSpec) -> Result<()> {
        let names = Names::of(&spec.volume);
        let machine = &spec.machine.name;
        let told = |e| error(machine, &e);
        let turn = self.machines.turn(machine).await?;
        let mut qmp = match turn.connect(LIMIT).await {
            Err(QmpError::NotRunning) => return Ok(()),
            connected => connected.map_err(told)?,
        };
        if !is_meant(&mut qmp, &spec.machine).await.map_err(told)? {
            return Ok(());
        }
        let there = parts(&mut qmp, &names).await.map_err(told)?;
        match &there.session {
            Some(session) if session.iqn != spec.iqn => Ok(()),
            Some(_) if there.in_use() => {
                Err(DelegateError::retry(format!("machine {machine} still has {} as a disk", spec.volume)))
            }
            _ => log_out(&mut qmp, &names, &there, machine).await,
        }
    }

    async fn ensure_attached(&self, _: Generation, spec: &DiskSpec) -> Result<()> {
        let (names, machine) = (Names::of(&spec.volume), &spec.machine.name);
        let told = |e| error(machine, &e);
        let turn = self.machines.turn(machine).await?;
        let mut qmp = turn.connect(LIMIT).await.map_err(told)?;
        refuse_another(&mut qmp, &spec.machine).await?;
        let there = parts(&mut qmp, &names).await.map_err(told)?;
        let Some(session) = there.session.as_ref().filter(|session| session.iqn == spec.iqn) else {
            return Err(DelegateError::retry(format!("machine {machine} is not connected to {}", spec.iqn)));
        };
        if there.device {
            return if there.in_use() {
                throttle::hold(&mut qmp, &names, spec, &session.portal).await
            } else {
                Err(DelegateError::retry(format!(
                    "the guest of {machine} still holds the dead device of a forced detach: it must let go or restart"
                )))
            };
        }
        if there.disk != Some(Under::Target(spec.iqn.clone())) {
            clear(&mut qmp, &names, &there).await.map_err(told)?;
            let node = json!({"driver": "raw", "node-name": names.disk, "discard": "unmap", "file": names.serial});
            qmp.execute("blockdev-add", node).await.map_err(told)?;
        }
        let device = json!({
            "driver": "virtio-blk-pci", "id": names.serial, "drive": names.disk, "serial": names.serial,
            "werror": "report", "rerror": "report",
        });
        match qmp.execute("device_add", device).await {
            // A full PCI bus, or one that takes nothing while the machine runs.
            Err(e) if e.says("no slot") || e.says("does not support hotplugging") => {
                return Err(DelegateError::fatal(format!("machine {machine}: {e}")));
            }
            done => done.map_err(told)?,
        };
        if spec.limits == Limits::default() {
            return Ok(());
        }
        throttle::hold(&mut qmp, &names, spec, &session.portal).await
    }

    async fn ensure_detached(&self, _: Generation, spec: &DiskSpec, force: bool) -> Result<Detach> {
        let (names, machine) = (Names::of(&spec.volume), &spec.machine.name);
        let told = |e| error(machine, &e);
        let end = Instant::now() + if force { CUT_WAIT } else { self.detach_wait };
        let mut asked = false;
        loop {
            // A turn and a connection for each look: the monitor is not ours alone while we wait.
            let turn = self.machines.turn(machine).await?;
            let mut qmp = match turn.connect(LIMIT).await {
                Err(QmpError::NotRunning) => return Ok(Detach::Gone),
                connected => connected.map_err(told)?,
            };
            if !is_meant(&mut qmp, &spec.machine).await.map_err(told)? {
                return Ok(Detach::Gone);
            }
            let there = parts(&mut qmp, &names).await.map_err(told)?;
            if !there.device {
                match clear(&mut qmp, &names, &there).await {
                    // The device leaves the list a moment before it lets go of its node.
                    Err(e) if e.says("in use") && Instant::now() < end => {}
                    cleared => return cleared.map(|()| Detach::Gone).map_err(told),
                }
            } else if there.is_of_another(spec) {
                return Ok(Detach::Gone);
            } else {
                let dead = let_go(&mut qmp, &names, &there, machine, force, &mut asked).await?;
                if Instant::now() >= end {
                    return Ok(if dead { Detach::Gone } else { Detach::Busy });
                }
            }
            drop((qmp, turn));
            sleep(LOOK).await;
        }
    }

    /// QEMU asks the target for the unit's size only when it is told to resize the node. Then it refuses to go beyond what the
    /// target says, so that nothing is made up. A node that has not grown is held to its limits all the same.
    async fn ensure_grown(&self, _: Generation, spec: &DiskSpec, size_bytes: u64) -> Result<Growth> {
        let (names, machine) = (Names::of(&spec.volume), &spec.machine.name);
        let told = |e| error(machine, &e);
        let turn = self.machines.turn(machine).await?;
        let mut qmp = match turn.connect(LIMIT).await {
            Err(QmpError::NotRunning) => return Ok(Growth::AtNextAttach),
            connected => connected.map_err(told)?,
        };
        if !is_meant(&mut qmp, &spec.machine).await.map_err(told)? {
            return Ok(Growth::AtNextAttach);
        }
        let there = parts(&mut qmp, &names).await.map_err(told)?;
        let Some(session) = there.session.as_ref().filter(|session| session.iqn == spec.iqn) else {
            return Ok(Growth::AtNextAttach);
        };
        if there.in_use() {
            throttle::hold(&mut qmp, &names, spec, &session.portal).await?;
        }
        if !there.shows(size_bytes) {
            portal_answers(&session.portal).await?;
            let under_guest = matches!(there.disk, Some(Under::Target(_)));
            let node = if under_guest { &names.disk } else { &names.serial };
            match qmp.execute("block_resize", json!({"node-name": node, "size": size_bytes})).await {
                Err(e) if e.says("Cannot grow") => return Ok(Growth::AtNextAttach),
                done => done.map_err(told)?,
            };
        }
        let there = parts(&mut qmp, &names).await.map_err(told)?;
        Ok(if there.shows(size_bytes) { Growth::Online } else { Growth::AtNextAttach })
    }

    async fn ensure_paused(&self, generation: Generation, spec: &PauseSpec) -> Result<()> {
        self.pauses.begin(generation, spec).await
    }

    async fn ensure_resumed(&self, generation: Generation, spec: &PauseSpec) -> Result<Pause> {
        self.pauses.end(generation, spec).await
    }

    /// A machine that does not answer is reported as it was last seen, and one whose QEMU is gone as not running, with no
    /// disks: its initiator died with it.
    async fn observe(&self) -> Result<VmmObservation> {
        let names = self.machines.names().await?;
        let looks = names.into_iter().map(|name| async move {
            let looked = timeout(OBSERVE_LIMIT, self.look_at(&name)).await;
            (name, looked.unwrap_or_else(|_| Err(QmpError::Silent("an observation".into()))))
        });
        let looks = join_all(looks).await;
        let mut guard = self.seen.lock().await;
        let (seen, file) = &mut *guard;
        let before = seen.clone();
        seen.update(looks, chrono::Utc::now().timestamp());
        if *seen != before {
            kept::write(file, seen).await?;
        }
        Ok(VmmObservation { machines: seen.machines(), sessions: Vec::new(), drivers: vec!["qemu".into()] })
    }
}

impl Parts {
    /// Whether the guest has a device through which it can reach the volume.
    fn in_use(&self) -> bool {
        self.device && self.disk != Some(Under::Nothing)
    }

    /// Whether the guest, or whoever is connected, sees that many bytes.
    fn shows(&self, size_bytes: u64) -> bool {
        let shown = self.session.iter().map(|session| session.size_bytes).chain(self.disk_bytes);
        shown.min().is_some_and(|shown| shown >= size_bytes)
    }

    /// Whether the device reaches the volume through the target of another attachment; the disk asked for is gone then.
    fn is_of_another(&self, spec: &DiskSpec) -> bool {
        matches!(&self.disk, Some(Under::Target(iqn)) if *iqn != spec.iqn)
    }
}

/// Takes the data directory over.
async fn lock(dir: PathBuf) -> Result<File> {
    let taken = tokio::task::spawn_blocking(move || data_dir::take(&dir)).await;
    let cannot = |e: &dyn std::fmt::Display| DelegateError::retry(format!("cannot lock the data directory: {e}"));
    taken.map_err(|e| cannot(&e))?.map_err(|e| cannot(&e))
}

/// Whatever QEMU says may be otherwise next time; the workflow's deadline ends the tries.
pub(super) fn error(machine: &str, e: &QmpError) -> DelegateError {
    DelegateError::retry(format!("machine {machine}: {e}"))
}

pub(super) async fn uuid(qmp: &mut Qmp) -> std::result::Result<String, QmpError> {
    Ok(qmp.execute("query-uuid", json!({})).await?["UUID"].as_str().unwrap_or_default().to_owned())
}

/// Whether this is the machine that is meant, and not another that has its name now.
pub(super) async fn is_meant(qmp: &mut Qmp, machine: &MachineRef) -> std::result::Result<bool, QmpError> {
    Ok(uuid(qmp).await? == machine.uuid)
}

/// Refuses to give another machine what was for the one that is meant.
pub(super) async fn refuse_another(qmp: &mut Qmp, machine: &MachineRef) -> Result<()> {
    let MachineRef { name, uuid } = machine;
    if is_meant(qmp, machine).await.map_err(|e| error(name, &e))? {
        Ok(())
    } else {
        Err(DelegateError::fatal(format!("machine {name} is another one than that of uuid {uuid}")))
    }
}

/// Whether the guest's processors run, and it can begin I/O.
pub(super) async fn running(qmp: &mut Qmp) -> std::result::Result<bool, QmpError> {
    Ok(qmp.execute("query-status", json!({})).await?["running"] != false)
}

/// What there is of a volume in the machine.
pub(super) async fn parts(qmp: &mut Qmp, names: &Names) -> std::result::Result<Parts, QmpError> {
    let (nodes, devices) = lists(qmp).await?;
    Ok(blocks::parts(names, &nodes, &devices))
}

async fn lists(qmp: &mut Qmp) -> std::result::Result<(Value, Value), QmpError> {
    let nodes = qmp.execute("query-named-block-nodes", json!({"flat": true})).await?;
    let devices = qmp.execute("qom-list", json!({"path": "/machine/peripheral"})).await?;
    Ok((nodes, devices))
}

/// Whether something answers where a target should be.
pub(super) async fn portal_answers(portal: &Portal) -> Result<()> {
    let away = |why: &str| DelegateError::retry(format!("the portal {} is away: {why}", portal.address));
    match try_portal(portal).await {
        Some(Ok(())) => Ok(()),
        Some(Err(e)) => Err(away(&e.to_string())),
        None => Err(away("no answer in time")),
    }
}

/// Connects, and says what came of it; nothing when nothing came.
async fn try_portal(portal: &Portal) -> Option<std::io::Result<()>> {
    timeout(PORTAL_LIMIT, TcpStream::connect(&portal.address)).await.ok().map(|connected| connected.map(drop))
}

/// One look at a device that shall leave: cuts it off when forced to, and asks for it once. Tells whether the volume is safe
/// from the guest now.
async fn let_go(
    qmp: &mut Qmp,
    names: &Names,
    there: &Parts,
    machine: &str,
    force: bool,
    asked: &mut bool,
) -> Result<bool> {
    let dead = there.disk == Some(Under::Nothing);
    if force && !dead {
        cut(qmp, names, there, machine).await?;
    }
    if !*asked {
        ask(qmp, names).await.map_err(|e| error(machine, &e))?;
        *asked = true;
    }
    Ok(force || dead)
}

/// Asks the guest to let go of the device.
async fn ask(qmp: &mut Qmp, names: &Names) -> std::result::Result<(), QmpError> {
    match qmp.execute("device_del", json!({"id": names.serial})).await {
        // Asked already, and QEMU does not repeat itself within its own time-out; or gone meanwhile.
        Err(e) if e.says("in the process of unplug") || e.says("not found") => Ok(()),
        done => done.map(drop),
    }
}

/// Takes the volume from under the device.
async fn cut(qmp: &mut Qmp, names: &Names, there: &Parts, machine: &str) -> Result<()> {
    let told = |e| error(machine, &e);
    let (Some(session), Some(Under::Target(_))) = (&there.session, &there.disk) else {
        return Err(DelegateError::retry(format!("machine {machine}: the disk is on no node of ours")));
    };
    portal_answers(&session.portal).await?;
    if !there.cut {
        let node = json!({
            "driver": "blkdebug", "node-name": names.cut,
            "image": {"driver": "null-co", "size": session.size_bytes},
            // At every event, for ever, EIO.
            "inject-error": [{"event": "none", "errno": 5, "once": false, "immediately": false}],
        });
        qmp.execute("blockdev-add", node).await.map_err(told)?;
    }
    let over = json!({"driver": "raw", "node-name": names.disk, "discard": "unmap", "file": names.cut});
    qmp.execute("blockdev-reopen", json!({"options": [over]})).await.map_err(told).map(drop)
}

/// Removes the nodes that only the device needed, once it is gone.
async fn clear(qmp: &mut Qmp, names: &Names, there: &Parts) -> std::result::Result<(), QmpError> {
    if there.device {
        return Ok(());
    }
    if there.disk.is_some() {
        qmp.execute("blockdev-del", json!({"node-name": names.disk})).await?;
    }
    if there.cut {
        qmp.execute("blockdev-del", json!({"node-name": names.cut})).await?;
    }
    Ok(())
}

/// Ends the session, and forgets its secret. QEMU logs out and waits for the answer with all else: that is quick when the
/// target is there and when its port refuses us, and has no end when packets to it are lost.
async fn log_out(qmp: &mut Qmp, names: &Names, there: &Parts, machine: &str) -> Result<()> {
    let told = |e| error(machine, &e);
    clear(qmp, names, there).await.map_err(told)?;
    if let Some(session) = &there.session {
        if try_portal(&session.portal).await.is_none() {
            return Err(DelegateError::retry(format!("the portal {} is away: no log-out", session.portal.address)));
        }
        qmp.execute("blockdev-del", json!({"node-name": names.serial})).await.map_err(told)?;
    }
    forget_secret(qmp, names).await.map_err(told)
}

async fn forget_secret(qmp: &mut Qmp, names: &Names) -> std::result::Result<(), QmpError> {
    match qmp.execute("object-del", json!({"id": names.chap})).await {
        Err(e) if e.says("not found") => Ok(()),
        done => done.map(drop),
    }
}

#[cfg(test)]
mod detach_tests;

#[cfg(test)]
mod tests {
    use super::super::fake::Monitor;
    use super::*;
    use crate::delegate::{ErrorKind, ExportSpec, Secret};
    use crate::ids::VolumeId;

    fn settings(dir: &Path) -> config::Qemu {
        config::Qemu { qmp_dir: dir.to_owned(), iqn_prefix: "iqn.2026-01.t".into(), detach_wait_s: 1 }
    }

    #[tokio::test]
    async fn a_machine_that_took_the_name_of_another_is_told_to_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = Monitor::start(dir.path(), "vm-1", "00000000-0000-4000-8000-000000000002");
        let qemu = Qemu::start(&dir.path().join("data"), &settings(dir.path())).await.unwrap();
        let machine = MachineRef { name: "vm-1".into(), uuid: "00000000-0000-4000-8000-000000000001".into() };
        let volume = VolumeId::generate();
        // It may even have a disk of that volume by now.
        monitor.state().devices.push(volume.serial());
        let export = ExportSpec {
            volume: volume.clone(),
            iqn: "iqn.2026-01.t:v1".into(),
            lun: 1,
            chap_user: "user".into(),
            chap_secret: Secret("secret-enough".into()),
            initiator_iqn: "iqn.2026-01.t:vm-1".into(),
            beside: Vec::new(),
        };
        let (iqn, device) = (export.iqn.clone(), "/dev/sdf".into());
        let connect =
            ConnectSpec { export, portal: Portal { address: "127.0.0.1:1".into() }, machine: machine.clone() };
        let disk = DiskSpec { volume, iqn, machine, device, limits: Limits::default() };
        let g = Generation(1);
        assert_eq!(qemu.ensure_connected(g, &connect).await.unwrap_err().kind, ErrorKind::Fatal);
        assert_eq!(qemu.ensure_attached(g, &disk).await.unwrap_err().kind, ErrorKind::Fatal);
        assert_eq!(qemu.ensure_detached(g, &disk, true).await.unwrap(), Detach::Gone);
        qemu.ensure_disconnected(g, &disk).await.unwrap();
        let pause = PauseSpec { disk, snapshot: crate::ids::SnapshotId::generate(), seconds: 60 };
        assert_eq!(qemu.ensure_paused(g, &pause).await.unwrap_err().kind, ErrorKind::Fatal);
        assert_eq!(qemu.ensure_resumed(g, &pause).await.unwrap(), Pause::Broken);
        let asked = |command: &String| command == "qom-list";
        assert!(monitor.state().changes.iter().all(asked), "{:?}", monitor.state().changes);
    }

    #[tokio::test]
    async fn a_disk_grows_under_the_guest_as_far_as_its_target_does() {
        let (dir, uuid) = (tempfile::tempdir().unwrap(), "00000000-0000-4000-8000-000000000001");
        let monitor = Monitor::start(dir.path(), "vm-1", uuid);
        let qemu = Qemu::start(&dir.path().join("data"), &settings(dir.path())).await.unwrap();
        let portal = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let machine = MachineRef { name: "vm-1".into(), uuid: uuid.into() };
        let (volume, iqn, limits) = (VolumeId::generate(), "iqn.2026-01.t:v1".into(), Limits::default());
        let disk = DiskSpec { volume, iqn, machine, device: "-".into(), limits };
        let grown = async |disk: &DiskSpec, size| qemu.ensure_grown(Generation(1), disk, size).await.unwrap();
        assert_eq!(grown(&disk, 2048).await, Growth::AtNextAttach, "it is not connected");

        let address = portal.local_addr().unwrap().to_string();
        let session = json!({"driver": "iscsi", "target": disk.iqn, "portal": address});
        let raw = json!({"driver": "raw", "file": session});
        let node = |name: String, options: &Value| json!({"node-name": name, "image": {"virtual-size": 1024, "filename": format!("json:{options}")}});
        let names = Names::of(&disk.volume);
        monitor.state().nodes = vec![node(names.serial, &session), node(names.disk, &raw)];
        monitor.state().unit_bytes = 1024;
        assert_eq!(grown(&disk, 2048).await, Growth::AtNextAttach, "the target has not grown");
        monitor.state().unit_bytes = 2048;
        assert_eq!(grown(&disk, 2048).await, Growth::Online);
        monitor.state().changes.clear();
        assert_eq!(grown(&disk, 1024).await, Growth::Online, "it never shrinks");
        assert_eq!(monitor.state().changes, ["qom-list"; 0]);
        // A guest that has it is held to its limits, also to those that it has no more.
        monitor.state().devices.push(disk.volume.serial());
        let limits = Limits { iops: 3_000, bytes_per_second: 125 << 20 };
        for (limits, iops, times) in [(limits, 3_000, 1), (limits, 3_000, 1), (Limits::default(), 0, 2)] {
            assert_eq!(grown(&DiskSpec { limits, ..disk.clone() }, 2048).await, Growth::Online);
            let state = monitor.state();
            assert_eq!(state.limits["iops"], iops);
            let set = state.changes.iter().filter(|command| *command == "block_set_io_throttle");
            assert_eq!(set.count(), times, "set only when they are others");
        }
        monitor.state().changes.clear();
        let mut other = disk.clone();
        other.iqn.push('x');
        assert_eq!(grown(&other, 2048).await, Growth::AtNextAttach);
        other = disk.clone();
        other.machine.uuid = "00000000-0000-4000-8000-000000000002".into();
        assert_eq!(grown(&other, 2048).await, Growth::AtNextAttach, "another machine");
        assert!(monitor.state().changes.iter().all(|command| command != "block_resize"));
    }

    #[tokio::test]
    async fn a_data_directory_has_one_delegate() {
        let dir = tempfile::tempdir().unwrap();
        let first = Qemu::start(&dir.path().join("data"), &settings(dir.path())).await.unwrap();
        let refused = Qemu::start(&dir.path().join("data"), &settings(dir.path()))
            .await
            .err()
            .expect("two would end each other's pauses");
        assert!(refused.message.contains("another delegate"), "{refused}");
        drop(first);
        Qemu::start(&dir.path().join("data"), &settings(dir.path())).await.unwrap();
    }
}
