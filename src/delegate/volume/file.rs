//! The `file` driver: volumes and snapshots are sparse files, which needs no kernel module and no root.
//!
//! - `volumes/vol-…` and `snapshots/snap-…` under the data directory. A file under its final name is whole, always: a blank
//!   volume is nothing but its length, and a copy is made in `unfinished/`, synced, then renamed. What is answered for is
//!   durable, also when an earlier try made the change and died before the fsync: what is found as it shall be is synced too.
//! - A copy is a reflink where the file system can (xfs, btrfs), which is of one instant. Elsewhere it is a sparse copy, and
//!   the writers must rest meanwhile ([`SnapshotMethod`]). Either way the copy is a file of its own, that outlives its origin.
//! - A volume that is filled from another node is `restores/vol-…-TOKEN` until it is whole, and stays there over a restart.
//! - Blank volumes take no room before they are written to, so volumes together may be larger than the disk: who gives out
//!   more than there is must watch the disk. Copies do take room, so they are refused (`NoRoom`) when what is free, less what
//!   other copies at work will take and a reserve, does not hold them.
//!
//! A volume that is exported may grow, but its target shows the new size only when it is exported anew.
//!
//! The functions here block; [`super::file_driver`] calls them on threads that may.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{Begun, Blank, Stored, copy};
use crate::delegate::source::RestoreSpec;
use crate::delegate::{
    CopySpec, DelegateError, Result, SnapshotMethod, SnapshotReport, SnapshotSpec, VolumeSpec, data_dir,
};
use crate::ids::{Id, Kind, SnapshotId, VolumeId};

/// What is always left free, in bytes: Postgres or a guest's write must not be what finds the disk full.
const RESERVE: u64 = 64 << 20;

/// The volume and snapshot files under one directory.
#[derive(Debug)]
pub struct Files {
    volumes: PathBuf,
    snapshots: PathBuf,
    unfinished: PathBuf,
    restores: PathBuf,
    method: SnapshotMethod,
    /// The bytes that copies at work will have taken when they are done.
    promised: Mutex<u64>,
    /// When it is cancelled, copies at work end.
    stop: CancellationToken,
    /// Held for as long as this lives: two delegates with locks of their own on the same files would undo each other's work.
    _lock: File,
}

impl Files {
    /// Takes the directory over: makes what is missing, removes what unfinished copies left, and tries out how it copies.
    /// Fails when another delegate has it. Once `stop` is cancelled nothing is copied any more, and copies at work end within a
    /// moment, unfinished: without that a process could not end before them.
    pub fn open(data_dir: &Path, stop: CancellationToken) -> io::Result<Self> {
        let names = ["volumes", "snapshots", "unfinished", "restores"];
        let [volumes, snapshots, unfinished, restores] = names.map(|name| data_dir.join(name));
        for dir in [&volumes, &snapshots, &unfinished, &restores] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let lock = data_dir::take(data_dir)?;
        remove_unfinished(&unfinished, "")?;
        // Names that a predecessor made or removed and did not come to sync are reported from now on.
        for dir in [data_dir, &volumes, &snapshots] {
            sync(dir)?;
        }
        let method = probe(&unfinished)?;
        Ok(Self { volumes, snapshots, unfinished, restores, method, promised: Mutex::new(0), stop, _lock: lock })
    }

    /// How snapshots are taken here.
    pub fn method(&self) -> SnapshotMethod {
        self.method
    }

    /// Where a volume's bytes are.
    pub fn path(&self, volume: &VolumeId) -> PathBuf {
        self.volumes.join(volume.as_str())
    }

