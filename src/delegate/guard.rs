//! Two workers that believe the same resource is theirs, and calls that outlive their callers.
//!
//! [`Guarded`] goes around a delegate, in process and behind HTTP alike. For each call that changes something it
//! - takes the resource's lock, so that a retry never runs beside the try it follows,
//! - asks the [`Fence`], which refuses a generation older than the newest it has seen, and remembers a newer one on disk
//!   before anything is done under it,
//! - runs the call as a task of its own: when the caller goes away (a time-out, a client that hung up, a worker that lost its
//!   lease), the call still comes to its end, and the lock is held until then.
//!
//! Workflows on one volume and on its snapshots are leased apart, and so they are fenced apart: a snapshot's verbs under the
//! snapshot's id. A snapshot locks its volume too: while it copies, the volume must not be exported to a new writer. Pauses
//! are fenced under the id of the snapshot that they are for: several snapshots may pause one volume's guest, each under a
//! generation of its own. So a pause that was on its way when its worker was followed by another comes to nothing, also when
//! the other has long let the guest go on.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::fence::Fence;
use super::source::{Grant, Piece, RestoreSpec, SnapshotSource, Summary};
use super::{
    ConnectSpec, CopySpec, DelegateError, Detach, DiskSpec, ErrorKind, ExportSpec, Generation, Growth, Pause,
    PauseSpec, Portal, Result, SnapshotMethod, SnapshotReport, SnapshotSpec, StorageObservation, VmmDelegate,
    VmmObservation, VolumeDelegate, VolumeSpec,
};
use crate::ids::{SnapshotId, VolumeId};

/// How long a call waits for the one before it on the same resource.
const LOCK_WAIT: Duration = Duration::from_secs(20);

/// A delegate with its locks and its fence.
pub struct Guarded<D: ?Sized> {
    fence: Arc<Fence>,
    locks: Locks,
    lock_wait: Duration,
    inner: Arc<D>,
}

/// The locks that are held or waited for, by name.
#[derive(Default)]
struct Locks(StdMutex<HashMap<String, Arc<Mutex<()>>>>);

impl Locks {
    async fn take(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A lock that only the table knows is neither held nor waited for.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(name.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}

impl<D: ?Sized + Send + Sync + 'static> Guarded<D> {
    /// Guards a delegate with a fence that is kept in a directory.
    pub async fn open(inner: Arc<D>, data_dir: &Path) -> Result<Self> {
        Ok(Self::with(inner, Fence::open(data_dir).await?))
    }

    /// Guards a delegate that forgets all it has when the process ends, and may forget the generations with it.
    pub fn in_memory(inner: Arc<D>) -> Self {
        Self::with(inner, Fence::in_memory())
    }

    fn with(inner: Arc<D>, fence: Fence) -> Self {
        Self { fence: Arc::new(fence), locks: Locks::default(), lock_wait: LOCK_WAIT, inner }
    }

    /// Runs a call under the locks of these names; the first is the one that the generation, if any, fences.
    async fn guarded<T, F>(
        &self,
        generation: Option<Generation>,
        names: &[&str],
        call: impl FnOnce(Arc<D>) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let [fenced, ..] = names else { return Err(DelegateError::fatal("a call on nothing")) };
        let mut ordered = names.to_vec();
        ordered.sort_unstable();
        let lock_all = async {
            let mut held = Vec::new();
            for name in ordered {
                held.push(self.locks.take(name).await);
            }
            held
        };
        let held = tokio::time::timeout(self.lock_wait, lock_all)
            .await
            .map_err(|_| DelegateError::busy(format!("an earlier call on {fenced} is still at work")))?;
        let (fence, fenced, work) = (Arc::clone(&self.fence), (*fenced).to_owned(), call(Arc::clone(&self.inner)));
        let task = tokio::spawn(async move {
            let _held = held;
            if let Some(generation) = generation {
                fence.pass(&fenced, generation).await?;
            }
            work.await
        });
        task.await.unwrap_or_else(|e| Err(DelegateError::retry(format!("the delegate stopped in its work: {e}"))))
    }
}

/// Reading changes nothing, and a snapshot that is read is whole.
#[async_trait]
impl<D: VolumeDelegate + ?Sized + 'static> SnapshotSource for Guarded<D> {
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
impl<D: VolumeDelegate + ?Sized + 'static> VolumeDelegate for Guarded<D> {
    async fn snapshot_method(&self) -> Result<SnapshotMethod> {
        self.inner.snapshot_method().await
    }

