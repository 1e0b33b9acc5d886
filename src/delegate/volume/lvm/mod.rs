//! The `lvm` driver: volumes and snapshots are logical volumes of one volume group, by the commands of lvm2.
//!
//! - Their names are the ids, and they carry the tags `vbs` and the id. What does not is not ours and is never touched.
//! - Every call looks at what LVM reports, and makes up the difference. What is made in more than one step is tagged
//!   [`group::UNFINISHED`] until it is what its name says, so that a crash in between is done again.
//! - Two layouts: [`thin`] volumes, whose snapshots cost next to nothing, and [`thick`] ones as they were in 2009.
//! - One group is one delegate's: another on this machine that is given the same group does not start.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{Begun, Contents, Stored, VolumeDriver, background};
use crate::config::{self, Layout};
use crate::delegate::source::RestoreSpec;
use crate::delegate::{
    CopySpec, DelegateError, Result, SnapshotMethod, SnapshotReport, SnapshotSpec, VolumeSpec, data_dir,
};
use crate::ids::{SnapshotId, VolumeId};

mod copy_out;
#[cfg(test)]
mod double;
#[cfg(any(test, fuzzing))]
pub(in crate::delegate) mod fuzzing;
mod group;
pub(super) mod raw;
mod report;
#[cfg(test)]
mod tests;
mod thick;
mod thin;

use group::{Devices, Group, Host, Run, Seen, UNFINISHED};
use report::Lv;

/// The tag that says which volume a snapshot is of.
const SNAPSHOT_OF: &str = "vbs.of";

/// The tag that says how many bytes of a snapshot hold data.
const DATA: &str = "vbs.data";

/// The tag that says under which token a volume is being filled from another node.
const RESTORE: &str = "vbs.restore";

/// How long a snapshot that was made ready is taken to be so, when it is read piece after piece.
const READY: Duration = Duration::from_secs(10);

/// Where the parts of the host are that the driver meets outside of LVM's commands.
#[derive(Debug, Clone)]
struct Places {
    devices: Devices,
    /// The locks of what runs.
    locks: PathBuf,
}

/// Volumes and snapshots in a volume group.
pub struct LvmDriver {
    group: Arc<Group>,
    kind: Kind,
    restores: PathBuf,
    /// The snapshots that were made ready to be read just now.
    ready: Mutex<HashMap<SnapshotId, (Instant, Stored)>>,
    /// Held for as long as this lives.
    _locks: [File; 2],
}

enum Kind {
    Thin(thin::Thin),
    Thick(thick::Thick),
}

impl LvmDriver {
    /// Takes the volume group over. Fails when it, or its pool, is not there or not fit, and when another delegate has it.
    /// When `stop` is cancelled, copies at work end within a moment; everything else goes on.
    pub async fn open(config: &config::Lvm, data_dir: &Path, stop: &CancellationToken) -> Result<Self> {
        let places = Places { devices: Devices::default(), locks: "/run/lock".into() };
        Self::open_at(config, data_dir, stop, Arc::new(Host), &places).await
    }

    async fn open_at(
        config: &config::Lvm,
        data_dir: &Path,
        stop: &CancellationToken,
        run: Arc<dyn Run>,
        places: &Places,
    ) -> Result<Self> {
        let group = Arc::new(Group::new(&config.volume_group, places.devices.clone(), run)?);
        let (data_dir, locks) = (data_dir.to_owned(), places.locks.clone());
        let name = format!("vbs-{}.lock", config.volume_group);
        let restores = data_dir.join("restores");
        let made = restores.clone();
        let take = move || {
            std::fs::create_dir_all(&made)?;
            std::fs::create_dir_all(&locks)?;
            Ok([data_dir::take(&data_dir)?, data_dir::take_file(&locks.join(name))?])
        };
        let locks = blocking(move || take().map_err(|e: std::io::Error| DelegateError::fatal(e.to_string()))).await?;
        let kind = match &config.layout {
            Layout::Thin(thin) => Kind::Thin(thin::Thin::open(Arc::clone(&group), thin.clone()).await?),
            Layout::Thick(thick) => Kind::Thick(thick::Thick::open(Arc::clone(&group), thick, stop).await?),
        };
        Ok(Self { group, kind, restores, ready: Mutex::default(), _locks: locks })
    }
}

