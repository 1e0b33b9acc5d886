//! Both layouts on the double of LVM.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::double::{Double, EXTENT, Fault};
use super::*;
use crate::config::{Thick, Thin};
use crate::delegate::volume::pieces;
use crate::delegate::volume::restore::Restores;
use crate::delegate::volume::restore::tests::{Scripted, scattered};
use crate::delegate::{CopySpec, ErrorKind};

mod known_faults;

struct Node {
    double: Arc<Double>,
    dir: tempfile::TempDir,
    layout: Layout,
    /// How long it waits for a device node.
    wait: Duration,
}

fn thin() -> Layout {
    Layout::Thin(Thin { pool: "pool".into(), overcommit: 1.0, full_percent: 90.0 })
}

fn thick() -> Layout {
    Layout::Thick(Thick { background_mib_s: 0 })
}

impl Node {
    fn new(layout: Layout) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for made in ["dev/vbs", "dev/late"] {
            std::fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        let double = Arc::new(Double { dev: dir.path().join("dev"), ..Double::default() });
        Self { double, dir, layout, wait: Devices::default().wait }
    }

    fn places(&self) -> Places {
        let devices = Devices { dir: self.double.dev.clone(), number: double::number, wait: self.wait };
        Places { devices, locks: self.dir.path().join("locks") }
    }

    async fn open_with(&self, stop: &CancellationToken) -> Result<LvmDriver> {
        let config = config::Lvm { volume_group: "vbs".into(), layout: self.layout.clone() };
        let run: Arc<dyn Run> = self.double.clone();
        LvmDriver::open_at(&config, &self.dir.path().join("data"), stop, run, &self.places()).await
    }

    async fn open(&self) -> LvmDriver {
        self.open_with(&CancellationToken::new()).await.unwrap()
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Lv)) {
        edit(self.double.state.lock().unwrap().lvs.get_mut(name).unwrap());
    }

    fn names(&self) -> Vec<String> {
        self.double.state.lock().unwrap().lvs.keys().cloned().collect()
    }

    fn count(&self, program: &str) -> usize {
        self.double.state.lock().unwrap().calls.iter().filter(|call| call.starts_with(program)).count()
    }
}

fn blank(size_bytes: u64) -> VolumeSpec {
    VolumeSpec { volume: VolumeId::generate(), size_bytes, snapshot: None }
}

fn snapshot_of(volume: &VolumeSpec) -> SnapshotSpec {
    SnapshotSpec { snapshot: SnapshotId::generate(), volume: volume.volume.clone(), cut: false }
}

async fn whole(driver: &LvmDriver, spec: &SnapshotSpec) -> Result<SnapshotReport> {
    loop {
        let report = driver.ensure_snapshot(spec).await?;
        if report.progress == 100 {
            return Ok(report);
        }
        tokio::task::yield_now().await;
    }
}

/// Does a step until it is done, and starts the delegate anew after each failure.
macro_rules! step {
    ($node:expr, $driver:ident => $call:expr) => {
        loop {
            let $driver = $node.open().await;
            match $call.await {
                Ok(done) => break done,
                Err(e) => assert_eq!(e.kind, ErrorKind::Retry, "{e}"),
            }
        }
    };
}

