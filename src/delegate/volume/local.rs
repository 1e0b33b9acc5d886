//! A storage node on this machine: the `file` driver for bytes, the `tgt` driver for exports.
//!
//! Locks and fences are not its business: [`crate::delegate::guard`] goes around it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::{CancellationToken, DropGuard};

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
    /// Ends the copies at work when this is dropped: they run on threads that a runtime waits for at its end.
    _stop: DropGuard,
}

impl LocalStorage {
    /// Takes the node's data directory over. Fails when it cannot be written, or when another delegate has it.
    /// When `stop` is cancelled, copies at work end within a moment (Retry); everything else goes on.
    pub async fn open(config: &config::Storage, stop: &CancellationToken) -> Result<Self> {
        let dir = config.data_dir.clone();
        let stop = stop.child_token();
        let guard = stop.clone().drop_guard();
        let open = move || {
            std::fs::create_dir_all(&dir)?;
            // What tgtd is given must be the path from the root, and must read the same when it is shown.
            Files::open(&dir.canonicalize()?, stop)
        };
        let files = blocking(move || open().map_err(|e| DelegateError::fatal(e.to_string()))).await?;
        Ok(Self { files: Arc::new(files), tgt: Tgt::new(config.tgt.clone()), _stop: guard })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::ErrorKind;
    use crate::ids::SnapshotId;

    #[tokio::test]
    async fn copies_end_when_the_node_is_told_to_stop_and_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let tgt =
            config::Tgt { socket_dir: dir.path().to_owned(), control_port: 1, portal: ([127, 0, 0, 1], 1).into() };
        let config = config::Storage { data_dir: dir.path().join("data"), tgt };
        for told in [true, false] {
            let stop = CancellationToken::new();
            let node = LocalStorage::open(&config, &stop).await.unwrap();
            if node.files.method() == SnapshotMethod::Atomic {
                return; // There is no copy to stop.
            }
            let blank = || VolumeSpec { volume: VolumeId::generate(), size_bytes: 8192, snapshot: None };
            let origin = blank();
            node.ensure_volume(Generation(1), &origin).await.unwrap();
            std::fs::write(node.files.path(&origin.volume), [1; 8192]).unwrap();
            let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: origin.volume };
            let files = Arc::clone(&node.files);
            let refused = if told {
                stop.cancel();
                node.ensure_volume(Generation(1), &blank()).await.unwrap();
                node.ensure_snapshot(Generation(1), &spec).await.unwrap_err()
            } else {
                drop(node);
                files.ensure_snapshot(&spec).unwrap_err()
            };
            assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
            assert_eq!(files.snapshots().unwrap(), []);
            assert_eq!(std::fs::read_dir(config.data_dir.join("unfinished")).unwrap().count(), 0);
        }
    }
}