    /// Makes the volume or grows it.
    pub fn ensure_volume(&self, spec: &VolumeSpec) -> Result<()> {
        let path = self.path(&spec.volume);
        match File::options().write(true).open(&path) {
            Ok(file) => {
                let settle = || {
                    grow(&file, spec.size_bytes)?;
                    file.sync_all()?;
                    sync(&self.volumes)
                };
                settle().map_err(failed("grow", &path))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => match &spec.snapshot {
                None => self.blank(&path, spec.size_bytes),
                Some(snapshot) => self.restore(&path, snapshot, spec),
            },
            Err(e) => Err(failed("open", &path)(e)),
        }
    }

    /// A crash in here leaves a file that is too short at worst; the next try finds it and grows it.
    fn blank(&self, path: &Path, size_bytes: u64) -> Result<()> {
        self.promise(0)?;
        let make = || {
            let file = create(path)?;
            grow(&file, size_bytes)?;
            file.sync_all()?;
            sync(&self.volumes)
        };
        make().map_err(|e| {
            // A length that the file system refuses leaves an empty file, which is in nobody's way but looks like a volume.
            let _ = std::fs::remove_file(path);
            failed("make", path)(e)
        })
    }

    fn restore(&self, path: &Path, snapshot: &SnapshotId, spec: &VolumeSpec) -> Result<()> {
        let from = open(&self.snapshots.join(snapshot.as_str()))?;
        let length = from.metadata().map_err(failed("read", path))?.len();
        if length > spec.size_bytes {
            return Err(DelegateError::fatal(format!(
                "{snapshot} has {length} bytes, more than the volume shall have"
            )));
        }
        self.duplicate(&from, path, spec.size_bytes)
    }

    /// The file of a snapshot.
    pub fn stored_snapshot(&self, snapshot: &SnapshotId) -> Result<Stored> {
        let path = self.snapshots.join(snapshot.as_str());
        let size_bytes = open(&path)?.metadata().map_err(failed("read", &path))?.len();
        Ok(Stored { path, size_bytes })
    }

    /// Where volumes are that are being filled from other nodes.
    pub fn restores_dir(&self) -> &Path {
        &self.restores
    }

    /// Makes the file of a volume that is to be filled, or finds the one of this token.
    pub fn begin_volume(&self, spec: &RestoreSpec, token: &str) -> Result<Begun> {
        if self.has(&spec.volume) {
            sync(&self.volumes).map_err(failed("sync", &self.volumes))?;
            return Ok(Begun::Whole);
        }
        self.has_room()?;
        let path = self.begun(&spec.volume, token);
        let make = || {
            // Before the first byte of it is written it has its length.
            let kept = path.metadata().is_ok_and(|meta| meta.len() == spec.size_bytes);
            if !kept {
                remove_unfinished(&self.restores, &format!("{}-", spec.volume))?;
                let file = create(&path)?;
                grow(&file, spec.size_bytes)?;
                file.sync_all()?;
                sync(&self.restores)?;
            }
            Ok(kept)
        };
        let kept = make().map_err(failed("make", &path))?;
        let blank = Blank { stored: Stored { path, size_bytes: spec.size_bytes }, raw: None };
        Ok(if kept { Begun::Kept(blank) } else { Begun::New(blank) })
    }

    /// Gives the file that was filled the volume's name.
    pub fn end_volume(&self, volume: &VolumeId, token: &str) -> Result<()> {
        let (from, to) = (self.begun(volume, token), self.path(volume));
        let rename = || {
            File::open(&from)?.sync_all()?;
            std::fs::rename(&from, &to)?;
            sync(&self.volumes)
        };
        rename().map_err(failed("rename to", &to))
    }

    /// Refuses when nothing is free.
    pub fn has_room(&self) -> Result<()> {
        self.promise(0).map(drop)
    }

    fn begun(&self, volume: &VolumeId, token: &str) -> PathBuf {
        self.restores.join(format!("{volume}-{token}"))
    }

    /// Removes the volume and what unfinished tries left of it.
    pub fn ensure_no_volume(&self, volume: &VolumeId) -> Result<()> {
        remove_unfinished(&self.restores, &format!("{volume}-")).map_err(failed("remove from", &self.restores))?;
        self.remove(&self.volumes, volume)
    }

    /// Whether the volume is there.
    pub fn has(&self, volume: &VolumeId) -> bool {
        self.path(volume).exists()
    }

    /// Makes the snapshot, or reports of the one that is there.
    pub fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        self.snapshot_of(&spec.snapshot, || {
            spec.may_cut()?;
            Ok(self.path(&spec.volume))
        })
    }

    /// Makes a snapshot that is a copy of another, or reports of it.
    pub fn ensure_snapshot_copy(&self, spec: &CopySpec) -> Result<SnapshotReport> {
        self.snapshot_of(&spec.snapshot, || Ok(self.snapshots.join(spec.source.as_str())))
    }

