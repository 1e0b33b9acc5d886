//! The initiator of the node itself, open-iscsi: log-ins that are of one attachment each, and disks that are what they are
//! said to be.
//!
//! What it does not do for us shapes this driver:
//!
//! - **It never forgets.** A record with `node.startup` other than `manual` logs in again after a restart of the node, and a
//!   session whose target is gone tries for ever. So records are manual, made for one log-in and deleted with it, and the
//!   portal of a target is written down before the log-in: the way out needs no disk to go by. When that file is lost, the
//!   session itself tells its target and portal.
//! - **It hands out what the target has.** Sessions scan for nothing by themselves (`node.session.scan`); the one unit is
//!   scanned for, found from the session down, and given to nobody unless its serial number is the volume's.
//! - **It logs out under anybody's feet**, and what was in flight may come later. A write that a guest began while the target
//!   was away is held by the kernel, and reaches the volume when the session is back, long after the guest was told of an
//!   error. So a log-out begins only when the session is up, or when it was away for longer than the replacement time-out,
//!   at which all that it held has failed; then the disk's requests are waited for, the SCSI device is deleted, which ends
//!   its queue, and the session ends. Only when neither is left in the kernel the answer is that it is done.
//! - **It gives up without knowing.** A connection that breaks at the wrong moment while it is made anew is one that iscsid can
//!   never make again by itself; see the private module `revive`.
//! - **The secret** is on no command line (see the private module `record`), but iscsid keeps it in the record, a file that
//!   is root's alone, for as long as the session may have to log in again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use self::sysfs::{Session, Sysfs, Unit, blocking};
use super::{kept, qemu};
use crate::config;
use crate::delegate::command::{Command, Failure};
use crate::delegate::{ConnectSpec, DelegateError, ExportSpec, MachineRef, Result, target};
use crate::ids::VolumeId;

#[cfg(any(test, fuzzing))]
pub(in crate::delegate) mod fuzzing;
mod record;
mod revive;
pub(super) mod sysfs;

/// Statuses of iscsiadm (`include/iscsi_err.h`).
const SESSION_EXISTS: i32 = 15;
const NO_OBJECTS: i32 = 21;

/// The longest log-in: two tries of iscsid, ten seconds each, and what goes with them.
const LOG_IN: Duration = Duration::from_secs(35);
/// The longest log-out. iscsid waits for the target's answer, and ends the session without it.
const LOG_OUT: Duration = Duration::from_secs(30);
/// The longest wait for a session that is down to come back by itself.
const COME_BACK: Duration = Duration::from_secs(8);
/// The longest wait for a scan to show the disk, and how often it is scanned for meanwhile.
const SCAN: Duration = Duration::from_secs(12);
const SCAN_AGAIN: Duration = Duration::from_secs(3);
/// The longest that a flush, or the deletion of a device, may take.
const FLUSH: Duration = Duration::from_secs(30);
/// The longest wait for the requests in flight, for what was ended to be gone, or for the link that udev makes.
const SETTLE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The programs, places and patience, which tests have others of.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) sysfs: Sysfs,
    pub(super) proc: PathBuf,
    pub(super) iscsiadm: String,
    pub(super) blockdev: String,
    pub(super) log_in: Duration,
    pub(super) flush: Duration,
    pub(super) settle: Duration,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            sysfs: Sysfs { sys: "/sys".into(), dev: "/dev".into() },
            proc: "/proc".into(),
            iscsiadm: "iscsiadm".into(),
            blockdev: "blockdev".into(),
            log_in: LOG_IN,
            flush: FLUSH,
            settle: SETTLE,
        }
    }
}

/// What must be known of a log-in, so that it can be ended whatever is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    portal: SocketAddr,
    machine: MachineRef,
}

/// A disk that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) unit: Unit,
    pub(super) block: sysfs::Block,
}

/// The initiator.
pub(super) struct Initiator {
    host: Host,
    config: config::OpenIscsi,
    /// The log-ins that were begun and not ended, by target, and the file that keeps them.
    known: Arc<Mutex<Kept>>,
    _revives: AbortOnDropHandle<()>,
}

/// The log-ins, and their file.
type Kept = (BTreeMap<String, Known>, PathBuf);

impl Initiator {
    pub(super) async fn open(host: Host, config: config::OpenIscsi, file: PathBuf) -> Result<Self> {
        let known = Arc::new(Mutex::new((kept::read(&file).await?, file)));
        let revives = tokio::spawn(revive::for_ever(host.sysfs.clone(), Arc::clone(&known)));
        Ok(Self { host, config, known, _revives: AbortOnDropHandle::new(revives) })
    }

    pub(super) fn sysfs(&self) -> &Sysfs {
        &self.host.sysfs
    }

