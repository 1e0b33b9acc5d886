//! The bytes of a volume or snapshot as [`Piece`]s and [`Summary`]s, by the path of its file or device, the same for each driver.
//!
//! All of it blocks. Devices are read around the page cache (`O_DIRECT`), which the guests need more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::copy;
use super::lvm::raw::{ALIGN, GRAIN};
use crate::delegate::source::{CHUNK, Digest, Piece, Summary};

/// The most that is read for one answer, in bytes: a disk that gives 2 MiB a second does so in half the time that a caller waits.
const MOST_READ: u64 = 64 << 20;

/// The most that is summed up for one answer, in bytes: the other side, which compares, may have to read also what are holes here.
const MOST_SUMMED: u64 = 256 << 20;

const CHUNK_LEN: usize = 1 << 20;

/// Opens a file or a device.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    if std::fs::metadata(path)?.file_type().is_block_device() {
        options.custom_flags(i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default());
    }
    options.open(path)
}

/// Room for a chunk, where `O_DIRECT` can read and write it.
pub struct Buffer {
    space: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// A buffer of zeros.
    pub fn new() -> Self {
        let space = vec![0; CHUNK_LEN + ALIGN];
        let start = space.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { space, start }
    }

    /// The first so many bytes of it, at most a chunk.
    pub fn part(&mut self, bytes: u64) -> &mut [u8] {
        let length = usize::try_from(bytes).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
        &mut self.space[self.start..self.start + length]
    }
}

/// Whether all of it is zeros. By slices and not byte by byte, for builds that are not optimized.
pub fn is_zeros(bytes: &[u8]) -> bool {
    static ZEROS: [u8; GRAIN] = [0; GRAIN];
    bytes.chunks(GRAIN).all(|grain| *grain == ZEROS[..grain.len()])
}

/// What a file of this size holds from an offset on.
pub fn read(file: &File, size: u64, at: u64) -> io::Result<Piece> {
    let mut buffer = Buffer::new();
    let mut from = at;
    while from < size && from - at < MOST_READ {
        let next = next_chunk(file, from, size)?;
        if next > from {
            from = next;
            // Holes cost nothing, but what follows may.
            return Ok(Piece::new(at, from, size, Bytes::new()));
        }
        let part = buffer.part(size - from);
        file.read_exact_at(part, from)?;
        if !is_zeros(part) {
            if from > at {
                break;
            }
            return Ok(Piece::new(at, at + part.len() as u64, size, Bytes::copy_from_slice(part)));
        }
        from += part.len() as u64;
    }
    Ok(Piece::new(at, from, size, Bytes::new()))
}

/// The digest of what a file of this size holds from an offset on, as far as one answer goes.
pub fn sum(file: &File, size: u64, from: u64) -> io::Result<Summary> {
    sum_to(file, size, from, size.min(from.saturating_add(MOST_SUMMED)), MOST_READ)
}

/// The same from one offset to another.
pub fn sum_between(file: &File, size: u64, from: u64, to: u64) -> io::Result<Digest> {
    Ok(sum_to(file, size, from, to, u64::MAX)?.digest)
}

fn sum_to(file: &File, size: u64, from: u64, to: u64, most: u64) -> io::Result<Summary> {
    let mut buffer = Buffer::new();
    let mut hasher = Sha256::new();
    let (mut at, mut done) = (from, 0);
    while at < to && done < most {
        let next = next_chunk(file, at, to)?;
        if next > at {
            at = next;
            continue;
        }
        // A device is read in whole blocks, also where what is summed up ends within one.
        let length = usize::try_from((to - at).min(CHUNK)).unwrap_or(CHUNK_LEN);
        let part = buffer.part(size - at);
        file.read_exact_at(part, at)?;
        let part = &part[..length];
        if !is_zeros(part) {
            hasher.update((at / CHUNK).to_be_bytes());
            hasher.update(Sha256::digest(part));
        }
        at += length as u64;
        done += length as u64;
    }
    Ok(Summary { end: at, digest: Digest(hasher.finalize().into()) })
}

