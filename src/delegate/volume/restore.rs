//! Volumes of another node's snapshots: copied over in the background, for hours perhaps, and there for nobody before they are
//! whole.
//!
//! A call begins the copy, or finds it at work, gives it a source that can be read for a while, and tells how far it is. What
//! comes is checked piece by piece, written, synced, and written down ([`state`]), so that a crash of either side costs moments.
//! When all is there, it is read back and compared with what the source reads; then the driver makes it a volume like others.
//! All that differs between drivers is how a volume is begun and ended.

mod state;
#[cfg(test)]
pub(super) mod tests;
mod write;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::state::State;
use self::write::Writer;
use super::file::failed;
use super::{Begun, Blank, VolumeDriver, background, pieces};
use crate::delegate::source::{Piece, RestoreSpec, SnapshotSource};
use crate::delegate::{DelegateError, ErrorKind, Result};
use crate::ids::VolumeId;

/// How many volumes are filled at once: each takes some MiB of memory and two threads.
const AT_ONCE: usize = 8;
/// How long a call waits for the end of a copy before it tells how far it is.
const SOON: Duration = Duration::from_secs(1);
/// How long a call waits for anything to come before it says that nothing does.
const PATIENCE: Duration = Duration::from_secs(15);
/// The longest that a source may take for an answer.
const ANSWER: Duration = Duration::from_secs(90);
/// How often a source is asked the same, and the pause before the second time.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);
/// Pieces that have come and are not written yet.
const AHEAD: usize = 2;
/// The bytes that come between two looks whether there is room for more: fewer than what is always left free.
const LOOK_AFTER: u64 = 32 << 20;
/// How often it is written down how much is compared.
const NOTE_EVERY: Duration = Duration::from_secs(2);

/// The copies at work.
pub struct Restores {
    driver: Arc<dyn VolumeDriver>,
    running: Mutex<HashMap<VolumeId, Running>>,
    places: Arc<Semaphore>,
    patience: Duration,
    stop: CancellationToken,
    _stop: DropGuard,
}

/// A copy at work, or ended.
struct Running {
    source: Source,
    /// How much was done when a caller was last told.
    told: u64,
    progress: watch::Receiver<Progress>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Where to read, as the newest call has it.
type Source = Arc<Mutex<Arc<dyn SnapshotSource>>>;

/// How far a copy is, in bytes written and bytes compared.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Others come first.
    waits: bool,
    /// What was done when it began.
    base: u64,
    done: u64,
    of: u64,
    ended: Option<Result<()>>,
}

impl Progress {
    /// Whole is only what the driver has made a volume.
    fn percent(&self) -> u8 {
        u8::try_from(u128::from(self.done) * 100 / u128::from(self.of.max(1))).unwrap_or(100).min(99)
    }
}

impl Restores {
    /// No copies yet. Those of an earlier process go on when they are asked for; when `stop` is cancelled, all end.
    pub fn new(driver: Arc<dyn VolumeDriver>, stop: &CancellationToken) -> Self {
        let stop = stop.child_token();
        let (running, places, guard) = (Mutex::default(), Arc::new(Semaphore::new(AT_ONCE)), stop.clone().drop_guard());
        Self { driver, running, places, patience: PATIENCE, stop, _stop: guard }
    }

    /// See [`crate::delegate::VolumeDelegate::ensure_restored`].
    pub async fn ensure(&self, spec: &RestoreSpec, source: Arc<dyn SnapshotSource>) -> Result<u8> {
        let volume = &spec.volume;
        let (mut progress, told) = self.at_work(spec, source)?;
        let _ = tokio::time::timeout(SOON, progress.wait_for(|now| now.ended.is_some())).await;
        let moves = |now: &Progress| now.ended.is_some() || now.waits || now.done > told.max(now.base);
        let now = match tokio::time::timeout(self.patience, progress.wait_for(moves)).await {
            Ok(Ok(now)) => now.clone(),
            Ok(Err(_)) => {
                self.running().remove(volume);
                return Err(DelegateError::retry(format!("the copy to {volume} stopped")));
            }
            Err(_) => return Err(DelegateError::retry(format!("nothing of {} comes", spec.snapshot))),
        };
        if let Some(result) = now.ended {
            self.running().remove(volume);
            return result.map(|()| 100);
        }
        if now.waits {
            return Err(DelegateError::busy(format!("{AT_ONCE} other volumes are being copied to this node")));
        }
        if let Some(running) = self.running().get_mut(volume) {
            running.told = now.done;
        }
        Ok(now.percent())
    }

