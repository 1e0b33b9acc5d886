//! Delegates that write down what they do: inside their guard, so that what the fence refuses is not among it.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use vbs::delegate::source::{Grant, Piece, RestoreSpec, SnapshotSource, Summary};
use vbs::delegate::{
    ConnectSpec, CopySpec, Detach, DiskSpec, ExportSpec, Generation, Growth, Pause, PauseSpec, Portal, Result,
    SnapshotMethod, SnapshotReport, SnapshotSpec, StorageObservation, VmmDelegate, VmmObservation, VolumeDelegate,
    VolumeSpec,
};
use vbs::ids::{SnapshotId, VolumeId};

use crate::record::{Effect, Record, What};

/// A delegate under observation.
pub struct Watched<D> {
    pub node: String,
    pub inner: D,
    pub record: Arc<Record>,
}

impl<D: Sync> Watched<D> {
    async fn note<T>(
        &self,
        verb: &'static str,
        on: (&str, Option<&str>),
        generation: Generation,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let begun = self.record.now();
        let done = call.await;
        let (resource, machine) = (on.0.to_owned(), on.1.map(str::to_owned));
        let effect = Effect { verb, resource, machine, generation: generation.0, succeeded: done.is_ok() };
        self.record.add(begun, &self.node, What::Did(effect));
        done
    }
}

#[async_trait]
impl<D: VolumeDelegate> SnapshotSource for Watched<D> {
    async fn read_snapshot(&self, snapshot: &SnapshotId, at: u64) -> Result<Piece> {
        self.inner.read_snapshot(snapshot, at).await
    }
    async fn sum_snapshot(&self, snapshot: &SnapshotId, from: u64) -> Result<Summary> {
        self.inner.sum_snapshot(snapshot, from).await
    }
    fn grant(&self, snapshot: &SnapshotId) -> Result<Grant> {
        self.inner.grant(snapshot)
    }
}

#[async_trait]
impl<D: VolumeDelegate> VolumeDelegate for Watched<D> {
    async fn snapshot_method(&self) -> Result<SnapshotMethod> {
        self.inner.snapshot_method().await
    }
    async fn ensure_volume(&self, generation: Generation, spec: &VolumeSpec) -> Result<()> {
        let on = (spec.volume.as_str(), None);
        self.note("ensure_volume", on, generation, self.inner.ensure_volume(generation, spec)).await
    }
    async fn ensure_restored(
        &self,
        generation: Generation,
        spec: &RestoreSpec,
        source: Arc<dyn SnapshotSource>,
    ) -> Result<u8> {
        let on = (spec.volume.as_str(), None);
        self.note("ensure_restored", on, generation, self.inner.ensure_restored(generation, spec, source)).await
    }
    async fn ensure_no_volume(&self, generation: Generation, volume: &VolumeId) -> Result<()> {
        let on = (volume.as_str(), None);
        self.note("ensure_no_volume", on, generation, self.inner.ensure_no_volume(generation, volume)).await
    }
    async fn ensure_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        let on = (spec.snapshot.as_str(), None);
        self.note("ensure_snapshot", on, generation, self.inner.ensure_snapshot(generation, spec)).await
    }
    async fn ensure_snapshot_copy(&self, generation: Generation, spec: &CopySpec) -> Result<SnapshotReport> {
        let on = (spec.snapshot.as_str(), None);
        self.note("ensure_snapshot_copy", on, generation, self.inner.ensure_snapshot_copy(generation, spec)).await
    }
    async fn ensure_grown(&self, generation: Generation, spec: &VolumeSpec) -> Result<Growth> {
        let on = (spec.volume.as_str(), None);
        self.note("ensure_grown", on, generation, self.inner.ensure_grown(generation, spec)).await
    }
    async fn ensure_no_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<()> {
        let on = (spec.snapshot.as_str(), None);
        self.note("ensure_no_snapshot", on, generation, self.inner.ensure_no_snapshot(generation, spec)).await
    }
    async fn ensure_exported(&self, generation: Generation, spec: &ExportSpec) -> Result<Portal> {
        let on = (spec.volume.as_str(), None);
        self.note("ensure_exported", on, generation, self.inner.ensure_exported(generation, spec)).await
    }
    async fn ensure_not_exported(&self, generation: Generation, volume: &VolumeId, but: &[String]) -> Result<()> {
        let on = (volume.as_str(), None);
        self.note("ensure_not_exported", on, generation, self.inner.ensure_not_exported(generation, volume, but)).await
    }
    async fn observe(&self) -> Result<StorageObservation> {
        self.inner.observe().await
    }
}

#[async_trait]
impl<D: VmmDelegate> VmmDelegate for Watched<D> {
    async fn initiator_iqn(&self, machine: &str) -> Result<String> {
        self.inner.initiator_iqn(machine).await
    }
    async fn ensure_connected(&self, generation: Generation, spec: &ConnectSpec) -> Result<()> {
        let on = (spec.export.volume.as_str(), Some(&*spec.machine.name));
        self.note("ensure_connected", on, generation, self.inner.ensure_connected(generation, spec)).await
    }
    async fn ensure_disconnected(&self, generation: Generation, spec: &DiskSpec) -> Result<()> {
        let on = disk(spec);
        self.note("ensure_disconnected", on, generation, self.inner.ensure_disconnected(generation, spec)).await
    }
    async fn ensure_attached(&self, generation: Generation, spec: &DiskSpec) -> Result<()> {
        self.note("ensure_attached", disk(spec), generation, self.inner.ensure_attached(generation, spec)).await
    }
    async fn ensure_detached(&self, generation: Generation, spec: &DiskSpec, force: bool) -> Result<Detach> {
        let on = disk(spec);
        self.note("ensure_detached", on, generation, self.inner.ensure_detached(generation, spec, force)).await
    }
    async fn ensure_grown(&self, generation: Generation, spec: &DiskSpec, size_bytes: u64) -> Result<Growth> {
        let on = disk(spec);
        self.note("ensure_disk_grown", on, generation, self.inner.ensure_grown(generation, spec, size_bytes)).await
    }
    /// A pause is fenced under its snapshot: of one volume several may be under way.
    async fn ensure_paused(&self, generation: Generation, spec: &PauseSpec) -> Result<()> {
        let on = (spec.snapshot.as_str(), Some(&*spec.disk.machine.name));
        self.note("ensure_paused", on, generation, self.inner.ensure_paused(generation, spec)).await
    }
    async fn ensure_resumed(&self, generation: Generation, spec: &PauseSpec) -> Result<Pause> {
        let on = (spec.snapshot.as_str(), Some(&*spec.disk.machine.name));
        self.note("ensure_resumed", on, generation, self.inner.ensure_resumed(generation, spec)).await
    }
    async fn observe(&self) -> Result<VmmObservation> {
        self.inner.observe().await
    }
}

fn disk(spec: &DiskSpec) -> (&str, Option<&str>) {
    (spec.volume.as_str(), Some(&spec.machine.name))
}
