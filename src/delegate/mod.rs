//! The two delegates: what the control plane asks of a storage node and of a hypervisor node.
//!
//! No node has a database. A delegate is told what shall be, not what to do: every verb is level-triggered, looks at
//! what is there, layer by layer, and makes up the difference. Already there is success; already gone is success.
//! So a worker that died anywhere is followed by another that simply asks again.
//!
//! The traits are called in process (`local`, [`sim`]) or over signed HTTP+JSON ([`client`], [`server`]); on either
//! path [`guard`] holds the volume's lock and refuses a generation older than the newest one seen.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::source::{RestoreSpec, SnapshotSource};
use crate::ids::{SnapshotId, VolumeId};

pub mod check;
pub mod client;
pub mod command;
mod data_dir;
pub mod fence;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod guard;
pub mod peer;
pub mod reading;
pub mod replay;
pub mod server;
pub mod sim;
pub mod source;
pub mod sources;
pub mod target;
pub mod trust;
pub mod vmm;
pub mod volume;
pub mod wire;

/// The fencing token of a call: the lease generation of the workflow that makes it. Generations come from one database
/// sequence, so of two workers on one resource the later claim always has the higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(pub i64);

/// A volume as a storage node shall have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// The volume; everything on the node is named after it.
    pub volume: VolumeId,
    /// Its size in bytes. A bigger size than what is there grows it; it never shrinks.
    pub size_bytes: u64,
    /// What its first bytes are: this snapshot's, or zeros.
    pub snapshot: Option<SnapshotId>,
}

/// A snapshot as a storage node shall have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// The snapshot to make.
    pub snapshot: SnapshotId,
    /// The volume it is of. Once the snapshot is there the volume is no longer needed.
    pub volume: VolumeId,
    /// Whether an earlier call has said that it is cut. If it is not there then, it is lost, and never cut anew at a later
    /// instant.
    #[serde(default)]
    pub cut: bool,
}

impl SnapshotSpec {
    /// Whether one that is not there is to be cut: refuses (Fatal) when it was cut before.
    pub fn may_cut(&self) -> Result<()> {
        if self.cut {
            return Err(DelegateError::fatal(format!("{} was cut, and is lost", self.snapshot)));
        }
        Ok(())
    }
}

/// A copy of a snapshot as a storage node shall have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopySpec {
    /// The snapshot to make.
    pub snapshot: SnapshotId,
    /// The whole snapshot it is a copy of. Once the copy is there the source is no longer needed.
    pub source: SnapshotId,
}

/// What a storage node says of a snapshot that is cut: whatever is written to the volume from now on is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// The size of the volume it was taken of, in bytes.
    pub size_bytes: u64,
    /// The bytes of it that hold data (`fullSnapshotSizeInBytes`).
    pub data_bytes: u64,
    /// How much of it stands apart from the volume, in per cent. At 100 it is whole, and outlives the volume; below, the node
    /// copies on by itself and is to be asked again, and the volume must not be removed.
    pub progress: u8,
}

/// Where the new size of a volume that has grown is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Growth {
    /// Here, and by whoever uses the volume through here, at once.
    Online,
    /// By the volume's next user: this one has a part in its chain that learns of sizes only when it is set up.
    AtNextAttach,
}

/// How a snapshot of a volume that a guest is writing to gets to be of one point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotMethod {
    /// The driver cuts at one instant by itself (reflink, device-mapper): the guest may go on writing.
    Atomic,
    /// The driver copies, block after block: the guest's I/O must rest for as long as the copy takes.
    Copy,
}

/// A secret that neither Debug nor a log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<secret>")
    }
}

/// An iSCSI export as a storage node shall have it, and as an initiator logs in to it. One target an attachment, so that what is
/// done to one of several attachments of a volume touches no session of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportSpec {
    /// The volume behind it.
    pub volume: VolumeId,
    /// The target's name. Made anew for each attachment and never used again, so that an initiator left over from an
    /// earlier one can log in to nothing.
    pub iqn: String,
    /// The logical unit, 1 for every target we make.
    pub lun: u32,
    /// The CHAP user and secret of this attachment.
    pub chap_user: String,
    /// See `chap_user`.
    pub chap_secret: Secret,
    /// The one initiator that may log in.
    pub initiator_iqn: String,
    /// The names of the targets of the volume's other attachments, where it may have several.
    #[serde(default)]
    pub beside: Vec<String>,
}