/// Where the next chunk with data in it begins, at or after an offset; what is before it has no blocks.
fn next_chunk(file: &File, at: u64, end: u64) -> io::Result<u64> {
    let data = copy::next_data(file, at, end)?.map_or(end, |(start, _)| start);
    Ok(if data >= end { end } else { (data - data % CHUNK).max(at) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data in the 2nd, the 5th and the last chunk, which is short; zeros that are written in the 6th.
    fn scattered() -> (File, u64) {
        let (file, size) = (tempfile::tempfile().unwrap(), 10 * CHUNK + 12_288);
        file.set_len(size).unwrap();
        for (at, word) in [(CHUNK + 70_000, "two"), (4 * CHUNK, "five"), (10 * CHUNK + 5, "last")] {
            file.write_all_at(word.as_bytes(), at).unwrap();
        }
        file.write_all_at(&vec![0; CHUNK_LEN], 5 * CHUNK).unwrap();
        (file, size)
    }

    fn all(file: &File, size: u64) -> Vec<(u64, Piece)> {
        let (mut at, mut pieces) = (0, Vec::new());
        while at < size {
            let piece = read(file, size, at).unwrap();
            piece.check(at).unwrap();
            let end = piece.end;
            pieces.push((at, piece));
            at = end;
        }
        pieces
    }

    #[test]
    fn the_pieces_of_a_file_are_all_of_it_and_only_data_has_bytes() {
        let (file, size) = scattered();
        let (mut rebuilt, mut sent) = (vec![0; usize::try_from(size).unwrap()], Vec::new());
        for (at, piece) in all(&file, size) {
            if !piece.is_zeros() {
                rebuilt[usize::try_from(at).unwrap()..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
                sent.push(at / CHUNK);
            }
        }
        let mut original = vec![0; rebuilt.len()];
        file.read_exact_at(&mut original, 0).unwrap();
        assert!(rebuilt == original, "other bytes");
        assert_eq!(sent, [1, 4, 10]);
    }

    #[test]
    fn a_sum_is_of_the_bytes_and_not_of_how_they_are_stored() {
        let (file, size) = scattered();
        let full = tempfile::tempfile().unwrap();
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        full.write_all_at(&bytes, 0).unwrap();
        // A volume may be larger than its snapshot.
        full.write_all_at(&[7; 9000], size).unwrap();
        let whole = sum(&file, size, 0).unwrap();
        assert_eq!(whole.end, size);
        assert_eq!(sum_between(&full, size + 9000, 0, size).unwrap(), whole.digest);
        let later = |file| sum(file, size, 2 * CHUNK).unwrap();
        assert_eq!(sum_between(&full, size + 9000, 2 * CHUNK, size).unwrap(), later(&file).digest);
        assert_ne!(later(&file), whole);
        full.write_all_at(&[1], 7 * CHUNK).unwrap();
        assert_ne!(sum(&full, size, 0).unwrap(), whole, "a byte where zeros were");
        let moved = tempfile::tempfile().unwrap();
        moved.set_len(size).unwrap();
        for (at, word) in [(70_000, "two"), (4 * CHUNK, "five"), (10 * CHUNK + 5, "last")] {
            moved.write_all_at(word.as_bytes(), at).unwrap();
        }
        assert_ne!(sum(&moved, size, 0).unwrap(), whole, "the same bytes elsewhere");
    }

    #[test]
    fn one_answer_is_of_so_much_data_at_most_whatever_there_is() {
        let (file, size) = (tempfile::tempfile().unwrap(), 3 * MOST_READ);
        for at in (0..size).step_by(CHUNK_LEN) {
            file.write_all_at(&vec![0; CHUNK_LEN], at).unwrap();
        }
        assert_eq!(read(&file, size, 0).unwrap().end, MOST_READ);
        assert_eq!(sum(&file, size, 0).unwrap().end, MOST_READ);
        let hole = tempfile::tempfile().unwrap();
        hole.set_len(1 << 40).unwrap();
        assert_eq!(read(&hole, 1 << 40, 0).unwrap().end, 1 << 40);
        assert_eq!(sum(&hole, 1 << 40, 0).unwrap().end, MOST_SUMMED);
    }
}