    fn snapshot_of(&self, snapshot: &SnapshotId, origin: impl FnOnce() -> Result<PathBuf>) -> Result<SnapshotReport> {
        let path = self.snapshots.join(snapshot.as_str());
        if path.exists() {
            sync(&self.snapshots).map_err(failed("sync", &path))?;
        } else {
            let from = open(&origin()?)?;
            let length = from.metadata().map_err(failed("read", &path))?.len();
            self.duplicate(&from, &path, length)?;
        }
        let report = || {
            let file = File::open(&path)?;
            Ok(SnapshotReport {
                size_bytes: file.metadata()?.len(),
                data_bytes: copy::allocated(&file)?,
                progress: 100,
            })
        };
        report().map_err(failed("read", &path))
    }

    /// Removes the snapshot and what unfinished tries left of it.
    pub fn ensure_no_snapshot(&self, snapshot: &SnapshotId) -> Result<()> {
        self.remove(&self.snapshots, snapshot)
    }

    /// The volumes that are there, with their sizes in bytes.
    pub fn volumes(&self) -> Result<Vec<(VolumeId, u64)>> {
        let size = |id: VolumeId| {
            // One that is deleted at this moment is not there.
            let size = std::fs::metadata(self.path(&id)).ok()?.len();
            Some((id, size))
        };
        Ok(list(&self.volumes)?.into_iter().filter_map(size).collect())
    }

    /// The snapshots that are there.
    pub fn snapshots(&self) -> Result<Vec<SnapshotId>> {
        list(&self.snapshots)
    }

    /// The size of the file system.
    pub fn capacity_bytes(&self) -> Result<u64> {
        let room = self.room()?;
        Ok(room.f_blocks * room.f_frsize)
    }

    fn room(&self) -> Result<rustix::fs::StatVfs> {
        rustix::fs::statvfs(&self.volumes).map_err(|e| failed("ask the room of", &self.volumes)(e.into()))
    }

    /// The bytes that can still be given out.
    pub fn free_bytes(&self) -> Result<u64> {
        self.free_beyond(*self.promised())
    }

    fn free_beyond(&self, promised: u64) -> Result<u64> {
        let room = self.room()?;
        Ok((room.f_bavail * room.f_frsize).saturating_sub(RESERVE).saturating_sub(promised))
    }

    /// Sets room aside for a copy; what is written of it meanwhile counts twice, which errs on the safe side.
    fn promise(&self, bytes: u64) -> Result<Promise<'_>> {
        // Held from the look until the promise: two copies must not be given the same room.
        let mut promised = self.promised();
        let free = self.free_beyond(*promised)?;
        if free < bytes.max(1) {
            return Err(DelegateError::no_room(format!("{bytes} bytes are needed, {free} are free")));
        }
        *promised += bytes;
        Ok(Promise { files: self, bytes })
    }

    fn promised(&self) -> MutexGuard<'_, u64> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `path` a copy of `from`, `length` bytes long, whole or not at all. The temporary name is used once only: should a
    /// try that was given up still be at work, it cannot write into the next one's file.
    fn duplicate(&self, from: &File, path: &Path, length: u64) -> Result<()> {
        let bytes = match self.method {
            SnapshotMethod::Atomic => 0,
            SnapshotMethod::Copy => copy::allocated(from).map_err(failed("read", path))?,
        };
        let _promise = self.promise(bytes)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = self.unfinished.join(format!("{name}-{}", uuid::Uuid::new_v4().simple()));
        let copy = || {
            let to = create(&temporary)?;
            match self.method {
                SnapshotMethod::Atomic if copy::reflink(from, &to)? => {}
                // Never a copy in place of a reflink that was promised: the writers are not at rest.
                SnapshotMethod::Atomic => return Err(io::Error::other("the file system no longer reflinks")),
                SnapshotMethod::Copy => copy::sparse(from, &to, || self.stop.is_cancelled())?,
            }
            grow(&to, length)?;
            to.sync_all()?;
            std::fs::rename(&temporary, path)?;
            sync(path.parent().unwrap_or(Path::new("/")))
        };
        copy().map_err(|e| {
            let _ = std::fs::remove_file(&temporary);
            failed("copy to", path)(e)
        })
    }

    fn remove<K: Kind>(&self, dir: &Path, id: &Id<K>) -> Result<()> {
        let path = dir.join(id.as_str());
        let unlink = || {
            // With the dash: an old, short id may be how a long one starts.
            remove_unfinished(&self.unfinished, &format!("{id}-"))?;
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => sync(dir),
            }
        };
        unlink().map_err(failed("remove", &path))
    }
}

/// Room set aside, until it goes out of scope.
struct Promise<'a> {
    files: &'a Files,
    bytes: u64,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        *self.files.promised() -= self.bytes;
    }
}