/// The life of a volume and a snapshot, with one command of it failing. Gives whether it came to that.
async fn life(layout: Layout, at: usize, fault: Fault) -> bool {
    let node = Node::new(layout);
    node.open().await;
    node.double.state.lock().unwrap().fault = Some((at, fault));
    let origin = blank(3 * EXTENT);
    step!(node, driver => driver.ensure_volume(&origin));
    let path = node.double.dev.join("vbs").join(origin.volume.as_str());
    assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0), "{fault:?} {at}: not blank");
    step!(node, driver => driver.ensure_ready(&origin.volume));
    File::options().write(true).open(&path).unwrap().write_all_at(b"words", EXTENT).unwrap();

    let spec = snapshot_of(&origin);
    let report = step!(node, driver => whole(&driver, &spec));
    assert_eq!((report.size_bytes, report.progress), (3 * EXTENT, 100));
    step!(node, driver => driver.ensure_no_volume(&origin.volume));
    assert_eq!(step!(node, driver => driver.ensure_snapshot(&spec)), report);

    let copy = CopySpec { snapshot: SnapshotId::generate(), source: spec.snapshot.clone() };
    assert_eq!(step!(node, driver => driver.ensure_snapshot_copy(&copy)).size_bytes, 3 * EXTENT);
    step!(node, driver => driver.ensure_no_snapshot(&spec));
    let mut restored = blank(4 * EXTENT);
    restored.snapshot = Some(copy.snapshot.clone());
    step!(node, driver => driver.ensure_volume(&restored));
    let copied = SnapshotSpec { snapshot: copy.snapshot, ..spec };
    step!(node, driver => driver.ensure_no_snapshot(&copied));
    restored.size_bytes = 5 * EXTENT;
    step!(node, driver => driver.ensure_volume(&restored));
    let mut expected = vec![0; 5 << 20];
    expected[1 << 20..][..5].copy_from_slice(b"words");
    let bytes = std::fs::read(node.double.dev.join("vbs").join(restored.volume.as_str())).unwrap();
    assert!(bytes == expected, "{fault:?} {at}: other bytes than before");

    let contents = step!(node, driver => driver.contents());
    assert_eq!((contents.volumes, contents.snapshots), (vec![(restored.volume.clone(), 5 * EXTENT)], vec![]));
    step!(node, driver => driver.ensure_no_volume(&restored.volume));
    assert_eq!(node.names(), ["pool"], "{fault:?} {at}");
    node.double.state.lock().unwrap().fault.is_none()
}

#[tokio::test]
async fn a_command_that_fails_or_lies_or_dies_at_any_point_is_made_up_for() {
    for layout in [thin(), thick()] {
        for fault in [Fault::Before, Fault::Half, Fault::After, Fault::Lie] {
            let mut at = 0;
            while life(layout.clone(), at, fault).await {
                at += 1;
            }
            assert!(at > 5, "the fault struck {at} times");
        }
    }
}

/// Asks until the volume is there, as the workers do.
async fn restored(driver: LvmDriver, spec: &RestoreSpec, source: &Arc<Scripted>) -> Result<()> {
    let restores = Restores::new(Arc::new(driver), &CancellationToken::new());
    while restores.ensure(spec, source.clone()).await? < 100 {}
    Ok(())
}

/// A volume is made of another node's snapshot and removed, with one command failing. Gives whether it came to that.
async fn life_of_a_restore(layout: Layout, at: usize, fault: Fault) -> bool {
    let node = Node::new(layout);
    node.open().await;
    node.double.state.lock().unwrap().fault = Some((at, fault));
    let source = Scripted::of(&scattered(3 << 20));
    let spec = RestoreSpec { volume: VolumeId::generate(), size_bytes: 5 * EXTENT, snapshot: SnapshotId::generate() };
    step!(node, driver => restored(driver, &spec, &source));
    let mut expected = scattered(3 << 20);
    expected.resize(5 << 20, 0);
    let path = node.double.dev.join("vbs").join(spec.volume.as_str());
    assert!(std::fs::read(path).unwrap() == expected, "{fault:?} {at}: other bytes than the source's");
    let contents = step!(node, driver => driver.contents());
    assert_eq!(contents.volumes, [(spec.volume.clone(), 5 * EXTENT)], "{fault:?} {at}");

    step!(node, driver => driver.ensure_no_volume(&spec.volume));
    assert_eq!(node.names(), ["pool"], "{fault:?} {at}");
    node.double.state.lock().unwrap().fault.is_none()
}

#[tokio::test]
async fn a_volume_of_another_nodes_snapshot_is_made_whatever_command_of_it_fails() {
    for layout in [thin(), thick()] {
        for fault in [Fault::Before, Fault::Half, Fault::After, Fault::Lie] {
            let mut at = 0;
            while life_of_a_restore(layout.clone(), at, fault).await {
                at += 1;
            }
            assert!(at >= 3, "the fault struck {at} times");
        }
    }
}