    /// The name that this node logs in with.
    pub(super) async fn name(&self) -> Result<String> {
        let path = &self.config.initiator_name;
        let text = tokio::fs::read_to_string(path)
            .await
            .map_err(|e| DelegateError::retry(format!("cannot read {}: {e}", path.display())))?;
        initiator_name(&text)
            .ok_or_else(|| DelegateError::fatal(format!("{} has no InitiatorName of an iSCSI name", path.display())))
    }

    /// The machine that a target was logged in to for.
    pub(super) async fn machine_of(&self, iqn: &str) -> Option<MachineRef> {
        self.known.lock().await.0.get(iqn).map(|known| known.machine.clone())
    }

    /// The checked disk of a volume behind a target; `None` while it is not there.
    pub(super) async fn disk(&self, iqn: &str, volume: &VolumeId) -> Result<Option<Disk>> {
        let sessions = self.of(iqn).await?;
        let unit = sessions.iter().find_map(|session| session.unit(&volume.serial()));
        Ok(unit.and_then(|unit| Some(Disk { unit: unit.clone(), block: unit.block.clone()? })))
    }

    /// Logs in and checks what answers. No machine may have a disk of the target.
    pub(super) async fn connect(&self, spec: &ConnectSpec) -> Result<()> {
        let ExportSpec { iqn, .. } = &spec.export;
        let portal: SocketAddr = spec
            .portal
            .address
            .parse()
            .map_err(|_| DelegateError::fatal(format!("{:?} is no portal", spec.portal.address)))?;
        match &self.of(iqn).await?[..] {
            [] => self.log_in(spec, portal).await?,
            [session] if session.portal == Some(portal) && session.logged_in => {}
            [session] if session.portal == Some(portal) && !session.units.is_empty() => self.back(iqn).await?,
            // At another portal, or twice, or half dead.
            _ => {
                self.disconnect(iqn).await?;
                self.log_in(spec, portal).await?;
            }
        }
        let checked = self.scan(&spec.export).await;
        if checked.is_err()
            && self.of(iqn).await?.iter().all(|session| session.unit(&spec.export.volume.serial()).is_none())
        {
            // Nobody is given what was not checked, and nothing of it stays.
            if let Err(e) = self.disconnect(iqn).await {
                tracing::warn!(iqn, error = %e, "a session of no use cannot end yet");
            }
        }
        checked
    }

    async fn log_in(&self, spec: &ConnectSpec, portal: SocketAddr) -> Result<()> {
        let ExportSpec { iqn, chap_user, chap_secret, .. } = &spec.export;
        // iscsid would try for half a minute.
        qemu::portal_answers(&spec.portal).await?;
        self.remember(iqn, Some(Known { portal, machine: spec.machine.clone() })).await?;
        self.node(iqn, Some(&portal)).args(["-I", "default", "-o", "new"]).run().await?;
        let timeout = self.config.replacement_timeout_s.to_string();
        let settings = [
            ("node.startup", "manual"),
            ("node.session.scan", "manual"),
            ("node.session.nr_sessions", "1"),
            ("node.session.timeo.replacement_timeout", &timeout),
            ("node.session.initial_login_retry_max", "2"),
            ("node.conn[0].timeo.login_timeout", "10"),
            ("node.session.auth.authmethod", "CHAP"),
            ("node.session.auth.username", chap_user),
            ("node.session.auth.password", &chap_secret.0),
        ];
        let settings = settings.map(|(name, value)| (name, value.to_owned()));
        let (nodes, name) = (self.config.nodes_dir.clone(), iqn.clone());
        blocking(move || {
            let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
            record::set(&nodes, &name, &portal, &settings)
        })
        .await??;
        let log_in = self.node(iqn, Some(&portal)).args(["-I", "default", "--login"]).timeout(self.host.log_in);
        match log_in.run().await {
            Err(failure) if failure.code() != Some(SESSION_EXISTS) => {
                if let Err(e) = self.disconnect(iqn).await {
                    tracing::warn!(iqn, error = %e, "what is left of a log-in that failed cannot be removed yet");
                }
                Err(failure.into())
            }
            _ => Ok(()),
        }
    }

    /// Waits for a session to be back that was there.
    async fn back(&self, iqn: &str) -> Result<()> {
        let end = Instant::now() + COME_BACK;
        loop {
            if self.of(iqn).await?.iter().any(|session| session.logged_in) {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(DelegateError::retry(format!("the session with {iqn} is down: its target is away")));
            }
            sleep(LOOK).await;
        }
    }