#[async_trait]
impl VolumeDriver for LvmDriver {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Thin(_) => "lvm-thin",
            Kind::Thick(_) => "lvm-thick",
        }
    }

    fn snapshot_method(&self) -> SnapshotMethod {
        SnapshotMethod::Atomic
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.group.path(volume.as_str())
    }

    async fn ensure_volume(&self, spec: &VolumeSpec) -> Result<()> {
        match &self.kind {
            Kind::Thin(thin) => thin.ensure_volume(spec).await,
            Kind::Thick(thick) => thick.ensure_volume(spec).await,
        }
    }

    async fn ensure_no_volume(&self, volume: &VolumeId) -> Result<()> {
        match &self.kind {
            Kind::Thin(thin) => thin.ensure_no_volume(volume).await,
            Kind::Thick(thick) => thick.ensure_no_volume(volume).await,
        }
    }

    async fn ensure_ready(&self, volume: &VolumeId) -> Result<()> {
        ready(&self.group, volume.as_str()).await.map(drop)
    }

    async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        match &self.kind {
            Kind::Thin(thin) => thin.ensure_snapshot(spec).await,
            Kind::Thick(thick) => thick.ensure_snapshot(spec).await,
        }
    }

    async fn ensure_snapshot_copy(&self, spec: &CopySpec) -> Result<SnapshotReport> {
        match &self.kind {
            Kind::Thin(thin) => thin.ensure_snapshot_copy(spec).await,
            Kind::Thick(thick) => thick.ensure_snapshot_copy(spec).await,
        }
    }

    async fn ensure_no_snapshot(&self, spec: &SnapshotSpec) -> Result<()> {
        match &self.kind {
            Kind::Thin(thin) => thin.ensure_no_snapshot(spec).await,
            Kind::Thick(thick) => thick.ensure_no_snapshot(spec).await,
        }
    }

    async fn contents(&self) -> Result<Contents> {
        match &self.kind {
            Kind::Thin(thin) => thin.contents().await,
            Kind::Thick(thick) => thick.contents().await,
        }
    }

    async fn ready_snapshot(&self, snapshot: &SnapshotId) -> Result<Stored> {
        if let Some((_, stored)) = self.ready_now().get(snapshot) {
            return Ok(stored.clone());
        }
        let (path, size_bytes) = ready(&self.group, snapshot.as_str()).await?;
        let stored = Stored { path, size_bytes };
        self.ready_now().insert(snapshot.clone(), (Instant::now(), stored.clone()));
        Ok(stored)
    }

    fn restores_dir(&self) -> &Path {
        &self.restores
    }

    async fn begin_volume(&self, spec: &RestoreSpec, token: &str) -> Result<Begun> {
        let tag = format!("{RESTORE}={token}");
        match &self.kind {
            Kind::Thin(thin) => thin.begin_volume(spec, &tag).await,
            Kind::Thick(thick) => thick.begin_volume(spec, &tag).await,
        }
    }

    async fn end_volume(&self, volume: &VolumeId, _: &str) -> Result<()> {
        let turn = self.group.turn().await;
        turn.finish(volume.as_str(), &[]).await?;
        let there = finished(&turn.look_at(volume.as_str()).await?, volume.as_str())?.is_some();
        if there { Ok(()) } else { Err(DelegateError::retry(format!("{volume} is not whole after it was filled"))) }
    }

    async fn has_room(&self) -> Result<()> {
        match &self.kind {
            Kind::Thin(thin) => thin.has_room().await,
            // Its extents are its own from the start.
            Kind::Thick(_) => Ok(()),
        }
    }
}

