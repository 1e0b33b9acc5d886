//! A storage node on this machine: a driver that keeps the bytes and one that serves them.
//!
//! Locks and fences are not its business: [`crate::delegate::guard`] goes around it.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::file::failed;
use super::file_driver::FileDriver;
use super::lvm::LvmDriver;
use super::restore::Restores;
use super::{Stored, VolumeDriver, pieces};
use crate::config;
use crate::delegate::source::{CHUNK, Grant, Piece, RestoreSpec, SnapshotSource, Summary};
use crate::delegate::target::TargetDriver;
use crate::delegate::target::iet::Iet;
use crate::delegate::target::lio::Lio;
use crate::delegate::target::tgt::Tgt;
use crate::delegate::{
    CopySpec, DelegateError, ExportSpec, Generation, Growth, Portal, Result, SnapshotMethod, SnapshotReport,
    SnapshotSpec, StorageObservation, VolumeDelegate, VolumeSpec,
};
use crate::ids::{SnapshotId, VolumeId};

/// The drivers of a storage node.
pub struct LocalStorage {
    volumes: Arc<dyn VolumeDriver>,
    target: Box<dyn TargetDriver>,
    restores: Restores,
}

impl LocalStorage {
    /// Opens the drivers that the configuration names. When `stop` is cancelled, copies at work end within a moment (Retry);
    /// everything else goes on.
    ///
    /// # Errors
    /// Fatal for thin volumes behind IET, which would lose what it has said is written: it has nothing flushed, ever, and the
    /// pool's map is written only when that is asked for.
    pub async fn open(config: &config::Storage, stop: &CancellationToken) -> Result<Self> {
        if let (config::Volumes::Lvm(config::Lvm { layout: config::Layout::Thin(_), .. }), config::Target::Iet(_)) =
            (&config.volumes, &config.target)
        {
            return Err(DelegateError::fatal("IET loses writes to thin volumes when the node loses its power"));
        }
        let volumes: Box<dyn VolumeDriver> = match &config.volumes {
            config::Volumes::File => Box::new(FileDriver::open(&config.data_dir, stop).await?),
            config::Volumes::Lvm(lvm) => Box::new(LvmDriver::open(lvm, &config.data_dir, stop).await?),
        };
        let target: Box<dyn TargetDriver> = match &config.target {
            config::Target::Tgt(tgt) => Box::new(Tgt::new(tgt.clone())),
            config::Target::Lio(lio) => Box::new(Lio::new(lio)),
            config::Target::Iet(iet) => Box::new(Iet::new(iet.clone())),
        };
        Ok(Self::of_until(volumes, target, stop))
    }

    /// A node of these drivers.
    pub fn of(volumes: Box<dyn VolumeDriver>, target: Box<dyn TargetDriver>) -> Self {
        Self::of_until(volumes, target, &CancellationToken::new())
    }

    fn of_until(volumes: Box<dyn VolumeDriver>, target: Box<dyn TargetDriver>, stop: &CancellationToken) -> Self {
        let volumes: Arc<dyn VolumeDriver> = Arc::from(volumes);
        let restores = Restores::new(Arc::clone(&volumes), stop);
        Self { volumes, target, restores }
    }

    /// Opens a snapshot and reads of it from an offset on, where that may block.
    async fn on_snapshot<T: Send + 'static>(
        &self,
        snapshot: &SnapshotId,
        at: u64,
        read: impl FnOnce(&std::fs::File, u64) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let Stored { path, size_bytes } = self.volumes.ready_snapshot(snapshot).await?;
        if at >= size_bytes || !at.is_multiple_of(CHUNK) {
            return Err(DelegateError::fatal(format!("{snapshot} has no piece at {at}")));
        }
        let work = move || {
            let read = || read(&pieces::open(&path, OpenOptions::new().read(true))?, size_bytes);
            read().map_err(failed("read", &path))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(e) => Err(DelegateError::retry(format!("reading {snapshot} stopped: {e}"))),
        }
    }

    fn path(&self) -> impl Fn(&VolumeId) -> PathBuf + Sync + use<'_> {
        |volume| self.volumes.path(volume)
    }
}

#[async_trait]
impl SnapshotSource for LocalStorage {
    async fn read_snapshot(&self, snapshot: &SnapshotId, at: u64) -> Result<Piece> {
        self.on_snapshot(snapshot, at, move |file, size| pieces::read(file, size, at)).await
    }

    async fn sum_snapshot(&self, snapshot: &SnapshotId, from: u64) -> Result<Summary> {
        self.on_snapshot(snapshot, from, move |file, size| pieces::sum(file, size, from)).await
    }

    fn grant(&self, snapshot: &SnapshotId) -> Result<Grant> {
        Err(DelegateError::fatal(format!(
            "{snapshot} is on a node that is served in its gateway's own process: no other node can read it"
        )))
    }
}

#[async_trait]
impl VolumeDelegate for LocalStorage {
    async fn snapshot_method(&self) -> Result<SnapshotMethod> {
        Ok(self.volumes.snapshot_method())
    }

    async fn ensure_volume(&self, _: Generation, spec: &VolumeSpec) -> Result<()> {
        self.volumes.ensure_volume(spec).await
    }

    async fn ensure_restored(&self, _: Generation, spec: &RestoreSpec, source: Arc<dyn SnapshotSource>) -> Result<u8> {
        self.restores.ensure(spec, source).await
    }

    async fn ensure_no_volume(&self, _: Generation, volume: &VolumeId) -> Result<()> {
        let exports = self.target.exports(&self.path()).await?;
        if let Some(export) = exports.iter().find(|export| export.volume == *volume) {
            return Err(DelegateError::retry(format!("{volume} is still exported as {}", export.iqn)));
        }
        self.restores.end(volume).await?;
        self.volumes.ensure_no_volume(volume).await
    }

    async fn ensure_snapshot(&self, _: Generation, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        self.volumes.ensure_snapshot(spec).await
    }

    async fn ensure_snapshot_copy(&self, _: Generation, spec: &CopySpec) -> Result<SnapshotReport> {
        self.volumes.ensure_snapshot_copy(spec).await
    }

    async fn ensure_grown(&self, _: Generation, spec: &VolumeSpec) -> Result<Growth> {
        self.volumes.ensure_ready(&spec.volume).await?;
        self.volumes.ensure_volume(spec).await?;
        self.target.ensure_grown(&spec.volume, &self.volumes.path(&spec.volume), spec.size_bytes).await
    }

    async fn ensure_no_snapshot(&self, _: Generation, spec: &SnapshotSpec) -> Result<()> {
        self.volumes.ensure_no_snapshot(spec).await
    }

    async fn ensure_exported(&self, _: Generation, spec: &ExportSpec) -> Result<Portal> {
        self.volumes.ensure_ready(&spec.volume).await?;
        self.target.ensure_exported(spec, &self.volumes.path(&spec.volume)).await
    }

    async fn ensure_not_exported(&self, _: Generation, volume: &VolumeId, but: &[String]) -> Result<()> {
        self.target.ensure_not_exported(volume, but).await
    }

    async fn observe(&self) -> Result<StorageObservation> {
        let contents = self.volumes.contents().await?;
        Ok(StorageObservation {
            volumes: contents.volumes,
            snapshots: contents.snapshots,
            exports: self.target.exports(&self.path()).await?,
            capacity_bytes: contents.capacity_bytes,
            free_bytes: contents.free_bytes,
            sparse: self.volumes.is_sparse(),
            drivers: vec![self.volumes.name().into(), self.target.name().into()],
        })
    }
}
