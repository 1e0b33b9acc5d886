//! Thin volumes: they and their snapshots share the blocks of a pool, so each is made in next to no time.
//!
//! A snapshot is a thin volume too, read-only and not active, and outlives its origin. Between LVM's metadata and the pool's a
//! command that dies can leave a snapshot that is cut only when the pool next hears of it; so one is `unfinished` until
//! `lvcreate` has come to its end, and an unfinished one is cut anew.
//!
//! More may be promised than there is. What protects the guests from a full pool is that nothing new is made from a certain
//! share of data or metadata on, or beyond a certain sum of promises; a pool that fills up nevertheless holds up its writers.

use std::sync::Arc;

use super::group::{Group, Seen, UNFINISHED, check_name};
use super::report::{Lv, Trouble};
use super::{DATA, SNAPSHOT_OF, activated, device, missing, round_up};
use crate::config;
use crate::delegate::source::RestoreSpec;
use crate::delegate::volume::{Begun, Blank, Contents, Stored};
use crate::delegate::{CopySpec, DelegateError, Result, SnapshotReport, SnapshotSpec, VolumeSpec};
use crate::ids::{SnapshotId, VolumeId};

/// Volumes and snapshots in a thin pool.
pub struct Thin {
    group: Arc<Group>,
    extent: u64,
    config: config::Thin,
}

impl Thin {
    /// Takes a pool that is there, and that zeroes.
    pub async fn open(group: Arc<Group>, config: config::Thin) -> Result<Self> {
        check_name(&config.pool)?;
        if !(config.overcommit.is_finite() && config.overcommit > 0.0) {
            return Err(DelegateError::fatal("overcommit must be more than 0"));
        }
        if !(config.full_percent > 0.0 && config.full_percent <= 100.0) {
            return Err(DelegateError::fatal("full_percent must be more than 0 and at most 100"));
        }
        let turn = group.turn().await;
        let extent = turn.vg().await?.extent;
        let pool = pool(&turn.look_at(&config.pool).await?, &config.pool)?.clone();
        if !pool.zeroes() {
            return Err(DelegateError::fatal(format!(
                "the thin pool {0} gives out blocks with what others have written to them: run lvchange -Zy on it",
                pool.name
            )));
        }
        if !pool.is_active() {
            turn.activate(&pool).await?;
        }
        drop(turn);
        Ok(Self { group, extent, config })
    }

    /// Makes the volume or grows it.
    pub async fn ensure_volume(&self, spec: &VolumeSpec) -> Result<()> {
        let (name, size) = (spec.volume.as_str(), round_up(spec.size_bytes, self.extent)?);
        let turn = self.group.turn().await;
        let mut seen = turn.look().await?;
        if seen.ours(name, name)?.is_none() {
            let pool = format!("--thinpool={}", self.config.pool);
            match &spec.snapshot {
                None => {
                    self.admit(&seen, size)?;
                    turn.create(name, &[name], &[&pool, "-V", &format!("{size}b")], None).await?;
                }
                Some(snapshot) => {
                    let of = whole(&seen, snapshot)?.ok_or_else(|| missing(snapshot))?;
                    if of.size > size {
                        return Err(super::too_small(snapshot, of.size));
                    }
                    self.admit(&seen, size)?;
                    turn.create(name, &[name], &["-s", "-kn", "-prw"], Some(&of.name)).await?;
                }
            }
            seen = turn.look().await?;
        }
        let unmade = || DelegateError::retry(format!("{name} is not there after it was made"));
        let there = seen.ours(name, name)?.ok_or_else(unmade)?;
        if there.size < size {
            self.admit(&seen, size - there.size)?;
            turn.extend(name, (size - there.size) / self.extent, &[]).await?;
            let now = turn.look_at(name).await?;
            if now.ours(name, name)?.is_none_or(|lv| lv.size < size) {
                return Err(DelegateError::retry(format!("{name} is not larger after it was extended")));
            }
        }
        Ok(())
    }