impl ExportSpec {
    /// Whether a target is that of another attachment of the volume.
    pub fn is_beside(&self, iqn: &str) -> bool {
        self.beside.iter().any(|name| name == iqn)
    }
}

/// Where an export is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portal {
    /// `ADDRESS:PORT`
    pub address: String,
}

/// A machine that is meant, and no other. A name alone may be another machine's by now, and that one another tenant's.
///
/// What a machine is not needed for, because the node itself is logged in, is done by the target's name alone: so
/// [`VmmDelegate::ensure_disconnected`] ends a log-in that was left over for [`MachineRef::nobody`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRef {
    /// The name that the node itself uses.
    pub name: String,
    /// See [`ObservedMachine::uuid`].
    pub uuid: String,
}

impl MachineRef {
    /// No machine: whose a log-in was is not known any more ([`VmmObservation::sessions`]).
    pub fn nobody() -> Self {
        Self { name: String::new(), uuid: String::new() }
    }
}

/// A connection as a hypervisor node shall have it: logged in to the export, not yet given to a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectSpec {
    /// What is exported, and the secret to log in with.
    pub export: ExportSpec,
    /// Where.
    pub portal: Portal,
    /// The machine it is for. (QEMU's initiator lives inside the machine.)
    pub machine: MachineRef,
}

/// How much I/O a disk may do. A number of 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Operations a second. One of more than 256 KiB counts for several, as on EC2.
    pub iops: u32,
    /// Bytes a second.
    pub bytes_per_second: u64,
}

/// A disk in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The volume. The guest sees [`crate::ids::Id::serial`] of it as the disk's serial number.
    pub volume: VolumeId,
    /// The target it is reached through.
    pub iqn: String,
    /// The machine.
    pub machine: MachineRef,
    /// The device name that the caller asked for, such as `/dev/sdf`; a hypervisor without names ignores it.
    pub device: String,
    /// What it is held to, by a hypervisor that can.
    #[serde(default)]
    pub limits: Limits,
}

/// A pause of a machine's I/O. Each snapshot has its own for each disk that its volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseSpec {
    /// The disk; the machine that has it rests.
    pub disk: DiskSpec,
    /// What it is paused for.
    pub snapshot: SnapshotId,
    /// How long the pause lasts at most, in seconds from the call on; without a meaning when it is to end.
    pub seconds: u32,
}

/// How a detach stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Detach {
    /// The guest has let go; the device is gone from the machine.
    Gone,
    /// Asked, but the guest still holds on. Ask again later.
    Busy,
}

/// How a pause of a machine's I/O ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pause {
    /// It held from the call that began it until now.
    Held,
    /// It ended before its time (it ran out, the machine or the node was restarted), or was another caller's: what was
    /// copied under it is worth nothing.
    Broken,
}

/// What a storage node has of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageObservation {
    /// The volumes, with their sizes in bytes.
    pub volumes: Vec<(VolumeId, u64)>,
    /// The snapshots that are whole.
    pub snapshots: Vec<SnapshotId>,
    /// The exports.
    pub exports: Vec<ObservedExport>,
    /// The bytes there are for volumes and snapshots.
    #[serde(default)]
    pub capacity_bytes: u64,
    /// The bytes that can still be given to volumes.
    pub free_bytes: u64,
    /// Whether a new volume takes room only as it is written: it may then be bigger than what is free.
    #[serde(default)]
    pub sparse: bool,
    /// The names of the node's drivers: the one that keeps the bytes, and the one that serves them.
    #[serde(default)]
    pub drivers: Vec<String>,
}

/// An export that a storage node serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedExport {
    /// The target's name.
    pub iqn: String,
    /// The volume behind it, read from the name.
    pub volume: VolumeId,
    /// The initiators that are logged in.
    pub sessions: Vec<String>,
    /// Whether every layer is there: target, unit with the right path, CHAP user, access rule.
    pub whole: bool,
}

