//! Copying a big sparse file: by sharing its blocks where the file system can (reflink), else data only, leaving the holes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// The most that is copied before it is synced and the caller is asked whether to go on, in bytes. The sync is for the stop: a
/// process cannot end, nor a copy's file be removed, while the kernel is writing out all of it.
const STEP: u64 = 32 << 20;

/// The buffer of the plain copy.
const BUFFER: usize = 1 << 20;

/// Makes `to`, an empty file, share all blocks of `from` (`ioctl_ficlone(2)`): one instant, next to no time. Gives false where
/// the file system cannot.
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Copies the data of `from` into `to`, an empty file, and gives it the same length. What `from` has no blocks for stays
/// without in `to`. Fails soon after `stopped` says so.
pub fn sparse(from: &File, to: &File, stopped: impl Fn() -> bool) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut in_kernel = true;
    let mut at = 0;
    let mut unsynced = 0;
    while let Some((start, end)) = next_data(from, at, length)? {
        at = start;
        while at < end {
            if stopped() {
                return Err(io::Error::other("the copy was stopped half-way"));
            }
            if unsynced == STEP {
                to.sync_data()?;
                unsynced = 0;
                continue;
            }
            let want = (end - at).min(STEP - unsynced);
            let in_kernel_done = if in_kernel { in_kernel_step(from, to, at, want)? } else { None };
            let done = match in_kernel_done {
                Some(0) => {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file got shorter while it was copied"));
                }
                Some(bytes) => bytes,
                None => {
                    in_kernel = false;
                    plain_step(from, to, at, want)?;
                    want
                }
            };
            at += done;
            unsynced += done;
        }
    }
    Ok(())
}

/// The bytes that the file has blocks for.
pub fn allocated(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    // st_blocks counts in 512 bytes whatever the block size (stat(2)), and blocks put aside beyond the end.
    Ok((meta.blocks() * 512).min(meta.len()))
}

/// The next stretch of data at or after `at`, by lseek(2)'s `SEEK_DATA` and `SEEK_HOLE`; a file system without them has data all
/// over.
pub(super) fn next_data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(e) => return Err(e.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok((start < length).then_some((start, end.min(length))))
}

/// One step by `copy_file_range(2)`; `None` where the kernel cannot.
fn in_kernel_step(from: &File, to: &File, at: u64, want: u64) -> io::Result<Option<u64>> {
    let (mut from_at, mut to_at) = (at, at);
    let want = usize::try_from(want).unwrap_or(BUFFER);
    loop {
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), want) {
            Ok(bytes) => return Ok(Some(bytes as u64)),
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

/// The same by reading and writing.
fn plain_step(from: &File, to: &File, at: u64, want: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut done = 0;
    while done < want {
        let part = usize::try_from(want - done).unwrap_or(BUFFER).min(BUFFER);
        from.read_exact_at(&mut buffer[..part], at + done)?;
        to.write_all_at(&buffer[..part], at + done)?;
        done += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn scattered() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100 * MIB + 5).unwrap();
        for at in [0, 7 * MIB, 64 * MIB - 100, 100 * MIB] {
            file.write_all_at(b"words", at).unwrap();
        }
        file
    }

    fn assert_same(a: &File, b: &File) {
        assert_eq!(a.metadata().unwrap().len(), b.metadata().unwrap().len());
        for at in (0..100).map(|n| n * MIB) {
            let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
            a.read_exact_at(&mut left, at).unwrap();
            b.read_exact_at(&mut right, at).unwrap();
            assert!(left == right, "the MiB at {at} differs");
        }
        let (mut left, mut right) = ([0; 5], [0; 5]);
        a.read_exact_at(&mut left, 100 * MIB).unwrap();
        b.read_exact_at(&mut right, 100 * MIB).unwrap();
        assert_eq!(left, right);
    }

    #[test]
    fn a_sparse_copy_has_the_same_bytes_and_keeps_the_holes() {
        let (from, to) = (scattered(), tempfile::tempfile().unwrap());
        sparse(&from, &to, || false).unwrap();
        assert_same(&from, &to);
        assert!(allocated(&to).unwrap() < MIB);
    }

    #[test]
    fn the_plain_step_copies_what_the_kernel_step_copies() {
        let (from, to) = (scattered(), tempfile::tempfile().unwrap());
        to.set_len(100 * MIB + 5).unwrap();
        plain_step(&from, &to, 0, 100 * MIB + 5).unwrap();
        assert_same(&from, &to);
    }

    #[test]
    fn a_long_stretch_of_data_is_copied_step_by_step_until_it_is_stopped() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let length = 2 * STEP + MIB;
        for at in (0..length).step_by(1 << 20) {
            from.write_all_at(&vec![7; 1 << 20], at).unwrap();
        }
        let asked = std::cell::Cell::new(0);
        // Asked before each step, and between a step and its sync.
        let stopped = || asked.replace(asked.get() + 1) == 3;
        assert!(sparse(&from, &to, stopped).unwrap_err().to_string().contains("stopped"));
        let last_and_first = || {
            let mut bytes = [0; 2];
            to.read_exact_at(&mut bytes, 2 * STEP - 1).unwrap();
            bytes
        };
        assert_eq!(last_and_first(), [7, 0], "two steps are done, the third is not");
        sparse(&from, &to, || false).unwrap();
        assert_eq!(last_and_first(), [7, 7]);
    }

    #[test]
    fn a_file_without_data_copies_to_a_file_without_data() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(3 * MIB).unwrap();
        sparse(&from, &to, || false).unwrap();
        assert_eq!((to.metadata().unwrap().len(), allocated(&to).unwrap()), (3 * MIB, 0));
    }
}
