//! Snapshots by reflink, on a file system that can, and where it no longer can.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::*;

const PLACES: u64 = 64;
const APART: u64 = 1 << 20;
const SIZE: u64 = PLACES * APART;

/// Where a number goes: by turns into the lower and the upper half, round and round.
fn place(number: u64) -> u64 {
    (number % 2 * PLACES / 2 + number / 2 % (PLACES / 2)) * APART
}

fn number_at(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

/// A volume that is data from its beginning to its end.
fn full_volume(files: &Files) -> VolumeSpec {
    let spec = VolumeSpec { volume: VolumeId::generate(), size_bytes: SIZE, snapshot: None };
    files.ensure_volume(&spec).unwrap();
    let file = File::options().write(true).open(files.path(&spec.volume)).unwrap();
    file.write_all_at(&vec![0xff; usize::try_from(SIZE).unwrap()], 0).unwrap();
    for number in 1..=PLACES {
        file.write_all_at(&number.to_le_bytes(), place(number)).unwrap();
    }
    file.sync_all().unwrap();
    spec
}

/// `VBS_TEST_REFLINK_DIR` is a directory of a file system that reflinks. Who asks for this test without that gets a failure.
#[test]
#[ignore = "needs a file system that reflinks: `scripts/test unit` makes one when it is root"]
fn a_reflink_is_of_one_instant_while_the_volume_is_written_to_and_takes_no_room() {
    let dir = std::env::var_os("VBS_TEST_REFLINK_DIR").expect("VBS_TEST_REFLINK_DIR says where");
    let dir = tempfile::tempdir_in(dir).unwrap();
    let files = Files::open(dir.path(), CancellationToken::new()).unwrap();
    assert_eq!(files.method(), SnapshotMethod::Atomic);
    let origin = full_volume(&files);
    let file = File::options().write(true).open(files.path(&origin.volume)).unwrap();
    let (written, stop) = (AtomicU64::new(PLACES), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Not for ever, should the test fail beside.
            for next in (PLACES + 1..100_000).take_while(|_| !stop.load(SeqCst)) {
                file.write_all_at(&next.to_le_bytes(), place(next)).unwrap();
                written.store(next, SeqCst);
                // Not so fast that the copies on write are what takes the room.
                thread::sleep(Duration::from_micros(100));
            }
        });
        for _ in 0..5 {
            let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: origin.volume.clone(), cut: false };
            let (before, free) = (written.load(SeqCst), files.free_bytes().unwrap());
            files.ensure_snapshot(&spec).unwrap();
            let (after, taken) = (written.load(SeqCst), free.saturating_sub(files.free_bytes().unwrap()));
            assert!(taken < SIZE / 4, "{taken} bytes are another's");

            let snapshot = File::open(files.snapshots.join(spec.snapshot.as_str())).unwrap();
            let last = (0..PLACES).map(|n| number_at(&snapshot, n * APART)).max().unwrap();
            assert!(before <= last && last <= after + 1, "{last} is not from {before} to {after}");
            for number in last - PLACES + 1..=last {
                assert_eq!(number_at(&snapshot, place(number)), number, "{last} is there");
            }
        }
        stop.store(true, SeqCst);
    });
    // A volume of one of them shares its blocks too.
    let snapshot = files.snapshots().unwrap().pop();
    let free = files.free_bytes().unwrap();
    let restored = VolumeSpec { volume: VolumeId::generate(), size_bytes: SIZE, snapshot };
    files.ensure_volume(&restored).unwrap();
    assert!(free.saturating_sub(files.free_bytes().unwrap()) < SIZE / 4);
}

#[test]
fn where_a_reflink_was_promised_and_fails_nothing_is_copied_instead_for_nobody_rests() {
    // A tmpfs has none.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut files = Files::open(dir.path(), CancellationToken::new()).unwrap();
    assert_eq!(files.method(), SnapshotMethod::Copy);
    files.method = SnapshotMethod::Atomic;
    let origin = VolumeSpec { volume: VolumeId::generate(), size_bytes: 1 << 20, snapshot: None };
    files.ensure_volume(&origin).unwrap();
    let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: origin.volume, cut: false };
    let refused = files.ensure_snapshot(&spec).unwrap_err();
    assert!(refused.message.contains("no longer reflinks"), "{refused:?}");
    assert!(files.snapshots().unwrap().is_empty() && std::fs::read_dir(&files.unfinished).unwrap().next().is_none());
}