/// Finds out whether the directory's file system reflinks. (`ioctl_ficlone(2)` on empty files would always do.)
fn probe(dir: &Path) -> io::Result<SnapshotMethod> {
    let names = [dir.join("probe-a"), dir.join("probe-b")];
    std::fs::write(&names[0], [1; 4096])?;
    let can = copy::reflink(&File::open(&names[0])?, &create(&names[1])?)?;
    for name in &names {
        std::fs::remove_file(name)?;
    }
    Ok(if can { SnapshotMethod::Atomic } else { SnapshotMethod::Copy })
}

/// Opens or makes a file that its owner alone may read.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Opens what a copy is made of; without it no other try will help.
fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => DelegateError::fatal(format!("{} is not there", path.display())),
        _ => failed("open", path)(e),
    })
}

/// Gives a file at least this length; the caller syncs it.
fn grow(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.len() < length {
        file.set_len(length)?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
fn sync(dir: &Path) -> io::Result<()> {
    #[cfg(test)]
    tests::before_sync(dir)?;
    File::open(dir)?.sync_all()
}

/// Removes unfinished copies: those whose names start so.
fn remove_unfinished(dir: &Path, start: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(start) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The ids among a directory's names; other names are not ours to judge.
fn list<K: Kind>(dir: &Path) -> Result<Vec<Id<K>>> {
    let read = || std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    let names = read().map_err(failed("list", dir))?;
    Ok(names.iter().filter_map(|name| Id::parse(name.to_str()?).ok()).collect())
}

/// What an error of the system means to the caller.
pub(super) fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> DelegateError {
    move |e| {
        let message = format!("cannot {what} {}: {e}", path.display());
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                DelegateError::no_room(message)
            }
            io::ErrorKind::InvalidInput => DelegateError::fatal(message),
            _ => DelegateError::retry(message),
        }
    }
}

#[cfg(test)]
mod reflink_tests;
#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use super::*;
    use crate::delegate::ErrorKind;

    thread_local! {
        /// The directories that this thread's test has synced.
        static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
        /// Whether a sync fails: to the next try it is the same as a process that died before it.
        static SYNC_FAILS: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn before_sync(dir: &Path) -> io::Result<()> {
        if SYNC_FAILS.get() {
            return Err(io::Error::other("no sync in this test"));
        }
        SYNCED.with_borrow_mut(|synced| synced.push(dir.to_owned()));
        Ok(())
    }

    fn open_files(dir: &tempfile::TempDir) -> io::Result<Files> {
        Files::open(dir.path(), CancellationToken::new())
    }

    fn volume(size_bytes: u64, snapshot: Option<&SnapshotId>) -> VolumeSpec {
        VolumeSpec { volume: VolumeId::generate(), size_bytes, snapshot: snapshot.cloned() }
    }

    fn unfinished(files: &Files) -> Vec<String> {
        let entries = std::fs::read_dir(&files.unfinished).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_snapshot_holds_what_was_written_before_it_and_outlives_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let files = open_files(&dir).unwrap();
        let origin = volume(8 << 20, None);
        files.ensure_volume(&origin).unwrap();
        let file = File::options().write(true).open(files.path(&origin.volume)).unwrap();
        file.write_all_at(b"before", 4096).unwrap();
        let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: origin.volume.clone(), cut: false };
        let report = files.ensure_snapshot(&spec).unwrap();
        assert_eq!((report.size_bytes, report.data_bytes), (8 << 20, 4096));
        file.write_all_at(b"after!", 4096).unwrap();
        files.ensure_no_volume(&origin.volume).unwrap();
        assert_eq!(files.ensure_snapshot(&spec).unwrap(), report, "again, without the volume");

        let restored = volume(9 << 20, Some(&spec.snapshot));
        files.ensure_volume(&restored).unwrap();
        let (mut bytes, path) = ([0; 6], files.path(&restored.volume));
        File::open(&path).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"before");
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (9 << 20, 0o600));
    }

    #[test]
    fn a_volume_grows_but_never_shrinks_and_a_torn_blank_one_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let files = open_files(&dir).unwrap();
        let spec = volume(4096, None);
        File::create(files.path(&spec.volume)).unwrap();
        for (asked, there) in [(4096, 4096), (8192, 8192), (4096, 8192)] {
            files.ensure_volume(&VolumeSpec { size_bytes: asked, ..spec.clone() }).unwrap();
            assert_eq!(files.volumes().unwrap(), [(spec.volume.clone(), there)]);
        }
    }

    #[test]
    fn what_an_earlier_try_did_not_come_to_sync_is_synced_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let files = open_files(&dir).unwrap();
        let origin = volume(4096, None);
        let synced_by = |call: &dyn Fn() -> Result<()>| {
            SYNCED.take();
            call().unwrap();
            SYNCED.take()
        };
        assert_eq!(synced_by(&|| files.ensure_volume(&origin)), [files.volumes.as_path()], "one sync, no more");

        let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: origin.volume.clone(), cut: false };
        let restored = volume(4096, Some(&spec.snapshot));
        let take = || files.ensure_snapshot(&spec).map(drop);
        let restore = || files.ensure_volume(&restored);
        let remove = || files.ensure_no_volume(&restored.volume);
        let discard = || files.ensure_no_snapshot(&spec.snapshot);
        let calls: [(&dyn Fn() -> Result<()>, &Path); 4] = [
            (&take, &files.snapshots),
            (&restore, &files.volumes),
            (&remove, &files.volumes),
            (&discard, &files.snapshots),
        ];
        for (call, synced) in calls {
            SYNC_FAILS.set(true);
            for _ in 0..2 {
                assert_eq!(call().unwrap_err().kind, ErrorKind::Retry);
            }
            SYNC_FAILS.set(false);
            assert_eq!(synced_by(call), [synced]);
        }

        drop(files);
        SYNCED.take();
        let files = open_files(&dir).unwrap();
        assert_eq!(SYNCED.take(), [dir.path(), &files.volumes, &files.snapshots]);
    }

    #[test]
    fn left_overs_of_unfinished_copies_go_with_their_id_and_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let files = open_files(&dir).unwrap();
        let (short, long) = ("vol-01234567", "vol-0123456789abcdef0");
        for id in [short, long] {
            std::fs::write(files.unfinished.join(format!("{id}-0123")), "half").unwrap();
        }
        for _ in 0..2 {
            files.ensure_no_volume(&VolumeId::parse(short).unwrap()).unwrap();
            assert_eq!(unfinished(&files), [format!("{long}-0123")]);
        }
        drop(files);
        assert_eq!(unfinished(&open_files(&dir).unwrap()), [""; 0]);
    }

    #[test]
    fn what_cannot_be_met_is_said_so_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = open_files(&dir).unwrap();
        let snapshot = SnapshotId::generate();
        let kind = |result: Result<()>| result.unwrap_err().kind;
        assert_eq!(kind(files.ensure_volume(&volume(4096, Some(&snapshot)))), ErrorKind::Fatal);
        std::fs::write(files.snapshots.join(snapshot.as_str()), [1; 8192]).unwrap();
        assert_eq!(kind(files.ensure_volume(&volume(4096, Some(&snapshot)))), ErrorKind::Fatal);
        assert!(files.volumes().unwrap().is_empty());
        // Longer than any file may be: off_t is signed.
        assert_eq!(kind(files.ensure_volume(&volume(u64::MAX, None))), ErrorKind::Fatal);
        assert!(files.volumes().unwrap().is_empty());
    }

    #[test]
    fn a_copy_is_refused_when_the_room_for_it_is_promised_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let files = open_files(&dir).unwrap();
        let free = files.free_bytes().unwrap();
        let _all = files.promise(free - (free >> 4)).unwrap();
        assert_eq!(files.promise(free >> 2).map(drop).unwrap_err().kind, ErrorKind::NoRoom);
    }

    #[test]
    fn of_copies_that_begin_together_each_gets_room_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let files = open_files(&dir).unwrap();
        let most = files.free_bytes().unwrap() / 4 * 3;
        let together = std::sync::Barrier::new(8);
        for _ in 0..50 {
            let asks = || {
                together.wait();
                let given = files.promise(most);
                // Nobody gives back what others may still ask for.
                together.wait();
                given.is_ok()
            };
            let granted = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(asks)).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap().then_some(())).count()
            });
            assert_eq!(granted, 1);
        }
    }

    #[test]
    fn two_delegates_cannot_have_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = open_files(&dir).unwrap();
        assert!(open_files(&dir).unwrap_err().to_string().contains("another delegate"));
        drop(first);
        open_files(&dir).unwrap();
    }
}