    /// Ends the copy to a volume, if one is at work, and forgets how far it was.
    pub async fn end(&self, volume: &VolumeId) -> Result<()> {
        let running = self.running().remove(volume);
        if let Some(running) = running {
            running.stop.cancel();
            // It matters only that it is over.
            let _ = running.task.await;
        }
        let (dir, volume) = (self.driver.restores_dir().to_owned(), volume.clone());
        blocking(move || State::remove(&dir, &volume).map_err(failed("forget a copy in", &dir))).await
    }

    fn at_work(&self, spec: &RestoreSpec, source: Arc<dyn SnapshotSource>) -> Result<(watch::Receiver<Progress>, u64)> {
        if self.stop.is_cancelled() {
            return Err(DelegateError::retry("the node is stopping"));
        }
        let mut running = self.running();
        if let Some(running) = running.get(&spec.volume) {
            *running.source.lock().unwrap_or_else(PoisonError::into_inner) = source;
            return Ok((running.progress.clone(), running.told));
        }
        let (source, stop) = (Arc::new(Mutex::new(source)), self.stop.child_token());
        let (progress, seen) = watch::channel(Progress { waits: true, ..Progress::default() });
        let copy = Copy {
            driver: Arc::clone(&self.driver),
            spec: spec.clone(),
            source: Arc::clone(&source),
            stop: stop.clone(),
            progress,
        };
        let places = Arc::clone(&self.places);
        let task = tokio::spawn(async move {
            let result = copy.in_turn(&places).await;
            if let Err(error) = &result {
                tracing::warn!(volume = %copy.spec.volume, snapshot = %copy.spec.snapshot, %error, "the copy ended early");
            }
            copy.progress.send_modify(|progress| progress.ended = Some(result));
        });
        let begun = Running { source, told: 0, progress: seen.clone(), stop, task };
        running.insert(spec.volume.clone(), begun);
        Ok((seen, 0))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<VolumeId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a copy has and knows.
struct Copy {
    driver: Arc<dyn VolumeDriver>,
    spec: RestoreSpec,
    source: Source,
    stop: CancellationToken,
    progress: watch::Sender<Progress>,
}

impl Copy {
    async fn in_turn(&self, places: &Semaphore) -> Result<()> {
        let _place = tokio::select! {
            () = self.stop.cancelled() => return Err(stopped()),
            place = places.acquire() => place,
        };
        self.progress.send_modify(|progress| progress.waits = false);
        let (state, blank) = match self.begin().await? {
            (_, Begun::Whole) => return self.forget().await,
            (state, Begun::New(blank) | Begun::Kept(blank)) => (state, blank),
        };
        let base = state.at + state.checked;
        self.progress.send_modify(|progress| (progress.base, progress.done) = (base, base));
        let state = self.fill(state, &blank).await?;
        let token = state.token.clone();
        self.compare(state, &blank).await?;
        self.driver.end_volume(&self.spec.volume, &token).await?;
        self.forget().await
    }

    /// Finds how far an earlier try was, or makes a new volume.
    async fn begin(&self) -> Result<(State, Begun)> {
        let snapshot = self.spec.snapshot.clone();
        let mut state = self
            .on_state(move |dir, volume| {
                let kept = State::load(dir, volume)?.filter(|state| state.snapshot == snapshot);
                let state = kept.unwrap_or_else(|| State::new(&snapshot));
                state.save(dir, volume)?;
                Ok(state)
            })
            .await?;
        let begun = self.driver.begin_volume(&self.spec, &state.token).await?;
        if matches!(begun, Begun::New(_)) {
            (state.at, state.checked, state.size_bytes) = (0, 0, 0);
            let new = state.clone();
            self.on_state(move |dir, volume| new.save(dir, volume)).await?;
        }
        Ok((state, begun))
    }

    /// Copies what is not there yet.
    async fn fill(&self, state: State, blank: &Blank) -> Result<State> {
        let (send, come) = mpsc::channel(AHEAD);
        let (blank, volume) = (blank.clone(), self.spec.volume.clone());
        let (dir, stop, progress) = (self.driver.restores_dir().to_owned(), self.stop.clone(), self.progress.clone());
        let (from, size) = (state.at, state.size_bytes);
        // Held until the last byte is written: a node that starts again must not have the same files before.
        let driver = Arc::clone(&self.driver);
        let written = background(move || {
            let path = blank.stored.path.clone();
            let writer = Writer::open(blank, volume, dir, state, stop, progress);
            let state = writer.and_then(|writer| writer.run(come)).map_err(failed("fill", &path));
            drop(driver);
            state
        });
        let (fetched, written) = tokio::join!(self.fetch(from, size, send), written);
        // When nobody takes the pieces any more, the reason is in the other.
        let state = written?;
        fetched?;
        Ok(state)
    }

    async fn fetch(&self, mut at: u64, mut size: u64, to: mpsc::Sender<(u64, Piece)>) -> Result<()> {
        let mut looked = at;
        while size == 0 || at < size {
            let piece = self.ask(|source| async move {
                let piece = source.read_snapshot(&self.spec.snapshot, at).await?;
                piece.check(at).map(|()| piece)
            });
            let piece = piece.await?;
            if size != 0 && piece.size_bytes != size {
                return Err(DelegateError::fatal(format!("{} has another size than before", self.spec.snapshot)));
            }
            size = piece.size_bytes;
            if size > self.spec.size_bytes {
                let snapshot = &self.spec.snapshot;
                return Err(DelegateError::fatal(format!(
                    "{snapshot} has {size} bytes, more than the volume shall have"
                )));
            }
            let end = piece.end;
            if to.send((at, piece)).await.is_err() {
                return Ok(());
            }
            at = end;
            if at - looked >= LOOK_AFTER {
                self.driver.has_room().await?;
                looked = at;
            }
        }
        Ok(())
    }

    /// Compares what is there with what the source has, both as they are read now.
    async fn compare(&self, mut state: State, blank: &Blank) -> Result<()> {
        let (size, filled) = (state.size_bytes, state.at);
        let mut noted = Instant::now();
        while state.checked < size {
            let from = state.checked;
            let sum = |source: Arc<dyn SnapshotSource>| async move {
                let sum = source.sum_snapshot(&self.spec.snapshot, from).await?;
                let ends = sum.end > from && sum.end <= size;
                if ends { Ok(sum) } else { Err(DelegateError::retry("a digest that ends where none does")) }
            };
            let theirs = self.ask(sum).await?;
            let stored = blank.stored.clone();
            let ours = blocking(move || {
                let sum = || {
                    let file = pieces::open(&stored.path, OpenOptions::new().read(true))?;
                    pieces::sum_between(&file, stored.size_bytes, from, theirs.end)
                };
                sum().map_err(failed("read back", &stored.path))
            });
            if ours.await? != theirs.digest {
                return Err(DelegateError::fatal(format!(
                    "{} and what was copied of it differ between {from} and {}",
                    self.spec.snapshot, theirs.end
                )));
            }
            state.checked = theirs.end;
            self.progress.send_modify(|progress| progress.done = filled + theirs.end);
            if noted.elapsed() >= NOTE_EVERY {
                let now = state.clone();
                self.on_state(move |dir, volume| now.save(dir, volume)).await?;
                noted = Instant::now();
            }
        }
        Ok(())
    }

    async fn forget(&self) -> Result<()> {
        self.on_state(State::remove).await
    }

    /// Asks the source, a few times if need be: what is lost on the way, or comes torn, comes again.
    async fn ask<T, F>(&self, question: impl Fn(Arc<dyn SnapshotSource>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut tried = 1;
        loop {
            let source = Arc::clone(&*self.source.lock().unwrap_or_else(PoisonError::into_inner));
            let answer = tokio::select! {
                () = self.stop.cancelled() => return Err(stopped()),
                answer = tokio::time::timeout(ANSWER, question(source)) => answer,
            };
            let error = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => DelegateError::retry(format!("no answer after {ANSWER:?}")),
            };
            if error.kind == ErrorKind::Fatal {
                return Err(error);
            }
            if tried == TRIES {
                // Whatever else it says of itself, here it is a node that cannot be read.
                return Err(DelegateError::retry(error.message));
            }
            tokio::time::sleep(PAUSE * tried).await;
            tried += 1;
        }
    }

    async fn on_state<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path, &VolumeId) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (dir, volume) = (self.driver.restores_dir().to_owned(), self.spec.volume.clone());
        blocking(move || work(&dir, &volume).map_err(failed("note how far a copy is in", &dir))).await
    }
}

fn stopped() -> DelegateError {
    DelegateError::retry("the copy was stopped half-way")
}

/// Runs work that blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(DelegateError::retry(format!("a copy stopped: {e}"))),
    }
}
