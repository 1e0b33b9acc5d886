//! Backstores: what the kernel's target has behind a unit. A block device is an `iblock`, a regular file a `fileio`; both are
//! named after their volume, under a number of our own, so that what others make beside them is never taken for ours.

use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::lio_tree::{Tree, gone, or_nothing, there};
use crate::delegate::{DelegateError, Result};
use crate::ids::VolumeId;

/// What stands behind a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block,
    File,
}

impl Kind {
    /// The directory of our backstores of this kind. `targetcli` counts such directories from 0.
    fn dir(self) -> &'static str {
        match self {
            Self::Block => "core/iblock_2600",
            Self::File => "core/fileio_2600",
        }
    }
}

/// What shall be behind a volume's unit.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) volume: VolumeId,
    kind: Kind,
    path: String,
    /// A file's length in bytes.
    size: u64,
    /// A block device's number.
    device: (u32, u32),
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
        let kind = match found.file_type() {
            kind if kind.is_block_device() => Kind::Block,
            kind if kind.is_file() => Kind::File,
            _ => return Err(DelegateError::fatal(format!("{text} is neither a file nor a block device"))),
        };
        let device = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        Ok(Self { volume: volume.clone(), kind, path: text.to_owned(), size: found.len(), device })
    }

    /// Where its backstore is.
    pub(super) fn dir(&self) -> String {
        format!("{}/{}", self.kind.dir(), self.volume)
    }

    /// What the kernel shall be told.
    fn control(&self) -> String {
        match self.kind {
            Kind::Block => format!("udev_path={}", self.path),
            // Through the page cache, and saying so: what an initiator has flushed is on the disk, as with any other disk.
            Kind::File => format!("fd_dev_name={},fd_dev_size={},fd_buffered_io=1", self.path, self.size),
        }
    }

    /// Whether the backstore is of this file or device, and made to its end.
    pub(super) fn is(&self, tree: &dyn Tree) -> Result<bool> {
        let dir = self.dir();
        let read = |file: &str| told(&dir, file, or_nothing(tree.read(&format!("{dir}/{file}"))));
        let info = read("info")?;
        let behind = match self.kind {
            Kind::Block => {
                let device = [after(&info, "Major:"), after(&info, "Minor:")].map(|text| text?.parse().ok());
                after(&info, "UDEV PATH:") == Some(&self.path) && device == [Some(self.device.0), Some(self.device.1)]
            }
            Kind::File => after(&info, "File:") == Some(&self.path),
        };
        let serial = read("wwn/vpd_unit_serial")?;
        Ok(behind && read("enable")?.trim() == "1" && after(&serial, "Number:") == Some(&self.volume.serial()))
    }

    /// Makes the backstore where there is none.
    pub(super) fn make(&self, tree: &dyn Tree) -> Result<()> {
        let dir = self.dir();
        let write = |file: &str, text: &str| told(&dir, file, tree.write(&format!("{dir}/{file}"), text));
        told(self.kind.dir(), "", there(tree.make(self.kind.dir())))?;
        told(&dir, "", tree.make(&dir))?;
        write("control", &self.control())?;
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
        if self.kind == Kind::File && shown_size(&info).is_some_and(|shown| shown != self.size) {
            told(&dir, "control", tree.write(&format!("{dir}/control"), &format!("fd_dev_size={}", self.size)))?;
        }
        Ok(())
    }

    /// The size that initiators are told, in bytes, as far as it can be known.
    pub(super) fn size(&self, tree: &dyn Tree) -> Result<Option<u64>> {
        match self.kind {
            Kind::File => {
                let dir = self.dir();
                Ok(shown_size(&told(&dir, "info", or_nothing(tree.read(&format!("{dir}/info"))))?))
            }
            Kind::Block => {
                let size = std::fs::File::open(&self.path).and_then(|mut device| device.seek(SeekFrom::End(0)));
                Ok(Some(size.map_err(|e| DelegateError::retry(format!("{}: {e}", self.path)))?))
            }
        }
    }
}

/// The directories of the volume's backstores, of whatever kind.
pub(super) fn of_volume(tree: &dyn Tree, volume: &VolumeId) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for kind in [Kind::Block, Kind::File] {
        let names = told(kind.dir(), "", or_nothing(tree.parts(kind.dir())))?;
        found.extend(names.iter().filter(|name| *name == volume.as_str()).map(|name| format!("{}/{name}", kind.dir())));
    }
    Ok(found)
}

/// The volumes that have a backstore.
pub(super) fn volumes(tree: &dyn Tree) -> Result<Vec<VolumeId>> {
    let mut found = Vec::new();
    for kind in [Kind::Block, Kind::File] {
        let names = told(kind.dir(), "", or_nothing(tree.parts(kind.dir())))?;
        found.extend(names.iter().filter_map(|name| VolumeId::parse(name).ok()));
    }
    Ok(found)
}

/// Ends the volume's backstores, which no unit may lead to: while one does, the kernel refuses.
pub(super) fn end(tree: &dyn Tree, volume: &VolumeId) -> Result<()> {
    for dir in of_volume(tree, volume)? {
        told(&dir, "", gone(tree.end(&dir)))?;
    }
    for kind in [Kind::Block, Kind::File] {
        // The last one takes along the directory they share. While there are others the kernel refuses.
        let _ = tree.end(kind.dir());
    }
    Ok(())
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