#[tokio::test]
async fn a_volume_that_is_being_filled_is_shown_to_nobody_and_goes_on_where_it_was() {
    for layout in [thin(), thick()] {
        let node = Node::new(layout);
        let source = Scripted::of(&scattered(4 << 20));
        let spec =
            RestoreSpec { volume: VolumeId::generate(), size_bytes: 4 * EXTENT, snapshot: SnapshotId::generate() };
        source.fails_from(2 << 20);
        assert_eq!(restored(node.open().await, &spec, &source).await.unwrap_err().kind, ErrorKind::Retry);
        let driver = node.open().await;
        assert_eq!(driver.contents().await.unwrap().volumes, []);
        assert_eq!(driver.ensure_ready(&spec.volume).await.unwrap_err().kind, ErrorKind::Fatal);
        source.recovers();
        restored(driver, &spec, &source).await.unwrap();
        let driver = node.open().await;
        let cut = snapshot_of(&VolumeSpec { volume: spec.volume.clone(), size_bytes: 0, snapshot: None });
        whole(&driver, &cut).await.unwrap();
        for _ in 0..2 {
            let stored = driver.ready_snapshot(&cut.snapshot).await.unwrap();
            let file = pieces::open(&stored.path, File::options().read(true)).unwrap();
            let piece = pieces::read(&file, stored.size_bytes, EXTENT).unwrap();
            assert!(piece.bytes == scattered(4 << 20)[1 << 20..2 << 20], "it is a source like others");
        }
        assert!(source.reads().iter().all(|at| *at >= 2 << 20), "{:?}", source.reads());
        let path = node.double.dev.join("vbs").join(spec.volume.as_str());
        assert!(std::fs::read(path).unwrap() == scattered(4 << 20), "other bytes");
    }
}

#[tokio::test]
async fn a_look_that_dies_of_a_segmentation_fault_is_taken_again() {
    let node = Node::new(thin());
    let driver = node.open().await;
    node.double.state.lock().unwrap().look_fault = Some((0, Fault::Crash));
    driver.contents().await.unwrap();
    node.double.state.lock().unwrap().look_fault = Some((0, Fault::Lie));
    assert_eq!(driver.contents().await.unwrap_err().kind, ErrorKind::Retry);
}

#[tokio::test]
async fn what_is_not_tagged_as_ours_is_neither_shown_nor_touched() {
    for layout in [thin(), thick()] {
        let node = Node::new(layout);
        let driver = node.open().await;
        let (volume, other) = (blank(EXTENT), blank(EXTENT));
        driver.ensure_volume(&volume).await.unwrap();
        driver.ensure_volume(&other).await.unwrap();
        node.edit(volume.volume.as_str(), |lv| lv.tags.retain(|tag| tag != group::OURS));
        // One that was renamed by hand is another's too.
        node.edit(other.volume.as_str(), |lv| lv.tags.retain(|tag| tag == group::OURS));
        let before = node.names();
        for spec in [&volume, &other] {
            for refused in [
                driver.ensure_volume(spec).await,
                driver.ensure_ready(&spec.volume).await,
                driver.ensure_no_volume(&spec.volume).await,
                driver.ensure_snapshot(&snapshot_of(spec)).await.map(drop),
            ] {
                assert_eq!(refused.unwrap_err().kind, ErrorKind::Fatal);
            }
        }
        assert_eq!(driver.contents().await.unwrap().volumes, []);
        assert_eq!(node.names(), before);
    }
}

#[tokio::test]
async fn what_is_there_is_told_while_a_change_is_at_work() {
    for layout in [thin(), thick()] {
        let node = Node::new(layout);
        let driver = node.open().await;
        let turn = driver.group.turn().await;
        tokio::time::timeout(Duration::from_secs(10), driver.contents()).await.expect("it does not wait").unwrap();
        drop(turn);
    }
}

#[test]
fn what_is_filled_for_hours_takes_no_thread_from_the_rest() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let node = Node::new(Layout::Thick(Thick { background_mib_s: 1 }));
        let stop = CancellationToken::new();
        let driver = node.open_with(&stop).await.unwrap();
        let volume = blank(30 * EXTENT);
        let rest = async {
            let path = node.double.dev.join("vbs").join(volume.volume.as_str());
            while std::fs::read(&path).map_or(true, |bytes| bytes[0] != 0) {
                tokio::task::yield_now().await;
            }
            let moment = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(Duration::from_secs(10), moment).await.expect("it waits for the fill").unwrap();
            stop.cancel();
        };
        let (filled, ()) = tokio::join!(driver.ensure_volume(&volume), rest);
        assert_eq!(filled.unwrap_err().kind, ErrorKind::Retry);
    });
}

#[tokio::test]
async fn a_volume_that_is_open_is_not_removed() {
    let node = Node::new(thin());
    let driver = node.open().await;
    let volume = blank(EXTENT);
    driver.ensure_volume(&volume).await.unwrap();
    node.edit(volume.volume.as_str(), |lv| lv.attr = "Vwi-aotz--".into());
    assert_eq!(driver.ensure_no_volume(&volume.volume).await.unwrap_err().kind, ErrorKind::Retry);
    assert_eq!(node.count("lvremove"), 0);
}

