//! The directory that a delegate keeps what it must know after a crash in: one delegate at a time.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// How long a start waits for the delegate before it to end.
const HANDOVER: Duration = Duration::from_secs(3);

/// Locks the directory for as long as the file is open. A predecessor that is just ending gets a moment; this blocks
/// meanwhile.
pub(super) fn take(data_dir: &Path) -> io::Result<File> {
    take_file(&data_dir.join("lock"))
}

/// Locks a file, which is made if it is missing, in the same way.
pub(super) fn take_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let patience = Instant::now() + HANDOVER;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if Instant::now() < patience => std::thread::sleep(HANDOVER / 20),
            Err(Errno::WOULDBLOCK) => {
                let message = format!("another delegate has the lock {}", path.display());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
            }
            Err(e) => return Err(e.into()),
        }
    }
}
