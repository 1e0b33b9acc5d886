//! Snapshots that are restored on another storage node than their own, in another zone or in the same.

use std::time::Duration;

use vbs::db;
use vbs::delegate::ErrorKind;
use vbs::delegate::sim::{Fault, FaultKind};
use vbs::ids::{SnapshotId, VolumeId};

use crate::support::cloud::Cloud;
use crate::support::walk;

/// Short enough that a step which fails for good turns back within a test.
const IMPATIENT: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 1 }";

/// A cloud with a snapshot in us-east-1a, of a volume that is gone, and what was written to it.
async fn with_snapshot(more: &str) -> (Cloud, String, u64) {
    let cloud = Cloud::start_with(more).await;
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    let written = cloud.sim.guest_writes("vm-1", &VolumeId::parse(&volume).unwrap()).unwrap();
    let snapshot = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "completed").await;
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    (cloud, snapshot, written)
}

fn in_zone<'a>(zone: &'a str, snapshot: &'a str) -> [(&'a str, &'a str); 2] {
    [("AvailabilityZone", zone), ("SnapshotId", snapshot)]
}

async fn node_of(cloud: &Cloud, volume: &str) -> String {
    let id = VolumeId::parse(volume).unwrap();
    db::volumes::find(&mut cloud.pool.get().await.unwrap(), &id).await.unwrap().unwrap().node
}

fn content(cloud: &Cloud, volume: &str) -> Option<u64> {
    cloud.sim.volume_content(&VolumeId::parse(volume).unwrap())
}

