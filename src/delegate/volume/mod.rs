//! Storage nodes: the drivers that keep volumes and snapshots, and the node made of one of them and a target driver.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use self::lvm::raw::Pace;
use super::source::RestoreSpec;
use super::{CopySpec, DelegateError, Result, SnapshotMethod, SnapshotReport, SnapshotSpec, VolumeSpec};
use crate::ids::{SnapshotId, VolumeId};

pub mod copy;
pub mod file;
pub mod file_driver;
pub mod local;
pub mod lvm;
mod pieces;
mod restore;

/// What keeps the bytes of a storage node. As with [`super::VolumeDelegate`], whose verbs of the same names say more, every
/// call looks at what is there and makes up the difference; whether a volume is exported is not a driver's business.
#[async_trait]
pub trait VolumeDriver: Send + Sync {
    /// How an operator names it.
    fn name(&self) -> &'static str;

    /// See [`super::StorageObservation::sparse`].
    fn is_sparse(&self) -> bool {
        false
    }

    /// How snapshots are taken.
    fn snapshot_method(&self) -> SnapshotMethod;

    /// The file or device that a target serves for the volume. The same for ever, and there while the volume is.
    fn path(&self, volume: &VolumeId) -> PathBuf;

    /// Makes the volume, or grows it, or finds it as it shall be.
    async fn ensure_volume(&self, spec: &VolumeSpec) -> Result<()>;

    /// Removes the volume.
    async fn ensure_no_volume(&self, volume: &VolumeId) -> Result<()>;

    /// Makes [`Self::path`] ready to be opened, as it is not by itself after a restart of the node. Fatal when there is no such
    /// volume here.
    async fn ensure_ready(&self, volume: &VolumeId) -> Result<()>;

    /// Cuts the snapshot, or reports how far it is.
    async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<SnapshotReport>;

    /// Makes a snapshot that is a copy of another, whole before this returns.
    async fn ensure_snapshot_copy(&self, spec: &CopySpec) -> Result<SnapshotReport>;

    /// Removes the snapshot, and what an unfinished try left of it.
    async fn ensure_no_snapshot(&self, spec: &SnapshotSpec) -> Result<()>;

    /// What is there.
    async fn contents(&self) -> Result<Contents>;

    /// Makes a snapshot that is whole ready to be read. Fatal when there is none.
    async fn ready_snapshot(&self, snapshot: &SnapshotId) -> Result<Stored>;

    /// The directory for what must be known of restores after a crash, which is there.
    fn restores_dir(&self) -> &Path;

    /// Makes a volume that is to be filled from elsewhere, and that is not there for anybody else before [`Self::end_volume`].
    /// One that was begun under the same token is kept as it was left; of any other nothing is.
    async fn begin_volume(&self, spec: &RestoreSpec, token: &str) -> Result<Begun>;

    /// Makes the volume that was begun under this token, and that has been filled durably, one like others.
    async fn end_volume(&self, volume: &VolumeId, token: &str) -> Result<()>;

    /// Refuses (`NoRoom`) when nothing more should be written to what takes room as it is written. Asked while one is filled.
    async fn has_room(&self) -> Result<()>;
}

/// Bytes on this node.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The file or device.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A volume that is to be filled.
pub enum Begun {
    /// It was filled before.
    Whole,
    /// Nothing was written to it yet.
    New(Blank),
    /// What was written to it before is in it.
    Kept(Blank),
}

/// What is to be filled.
#[derive(Clone)]
pub struct Blank {
    /// Where.
    pub stored: Stored,
    /// With a pace, what nobody has written to yet holds anything, and each byte must be written, zeros too; without one it
    /// reads as zeros.
    pub raw: Option<Arc<Pace>>,
}

/// What a driver keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The volumes, with their sizes in bytes.
    pub volumes: Vec<(VolumeId, u64)>,
    /// The snapshots that are cut.
    pub snapshots: Vec<SnapshotId>,
    /// The bytes there are for both.
    pub capacity_bytes: u64,
    /// The bytes that can still be given to volumes.
    pub free_bytes: u64,
}

/// Runs work that blocks for hours perhaps, on a thread of its own: those of the runtime are numbered, and all else that blocks
/// for a moment needs them.
async fn background<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    // Nobody may be waiting any more.
    let run = move || drop(done.send(work()));
    std::thread::Builder::new().spawn(run).map_err(|e| DelegateError::retry(format!("cannot start a thread: {e}")))?;
    result.await.unwrap_or_else(|_| Err(DelegateError::retry("the driver stopped")))
}
