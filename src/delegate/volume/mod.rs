//! Storage nodes: the drivers that keep volumes and snapshots, and the node made of one of them and a target driver.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{CopySpec, Result, SnapshotMethod, SnapshotReport, SnapshotSpec, VolumeSpec};
use crate::ids::{SnapshotId, VolumeId};

pub mod copy;
pub mod file;
pub mod file_driver;
pub mod local;
pub mod lvm;

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