    /// Makes the kernel look for the one unit, and checks what it finds.
    async fn scan(&self, export: &ExportSpec) -> Result<()> {
        let (end, serial) = (Instant::now() + SCAN, export.volume.serial());
        let mut next = Instant::now();
        loop {
            let sessions = self.of(&export.iqn).await?;
            let Some(session) = sessions.first() else {
                return Err(DelegateError::retry(format!("the session with {} has ended", export.iqn)));
            };
            if session.unit(&serial).is_some() {
                return Ok(());
            }
            let stranger = session.units.iter().find(|unit| unit.block.is_some() && unit.serial.is_some());
            if let Some(stranger) = stranger {
                let told = stranger.serial.as_deref().unwrap_or_default().escape_debug();
                return Err(DelegateError::fatal(format!(
                    "{} serves a disk of serial {told}, not {serial}",
                    export.iqn
                )));
            }
            if Instant::now() >= end {
                return Err(DelegateError::retry(format!("{} shows no disk as unit {}", export.iqn, export.lun)));
            }
            if Instant::now() >= next {
                // Channel, target and unit: an iSCSI session has one target.
                let what = format!("0 0 {}", export.lun);
                self.sysfs().write(self.sysfs().scan_file(session), what, SETTLE).await?;
                next = Instant::now() + SCAN_AGAIN;
            } else {
                sleep(LOOK).await;
            }
        }
    }

    /// Ends every session with a target, and what belongs to it. No machine may have a disk of it.
    pub(super) async fn disconnect(&self, iqn: &str) -> Result<()> {
        let sessions = self.of(iqn).await?;
        for session in &sessions {
            self.release(session).await?;
        }
        if !sessions.is_empty() {
            self.log_out(iqn, &sessions).await?;
        }
        // All records of it, whatever the portal.
        absent_is_fine(self.node(iqn, None).args(["-o", "delete"]).run().await)?;
        self.remember(iqn, None).await
    }

    /// Makes sure that no request of the session's disks is under way or can come again, and deletes them.
    async fn release(&self, session: &Session) -> Result<()> {
        for unit in &session.units {
            let held = matches!(unit.state.as_str(), "blocked" | "quiesce" | "running" | "created-blocked");
            if !session.logged_in && held {
                return Err(DelegateError::retry(format!(
                    "the target {} is away, and requests may be waiting for it: no log-out before it is back or its \
                     session's replacement time-out has passed",
                    session.iqn
                )));
            }
            if let Some(block) = &unit.block {
                let holders = self.sysfs().holders(block).await?;
                if !holders.is_empty() {
                    return Err(DelegateError::retry(format!(
                        "{} stands on /dev/{}: does LVM on this node look into guests' disks? (devices filter)",
                        holders.join(", "),
                        block.name
                    )));
                }
                // What the kernel has given up cannot even be opened; of what it held, nothing can be saved.
                if session.logged_in && !matches!(unit.state.as_str(), "offline" | "transport-offline") {
                    let node = self.sysfs().dev.join(&block.name);
                    let flush = Command::new(&self.host.blockdev).arg("--flushbufs").arg(node);
                    flush.timeout(self.host.flush).run().await?;
                }
                self.until(|| self.at_rest(block), || format!("/dev/{} has requests in flight", block.name)).await?;
            }
            // While it goes it is `cancel`: an earlier call has told it to.
            if !matches!(unit.state.as_str(), "cancel" | "deleted") {
                let told = self.sysfs().write(unit.dir.join("delete"), "1".into(), FLUSH).await;
                if told.is_err() && !gone(unit.dir.clone()).await? {
                    return told;
                }
            }
            self.until(|| gone(unit.dir.clone()), || format!("{} does not go", unit.dir.display())).await?;
        }
        Ok(())
    }

    async fn at_rest(&self, block: &sysfs::Block) -> Result<bool> {
        Ok(!self.sysfs().in_flight(block).await?)
    }

    async fn log_out(&self, iqn: &str, sessions: &[Session]) -> Result<()> {
        let known = self.known.lock().await.0.get(iqn).map(|known| known.portal);
        let mut portals: Vec<SocketAddr> = sessions.iter().filter_map(|session| session.portal).chain(known).collect();
        portals.sort_unstable();
        portals.dedup();
        let mut last = None;
        for portal in portals {
            let out = self.node(iqn, Some(&portal)).arg("--logout").timeout(LOG_OUT).run().await;
            last = absent_is_fine(out).err().or(last);
        }
        // One that has no record is known by its number alone.
        for session in self.of(iqn).await? {
            let out = self.iscsiadm().args(["-m", "session", "-r", &session.id.to_string(), "--logout"]);
            last = absent_is_fine(out.timeout(LOG_OUT).run().await).err().or(last);
        }
        let why = || last.map_or_else(|| format!("the session with {iqn} does not end"), |e: DelegateError| e.message);
        self.until(|| async { Ok(self.of(iqn).await?.is_empty()) }, why).await
    }

