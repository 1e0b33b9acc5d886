//! Small things about files that everything here needs: an error that names the file, a write that is whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What went wrong, in a sentence for the person at the terminal: it names the file or the program.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DevError(String);

impl DevError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// An error of a file or a program.
    pub fn io(path: &Path, error: &io::Error) -> Self {
        Self(format!("{}: {error}", path.display()))
    }
}

/// Writes a file whole or not at all, durably, with the permissions it shall have from its first moment.
pub(super) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DevError> {
    let temporary = path.with_extension("new");
    let write = || {
        // One left over from a crash may have other permissions.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // Else a power cut may bring the old file back, or none.
        fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|e| DevError::io(path, &e))
}

/// Looks for a program in PATH, and where Debian keeps those that it thinks only root has a use for. Says what to install
/// when there is none.
pub(super) fn find_program(name: &str, debian_package: &str) -> Result<PathBuf, DevError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        DevError::new(format!("no {name}: install it (Debian: apt-get install {debian_package}), or run scripts/setup"))
    })
}
