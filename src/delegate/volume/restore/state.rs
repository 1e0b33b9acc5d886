//! How far a volume is filled, in a file: read back after a crash, and never guessed.
//!
//! What it says is true of the disk: it is written after the bytes that it counts are synced, and the token ties it to the one
//! file or logical volume that they are in.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{SnapshotId, VolumeId};

/// More than any of these files has, in bytes.
const MOST: u64 = 4096;

/// How far a volume is filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Names what is filled to the driver.
    pub token: String,
    /// What it is filled from.
    pub snapshot: SnapshotId,
    /// The snapshot's size in bytes; 0 while it is not known.
    pub size_bytes: u64,
    /// The bytes that are durably there.
    pub at: u64,
    /// Of these, from the start, those that were compared with the source's afterwards.
    pub checked: u64,
}

impl State {
    /// Nothing is there.
    pub fn new(snapshot: &SnapshotId) -> Self {
        let token = uuid::Uuid::new_v4().simple().to_string();
        Self { token, snapshot: snapshot.clone(), size_bytes: 0, at: 0, checked: 0 }
    }

    /// What an earlier try has written down. Of one that cannot be read nothing is taken.
    pub fn load(dir: &Path, volume: &VolumeId) -> io::Result<Option<Self>> {
        let file = match File::open(path(dir, volume)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let read: Result<Self, _> = serde_json::from_reader(io::Read::take(file, MOST));
        if let Err(error) = &read {
            tracing::warn!(%volume, %error, "how far it was filled cannot be read: it is filled anew");
        }
        Ok(read.ok().filter(Self::is_sound))
    }

    /// Also of a file that somebody has edited: a token becomes a part of a name.
    fn is_sound(&self) -> bool {
        let token = self.token.len() == 32 && self.token.bytes().all(|b| b.is_ascii_hexdigit());
        token && self.checked <= self.at && (self.size_bytes > 0 || self.at == 0)
    }

    /// Writes it down, durably.
    pub fn save(&self, dir: &Path, volume: &VolumeId) -> io::Result<()> {
        let (path, new) = (path(dir, volume), dir.join(format!("{volume}.new")));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(new, path)?;
        File::open(dir)?.sync_all()
    }

    /// Forgets it.
    pub fn remove(dir: &Path, volume: &VolumeId) -> io::Result<()> {
        for path in [dir.join(format!("{volume}.new")), path(dir, volume)] {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        File::open(dir)?.sync_all()
    }
}

fn path(dir: &Path, volume: &VolumeId) -> PathBuf {
    dir.join(format!("{volume}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_down_is_read_back_and_what_is_damaged_counts_for_nothing() {
        let (dir, volume) = (tempfile::tempdir().unwrap(), VolumeId::generate());
        let load = || State::load(dir.path(), &volume).unwrap();
        assert_eq!(load(), None);
        let state = State { size_bytes: 9, at: 5, checked: 5, ..State::new(&SnapshotId::generate()) };
        for _ in 0..2 {
            state.save(dir.path(), &volume).unwrap();
            assert_eq!(load().as_ref(), Some(&state));
        }
        let good = std::fs::read_to_string(path(dir.path(), &volume)).unwrap();
        for bad in [
            good[..good.len() / 2].to_owned(),
            good.replace(&state.token, "../../0123456789abcdef0123456789"),
            good.replace("\"at\":5", "\"at\":4"),
            good.replace("\"size_bytes\":9", "\"size_bytes\":0"),
        ] {
            std::fs::write(path(dir.path(), &volume), bad).unwrap();
            assert_eq!(load(), None);
        }
        for _ in 0..2 {
            State::remove(dir.path(), &volume).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