/// What a hypervisor node has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmObservation {
    /// The machines of the node, ours and others' alike.
    pub machines: Vec<ObservedMachine>,
    /// Log-ins of the node itself to targets of ours that no machine's disk is, whoever they were made for. A hypervisor whose
    /// machines bring their own initiators has none.
    #[serde(default)]
    pub sessions: Vec<ObservedSession>,
    /// The names of the node's drivers.
    #[serde(default)]
    pub drivers: Vec<String>,
}

/// A log-in of a hypervisor node to a target of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSession {
    /// The volume, read from the target's name.
    pub volume: VolumeId,
    /// The target's name.
    pub iqn: String,
}

/// A machine on a hypervisor node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedMachine {
    /// The name that the node itself uses.
    pub name: String,
    /// Tells the machine from an earlier one of the same name (QEMU: `-uuid`).
    pub uuid: String,
    /// Whether it runs; a paused machine does.
    pub running: bool,
    /// Whether its I/O is paused by [`VmmDelegate::ensure_paused`].
    pub paused: bool,
    /// When it was started, seconds since 1970.
    pub started_at: i64,
    /// Its virtual processors.
    pub vcpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// The disks of ours it has, or is losing.
    pub disks: Vec<ObservedDisk>,
}

/// A disk of ours in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedDisk {
    /// The volume.
    pub volume: VolumeId,
    /// The target it is reached through.
    pub iqn: String,
    /// Whether the guest has the device; else the node is only connected.
    pub attached: bool,
}

/// Why a delegate did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct DelegateError {
    /// What the workflow makes of it.
    pub kind: ErrorKind,
    /// For the operator: names the command, its exit status and its last words; never a secret.
    pub message: String,
}

/// What a workflow makes of a delegate's error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// It may go better later: a time-out, a node that is away, a tool that lost a race.
    Retry,
    /// An earlier call is still at work on the same thing, for as long as it takes: nothing is wrong.
    Busy,
    /// It will not go better: the request itself cannot be met.
    Fatal,
    /// There is no room for it (`InsufficientVolumeCapacity`).
    NoRoom,
    /// The caller's generation is old: another worker has taken over, and this one must stop.
    Stale,
}

impl DelegateError {
    /// An error worth another try.
    pub fn retry(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Retry, message: message.into() }
    }

    /// Not an error: an earlier call is still at work.
    pub fn busy(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Busy, message: message.into() }
    }

    /// An error that no other try mends.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Fatal, message: message.into() }
    }

    /// An error of room.
    pub fn no_room(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::NoRoom, message: message.into() }
    }

    /// The answer to a worker whose lease has passed on.
    pub fn stale(seen: Generation, given: Generation) -> Self {
        Self {
            kind: ErrorKind::Stale,
            message: format!("generation {} is older than {}, which was seen already", given.0, seen.0),
        }
    }
}

/// What a delegate's verb answers.
pub type Result<T, E = DelegateError> = std::result::Result<T, E>;

/// A storage node: volumes, snapshots, exports.
#[async_trait]
pub trait VolumeDelegate: SnapshotSource {
    /// How this node takes snapshots.
    async fn snapshot_method(&self) -> Result<SnapshotMethod>;

    /// Makes the volume, or grows it, or finds it as it shall be. A new volume reads as zeros or as its snapshot, whole,
    /// before this returns.
    async fn ensure_volume(&self, generation: Generation, spec: &VolumeSpec) -> Result<()>;

    /// Makes the volume of a snapshot that another node has, in the background, and tells how much of that is done, in per
    /// cent; at 100 it is whole, and no sooner there for anything else. To be asked again until then, with a source that can be
    /// read for a while from now on. What was copied before a crash of either node is not copied again. An error (Retry) when
    /// nothing has come since it was last asked, and Fatal when what is here at the end is not what the source has.
    async fn ensure_restored(
        &self,
        generation: Generation,
        spec: &RestoreSpec,
        source: Arc<dyn SnapshotSource>,
    ) -> Result<u8>;

    /// Removes the volume, also one that is being made. Refuses (Retry) while it is exported.
    async fn ensure_no_volume(&self, generation: Generation, volume: &VolumeId) -> Result<()>;

