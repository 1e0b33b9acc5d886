//! Filling whole devices: with zeros, or with what another device holds, at a pace that leaves the guests room.
//!
//! Nothing is skipped: what is under a new linear volume was another tenant's, so each byte is written, zeros too. Writes go
//! around the page cache (`O_DIRECT`), which the guests' reads need more, and are synced at the end. All of it blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

/// What is written before the next look whether to stop, in bytes.
const STEP: usize = 1 << 20;

/// What a buffer must start at a multiple of for `O_DIRECT`: no disk has larger blocks.
pub(in crate::delegate::volume) const ALIGN: usize = 4096;

/// The pieces in which data is told from zeros, in bytes.
pub(in crate::delegate::volume) const GRAIN: usize = 64 << 10;

/// How long a wait lasts before the next look whether to stop.
const NAP: Duration = Duration::from_millis(200);

/// How much may be written in the background, by all who do.
pub struct Pace {
    bytes_per_s: u64,
    /// When what has been written so far may have taken until.
    next: Mutex<Instant>,
}

impl Pace {
    /// So many MiB a second; 0 for as many as there can be.
    pub fn new(mib_per_s: u64) -> Self {
        Self { bytes_per_s: mib_per_s.saturating_mul(1 << 20), next: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes more may be written.
    pub fn wait(&self, bytes: u64, stop: &CancellationToken) -> io::Result<()> {
        if let Some(micros) = bytes.saturating_mul(1_000_000).checked_div(self.bytes_per_s) {
            let until = {
                let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
                let from = (*next).max(Instant::now());
                *next = from + Duration::from_micros(micros);
                from
            };
            while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                check(stop)?;
                std::thread::sleep(left.min(NAP));
            }
        }
        check(stop)
    }
}

fn check(stop: &CancellationToken) -> io::Result<()> {
    if stop.is_cancelled() { Err(io::Error::other("stopped half-way")) } else { Ok(()) }
}

/// What goes with a background work: its pace, how far it is, and when to give up.
pub struct Work<'a> {
    /// The pace of all such works.
    pub pace: &'a Pace,
    /// Ends the work soon after it is cancelled.
    pub stop: &'a CancellationToken,
    /// The bytes done.
    pub done: &'a AtomicU64,
}

/// Makes `to` hold what the first `length` bytes of `from` are and zeros after them, up to `size`, durably. Gives how many of
/// the bytes copied are in pieces that are not all zeros.
pub fn copy(from: &Path, to: &Path, length: u64, size: u64, work: &Work<'_>) -> io::Result<u64> {
    let (from, to) = (open(OpenOptions::new().read(true), from)?, open(OpenOptions::new().write(true), to)?);
    let mut space = vec![0; STEP + ALIGN];
    let start = space.as_ptr().align_offset(ALIGN);
    let buffer = space.get_mut(start..start.saturating_add(STEP)).ok_or(io::ErrorKind::OutOfMemory)?;
    let zeros = vec![0; GRAIN];
    let (mut at, mut data) = (0, 0);
    while at < length {
        let part = &mut buffer[..usize::try_from(length - at).unwrap_or(STEP).min(STEP)];
        work.pace.wait(part.len() as u64, work.stop)?;
        from.read_exact_at(part, at)?;
        to.write_all_at(part, at)?;
        // By slices and not byte by byte: also in a build that is not optimized this must not be slower than the disks.
        data += part.chunks(GRAIN).filter(|piece| **piece != zeros[..piece.len()]).map(<[u8]>::len).sum::<usize>();
        at += part.len() as u64;
        work.done.store(at, Ordering::Relaxed);
    }
    fill(&to, at, size, work)?;
    to.sync_all()?;
    Ok(data as u64)
}

/// Makes a device of this size hold nothing but zeros, durably.
pub fn zero(device: &Path, size: u64, work: &Work<'_>) -> io::Result<()> {
    let device = open(OpenOptions::new().write(true), device)?;
    fill(&device, 0, size, work)?;
    device.sync_all()
}

/// Writes zeros from one offset to another, by the device's own means where it has any (fallocate(2), `FALLOC_FL_ZERO_RANGE`; the kernel never
/// answers that by unmapping).
pub fn fill(device: &File, from: u64, size: u64, work: &Work<'_>) -> io::Result<()> {
    let zeros = vec![0; STEP + ALIGN];
    let start = zeros.as_ptr().align_offset(ALIGN);
    let zeros = zeros.get(start..start.saturating_add(STEP)).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    let (mut at, mut by_itself) = (from, true);
    while at < size {
        let part = usize::try_from(size - at).unwrap_or(STEP).min(STEP);
        work.pace.wait(part as u64, work.stop)?;
        if by_itself {
            match rustix::fs::fallocate(device, flags, at, part as u64) {
                Ok(()) => {}
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV | Errno::NOSYS) => {
                    by_itself = false;
                    continue;
                }
                Err(e) => return Err(e.into()),
            }
        } else {
            device.write_all_at(&zeros[..part], at)?;
        }
        at += part as u64;
        work.done.store(at, Ordering::Relaxed);
    }
    Ok(())
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = |flags: OFlags| i32::try_from(flags.bits()).unwrap_or_default();
    match options.custom_flags(flags(OFlags::DIRECT)).open(path) {
        // A file system may be without.
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => options.custom_flags(0).open(path),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(dir: &tempfile::TempDir, name: &str, size: u64, byte: u8) -> std::path::PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![byte; usize::try_from(size).unwrap()]).unwrap();
        path
    }

    #[test]
    fn a_copy_writes_every_byte_zeros_too_and_counts_what_is_data() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (file(&dir, "from", 3 * MIB, 0), file(&dir, "to", 5 * MIB, 0xff));
        File::options().write(true).open(&from).unwrap().write_all_at(b"words", 2 * MIB + 70_000).unwrap();
        let (pace, stop, done) = (Pace::new(0), CancellationToken::new(), AtomicU64::new(0));
        let work = Work { pace: &pace, stop: &stop, done: &done };
        assert_eq!(copy(&from, &to, 3 * MIB, 5 * MIB, &work).unwrap(), 64 << 10);
        let (mut expected, copied) = (std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        expected.resize(5 << 20, 0);
        assert!(copied == expected, "the copy differs");
        assert_eq!(done.load(Ordering::Relaxed), 5 * MIB);

        let full = file(&dir, "full", 2 * MIB + 4096, 0xff);
        zero(&full, 2 * MIB + 4096, &work).unwrap();
        assert!(std::fs::read(&full).unwrap().iter().all(|byte| *byte == 0));
        stop.cancel();
        assert!(zero(&full, 2 * MIB, &work).unwrap_err().to_string().contains("stopped"));
    }

    #[test]
    fn all_who_write_in_the_background_share_one_pace() {
        let (pace, stop) = (Pace::new(100), CancellationToken::new());
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..10).for_each(|_| pace.wait(MIB, &stop).unwrap()));
            }
        });
        // 20 MiB at 100 MiB/s: the last may begin after 190 ms.
        assert!(begun.elapsed() >= Duration::from_millis(190), "{:?}", begun.elapsed());
    }
}
