//! What others lost volumes or days to: see `docs/faults.md`.

use futures_util::future::join_all;

use super::super::double::Node as Late;
use super::*;

#[tokio::test]
async fn of_twenty_removals_and_creates_at_once_one_is_at_work_on_the_group() {
    for layout in [thin(), thick()] {
        let node = Node::new(layout);
        let driver = node.open().await;
        let volumes: Vec<_> = (0..20).map(|_| blank(EXTENT)).collect();
        for made in join_all(volumes.iter().map(|volume| driver.ensure_volume(volume))).await {
            made.unwrap();
        }
        for gone in join_all(volumes.iter().map(|volume| driver.ensure_no_volume(&volume.volume))).await {
            gone.unwrap();
        }
        assert_eq!(node.names(), ["pool"]);
        assert_eq!(node.double.state.lock().unwrap().at_work, (0, 1));
    }
}

#[tokio::test]
async fn no_command_of_a_volumes_life_looks_into_guests_disks_nor_does_one_after_a_failure() {
    // The double refuses every command that does not say so.
    for layout in [thin(), thick()] {
        let node = Node::new(layout);
        let driver = node.open().await;
        let origin = blank(2 * EXTENT);
        driver.ensure_volume(&origin).await.unwrap();
        whole(&driver, &snapshot_of(&origin)).await.unwrap();
        driver.ensure_volume(&VolumeSpec { size_bytes: 3 * EXTENT, ..origin.clone() }).await.unwrap();
        driver.ensure_ready(&origin.volume).await.unwrap();
        node.double.state.lock().unwrap().fault = Some((0, Fault::Before));
        driver.ensure_no_volume(&origin.volume).await.unwrap();
        for program in ["lvs", "vgs", "lvcreate", "lvchange", "lvextend"] {
            assert!(node.count(program) > 0, "{program}");
        }
        let removals = node.double.state.lock().unwrap().calls.clone();
        let removals =
            removals.iter().filter(|call| call.starts_with("lvremove") && call.contains(origin.volume.as_str()));
        assert!(removals.count() >= 2, "one failed, and was tried again");
    }
}

#[tokio::test]
async fn a_thin_pool_that_needs_repair_takes_nothing_new_and_hides_nothing() {
    let node = Node::new(thin());
    let driver = node.open().await;
    let volume = blank(2 * EXTENT);
    driver.ensure_volume(&volume).await.unwrap();
    let before = (node.names(), node.count("lvcreate"), node.count("lvextend"));
    let good = node.double.state.lock().unwrap().lvs["pool"].clone();
    // Its metadata read-only, in need of a check (alone, suspended, and as the kernel does it: read-only too), failed, and as
    // lvs shows one of which the kernel says nothing.
    for attr in ["twi-aotzM-", "twi-cotz--", "twi-Cotz--", "twi-cotzM-", "twi-aotzF-", "twi-XXtzX-"] {
        node.edit("pool", |lv| {
            lv.attr = attr.into();
            let told = !attr.contains(['F', 'X']);
            (lv.data_percent, lv.metadata_percent) = (told.then_some(1.0), told.then_some(10.0));
        });
        let larger = VolumeSpec { size_bytes: 3 * EXTENT, ..volume.clone() };
        let restore =
            RestoreSpec { volume: VolumeId::generate(), size_bytes: EXTENT, snapshot: SnapshotId::generate() };
        for refused in [
            driver.ensure_volume(&blank(EXTENT)).await,
            driver.ensure_volume(&larger).await,
            driver.ensure_snapshot(&snapshot_of(&volume)).await.map(drop),
            driver.begin_volume(&restore, "token").await.map(drop),
            driver.has_room().await,
        ] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Retry, "{attr}: {refused}");
            let why = if attr.contains('X') { "is not active" } else { "needs repair" };
            assert!(refused.message.contains(why), "{attr}: {refused}");
        }
        assert_eq!((node.names(), node.count("lvcreate"), node.count("lvextend")), before, "{attr}");
        let contents = driver.contents().await.unwrap();
        assert_eq!((contents.volumes, contents.free_bytes), (vec![(volume.volume.clone(), 2 * EXTENT)], 0), "{attr}");
        driver.ensure_volume(&volume).await.expect("what is there needs nothing of the pool");
    }
    node.edit("pool", |lv| *lv = good);
    driver.ensure_volume(&blank(EXTENT)).await.unwrap();
}

#[tokio::test]
async fn a_pool_whose_metadata_is_not_the_groups_is_refused_at_the_start_in_lvms_words() {
    let node = Node::new(thin());
    node.edit("pool", |lv| lv.attr = "twi---tz--".into());
    node.double.state.lock().unwrap().transaction_mismatch = true;
    let refused = node.open_with(&CancellationToken::new()).await.err().unwrap();
    assert!(refused.message.contains("transaction_id is 4, while expected 5"), "{refused}");
    node.double.state.lock().unwrap().transaction_mismatch = false;
    node.open().await;
}

