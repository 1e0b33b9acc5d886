//! The `file` driver as a storage node uses it: [`Files`], whose functions block, on threads that may.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::file::Files;
use super::{Begun, Contents, Stored, VolumeDriver};
use crate::delegate::source::RestoreSpec;
use crate::delegate::{CopySpec, DelegateError, Result, SnapshotMethod, SnapshotReport, SnapshotSpec, VolumeSpec};
use crate::ids::{SnapshotId, VolumeId};

/// Volumes and snapshots in files.
pub struct FileDriver {
    files: Arc<Files>,
    /// Ends the copies at work when this is dropped: they run on threads that a runtime waits for at its end.
    _stop: DropGuard,
}

impl FileDriver {
    /// Takes the node's data directory over. Fails when it cannot be written, or when another delegate has it.
    /// When `stop` is cancelled, copies at work end within a moment (Retry); everything else goes on.
    pub async fn open(data_dir: &Path, stop: &CancellationToken) -> Result<Self> {
        let dir = data_dir.to_owned();
        let stop = stop.child_token();
        let guard = stop.clone().drop_guard();
        let open = move || -> io::Result<Files> {
            std::fs::create_dir_all(&dir)?;
            // What a target is given must be the path from the root, and must read the same when it is shown.
            Files::open(&dir.canonicalize()?, stop)
        };
        let files = blocking(move || open().map_err(|e| DelegateError::fatal(e.to_string()))).await?;
        Ok(Self { files: Arc::new(files), _stop: guard })
    }

    async fn on_files<T: Send + 'static>(&self, work: impl FnOnce(&Files) -> Result<T> + Send + 'static) -> Result<T> {
        let files = Arc::clone(&self.files);
        blocking(move || work(&files)).await
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
impl VolumeDriver for FileDriver {
    fn name(&self) -> &'static str {
        "file"
    }

    fn snapshot_method(&self) -> SnapshotMethod {
        self.files.method()
    }

    fn is_sparse(&self) -> bool {
        true
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.files.path(volume)
    }

    async fn ensure_volume(&self, spec: &VolumeSpec) -> Result<()> {
        let spec = spec.clone();
        self.on_files(move |files| files.ensure_volume(&spec)).await
    }

    async fn ensure_no_volume(&self, volume: &VolumeId) -> Result<()> {
        let volume = volume.clone();
        self.on_files(move |files| files.ensure_no_volume(&volume)).await
    }

    async fn ensure_ready(&self, volume: &VolumeId) -> Result<()> {
        let wanted = volume.clone();
        if self.on_files(move |files| Ok(files.has(&wanted))).await? {
            Ok(())
        } else {
            Err(DelegateError::fatal(format!("{volume} is not on this node")))
        }
    }

    async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        let spec = spec.clone();
        self.on_files(move |files| files.ensure_snapshot(&spec)).await
    }

    async fn ensure_snapshot_copy(&self, spec: &CopySpec) -> Result<SnapshotReport> {
        let spec = spec.clone();
        self.on_files(move |files| files.ensure_snapshot_copy(&spec)).await
    }

    async fn ensure_no_snapshot(&self, spec: &SnapshotSpec) -> Result<()> {
        let snapshot = spec.snapshot.clone();
        self.on_files(move |files| files.ensure_no_snapshot(&snapshot)).await
    }

    async fn contents(&self) -> Result<Contents> {
        self.on_files(|files| {
            let (capacity_bytes, free_bytes) = (files.capacity_bytes()?, files.free_bytes()?);
            Ok(Contents { volumes: files.volumes()?, snapshots: files.snapshots()?, capacity_bytes, free_bytes })
        })
        .await
    }

    async fn ready_snapshot(&self, snapshot: &SnapshotId) -> Result<Stored> {
        let snapshot = snapshot.clone();
        self.on_files(move |files| files.stored_snapshot(&snapshot)).await
    }

    fn restores_dir(&self) -> &Path {
        self.files.restores_dir()
    }

    async fn begin_volume(&self, spec: &RestoreSpec, token: &str) -> Result<Begun> {
        let (spec, token) = (spec.clone(), token.to_owned());
        self.on_files(move |files| files.begin_volume(&spec, &token)).await
    }

    async fn end_volume(&self, volume: &VolumeId, token: &str) -> Result<()> {
        let (volume, token) = (volume.clone(), token.to_owned());
        self.on_files(move |files| files.end_volume(&volume, &token)).await
    }

    async fn has_room(&self) -> Result<()> {
        self.on_files(Files::has_room).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::ErrorKind;

    #[tokio::test]
    async fn copies_end_when_the_node_is_told_to_stop_and_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        for told in [true, false] {
            let stop = CancellationToken::new();
            let node = FileDriver::open(&data_dir, &stop).await.unwrap();
            if node.files.method() == SnapshotMethod::Atomic {
                return; // There is no copy to stop.
            }
            let blank = || VolumeSpec { volume: VolumeId::generate(), size_bytes: 8192, snapshot: None };
            let origin = blank();
            node.ensure_volume(&origin).await.unwrap();
            std::fs::write(node.files.path(&origin.volume), [1; 8192]).unwrap();
            let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: origin.volume, cut: false };
            let files = Arc::clone(&node.files);
            let refused = if told {
                stop.cancel();
                node.ensure_volume(&blank()).await.unwrap();
                node.ensure_snapshot(&spec).await.unwrap_err()
            } else {
                drop(node);
                files.ensure_snapshot(&spec).unwrap_err()
            };
            assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
            assert_eq!(files.snapshots().unwrap(), []);
            assert_eq!(std::fs::read_dir(data_dir.join("unfinished")).unwrap().count(), 0);
        }
    }
}
