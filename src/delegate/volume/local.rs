//! A storage node on this machine: the `file` driver for bytes, the `tgt` driver for exports.
//!
//! Locks and fences are not its business: [`crate::delegate::guard`] goes around it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::file::Files;
use crate::config;
use crate::delegate::target::tgt::Tgt;
use crate::delegate::{
    DelegateError, ExportSpec, Generation, Portal, Result, SnapshotMethod, SnapshotReport, SnapshotSpec,
    StorageObservation, VolumeDelegate, VolumeSpec,
};
use crate::ids::VolumeId;

/// The drivers of a storage node.
pub struct LocalStorage {
    files: Arc<Files>,
    tgt: Tgt,
}

impl LocalStorage {
    /// Takes the node's data directory over. Fails when it cannot be written, or when another delegate has it.
    pub async fn open(config: &config::Storage) -> Result<Self> {
        let dir = config.data_dir.clone();
        let open = move || {
            std::fs::create_dir_all(&dir)?;
            // What tgtd is given must be the path from the root, and must read the same when it is shown.
            Files::open(&dir.canonicalize()?)
        };
        let files = blocking(move || open().map_err(|e| DelegateError::fatal(e.to_string()))).await?;
        Ok(Self { files: Arc::new(files), tgt: Tgt::new(config.tgt.clone()) })
    }

    async fn on_files<T: Send + 'static>(&self, work: impl FnOnce(&Files) -> Result<T> + Send + 'static) -> Result<T> {
        let files = Arc::clone(&self.files);
        blocking(move || work(&files)).await
    }

    fn path(&self) -> impl Fn(&VolumeId) -> PathBuf + use<'_> {
        |volume| self.files.path(volume)
    }
}

/// Runs work that blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(DelegateError::retry(format!("the file driver stopped: {e}"))),
    }
}

#[async_trait]
impl VolumeDelegate for LocalStorage {
    async fn snapshot_method(&self) -> Result<SnapshotMethod> {
        Ok(self.files.method())
    }

    async fn ensure_volume(&self, _: Generation, spec: &VolumeSpec) -> Result<()> {
        let spec = spec.clone();
        self.on_files(move |files| files.ensure_volume(&spec)).await
    }

    async fn ensure_no_volume(&self, _: Generation, volume: &VolumeId) -> Result<()> {
        let exports = self.tgt.exports(self.path()).await?;
        if let Some(export) = exports.iter().find(|export| export.volume == *volume) {
            return Err(DelegateError::retry(format!("{volume} is still exported as {}", export.iqn)));
        }
        let volume = volume.clone();
        self.on_files(move |files| files.ensure_no_volume(&volume)).await
    }

    async fn ensure_snapshot(&self, _: Generation, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        let spec = spec.clone();
        self.on_files(move |files| files.ensure_snapshot(&spec)).await
    }

    async fn ensure_no_snapshot(&self, _: Generation, spec: &SnapshotSpec) -> Result<()> {
        let snapshot = spec.snapshot.clone();
        self.on_files(move |files| files.ensure_no_snapshot(&snapshot)).await
    }

    async fn ensure_exported(&self, _: Generation, spec: &ExportSpec) -> Result<Portal> {
        let volume = spec.volume.clone();
        if !self.on_files(move |files| Ok(files.has(&volume))).await? {
            return Err(DelegateError::fatal(format!("{} is not on this node", spec.volume)));
        }
        self.tgt.ensure_exported(spec, &self.files.path(&spec.volume)).await
    }

    async fn ensure_not_exported(&self, _: Generation, volume: &VolumeId) -> Result<()> {
        self.tgt.ensure_not_exported(volume).await
    }

    async fn observe(&self) -> Result<StorageObservation> {
        let of_files = |files: &Files| Ok((files.volumes()?, files.snapshots()?, files.free_bytes()?));
        let (volumes, snapshots, free_bytes) = self.on_files(of_files).await?;
        let exports = self.tgt.exports(self.path()).await?;
        Ok(StorageObservation { volumes, snapshots, exports, free_bytes })
    }
}