#[tokio::test]
async fn a_thin_pool_refuses_in_time_and_before_anything_is_made() {
    let node = Node::new(thin());
    let driver = node.open().await;
    let volume = blank(40 * EXTENT);
    driver.ensure_volume(&volume).await.unwrap();
    let made = node.count("lvcreate");
    let refused = async || {
        let grown = VolumeSpec { size_bytes: 65 * EXTENT, ..volume.clone() };
        for refused in [
            driver.ensure_volume(&blank(25 * EXTENT)).await,
            driver.ensure_snapshot(&snapshot_of(&volume)).await.map(drop),
            driver.ensure_volume(&grown).await,
        ] {
            assert_eq!(refused.unwrap_err().kind, ErrorKind::NoRoom);
        }
        assert_eq!((node.count("lvcreate"), node.count("lvextend")), (made, 0));
    };
    assert_eq!(driver.contents().await.unwrap().free_bytes, 24 * EXTENT);
    refused().await;
    let pools: [fn(&mut Lv); 3] =
        [|lv| lv.data_percent = Some(90.0), |lv| lv.metadata_percent = Some(95.5), |lv| lv.attr = "twi-aotzD-".into()];
    for edit in pools {
        let good = node.double.state.lock().unwrap().lvs["pool"].clone();
        node.edit("pool", edit);
        refused().await;
        assert_eq!(driver.ensure_volume(&blank(EXTENT)).await.unwrap_err().kind, ErrorKind::NoRoom);
        assert_eq!(driver.contents().await.unwrap().free_bytes, 0);
        node.edit("pool", |lv| *lv = good);
    }
    driver.ensure_volume(&blank(24 * EXTENT)).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_shows_old_blocks_or_is_not_there_is_refused_at_the_start() {
    let node = Node::new(thin());
    node.edit("pool", |lv| lv.attr = "twi-aot---".into());
    let refused = node.open_with(&CancellationToken::new()).await.err().unwrap();
    assert!(refused.message.contains("lvchange -Zy"), "{refused}");
    node.double.state.lock().unwrap().lvs.clear();
    let refused = node.open_with(&CancellationToken::new()).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Fatal, "{refused}");
}

#[tokio::test]
async fn two_delegates_cannot_have_one_group_even_with_directories_of_their_own() {
    let node = Node::new(thick());
    let _first = node.open().await;
    let config = config::Lvm { volume_group: "vbs".into(), layout: thick() };
    let places = node.places();
    let own_dir = node.dir.path().join("other");
    let run: Arc<dyn Run> = node.double.clone();
    let second = LvmDriver::open_at(&config, &own_dir, &CancellationToken::new(), run, &places).await;
    assert!(second.err().unwrap().message.contains("another delegate"));
}