    /// Makes a volume that is to be filled, or finds the one with this tag.
    pub async fn begin_volume(&self, spec: &RestoreSpec, tag: &str) -> Result<Begun> {
        let (name, size) = (spec.volume.as_str(), round_up(spec.size_bytes, self.extent)?);
        let turn = self.group.turn().await;
        let seen = turn.look().await?;
        let there = seen.ours(name, name)?;
        if there.is_some_and(|lv| !lv.has(UNFINISHED)) {
            return Ok(Begun::Whole);
        }
        let kept = there.filter(|lv| lv.has(tag) && lv.size == size);
        let lv = if let Some(lv) = kept {
            activated(&turn, lv).await?
        } else {
            if let Some(other) = there {
                turn.remove(other).await?;
            }
            self.admit(&turn.look().await?, size)?;
            let args = [&*format!("--thinpool={}", self.config.pool), "-V", &format!("{size}b")];
            turn.create(name, &[name, tag, UNFINISHED], &args, None).await?;
            let made = turn.look_at(name).await?;
            let unmade = || DelegateError::retry(format!("{name} is not there after it was made"));
            activated(&turn, made.ours(name, name)?.ok_or_else(unmade)?).await?
        };
        drop(turn);
        let stored = Stored { path: device(&self.group, &lv).await?, size_bytes: size };
        let blank = Blank { stored, raw: None };
        Ok(if kept.is_some() { Begun::Kept(blank) } else { Begun::New(blank) })
    }

    /// Refuses when the pool is nearly full: what is filled takes of it as it is written.
    pub async fn has_room(&self) -> Result<()> {
        self.room(&self.group.look().await?).map(drop)
    }

    /// Removes the volume; its snapshots stay.
    pub async fn ensure_no_volume(&self, volume: &VolumeId) -> Result<()> {
        let turn = self.group.turn().await;
        match turn.look_at(volume.as_str()).await?.ours(volume.as_str(), volume.as_str())? {
            Some(lv) => turn.remove(lv).await,
            None => Ok(()),
        }
    }