async fn remove_all(cloud: &Cloud, volumes: &[&str], snapshot: &str) {
    for volume in volumes {
        cloud.client.ok("DeleteVolume", &[("VolumeId", volume)]).await;
        cloud.volume_becomes(volume, "gone").await;
    }
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", snapshot)]).await;
    cloud.snapshot_becomes(snapshot, "gone").await;
    walk::nothing_is_left(cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_restored_in_any_zone_and_at_any_size() {
    let (cloud, snapshot, written) = with_snapshot("").await;
    let own = cloud.client.ok("CreateVolume", &in_zone("us-east-1a", &snapshot)).await.text("volumeId");
    let larger = [&in_zone("us-east-1b", &snapshot)[..], &[("Size", "3")]].concat();
    let answer = cloud.client.ok("CreateVolume", &larger).await;
    assert_eq!((answer.text("status"), answer.text("availabilityZone")), ("creating".into(), "us-east-1b".into()));
    let other = answer.text("volumeId");
    for (volume, node) in [(&own, "storage-a"), (&other, "storage-b")] {
        cloud.volume_becomes(volume, "available").await;
        assert_eq!(node_of(&cloud, volume).await, node);
        assert_eq!(content(&cloud, volume), Some(written));
    }
    assert_eq!(cloud.sim.calls("ensure_restored"), 1, "the snapshot's own node copies nothing");
    // The guest of the other zone has it, and snapshots of it are as good as their source.
    cloud.attach(&other, &cloud.instances().await[2], "/dev/sdf").await;
    let again = cloud.client.ok("CreateSnapshot", &[("VolumeId", &other)]).await.text("snapshotId");
    cloud.snapshot_becomes(&again, "completed").await;
    assert_eq!(cloud.sim.snapshot_content(&SnapshotId::parse(&again).unwrap()), Some(written));
    cloud.client.ok("DetachVolume", &[("VolumeId", &other)]).await;
    cloud.volume_becomes(&other, "available").await;
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &again)]).await;
    remove_all(&cloud, &[&own, &other], &snapshot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_volume_is_creating_and_its_snapshot_stays_for_as_long_as_it_is_copied() {
    let (cloud, snapshot, written) = with_snapshot("").await;
    cloud.sim.copy_in_background(0);
    let volume = cloud.client.ok("CreateVolume", &in_zone("us-east-1b", &snapshot)).await.text("volumeId");
    cloud.until("begun", async || cloud.sim.restores() == 1).await;
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    cloud.snapshot_becomes(&snapshot, "gone").await;
    let asked = cloud.sim.calls("ensure_restored");
    cloud.until("asked often", async || cloud.sim.calls("ensure_restored") > asked + 3).await;
    assert_eq!(cloud.volume_state(&volume).await, "creating");
    assert!(cloud.sim.snapshot_content(&SnapshotId::parse(&snapshot).unwrap()).is_some(), "it is still read");
    let live = db::workflows::list(&mut cloud.pool.get().await.unwrap(), false, 9).await.unwrap();
    assert!(live.iter().any(|row| row.error.as_deref() == Some("0 % are copied from storage-a")), "{live:#?}");
    cloud.sim.copy_in_background(40);
    cloud.volume_becomes(&volume, "available").await;
    assert_eq!(content(&cloud, &volume), Some(written));
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_snapshots_node_stays_away_is_in_error_says_why_and_leaves_nothing() {
    let (cloud, snapshot, written) = with_snapshot(IMPATIENT).await;
    cloud.sim.push_fault(Fault::always("read_snapshot", FaultKind::FailBefore(ErrorKind::Retry)));
    let volume = cloud.client.ok("CreateVolume", &in_zone("us-east-1b", &snapshot)).await.text("volumeId");
    cloud.volume_becomes(&volume, "error").await;
    let id = VolumeId::parse(&volume).unwrap();
    let row = db::volumes::find(&mut cloud.pool.get().await.unwrap(), &id).await.unwrap().unwrap();
    assert!(row.state_reason.as_ref().is_some_and(|reason| reason.contains("read_snapshot")), "{row:?}");
    assert_eq!((content(&cloud, &volume), cloud.sim.restores()), (None, 0));
    assert_eq!(cloud.sim.snapshot_content(&SnapshotId::parse(&snapshot).unwrap()), Some(written));
    remove_all(&cloud, &[], &snapshot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_the_way_may_fail_once_in_every_way_and_the_volume_is_made() {
    let (cloud, snapshot, written) = with_snapshot("").await;
    let kinds = [
        FaultKind::FailBefore(ErrorKind::Retry),
        FaultKind::EffectThenLost,
        FaultKind::Garbage,
        FaultKind::Hang(Duration::from_millis(300)),
    ];
    for verb in ["ensure_restored", "read_snapshot", "fill_volume"] {
        for kind in kinds.clone() {
            cloud.sim.push_fault(Fault::once(verb, kind));
            let volume = cloud.client.ok("CreateVolume", &in_zone("us-east-1b", &snapshot)).await.text("volumeId");
            cloud.volume_becomes(&volume, "available").await;
            assert_eq!((content(&cloud, &volume), cloud.sim.faults_left()), (Some(written), 0), "{verb}");
            cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
            cloud.volume_becomes(&volume, "gone").await;
        }
    }
    remove_all(&cloud, &[], &snapshot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_deleted_while_it_is_copied_is_unmade_and_frees_its_snapshot() {
    let (cloud, snapshot, _) = with_snapshot("").await;
    cloud.sim.copy_in_background(0);
    let volume = cloud.client.ok("CreateVolume", &in_zone("us-east-1b", &snapshot)).await.text("volumeId");
    cloud.until("begun", async || cloud.sim.restores() == 1).await;
    remove_all(&cloud, &[&volume], &snapshot).await;
    assert_eq!(cloud.sim.restores(), 0);
}

/// Two nodes that together are all of us-east-1a: the snapshot's own has room for one volume more, the other for two.
const SMALL_NODES: &str = r#"
    [[volume_node]]
    name = "small"
    zone = "us-east-1a"
    delegate = { sim = { capacity_gib = 2 } }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn when_the_snapshots_own_node_takes_nothing_another_of_the_zone_does_and_creates_at_once_share_the_room() {
    let (cloud, snapshot, written) = with_snapshot(SMALL_NODES).await;
    let first = cloud.client.ok("CreateVolume", &in_zone("us-east-1a", &snapshot)).await.text("volumeId");
    let own = {
        let id = SnapshotId::parse(&snapshot).unwrap();
        db::snapshots::find(&mut cloud.pool.get().await.unwrap(), &id).await.unwrap().unwrap().node
    };
    assert_eq!((own.as_str(), node_of(&cloud, &first).await.as_str()), ("storage-a", "storage-a"));
    let mut conn = cloud.pool.get().await.unwrap();
    db::nodes::set_drained(&mut conn, "storage-a", "storage", "us-east-1a", true).await.unwrap();
    drop(conn);
    cloud.until("known", async || cloud.context.placement.is_drained("storage-a")).await;
    let parameters = in_zone("us-east-1a", &snapshot);
    let asked = futures_util::future::join_all((0..4).map(|_| cloud.client.call("CreateVolume", &parameters))).await;
    let (made, refused): (Vec<_>, Vec<_>) = asked.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((made.len(), refused.len()), (2, 2));
    assert!(refused.iter().all(|answer| answer.text("Code") == "InsufficientVolumeCapacity"));
    let made: Vec<String> = made.iter().map(|answer| answer.text("volumeId")).collect();
    for volume in &made {
        cloud.volume_becomes(volume, "available").await;
        assert_eq!((node_of(&cloud, volume).await.as_str(), content(&cloud, volume)), ("small", Some(written)));
    }
    let all: Vec<&str> = made.iter().chain([&first]).map(String::as_str).collect();
    remove_all(&cloud, &all, &snapshot).await;
}
