//! Backstores: what the kernel's target has behind a unit, named after its volume.
//!
//! All are `fileio`, files and devices alike, opened so that each write is on the medium before it is answered, and shown to
//! initiators as disks without a write cache. `iblock`, which hands a device's writes on as they come, would be faster, and
//! loses data that a guest has flushed: when the node loses its power under a flush, the initiator sends that flush anew to the
//! node that has come back, which knows nothing of the writes before it and says that all is well. Volumes in a thin pool have
//! such a cache even on disks that have none: the pool's map.

use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::lio_tree::{Tree, gone, or_nothing, there};
use crate::delegate::{DelegateError, Result};
use crate::ids::VolumeId;

/// The directory of our backstores: a number of our own, so that what others make beside them is never taken for ours.
/// `targetcli` counts such directories from 0.
const STORES: &str = "core/fileio_2600";

/// What shall be behind a volume's unit.
#[derive(Debug)]
pub(super) struct Wanted {
    volume: VolumeId,
    path: String,
    /// A file's length in bytes. A device's the kernel knows.
    length: Option<u64>,
}

impl Wanted {
    /// Looks at the file or device. This blocks.
    pub(super) fn new(volume: &VolumeId, path: &Path) -> Result<Self> {
        // The kernel splits what it is told at commas and lines, and keeps 255 bytes of a path.
        let text = path.to_str().filter(|text| {
            text.starts_with('/') && text.len() < 256 && !text.contains(|c: char| c == ',' || c.is_whitespace())
        });
        let text = text.ok_or_else(|| {
            DelegateError::fatal(format!("the kernel's target cannot be given the path {}", path.display()))
        })?;
        let found = path.metadata().map_err(|e| DelegateError::retry(format!("{text}: {e}")))?;
        let length = match found.file_type() {
            kind if kind.is_block_device() => None,
            kind if kind.is_file() => Some(found.len()),
            _ => return Err(DelegateError::fatal(format!("{text} is neither a file nor a block device"))),
        };
        Ok(Self { volume: volume.clone(), path: text.to_owned(), length })
    }

    /// Where its backstore is.
    pub(super) fn dir(&self) -> String {
        dir_of(&self.volume)
    }

    /// Whether the backstore is of this file or device, and made to its end.
    pub(super) fn is(&self, tree: &dyn Tree) -> Result<bool> {
        let dir = self.dir();
        let read = |file: &str| told(&dir, file, or_nothing(tree.read(&format!("{dir}/{file}"))));
        let info = read("info")?;
        let behind = after(&info, "File:") == Some(&self.path) && after(&info, "Mode:") == Some("O_DSYNC");
        let serial = read("wwn/vpd_unit_serial")?;
        Ok(behind && read("enable")?.trim() == "1" && after(&serial, "Number:") == Some(&self.volume.serial()))
    }

    /// Makes the backstore where there is none.
    pub(super) fn make(&self, tree: &dyn Tree) -> Result<()> {
        let dir = self.dir();
        let write = |file: &str, text: &str| told(&dir, file, tree.write(&format!("{dir}/{file}"), text));
        told(STORES, "", there(tree.make(STORES)))?;
        told(&dir, "", tree.make(&dir))?;
        write("control", &format!("fd_dev_name={}", self.path))?;
        if let Some(length) = self.length {
            write("control", &length_of(length))?;
        }
        // Before it is enabled: nobody shall ever see another one.
        write("wwn/vpd_unit_serial", &self.volume.serial())?;
        write("enable", "1")?;
        // Lets a guest's discards through. A device that knows none refuses, and is as good without.
        if let Err(e) = write("attrib/emulate_tpu", "1") {
            tracing::debug!(volume = %self.volume, error = %e, "no discards");
        }
        Ok(())
    }

    /// Makes the target see the size that the file has now. A block device's it sees by itself.
    pub(super) fn follow_size(&self, tree: &dyn Tree) -> Result<()> {
        let dir = self.dir();
        let info = told(&dir, "info", or_nothing(tree.read(&format!("{dir}/info"))))?;
        match self.length {
            Some(length) if shown_size(&info).is_some_and(|shown| shown != length) => {
                told(&dir, "control", tree.write(&format!("{dir}/control"), &length_of(length)))
            }
            _ => Ok(()),
        }
    }

    /// The size that initiators are told, in bytes, as far as it can be known.
    pub(super) fn size(&self, tree: &dyn Tree) -> Result<Option<u64>> {
        if self.length.is_some() {
            let dir = self.dir();
            return Ok(shown_size(&told(&dir, "info", or_nothing(tree.read(&format!("{dir}/info"))))?));
        }
        let size = std::fs::File::open(&self.path).and_then(|mut device| device.seek(SeekFrom::End(0)));
        Ok(Some(size.map_err(|e| DelegateError::retry(format!("{}: {e}", self.path)))?))
    }
}

/// Where the volume's backstore is, when there is one.
pub(super) fn of(tree: &dyn Tree, volume: &VolumeId) -> Result<Option<String>> {
    Ok(volumes(tree)?.contains(volume).then(|| dir_of(volume)))
}

/// The volumes that have a backstore.
pub(super) fn volumes(tree: &dyn Tree) -> Result<Vec<VolumeId>> {
    let names = told(STORES, "", or_nothing(tree.parts(STORES)))?;
    Ok(names.iter().filter_map(|name| VolumeId::parse(name).ok()).collect())
}

/// Ends the volume's backstore, which no unit may lead to: while one does, the kernel refuses.
pub(super) fn end(tree: &dyn Tree, volume: &VolumeId) -> Result<()> {
    let dir = dir_of(volume);
    told(&dir, "", gone(tree.end(&dir)))?;
    // The last one takes along the directory they share. While there are others the kernel refuses.
    let _ = tree.end(STORES);
    Ok(())
}

fn dir_of(volume: &VolumeId) -> String {
    format!("{STORES}/{volume}")
}

/// How the kernel is told a file's length in bytes.
fn length_of(length: u64) -> String {
    format!("fd_dev_size={length}")
}

/// A file's size in bytes; the sectors' is in the same text.
pub(super) fn shown_size(info: &str) -> Option<u64> {
    after(info, " Size:")?.parse().ok()
}

/// The word after a label.
fn after<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.split_once(label)?.1.split_whitespace().next()
}

/// Says where in the tree something failed. What was written is left out, since it may be a secret.
pub(super) fn told<T>(dir: &str, file: &str, result: std::io::Result<T>) -> Result<T> {
    let slash = if file.is_empty() { "" } else { "/" };
    result.map_err(|e| DelegateError::retry(format!("the kernel's target, {dir}{slash}{file}: {e}")))
}