#[tokio::test]
async fn a_thick_snapshot_is_cut_at_once_copied_on_after_a_stop_and_holds_its_volume_until_then() {
    let mut node = Node::new(Layout::Thick(Thick { background_mib_s: 1 }));
    let stop = CancellationToken::new();
    let (origin, spec) = {
        let driver = node.open_with(&stop).await.unwrap();
        let origin = blank(2 * EXTENT);
        driver.ensure_volume(&origin).await.unwrap();
        let spec = snapshot_of(&origin);
        let report = driver.ensure_snapshot(&spec).await.unwrap();
        assert!(report.progress < 100);
        assert_eq!(driver.contents().await.unwrap().snapshots, []);
        assert_eq!(driver.ensure_no_volume(&origin.volume).await.unwrap_err().kind, ErrorKind::Busy);
        let mut from = blank(2 * EXTENT);
        from.snapshot = Some(spec.snapshot.clone());
        assert_eq!(driver.ensure_volume(&from).await.unwrap_err().kind, ErrorKind::Busy);
        stop.cancel();
        (origin, spec)
    };
    // What was written since the cut is not in what is copied after the restart.
    let path = node.double.dev.join("vbs").join(origin.volume.as_str());
    File::options().write(true).open(path).unwrap().write_all_at(b"after", 0).unwrap();
    node.layout = thick();
    let driver = loop {
        // The task of the one before holds its lock until it has noticed.
        if let Ok(driver) = node.open_with(&CancellationToken::new()).await {
            break driver;
        }
    };
    whole(&driver, &spec).await.unwrap();
    driver.ensure_no_volume(&origin.volume).await.unwrap();
    let bytes = std::fs::read(node.double.dev.join("vbs").join(spec.snapshot.as_str())).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_snapshot_whose_copy_on_write_overflowed_is_never_whole_and_is_cleaned_away() {
    let node = Node::new(Layout::Thick(Thick { background_mib_s: 1 }));
    let driver = node.open().await;
    let origin = blank(2 * EXTENT);
    driver.ensure_volume(&origin).await.unwrap();
    let spec = snapshot_of(&origin);
    driver.ensure_snapshot(&spec).await.unwrap();
    let cow = format!("{}-cow", spec.snapshot);
    node.edit(&cow, |lv| lv.attr = "swi-I-s---".into());
    for _ in 0..2 {
        assert_eq!(driver.ensure_snapshot(&spec).await.unwrap_err().kind, ErrorKind::Fatal);
    }
    driver.ensure_no_snapshot(&spec).await.unwrap();
    assert_eq!(node.names(), ["pool".to_owned(), origin.volume.to_string()]);
    driver.ensure_no_volume(&origin.volume).await.unwrap();

    // One whose copy on write somebody has removed is not cut anew at a later time.
    driver.ensure_volume(&origin).await.unwrap();
    driver.ensure_snapshot(&spec).await.unwrap();
    node.double.state.lock().unwrap().lvs.remove(&cow);
    assert_eq!(driver.ensure_snapshot(&spec).await.unwrap_err().kind, ErrorKind::Fatal);
}

#[tokio::test]
async fn a_snapshot_that_was_cut_and_of_which_nothing_is_left_is_lost_and_not_cut_anew() {
    for layout in [thin(), thick()] {
        let node = Node::new(layout);
        let driver = node.open().await;
        let origin = blank(2 * EXTENT);
        driver.ensure_volume(&origin).await.unwrap();
        let made = node.names();
        let spec = snapshot_of(&origin);
        whole(&driver, &spec).await.unwrap();
        let again = SnapshotSpec { cut: true, ..spec };
        driver.ensure_snapshot(&again).await.unwrap();
        driver.ensure_no_snapshot(&again).await.unwrap();
        assert_eq!(driver.ensure_snapshot(&again).await.unwrap_err().kind, ErrorKind::Fatal);
        assert_eq!(node.names(), made);
    }
}

#[tokio::test]
async fn a_thick_snapshot_needs_room_for_the_cut_and_for_the_copy() {
    let node = Node::new(thick());
    let driver = node.open().await;
    let origin = blank(31 * EXTENT);
    driver.ensure_volume(&origin).await.unwrap();
    // 128 - 64 of the pool - 31 are free: enough for either, not for both.
    let refused = driver.ensure_snapshot(&snapshot_of(&origin)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NoRoom, "{refused}");
    assert_eq!(node.count("lvcreate"), 1);

    // And has it from the cut on, whoever takes the rest.
    let small = blank(20 * EXTENT);
    driver.ensure_no_volume(&origin.volume).await.unwrap();
    driver.ensure_volume(&small).await.unwrap();
    let spec = snapshot_of(&small);
    driver.ensure_snapshot(&spec).await.unwrap();
    // The copy, in a task of its own, has not begun.
    assert!(node.names().contains(&spec.snapshot.to_string()));
}

#[tokio::test]
async fn what_a_dead_command_left_suspended_is_resumed_and_what_is_off_is_activated() {
    let node = Node::new(thin());
    let driver = node.open().await;
    let volume = blank(EXTENT);
    driver.ensure_volume(&volume).await.unwrap();
    for (attr, how) in [("Vwi-s-tz--", "--refresh"), ("Vwi---tz-k", "-K -ay")] {
        node.edit(volume.volume.as_str(), |lv| lv.attr = attr.into());
        driver.ensure_ready(&volume.volume).await.unwrap();
        let calls = node.double.state.lock().unwrap().calls.clone();
        assert!(calls.iter().any(|call| call.starts_with(&format!("lvchange {how}"))), "{calls:?}");
    }
    assert_eq!(driver.ensure_ready(&VolumeId::generate()).await.unwrap_err().kind, ErrorKind::Fatal);
}