    async fn ensure_volume(&self, generation: Generation, spec: &VolumeSpec) -> Result<()> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_volume(generation, &own).await };
        self.guarded(Some(generation), &[spec.volume.as_str()], call).await
    }

    async fn ensure_restored(
        &self,
        generation: Generation,
        spec: &RestoreSpec,
        source: Arc<dyn SnapshotSource>,
    ) -> Result<u8> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_restored(generation, &own, source).await };
        self.guarded(Some(generation), &[spec.volume.as_str()], call).await
    }

    async fn ensure_no_volume(&self, generation: Generation, volume: &VolumeId) -> Result<()> {
        let own = volume.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_no_volume(generation, &own).await };
        self.guarded(Some(generation), &[volume.as_str()], call).await
    }

    async fn ensure_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_snapshot(generation, &own).await };
        self.guarded(Some(generation), &[spec.snapshot.as_str(), spec.volume.as_str()], call).await
    }

    async fn ensure_snapshot_copy(&self, generation: Generation, spec: &CopySpec) -> Result<SnapshotReport> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_snapshot_copy(generation, &own).await };
        self.guarded(Some(generation), &[spec.snapshot.as_str()], call).await
    }

    async fn ensure_grown(&self, generation: Generation, spec: &VolumeSpec) -> Result<Growth> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_grown(generation, &own).await };
        self.guarded(Some(generation), &[spec.volume.as_str()], call).await
    }

    async fn ensure_no_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<()> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_no_snapshot(generation, &own).await };
        self.guarded(Some(generation), &[spec.snapshot.as_str()], call).await
    }

    async fn ensure_exported(&self, generation: Generation, spec: &ExportSpec) -> Result<Portal> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_exported(generation, &own).await };
        self.guarded(Some(generation), &[spec.volume.as_str()], call).await
    }

    async fn ensure_not_exported(&self, generation: Generation, volume: &VolumeId, but: &[String]) -> Result<()> {
        let (own, but) = (volume.clone(), but.to_vec());
        let call = |inner: Arc<D>| async move { inner.ensure_not_exported(generation, &own, &but).await };
        self.guarded(Some(generation), &[volume.as_str()], call).await
    }

    async fn observe(&self) -> Result<StorageObservation> {
        self.inner.observe().await
    }
}

#[async_trait]
impl<D: VmmDelegate + ?Sized + 'static> VmmDelegate for Guarded<D> {
    async fn initiator_iqn(&self, machine: &str) -> Result<String> {
        self.inner.initiator_iqn(machine).await
    }

    async fn ensure_connected(&self, generation: Generation, spec: &ConnectSpec) -> Result<()> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_connected(generation, &own).await };
        self.guarded(Some(generation), &[spec.export.volume.as_str()], call).await
    }

    async fn ensure_disconnected(&self, generation: Generation, spec: &DiskSpec) -> Result<()> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_disconnected(generation, &own).await };
        self.guarded(Some(generation), &[spec.volume.as_str()], call).await
    }

    async fn ensure_attached(&self, generation: Generation, spec: &DiskSpec) -> Result<()> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_attached(generation, &own).await };
        self.guarded(Some(generation), &[spec.volume.as_str()], call).await
    }

    async fn ensure_detached(&self, generation: Generation, spec: &DiskSpec, force: bool) -> Result<Detach> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_detached(generation, &own, force).await };
        self.guarded(Some(generation), &[spec.volume.as_str()], call).await
    }

    async fn ensure_grown(&self, generation: Generation, spec: &DiskSpec, size_bytes: u64) -> Result<Growth> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_grown(generation, &own, size_bytes).await };
        self.guarded(Some(generation), &[spec.volume.as_str()], call).await
    }

    async fn ensure_paused(&self, generation: Generation, spec: &PauseSpec) -> Result<()> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_paused(generation, &own).await };
        self.guarded(Some(generation), &[spec.snapshot.as_str(), &pause_name(spec)], call).await
    }

    async fn ensure_resumed(&self, generation: Generation, spec: &PauseSpec) -> Result<Pause> {
        let own = spec.clone();
        let call = |inner: Arc<D>| async move { inner.ensure_resumed(generation, &own).await };
        match self.guarded(Some(generation), &[spec.snapshot.as_str(), &pause_name(spec)], call).await {
            Err(DelegateError { kind: ErrorKind::Stale, .. }) => Ok(Pause::Broken),
            done => done,
        }
    }

    async fn observe(&self) -> Result<VmmObservation> {
        self.inner.observe().await
    }
}