impl LvmDriver {
    fn ready_now(&self) -> std::sync::MutexGuard<'_, HashMap<SnapshotId, (Instant, Stored)>> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|_, (since, _)| since.elapsed() < READY);
        ready
    }
}

/// Makes the device of a finished logical volume of ours ready to be opened, and gives its path and its size.
async fn ready(group: &Group, name: &str) -> Result<(PathBuf, u64)> {
    let lv = {
        let turn = group.turn().await;
        let seen = turn.look_at(name).await?;
        let lv = finished(&seen, name)?.ok_or_else(|| missing(name))?;
        activated(&turn, lv).await?
    };
    Ok((device(group, &lv).await?, lv.size))
}

/// Activates a logical volume if it is not, and gives what it is then.
async fn activated(turn: &group::Turn<'_>, lv: &Lv) -> Result<Lv> {
    if lv.is_active() && !lv.is_suspended() {
        return Ok(lv.clone());
    }
    turn.activate(lv).await?;
    let now = turn.look_at(&lv.name).await?.0.into_iter().find(|now| now.is_active() && !now.is_suspended());
    now.ok_or_else(|| DelegateError::retry(format!("{} is not active after it was activated", lv.name)))
}

/// Waits until the path of an active logical volume leads to its device, and to no other thing.
async fn device(group: &Group, lv: &Lv) -> Result<PathBuf> {
    let (path, devices) = (group.path(&lv.name), &group.devices);
    let patience = Instant::now() + devices.wait;
    loop {
        let found = tokio::fs::metadata(&path).await;
        match found {
            // A late node is no lost volume, and one that is still another's is late.
            Ok(meta) if lv.device.is_some() && (devices.number)(&meta) == lv.device => return Ok(path),
            _ if Instant::now() < patience => tokio::time::sleep(devices.wait / 50).await,
            Ok(_) => return Err(DelegateError::retry(format!("{} is not the device of {}", path.display(), lv.name))),
            Err(e) => return Err(DelegateError::retry(format!("{}: {e}", path.display()))),
        }
    }
}

/// The logical volume of this name, when it is ours and is what its name says.
fn finished<'a>(seen: &'a Seen, name: &str) -> Result<Option<&'a Lv>> {
    Ok(seen.ours(name, name)?.filter(|lv| !lv.has(UNFINISHED)))
}

fn volumes(seen: &Seen) -> Vec<(VolumeId, u64)> {
    let finished = seen.all_ours().filter(|lv| !lv.has(UNFINISHED));
    finished.filter_map(|lv| Some((VolumeId::parse(&lv.name).ok()?, lv.size))).collect()
}

fn snapshots(seen: &Seen) -> Vec<SnapshotId> {
    let finished = seen.all_ours().filter(|lv| !lv.has(UNFINISHED));
    finished.filter_map(|lv| SnapshotId::parse(&lv.name).ok()).collect()
}

fn data_tag(lv: &Lv) -> u64 {
    lv.tagged(DATA).and_then(|bytes| bytes.parse().ok()).unwrap_or(lv.size).min(lv.size)
}

/// Whole extents; more than there are numbers for is more than there is room for.
fn round_up(bytes: u64, extent: u64) -> Result<u64> {
    let rounded = bytes.max(1).checked_next_multiple_of(extent);
    rounded
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| DelegateError::fatal(format!("no logical volume can have {bytes} bytes")))
}

fn missing(what: impl std::fmt::Display) -> DelegateError {
    DelegateError::fatal(format!("{what} is not on this node"))
}

fn too_small(snapshot: &SnapshotId, bytes: u64) -> DelegateError {
    DelegateError::fatal(format!("{snapshot} has {bytes} bytes, more than the volume shall have"))
}

/// Runs work that blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(DelegateError::retry(format!("the LVM driver stopped: {e}"))),
    }
}
