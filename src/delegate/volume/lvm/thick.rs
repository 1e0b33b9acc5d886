//! Linear volumes, as in 2009: simple, fast, and each block of them theirs from the start.
//!
//! - What lies under a new one was another tenant's. It is `unfinished` until it is zeroed, or filled from a snapshot, and so
//!   are the extents that a volume grows by: they are zeroed as a volume of their own, and only then handed over.
//! - A snapshot begins as LVM's own, by copy on write: cut at one instant, but gone with its volume. [`super::copy_out`] makes
//!   it a volume of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio_util::sync::{CancellationToken, DropGuard};

use super::copy_out::CopyOut;
use super::group::{Group, Seen, Turn, UNFINISHED};
use super::raw::{self, Pace, Work};
use super::report::Lv;
use super::{DATA, SNAPSHOT_OF, activated, background, data_tag, device, finished, missing, ready, round_up};
use crate::config;
use crate::delegate::source::RestoreSpec;
use crate::delegate::volume::{Begun, Blank, Contents, Stored};
use crate::delegate::{CopySpec, DelegateError, Result, SnapshotReport, SnapshotSpec, VolumeSpec};
use crate::ids::VolumeId;

/// Volumes and snapshots in linear logical volumes.
pub struct Thick {
    group: Arc<Group>,
    extent: u64,
    pace: Arc<Pace>,
    stop: CancellationToken,
    snapshots: CopyOut,
    _stop: DropGuard,
}

impl Thick {
    /// Takes a group that is there.
    pub async fn open(group: Arc<Group>, config: &config::Thick, stop: &CancellationToken) -> Result<Self> {
        let extent = group.turn().await.vg().await?.extent;
        let pace = Arc::new(Pace::new(config.background_mib_s));
        let stop = stop.child_token();
        let snapshots = CopyOut::new(Arc::clone(&group), extent, Arc::clone(&pace), stop.clone());
        Ok(Self { group, extent, pace, snapshots, _stop: stop.clone().drop_guard(), stop })
    }

    /// Makes the volume or grows it.
    pub async fn ensure_volume(&self, spec: &VolumeSpec) -> Result<()> {
        let (name, size) = (spec.volume.as_str(), round_up(spec.size_bytes, self.extent)?);
        let turn = self.group.turn().await;
        let seen = turn.look().await?;
        match seen.ours(name, name)? {
            Some(lv) if !lv.has(UNFINISHED) => self.grow(turn, &seen, lv, size).await,
            half_done => {
                if let Some(lv) = half_done {
                    turn.remove(lv).await?;
                }
                self.make(turn, &seen, spec, size).await
            }
        }
    }

    async fn make(&self, turn: Turn<'_>, seen: &Seen, spec: &VolumeSpec, size: u64) -> Result<()> {
        let name = spec.volume.as_str();
        let source = match &spec.snapshot {
            None => None,
            Some(snapshot) => {
                let lv = seen.ours(snapshot.as_str(), snapshot.as_str())?.ok_or_else(|| missing(snapshot))?;
                if lv.has(UNFINISHED) {
                    return Err(DelegateError::busy(format!("{snapshot} is still being copied")));
                }
                if lv.size > size {
                    return Err(super::too_small(snapshot, lv.size));
                }
                Some(lv)
            }
        };
        let lv = make_unfinished(&turn, name, &[name], size / self.extent).await?;
        drop(turn);
        let to = device(&self.group, &lv).await?;
        let work = match source {
            None => Fill::Zeros,
            Some(lv) => Fill::From(ready(&self.group, &lv.name).await?.0, lv.size),
        };
        let (pace, stop) = (Arc::clone(&self.pace), self.stop.clone());
        background(move || {
            let done = AtomicU64::new(0);
            let with = Work { pace: &pace, stop: &stop, done: &done };
            let filled = match work {
                Fill::Zeros => raw::zero(&to, size, &with),
                Fill::From(from, length) => raw::copy(&from, &to, length, size, &with).map(drop),
            };
            filled.map_err(|e| DelegateError::retry(format!("cannot fill {}: {e}", to.display())))
        })
        .await?;
        let turn = self.group.turn().await;
        turn.finish(name, &[]).await?;
        let there = finished(&turn.look_at(name).await?, name)?.is_some_and(|lv| lv.size >= size);
        if there { Ok(()) } else { Err(DelegateError::retry(format!("{name} is not whole after it was made"))) }
    }