#[tokio::test]
async fn a_device_node_that_comes_late_or_is_anothers_at_first_is_waited_for() {
    for layout in [thin(), thick()] {
        for instead in [Late::Missing, Late::Other] {
            let node = Node::new(layout.clone());
            let driver = node.open().await;
            let (origin, other) = (blank(EXTENT), node.double.dev.join("other"));
            std::fs::write(&other, "another tenant's").unwrap();
            node.double.state.lock().unwrap().late = Some((instead, Duration::from_millis(500)));
            driver.ensure_volume(&origin).await.unwrap();
            driver.ensure_ready(&origin.volume).await.unwrap();
            let spec = snapshot_of(&origin);
            whole(&driver, &spec).await.unwrap();
            driver.ready_snapshot(&spec.snapshot).await.unwrap();
            for name in [origin.volume.as_str(), spec.snapshot.as_str()] {
                let bytes = std::fs::read(node.double.dev.join("vbs").join(name)).unwrap();
                assert!(bytes.len() == 1 << 20 && bytes.iter().all(|byte| *byte == 0), "{instead:?}: {name}");
            }
            assert_eq!(std::fs::read(other).unwrap(), b"another tenant's");
        }
    }
}

#[tokio::test]
async fn a_device_node_that_stays_anothers_is_written_to_by_nobody_and_its_volume_is_not_lost() {
    for layout in [thin(), thick()] {
        for instead in [Late::Missing, Late::Other] {
            let mut node = Node::new(layout.clone());
            node.wait = Duration::from_millis(200);
            let driver = node.open().await;
            let (volume, other) = (blank(EXTENT), node.double.dev.join("other"));
            std::fs::write(&other, "another tenant's").unwrap();
            node.double.state.lock().unwrap().late = Some((instead, Duration::from_secs(3600)));
            let made = driver.ensure_volume(&volume).await;
            let used = made.and(driver.ensure_ready(&volume.volume).await);
            assert!(used.is_err(), "{instead:?}: it is not there to be used");
            assert_eq!(std::fs::read(&other).unwrap(), b"another tenant's", "{instead:?}");
            assert!(node.names().contains(&volume.volume.to_string()), "one look is no reason to take it away");
            node.double.state.lock().unwrap().late = None;
            let (node_path, aside) = (node.double.dev.join("vbs"), node.double.dev.join("late"));
            let name = volume.volume.as_str();
            std::fs::rename(aside.join(name), node_path.join(name)).unwrap();
            driver.ensure_volume(&volume).await.unwrap();
            driver.ensure_ready(&volume.volume).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_thick_volume_grows_only_when_no_snapshot_of_it_is_being_copied_out() {
    let node = Node::new(Layout::Thick(Thick { background_mib_s: 4 }));
    let driver = node.open().await;
    let origin = blank(2 * EXTENT);
    driver.ensure_volume(&origin).await.unwrap();
    let spec = snapshot_of(&origin);
    driver.ensure_snapshot(&spec).await.unwrap();
    let made = node.count("lvcreate");
    let larger = VolumeSpec { size_bytes: 4 * EXTENT, ..origin.clone() };
    assert_eq!(driver.ensure_volume(&larger).await.unwrap_err().kind, ErrorKind::Busy);
    assert_eq!((node.count("lvcreate"), node.count("lvextend")), (made, 0), "not even zeroes are made ready for it");
    whole(&driver, &spec).await.unwrap();

    // A snapshot that is cut while the volume's new extents are being zeroed comes first, too.
    let (second, cut) = (snapshot_of(&origin), node.double.dev.join("vbs").join(format!("{}-more", origin.volume)));
    let snapshot = async {
        while !cut.exists() {
            tokio::task::yield_now().await;
        }
        driver.ensure_snapshot(&second).await.unwrap()
    };
    let (grown, report) = tokio::join!(driver.ensure_volume(&larger), snapshot);
    assert_eq!((grown.unwrap_err().kind, report.size_bytes), (ErrorKind::Busy, 2 * EXTENT));
    assert_eq!(node.count("lvextend"), 0);
    whole(&driver, &second).await.unwrap();
    driver.ensure_volume(&larger).await.unwrap();
    let bytes = std::fs::read(node.double.dev.join("vbs").join(origin.volume.as_str())).unwrap();
    assert!(bytes.len() == 4 << 20 && bytes.iter().all(|byte| *byte == 0));
    assert!(!cut.exists(), "what was made ready is the volume's or is gone");
}
