//! Snapshots of linear volumes: cut by copy on write, then copied to a volume of their own, that outlives the origin.
//!
//! There are two logical volumes to it: `snap-…-cow`, LVM's snapshot, so large that it cannot overflow, and `snap-…`, the copy,
//! which is `unfinished` until it is whole. Both are made in one turn, so that there is room for all of it or for nothing. The
//! first is made first and goes last, so the two tell all there is to know after a crash, see [`Stand`]; only whether there
//! were any the caller must know ([`SnapshotSpec::cut`]). The copy runs in a task of its own; a call finds out how far it is,
//! and begins it anew when it ended early. One whose copy on write was lost meanwhile can never be finished.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::group::{Group, Seen, Turn, UNFINISHED};
use super::raw::{self, Pace, Work};
use super::report::Lv;
use super::thick::make_unfinished;
use super::{DATA, SNAPSHOT_OF, activated, blocking, data_tag, device, finished, missing};
use crate::delegate::{DelegateError, Result, SnapshotReport, SnapshotSpec};
use crate::ids::SnapshotId;

/// The pieces in which a volume's old bytes are put aside, in bytes. The kernel keeps a record of each in memory.
const CHUNK: u64 = 16 << 10;

/// The bytes of the store's metadata that each piece takes.
const ENTRY: u64 = 16;

/// The copies at work.
pub struct CopyOut {
    shared: Arc<Shared>,
    copies: Mutex<HashMap<SnapshotId, Copying>>,
}

struct Shared {
    group: Arc<Group>,
    extent: u64,
    pace: Arc<Pace>,
    stop: CancellationToken,
}