    /// Makes a volume that is to be filled, or finds the one with this tag.
    pub async fn begin_volume(&self, spec: &RestoreSpec, tag: &str) -> Result<Begun> {
        let (name, size) = (spec.volume.as_str(), round_up(spec.size_bytes, self.extent)?);
        let turn = self.group.turn().await;
        let seen = turn.look_at(name).await?;
        let (lv, kept) = match seen.ours(name, name)? {
            Some(lv) if !lv.has(UNFINISHED) => return Ok(Begun::Whole),
            Some(lv) if lv.has(tag) && lv.size == size => (activated(&turn, lv).await?, true),
            other => {
                if let Some(lv) = other {
                    turn.remove(lv).await?;
                }
                (make_unfinished(&turn, name, &[name, tag], size / self.extent).await?, false)
            }
        };
        drop(turn);
        let stored = Stored { path: device(&self.group, &lv).await?, size_bytes: size };
        let blank = Blank { stored, raw: Some(Arc::clone(&self.pace)) };
        Ok(if kept { Begun::Kept(blank) } else { Begun::New(blank) })
    }

    /// The extents that the volume grows by are zeroed before they are its: whoever has it open sees them at once.
    async fn grow(&self, turn: Turn<'_>, seen: &Seen, lv: &Lv, size: u64) -> Result<()> {
        let (name, more) = (lv.name.as_str(), more_name(&lv.name));
        if let Some(old) = seen.ours(&more, name)? {
            turn.remove(old).await?;
        }
        if lv.size >= size {
            return Ok(());
        }
        refuse_while_copied(seen, name)?;
        let (extents, bytes) = ((size - lv.size) / self.extent, size - lv.size);
        let extra = make_unfinished(&turn, &more, &[name], extents).await?;
        drop(turn);
        let to = device(&self.group, &extra).await?;
        let (pace, stop) = (Arc::clone(&self.pace), self.stop.clone());
        background(move || {
            let done = AtomicU64::new(0);
            raw::zero(&to, bytes, &Work { pace: &pace, stop: &stop, done: &done })
                .map_err(|e| DelegateError::retry(format!("cannot fill {}: {e}", to.display())))
        })
        .await?;
        let turn = self.group.turn().await;
        let ranges = turn.ranges(&more).await?;
        let now = turn.look().await?;
        refuse_while_copied(&now, name)?;
        let lv = finished(&now, name)?.ok_or_else(|| missing(name))?;
        if lv.size + bytes != size {
            return Err(DelegateError::retry(format!("{name} has another size than before")));
        }
        let extra = now.ours(&more, name)?.ok_or_else(|| DelegateError::retry(format!("{more} is gone")))?;
        // From here on nobody else may take the extents: the turn is held until they are the volume's.
        turn.remove(extra).await?;
        turn.extend(name, extents, &ranges).await?;
        let there = finished(&turn.look_at(name).await?, name)?.is_some_and(|lv| lv.size >= size);
        if there { Ok(()) } else { Err(DelegateError::retry(format!("{name} is not larger after it was extended"))) }
    }

    /// Removes the volume. Refuses (Busy) while a snapshot of it is being copied out, which would go with it.
    pub async fn ensure_no_volume(&self, volume: &VolumeId) -> Result<()> {
        let name = volume.as_str();
        let turn = self.group.turn().await;
        let seen = turn.look().await?;
        refuse_while_copied(&seen, name)?;
        for lv in [more_name(name), name.to_owned()] {
            if let Some(lv) = seen.ours(&lv, name)? {
                turn.remove(lv).await?;
            }
        }
        Ok(())
    }

