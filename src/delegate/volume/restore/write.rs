//! Writes the pieces that come from another node, on a thread of its own: files and devices alike.
//!
//! What reads as zeros by itself is left alone, so that what is sparse stays so. Each few moments all is synced, and then
//! written down as done.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Progress;
use super::state::State;
use crate::delegate::source::Piece;
use crate::delegate::volume::lvm::raw::{self, ALIGN, GRAIN, Work};
use crate::delegate::volume::{Blank, pieces};
use crate::ids::VolumeId;

/// The longest that is written without being synced: what a crash may cost.
const SYNC_EVERY: Duration = Duration::from_millis(500);
/// The most bytes that are written without being synced: a process cannot end while the kernel writes out all of them.
const SYNC_AFTER: u64 = 32 << 20;
/// Zeros that are written at once, in bytes.
const ZEROS: u64 = 64 << 20;

/// A volume that is being filled.
pub struct Writer {
    file: File,
    blank: Blank,
    is_device: bool,
    buffer: pieces::Buffer,
    volume: VolumeId,
    dir: PathBuf,
    state: State,
    /// What is written, synced or not.
    at: u64,
    synced: Instant,
    stop: CancellationToken,
    progress: watch::Sender<Progress>,
}

impl Writer {
    /// Goes on where the state says.
    pub fn open(
        blank: Blank,
        volume: VolumeId,
        dir: PathBuf,
        state: State,
        stop: CancellationToken,
        progress: watch::Sender<Progress>,
    ) -> io::Result<Self> {
        let file = pieces::open(&blank.stored.path, OpenOptions::new().read(true).write(true))?;
        let is_device = !file.metadata()?.is_file();
        let (at, buffer, synced) = (state.at, pieces::Buffer::new(), Instant::now());
        Ok(Self { file, blank, is_device, buffer, volume, dir, state, at, synced, stop, progress })
    }

    /// Writes what comes until nothing comes any more, and what is left to be zeros when that was all of it. Gives how far it is.
    pub fn run(mut self, mut pieces: mpsc::Receiver<(u64, Piece)>) -> io::Result<State> {
        while let Some((at, piece)) = pieces.blocking_recv() {
            if at != self.at {
                return Err(io::Error::other("a piece came out of turn"));
            }
            self.state.size_bytes = piece.size_bytes;
            self.write(at, &piece)?;
            self.done(piece.end, false)?;
        }
        if self.state.size_bytes > 0 && self.at >= self.state.size_bytes {
            self.zeros(self.at, self.blank.stored.size_bytes)?;
        }
        self.done(self.at, true)?;
        if !self.is_device {
            // What is compared with the source's afterwards shall come from the disk.
            let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        }
        Ok(self.state)
    }

    fn write(&mut self, at: u64, piece: &Piece) -> io::Result<()> {
        if piece.is_zeros() {
            return self.zeros(at, piece.end);
        }
        // A device takes whole blocks; what follows the snapshot's end is zeros anyway.
        let length = piece.bytes.len().next_multiple_of(if self.is_device { ALIGN } else { 1 });
        let part = self.buffer.part(length as u64);
        part[..piece.bytes.len()].copy_from_slice(&piece.bytes);
        part[piece.bytes.len()..].fill(0);
        if let Some(pace) = &self.blank.raw {
            pace.wait(length as u64, &self.stop)?;
            return self.file.write_all_at(part, at);
        }
        let mut from = at;
        for grain in part.chunks(GRAIN) {
            if !pieces::is_zeros(grain) {
                self.file.write_all_at(grain, from)?;
            }
            from += grain.len() as u64;
        }
        Ok(())
    }

    /// Makes a stretch read as zeros that nobody has written to.
    fn zeros(&mut self, mut at: u64, end: u64) -> io::Result<()> {
        let Some(pace) = self.blank.raw.clone() else { return Ok(()) };
        while at < end {
            let to = end.min(at + ZEROS);
            let work = Work { pace: &pace, stop: &self.stop, done: &AtomicU64::new(0) };
            raw::fill(&self.file, at, to, &work)?;
            self.done(to, false)?;
            at = to;
        }
        Ok(())
    }

    /// Takes note that all before an offset is written, and writes it down when that is due.
    fn done(&mut self, at: u64, now: bool) -> io::Result<()> {
        self.at = at;
        if now || at - self.state.at >= SYNC_AFTER || self.synced.elapsed() >= SYNC_EVERY {
            self.file.sync_all()?;
            self.state.at = at;
            self.state.save(&self.dir, &self.volume)?;
            self.synced = Instant::now();
        }
        let (size, stored) = (self.state.size_bytes, self.blank.stored.size_bytes);
        self.progress.send_modify(|progress| (progress.done, progress.of) = (at, stored.max(size) + size));
        if self.stop.is_cancelled() { Err(io::Error::other("stopped half-way")) } else { Ok(()) }
    }
}