    /// Cuts the snapshot, durably before this returns; one that is there already is left as it is. A driver that goes on to
    /// copy says how far it is, and goes on after a crash when it is asked again. A snapshot that is lost meanwhile, because
    /// what keeps it overflowed or is gone, is an error (Fatal) and never one day whole. Room is made for all of it at the cut:
    /// one that is cut is never refused for want of room.
    async fn ensure_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<SnapshotReport>;

    /// Makes a snapshot that is a copy of another one on this node, whole before this returns, and from then on as independent
    /// of it as of any. Fatal when there is neither.
    async fn ensure_snapshot_copy(&self, generation: Generation, spec: &CopySpec) -> Result<SnapshotReport>;

    /// Grows the volume, and makes its exports show the new size where they can while somebody is logged in. Never shrinks.
    async fn ensure_grown(&self, generation: Generation, spec: &VolumeSpec) -> Result<Growth>;

    /// Removes the snapshot, and what an unfinished try left of it.
    async fn ensure_no_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<()>;

    /// Serves the volume to one initiator. Removes exports of the same volume under other names, those beside it apart, that
    /// nobody is logged in to; refuses (Retry) while somebody is.
    async fn ensure_exported(&self, generation: Generation, spec: &ExportSpec) -> Result<Portal>;

    /// Ends every export of the volume but those of these names. Refuses (Retry) while an initiator is logged in to one that is
    /// to end: no un-export under a live session.
    async fn ensure_not_exported(&self, generation: Generation, volume: &VolumeId, but: &[String]) -> Result<()>;

    /// Reports what is there.
    async fn observe(&self) -> Result<StorageObservation>;
}

/// A hypervisor node: initiator and machines.
///
/// A machine that has the name and not the uuid that a call gives is not the one meant. What would give it something is
/// refused (Fatal), and what would take something away has nothing to do: the machine that was meant took it along.
#[async_trait]
pub trait VmmDelegate: Send + Sync {
    /// The name of the initiator that logs in for this machine; what the export's access rule must allow.
    async fn initiator_iqn(&self, machine: &str) -> Result<String>;

    /// Logs in, and checks that what answers is the volume.
    async fn ensure_connected(&self, generation: Generation, spec: &ConnectSpec) -> Result<()>;

    /// Logs out. Refuses (Retry) while a machine has the disk: no log-out under a live device. A node that is logged in itself
    /// looks for the target's name only, whether the machine is there or not, and whether one is named
    /// ([`MachineRef::nobody`]).
    async fn ensure_disconnected(&self, generation: Generation, spec: &DiskSpec) -> Result<()>;

    /// Gives the connected disk to the machine, within its limits, and returns once the hypervisor has it plugged in.
    async fn ensure_attached(&self, generation: Generation, spec: &DiskSpec) -> Result<()>;

    /// Asks the guest to let go, and waits a little. With `force` it does not ask: the device is taken away as hard as the
    /// hypervisor can.
    async fn ensure_detached(&self, generation: Generation, spec: &DiskSpec, force: bool) -> Result<Detach>;

    /// Makes the initiator and the machine see that the volume has grown to so many bytes, where they can. To be asked after
    /// [`VolumeDelegate::ensure_grown`] has answered [`Growth::Online`]. A machine that is off sees it at its next start. From
    /// then on the disk is held to the limits given here, whether it has grown or not.
    async fn ensure_grown(&self, generation: Generation, spec: &DiskSpec, size_bytes: u64) -> Result<Growth>;

    /// Rests the I/O of the machine that has this disk; when it returns, nothing is in flight. The pause ends by itself after
    /// the time given, so that no crash of ours leaves a guest frozen. The same caller lengthens its pause by asking again; a
    /// newer generation takes over the pause of an older one, as one that begins now, and an older one is refused (Stale).
    async fn ensure_paused(&self, generation: Generation, spec: &PauseSpec) -> Result<()>;

    /// Lets it go on, and tells whether the pause held from this generation's first call until now. A newer generation ends
    /// the pause of an older one, an older one ends nothing; for either it is [`Pause::Broken`].
    async fn ensure_resumed(&self, generation: Generation, spec: &PauseSpec) -> Result<Pause>;

    /// Reports what is there.
    async fn observe(&self) -> Result<VmmObservation>;
}