    /// Cuts the snapshot, or reports of the one that is there.
    pub async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        let (name, volume) = (spec.snapshot.as_str(), spec.volume.as_str());
        let turn = self.group.turn().await;
        let mut seen = turn.look().await?;
        let there = seen.ours(name, name)?;
        if let Some(there) = there.filter(|there| !there.has(UNFINISHED)) {
            return Ok(report(there));
        }
        spec.may_cut()?;
        if let Some(half_done) = there {
            turn.remove(half_done).await?;
        }
        let mut origin = seen.ours(volume, volume)?.ok_or_else(|| missing(volume))?;
        if !origin.is_active() || origin.is_suspended() || origin.data_percent.is_none() {
            turn.activate(origin).await?;
            seen = turn.look().await?;
            origin = seen.ours(volume, volume)?.ok_or_else(|| missing(volume))?;
        }
        self.admit(&seen, origin.size)?;
        let tags = [name, &format!("{SNAPSHOT_OF}={volume}"), UNFINISHED];
        turn.create(name, &tags, &["-s", "-ky", "-pr"], Some(volume)).await?;
        // A snapshot that is not active does not tell; what it has is what the volume had.
        turn.finish(name, &[&format!("{DATA}={}", data(origin))]).await?;
        let there = whole(&turn.look_at(name).await?, &spec.snapshot)?.map(report);
        there.ok_or_else(|| DelegateError::retry(format!("{name} is not there after it was made")))
    }

    /// Makes a snapshot of a snapshot, which shares its blocks and outlives it, or reports of the one that is there. Whenever it
    /// is made it is the same, so one that was left half made is what it shall be as soon as `lvcreate` has come to its end.
    pub async fn ensure_snapshot_copy(&self, spec: &CopySpec) -> Result<SnapshotReport> {
        let name = spec.snapshot.as_str();
        let turn = self.group.turn().await;
        let seen = turn.look().await?;
        match seen.ours(name, name)? {
            Some(there) if !there.has(UNFINISHED) => return Ok(report(there)),
            Some(half_done) => turn.remove(half_done).await?,
            None => {}
        }
        let source = whole(&seen, &spec.source)?.ok_or_else(|| missing(&spec.source))?;
        self.admit(&seen, source.size)?;
        let of = format!("{SNAPSHOT_OF}={}", source.tagged(SNAPSHOT_OF).unwrap_or_default());
        let data = format!("{DATA}={}", super::data_tag(source));
        turn.create(name, &[name, &of, &data, UNFINISHED], &["-s", "-ky", "-pr"], Some(&source.name)).await?;
        turn.finish(name, &[]).await?;
        let there = whole(&turn.look_at(name).await?, &spec.snapshot)?.map(report);
        there.ok_or_else(|| DelegateError::retry(format!("{name} is not there after it was made")))
    }

    /// Removes the snapshot.
    pub async fn ensure_no_snapshot(&self, spec: &SnapshotSpec) -> Result<()> {
        let name = spec.snapshot.as_str();
        let turn = self.group.turn().await;
        match turn.look_at(name).await?.ours(name, name)? {
            Some(lv) => turn.remove(lv).await,
            None => Ok(()),
        }
    }

    /// What is there.
    pub async fn contents(&self) -> Result<Contents> {
        let seen = self.group.look().await?;
        Ok(Contents {
            volumes: super::volumes(&seen),
            snapshots: super::snapshots(&seen),
            capacity_bytes: self.capacity(pool(&seen, &self.config.pool)?),
            // A pool in trouble has room for nothing.
            free_bytes: self.room(&seen).unwrap_or(0),
        })
    }

    /// Refuses what would promise more than is allowed, or anything at all when the pool is nearly full.
    fn admit(&self, seen: &Seen, bytes: u64) -> Result<()> {
        let room = self.room(seen)?;
        if bytes > room {
            return Err(DelegateError::no_room(format!(
                "{bytes} bytes are needed, {room} can still be promised of the thin pool {}",
                self.config.pool
            )));
        }
        Ok(())
    }

    /// The bytes that can still be promised.
    fn room(&self, seen: &Seen) -> Result<u64> {
        let pool = pool(seen, &self.config.pool)?;
        let name = &pool.name;
        match pool.trouble() {
            Some(Trouble::Full) => return Err(DelegateError::no_room(format!("the thin pool {name} is full"))),
            Some(trouble) => {
                return Err(DelegateError::retry(format!(
                    "the thin pool {name} needs repair ({trouble:?}), see lvmthin(7)"
                )));
            }
            None => {}
        }
        for (what, percent) in [("data", pool.data_percent), ("metadata", pool.metadata_percent)] {
            let percent = percent.ok_or_else(|| DelegateError::retry(format!("the thin pool {name} is not active")))?;
            if percent >= self.config.full_percent {
                return Err(DelegateError::no_room(format!("the thin pool {name} has its {what} {percent} % full")));
            }
        }
        let promised: u64 = seen.0.iter().filter(|lv| lv.pool == *name).map(|lv| lv.size).sum();
        Ok(self.capacity(pool).saturating_sub(promised))
    }

    /// The bytes that may be promised in all.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn capacity(&self, pool: &Lv) -> u64 {
        // Out of range of u64 it is the nearest one; a few bytes more or less do not matter.
        (pool.size as f64 * self.config.overcommit) as u64
    }
}

fn pool<'a>(seen: &'a Seen, name: &str) -> Result<&'a Lv> {
    seen.0.iter().find(|lv| lv.name == name && lv.is_pool()).ok_or_else(|| {
        DelegateError::fatal(format!("there is no thin pool {name}: make it with lvcreate --type thin-pool -Zy"))
    })
}

/// The snapshot, when it is there and whole.
fn whole<'a>(seen: &'a Seen, snapshot: &SnapshotId) -> Result<Option<&'a Lv>> {
    Ok(seen.ours(snapshot.as_str(), snapshot.as_str())?.filter(|lv| !lv.has(UNFINISHED)))
}

fn report(lv: &Lv) -> SnapshotReport {
    SnapshotReport { size_bytes: lv.size, data_bytes: super::data_tag(lv), progress: 100 }
}

/// The bytes of a thin volume that hold data, to the hundredth of a per cent that LVM shows.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn data(lv: &Lv) -> u64 {
    ((lv.size as f64 * lv.data_percent.unwrap_or(100.0) / 100.0) as u64).min(lv.size)
}