    /// Makes the kernel ask for the disk's size again, and waits until it has this one. `false` when the target does not show it.
    pub(super) async fn grown(&self, disk: &Disk, size_bytes: u64) -> Result<bool> {
        self.sysfs().write(disk.unit.dir.join("rescan"), "1".into(), SETTLE).await?;
        let end = Instant::now() + Duration::from_secs(3);
        loop {
            if self.sysfs().size(&disk.block).await?.is_some_and(|size| size >= size_bytes) {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            sleep(LOOK).await;
        }
    }

    /// A path of the disk that is never another's. The link that udev makes names portal, target and unit, and a target's
    /// name is used for one attachment only; Xen keeps the path for as long as the machine lives, and opens it again at
    /// each reboot of it. Without udev there is only the disk's own node: right for as long as the session lives.
    pub(super) async fn path(&self, iqn: &str, disk: &Disk) -> Result<PathBuf> {
        let (by_path, node) = (self.sysfs().dev.join("disk/by-path"), self.sysfs().dev.join(&disk.block.name));
        let (infix, end) = (format!("-iscsi-{iqn}-lun-"), Instant::now() + SETTLE);
        loop {
            let (dir, infix, own) = (by_path.clone(), infix.clone(), node.clone());
            let link = blocking(move || {
                let of_target = |path: &PathBuf| {
                    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                    // Not a partition's: `…-lun-1-part1`.
                    name.split_once(&infix).is_some_and(|(_, lun)| lun.bytes().all(|b| b.is_ascii_digit()))
                };
                let mut links = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
                links.find(|link| of_target(link) && link.canonicalize().ok() == own.canonicalize().ok())
            });
            if let Some(link) = link.await? {
                return Ok(link);
            }
            if Instant::now() >= end {
                tracing::warn!(
                    iqn,
                    disk = disk.block.name,
                    "udev has made no link by path: a reboot of the node's iSCSI sessions is not survived"
                );
                return Ok(node);
            }
            sleep(LOOK).await;
        }
    }

    async fn of(&self, iqn: &str) -> Result<Vec<Session>> {
        let sessions = self.sysfs().sessions().await?;
        Ok(sessions.into_iter().filter(|session| session.iqn == iqn).collect())
    }

    async fn remember(&self, iqn: &str, what: Option<Known>) -> Result<()> {
        let mut guard = self.known.lock().await;
        let (known, file) = &mut *guard;
        if known.get(iqn) == what.as_ref() {
            return Ok(());
        }
        let mut next = known.clone();
        match what {
            Some(what) => next.insert(iqn.to_owned(), what),
            None => next.remove(iqn),
        };
        kept::write(file, &next).await?;
        *known = next;
        Ok(())
    }

    async fn until<F: Future<Output = Result<bool>>>(
        &self,
        mut done: impl FnMut() -> F,
        why: impl FnOnce() -> String,
    ) -> Result<()> {
        let end = Instant::now() + self.host.settle;
        while !done().await? {
            if Instant::now() >= end {
                return Err(DelegateError::retry(why()));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    fn node(&self, iqn: &str, portal: Option<&SocketAddr>) -> Command {
        let command = self.iscsiadm().args(["-m", "node", "-T", iqn]);
        match portal {
            Some(portal) => command.args(["-p".to_owned(), portal.to_string()]),
            None => command,
        }
    }

    fn iscsiadm(&self) -> Command {
        Command::new(&self.host.iscsiadm).timeout(Duration::from_secs(20))
    }
}

/// Refuses a disk whose target has no name of ours.
pub(super) fn check(iqn: &str, volume: &VolumeId) -> Result<()> {
    if target::is_name(iqn) && target::volume_of(iqn).as_ref() == Some(volume) {
        Ok(())
    } else {
        Err(DelegateError::fatal(format!("{iqn:?} is no name of a target of {volume}")))
    }
}

async fn gone(dir: PathBuf) -> Result<bool> {
    Ok(matches!(tokio::fs::metadata(dir).await, Err(e) if e.kind() == std::io::ErrorKind::NotFound))
}

fn absent_is_fine(result: std::result::Result<String, Failure>) -> Result<()> {
    match result {
        Err(failure) if failure.code() != Some(NO_OBJECTS) => Err(failure.into()),
        _ => Ok(()),
    }
}

/// Reads `InitiatorName=…`; lines of comments and an `InitiatorAlias` may be around it.
fn initiator_name(text: &str) -> Option<String> {
    let name = text.lines().find_map(|line| line.trim().strip_prefix("InitiatorName="))?.trim();
    target::is_name(name).then(|| name.to_owned())
}