fn pause_name(spec: &PauseSpec) -> String {
    format!("pause-{}", spec.disk.volume)
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::delegate::ErrorKind;
    use crate::ids::SnapshotId;

    /// Notes the calls as they begin and end, each ending when it is let.
    #[derive(Default)]
    struct Slow {
        seen: StdMutex<Vec<String>>,
        go: Option<Semaphore>,
    }

    impl Slow {
        fn gated() -> Arc<Self> {
            Arc::new(Self { go: Some(Semaphore::new(0)), ..Self::default() })
        }

        async fn call<T: Default>(&self, name: &str) -> Result<T> {
            self.seen.lock().unwrap().push(format!("{name} begins"));
            if let Some(go) = &self.go {
                go.acquire().await.unwrap().forget();
            }
            self.seen.lock().unwrap().push(format!("{name} ends"));
            Ok(T::default())
        }

        fn let_one_go(&self) {
            self.go.as_ref().unwrap().add_permits(1);
        }

        fn seen(&self) -> Vec<String> {
            self.seen.lock().unwrap().clone()
        }

        async fn until(&self, count: usize) {
            while self.seen().len() < count {
                tokio::task::yield_now().await;
            }
        }
    }

    #[async_trait]
    impl SnapshotSource for Slow {
        async fn read_snapshot(&self, _: &SnapshotId, _: u64) -> Result<Piece> {
            Err(DelegateError::fatal("not asked for here"))
        }
        async fn sum_snapshot(&self, _: &SnapshotId, _: u64) -> Result<Summary> {
            Err(DelegateError::fatal("not asked for here"))
        }
        fn grant(&self, _: &SnapshotId) -> Result<Grant> {
            Err(DelegateError::fatal("not asked for here"))
        }
    }

    #[async_trait]
    impl VolumeDelegate for Slow {
        async fn snapshot_method(&self) -> Result<SnapshotMethod> {
            Ok(SnapshotMethod::Atomic)
        }
        async fn ensure_volume(&self, _: Generation, _: &VolumeSpec) -> Result<()> {
            self.call("volume").await
        }
        async fn ensure_restored(&self, _: Generation, _: &RestoreSpec, _: Arc<dyn SnapshotSource>) -> Result<u8> {
            Err(DelegateError::fatal("not asked for here"))
        }
        async fn ensure_no_volume(&self, _: Generation, _: &VolumeId) -> Result<()> {
            self.call("no volume").await
        }
        async fn ensure_snapshot(&self, _: Generation, _: &SnapshotSpec) -> Result<SnapshotReport> {
            self.call::<()>("snapshot").await?;
            Ok(SnapshotReport { size_bytes: 0, data_bytes: 0, progress: 100 })
        }
        async fn ensure_snapshot_copy(&self, _: Generation, _: &CopySpec) -> Result<SnapshotReport> {
            Err(DelegateError::fatal("not asked for here"))
        }
        async fn ensure_grown(&self, _: Generation, _: &VolumeSpec) -> Result<Growth> {
            Err(DelegateError::fatal("not asked for here"))
        }
        async fn ensure_no_snapshot(&self, _: Generation, _: &SnapshotSpec) -> Result<()> {
            self.call("no snapshot").await
        }
        async fn ensure_exported(&self, _: Generation, _: &ExportSpec) -> Result<Portal> {
            Err(DelegateError::fatal("not asked for here"))
        }
        async fn ensure_not_exported(&self, _: Generation, _: &VolumeId, _: &[String]) -> Result<()> {
            self.call("not exported").await
        }
        async fn observe(&self) -> Result<StorageObservation> {
            self.call("observe").await
        }
    }

    #[tokio::test]
    async fn an_older_generation_is_refused_and_an_equal_one_is_not() {
        let (slow, volume) = (Arc::new(Slow::default()), VolumeId::generate());
        let guarded = Guarded::in_memory(Arc::clone(&slow));
        for generation in [5, 5, 7] {
            guarded.ensure_no_volume(Generation(generation), &volume).await.unwrap();
        }
        let refused = guarded.ensure_not_exported(Generation(6), &volume, &[]).await.unwrap_err();
        assert_eq!(refused, DelegateError::stale(Generation(7), Generation(6)));
        guarded.ensure_no_volume(Generation(1), &VolumeId::generate()).await.unwrap();
        assert_eq!(slow.seen().len(), 8, "{:?}", slow.seen());
    }

    #[tokio::test]
    async fn a_snapshot_is_fenced_apart_from_its_volume_but_locks_it() {
        let (slow, volume) = (Slow::gated(), VolumeId::generate());
        let guarded = Arc::new(Guarded::in_memory(Arc::clone(&slow)));
        let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: volume.clone(), cut: false };
        let (on_volume, on_snapshot) = (Arc::clone(&guarded), Arc::clone(&guarded));
        let first = tokio::spawn(async move { on_snapshot.ensure_snapshot(Generation(9), &spec).await });
        slow.until(1).await;
        let second = tokio::spawn(async move { on_volume.ensure_not_exported(Generation(8), &volume, &[]).await });
        slow.let_one_go();
        slow.let_one_go();
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        assert_eq!(slow.seen(), ["snapshot begins", "snapshot ends", "not exported begins", "not exported ends"]);
    }

    #[tokio::test]
    async fn a_call_whose_caller_went_away_ends_its_work_and_keeps_its_lock_until_then() {
        let (slow, volume) = (Slow::gated(), VolumeId::generate());
        let guarded = Guarded { lock_wait: Duration::from_millis(50), ..Guarded::in_memory(Arc::clone(&slow)) };
        let first = guarded.ensure_no_volume(Generation(1), &volume);
        assert!(tokio::time::timeout(Duration::from_millis(20), first).await.is_err());
        let refused = guarded.ensure_not_exported(Generation(2), &volume, &[]).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Busy, "{refused}");
        assert_eq!(slow.seen(), ["no volume begins"]);
        slow.let_one_go();
        slow.let_one_go();
        guarded.ensure_not_exported(Generation(2), &volume, &[]).await.unwrap();
        assert_eq!(slow.seen()[1..], ["no volume ends", "not exported begins", "not exported ends"]);
    }
}
