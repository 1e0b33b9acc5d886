//! `vbs dev`: the whole of vbs on one machine, out of one command, with nothing to prepare.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub mod account;
pub mod children;
pub mod console;
pub mod guest_image;
pub mod guests;
pub mod postgres;
pub mod sockets;
pub mod tgtd;

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

/// Writes a file whole or not at all, with the permissions it shall have from its first moment.
fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DevError> {
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
        fs::rename(&temporary, path)
    };
    write().map_err(|e| DevError::io(path, &e))
}

/// Looks for a program in PATH, and where Debian keeps those that it thinks only root has a use for. Says what to install
/// when there is none.
fn find_program(name: &str, debian_package: &str) -> Result<PathBuf, DevError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        DevError::new(format!("no {name}: install it (Debian: apt-get install {debian_package}), or run scripts/setup"))
    })
}