/// A copy at work, or ended.
struct Copying {
    done: Arc<AtomicU64>,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

/// How a snapshot stands, by its two logical volumes.
#[derive(Debug, PartialEq)]
enum Stand<'a> {
    /// There is nothing, or what `lvcreate` left when it died before the cut.
    NotCut(Option<&'a Lv>),
    /// It is cut, and to be copied; the copy's volume may be there.
    Cut(&'a Lv, Option<&'a Lv>),
    /// The copy is whole, and the copy on write can go.
    Copied(&'a Lv, &'a Lv),
    /// All is done.
    Whole(&'a Lv),
    /// The copy on write overflowed or is gone before the copy was whole.
    Lost,
}

impl CopyOut {
    /// No copies yet. Those of an earlier process go on when they are asked for.
    pub fn new(group: Arc<Group>, extent: u64, pace: Arc<Pace>, stop: CancellationToken) -> Self {
        Self { shared: Arc::new(Shared { group, extent, pace, stop }), copies: Mutex::default() }
    }

    /// Cuts the snapshot if it is not, begins to copy if nobody does, and reports how far that is.
    pub async fn ensure(&self, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        self.told(&spec.snapshot).await?;
        let turn = self.shared.group.turn().await;
        let mut seen = turn.look().await?;
        if let Stand::NotCut(left) = stand(&seen, &spec.snapshot)? {
            spec.may_cut()?;
            if let Some(lv) = left {
                turn.remove(lv).await?;
            }
            seen = self.shared.cut(&turn, &seen, spec).await?;
        }
        if let Stand::Cut(cow, None) = stand(&seen, &spec.snapshot)? {
            self.shared.reserve(&turn, &seen, cow, &spec.snapshot).await?;
            seen = turn.look().await?;
        }
        let size_bytes = match stand(&seen, &spec.snapshot)? {
            Stand::Whole(lv) => {
                return Ok(SnapshotReport { size_bytes: lv.size, data_bytes: data_tag(lv), progress: 100 });
            }
            Stand::Cut(cow, _) | Stand::Copied(cow, _) => origin_size(&seen, cow)?,
            Stand::NotCut(_) => {
                return Err(DelegateError::retry(format!("{} is not there after it was cut", spec.snapshot)));
            }
            Stand::Lost => {
                return Err(DelegateError::fatal(format!("what {} was to be copied from is lost", spec.snapshot)));
            }
        };
        drop(turn);
        let done = self.at_work(&spec.snapshot)?;
        // Whole is only what stands apart from the volume; the last step is not done by copying.
        let progress = u8::try_from(done.saturating_mul(100) / size_bytes.max(1)).unwrap_or(100).min(99);
        Ok(SnapshotReport { size_bytes, data_bytes: size_bytes, progress })
    }

    /// Ends the copy and removes what there is of the snapshot.
    pub async fn ensure_none(&self, snapshot: &SnapshotId) -> Result<()> {
        let copying = self.copies().remove(snapshot);
        if let Some(copying) = copying {
            copying.stop.cancel();
            // It matters only that it is over.
            let _ = copying.task.await;
        }
        let turn = self.shared.group.turn().await;
        let seen = turn.look().await?;
        // What is copied from goes first: an unfinished copy without it is never taken for a snapshot to be cut.
        for lv in [cow_name(snapshot), snapshot.to_string()] {
            if let Some(lv) = seen.ours(&lv, snapshot.as_str())? {
                turn.remove(lv).await?;
            }
        }
        Ok(())
    }

    /// Tells the caller, once, why a copy ended early.
    async fn told(&self, snapshot: &SnapshotId) -> Result<()> {
        let ended = {
            let mut copies = self.copies();
            let over = copies.get(snapshot).is_some_and(|copying| copying.task.is_finished());
            over.then(|| copies.remove(snapshot)).flatten()
        };
        match ended {
            Some(copying) => copying
                .task
                .await
                .unwrap_or_else(|e| Err(DelegateError::retry(format!("the copy of {snapshot} stopped: {e}")))),
            None => Ok(()),
        }
    }

    /// Makes sure that the snapshot is being copied, and gives how many bytes of it are.
    fn at_work(&self, snapshot: &SnapshotId) -> Result<u64> {
        if self.shared.stop.is_cancelled() {
            return Err(DelegateError::retry("the node is stopping"));
        }
        let mut copies = self.copies();
        let copying = copies.entry(snapshot.clone()).or_insert_with(|| {
            let (done, stop) = (Arc::new(AtomicU64::new(0)), self.shared.stop.child_token());
            let (shared, own) = (Arc::clone(&self.shared), snapshot.clone());
            let (counted, stopped) = (Arc::clone(&done), stop.clone());
            let task = tokio::spawn(async move {
                let result = shared.copy(&own, counted, stopped).await;
                if let Err(error) = &result {
                    tracing::warn!(snapshot = %own, %error, "the copy ended early");
                }
                result
            });
            Copying { done, stop, task }
        });
        Ok(copying.done.load(Ordering::Relaxed))
    }

    fn copies(&self) -> std::sync::MutexGuard<'_, HashMap<SnapshotId, Copying>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Cuts a snapshot of which there is nothing, when there is room for its copy too.
    async fn cut(&self, turn: &Turn<'_>, seen: &Seen, spec: &SnapshotSpec) -> Result<Seen> {
        let (name, cow) = (spec.snapshot.as_str(), cow_name(&spec.snapshot));
        let origin = finished(seen, spec.volume.as_str())?.ok_or_else(|| missing(&spec.volume))?;
        // One that is suspended by a command that died would hold up this one too.
        let origin = activated(turn, origin).await?;
        let store = store_bytes(origin.size).div_ceil(self.extent);
        let (copy, free) = (origin.size / self.extent, turn.vg().await?.free / self.extent);
        if store + copy > free {
            return Err(DelegateError::no_room(format!(
                "{store} extents are needed for the cut and {copy} for the copy, {free} are free"
            )));
        }
        let of = format!("{SNAPSHOT_OF}={}", spec.volume);
        let args = ["-s", "-c", &format!("{}k", CHUNK >> 10), "-l", &store.to_string()];
        turn.create(&cow, &[name, &of], &args, Some(&origin.name)).await?;
        turn.look().await
    }

    /// Makes the volume that a cut snapshot is to be copied to.
    async fn reserve(&self, turn: &Turn<'_>, seen: &Seen, cow: &Lv, snapshot: &SnapshotId) -> Result<()> {
        let (name, size) = (snapshot.as_str(), origin_size(seen, cow)?);
        let tags = [name, &format!("{SNAPSHOT_OF}={}", cow.origin)];
        make_unfinished(turn, name, &tags, size / self.extent).await.map(drop)
    }

    /// Copies, makes the copy a whole snapshot, and lets go of what it was copied from. Each step may have been done before.
    async fn copy(&self, snapshot: &SnapshotId, done: Arc<AtomicU64>, stop: CancellationToken) -> Result<()> {
        let name = snapshot.as_str();
        let turn = self.group.turn().await;
        let seen = turn.look().await?;
        if let Stand::Cut(cow, Some(copy)) = stand(&seen, snapshot)? {
            let cow = activated(&turn, cow).await?;
            let size = origin_size(&seen, &cow)?;
            let copy = activated(&turn, copy).await?;
            drop(turn);
            let (from, to) = (device(&self.group, &cow).await?, device(&self.group, &copy).await?);
            let pace = Arc::clone(&self.pace);
            let data = blocking(move || {
                raw::copy(&from, &to, size, size, &Work { pace: &pace, stop: &stop, done: &done })
                    .map_err(|e| DelegateError::retry(format!("cannot copy {}: {e}", from.display())))
            })
            .await?;
            let turn = self.group.turn().await;
            // What was read must have been good until the end.
            if !matches!(stand(&turn.look().await?, snapshot)?, Stand::Cut(..)) {
                return Err(DelegateError::retry(format!("{name} was lost while it was copied")));
            }
            turn.finish(name, &[&format!("{DATA}={data}")]).await?;
            return self.let_go(&turn, snapshot).await;
        }
        self.let_go(&turn, snapshot).await
    }

    async fn let_go(&self, turn: &Turn<'_>, snapshot: &SnapshotId) -> Result<()> {
        match stand(&turn.look().await?, snapshot)? {
            Stand::Copied(cow, _) => turn.remove(cow).await,
            _ => Ok(()),
        }
    }
}

fn stand<'a>(seen: &'a Seen, snapshot: &SnapshotId) -> Result<Stand<'a>> {
    let (cow, copy) =
        (seen.ours(&cow_name(snapshot), snapshot.as_str())?, seen.ours(snapshot.as_str(), snapshot.as_str())?);
    Ok(match (cow, copy) {
        (None, None) => Stand::NotCut(None),
        (None, Some(copy)) if !copy.has(UNFINISHED) => Stand::Whole(copy),
        (Some(cow), Some(copy)) if !copy.has(UNFINISHED) => Stand::Copied(cow, copy),
        (Some(cow), _) if cow.is_invalid() => Stand::Lost,
        (Some(cow), copy) if cow.is_cow() => Stand::Cut(cow, copy),
        (Some(cow), None) => Stand::NotCut(Some(cow)),
        (_, Some(_)) => Stand::Lost,
    })
}

fn origin_size(seen: &Seen, cow: &Lv) -> Result<u64> {
    let origin = seen.0.iter().find(|lv| lv.name == cow.origin);
    origin.map(|lv| lv.size).ok_or_else(|| missing(&cow.origin))
}

fn cow_name(snapshot: &SnapshotId) -> String {
    format!("{snapshot}-cow")
}

/// How large a store must be that can take every piece of its origin: a piece for the header, a piece of records for each
/// so many pieces of data, and one more for the last that are begun (the kernel's dm-snap-persistent.c).
fn store_bytes(origin: u64) -> u64 {
    let pieces = origin.div_ceil(CHUNK);
    let records = pieces.div_ceil(CHUNK / ENTRY) + 1;
    (1 + records + pieces) * CHUNK
}