    /// Cuts the snapshot, and copies it out in the background, or reports how far that is.
    pub async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        self.snapshots.ensure(spec).await
    }

    /// Copies a snapshot to another volume of its size, or reports of the one that is there.
    pub async fn ensure_snapshot_copy(&self, spec: &CopySpec) -> Result<SnapshotReport> {
        let (name, from) = (spec.snapshot.as_str(), spec.source.as_str());
        let turn = self.group.turn().await;
        let seen = turn.look().await?;
        match seen.ours(name, name)? {
            Some(lv) if !lv.has(UNFINISHED) => return Ok(report(lv)),
            Some(half_done) => turn.remove(half_done).await?,
            None => {}
        }
        let source = finished(&seen, from)?.ok_or_else(|| missing(from))?;
        let size = source.size;
        let of = format!("{SNAPSHOT_OF}={}", source.tagged(SNAPSHOT_OF).unwrap_or_default());
        let lv = make_unfinished(&turn, name, &[name, &of], size / self.extent).await?;
        drop(turn);
        let (from, to) = (ready(&self.group, from).await?.0, device(&self.group, &lv).await?);
        let (pace, stop) = (Arc::clone(&self.pace), self.stop.clone());
        let data = background(move || {
            let done = AtomicU64::new(0);
            raw::copy(&from, &to, size, size, &Work { pace: &pace, stop: &stop, done: &done })
                .map_err(|e| DelegateError::retry(format!("cannot copy {}: {e}", from.display())))
        })
        .await?;
        let turn = self.group.turn().await;
        turn.finish(name, &[&format!("{DATA}={data}")]).await?;
        let there = finished(&turn.look_at(name).await?, name)?.map(report);
        there.ok_or_else(|| DelegateError::retry(format!("{name} is not whole after it was copied")))
    }

    /// Removes the snapshot, and the copy at work on it.
    pub async fn ensure_no_snapshot(&self, spec: &SnapshotSpec) -> Result<()> {
        self.snapshots.ensure_none(&spec.snapshot).await
    }

    /// What is there.
    pub async fn contents(&self) -> Result<Contents> {
        let (seen, vg) = (self.group.look().await?, self.group.vg().await?);
        Ok(Contents {
            volumes: super::volumes(&seen),
            snapshots: super::snapshots(&seen),
            capacity_bytes: vg.size,
            free_bytes: vg.free,
        })
    }
}

fn report(lv: &Lv) -> SnapshotReport {
    SnapshotReport { size_bytes: lv.size, data_bytes: data_tag(lv), progress: 100 }
}

enum Fill {
    Zeros,
    From(std::path::PathBuf, u64),
}

/// Makes a linear volume whose bytes are anybody's, and tags it so.
pub(super) async fn make_unfinished(turn: &Turn<'_>, name: &str, tags: &[&str], extents: u64) -> Result<Lv> {
    let free = turn.vg().await?;
    if extents.saturating_mul(free.extent) > free.free {
        return Err(DelegateError::no_room(format!(
            "{extents} extents are needed, {} are free",
            free.free / free.extent
        )));
    }
    let tags = [tags, &[UNFINISHED]].concat();
    // LVM need not wipe the start: all of it will be.
    turn.create(name, &tags, &["-Zn", "-Wn", "-l", &extents.to_string()], None).await?;
    let seen = turn.look_at(name).await?;
    let lv = seen.0.first().ok_or_else(|| DelegateError::retry(format!("{name} is not there after it was made")))?;
    activated(turn, lv).await
}

/// The name of the extents that a volume is about to grow by.
fn more_name(volume: &str) -> String {
    format!("{volume}-more")
}

fn refuse_while_copied(seen: &Seen, volume: &str) -> Result<()> {
    match seen.0.iter().find(|lv| lv.origin == volume) {
        Some(cow) => Err(DelegateError::busy(format!("{volume} is still being copied out by way of {}", cow.name))),
        None => Ok(()),
    }
}
