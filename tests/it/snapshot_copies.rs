//! Snapshots that are cut at once and then copied by their node, for as long as that takes, as thick logical volumes are.

use vbs::db;
use vbs::delegate::ErrorKind;
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};
use vbs::ids::{SnapshotId, VolumeId};

use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

const SWEPT_OFTEN: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 1 }";

/// A cloud whose copies stand still, with a volume in vm-1 that has been written to.
struct Copying {
    cloud: Cloud,
    volume: String,
    written: u64,
}

impl Copying {
    async fn start() -> Self {
        let cloud = Cloud::start_with(SWEPT_OFTEN).await;
        cloud.sim.copy_in_background(0);
        let volume = cloud.volume().await;
        cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
        let written = cloud.sim.guest_writes("vm-1", &VolumeId::parse(&volume).unwrap()).unwrap();
        Self { cloud, volume, written }
    }

    /// Asks for a snapshot; when this returns the answer is there, and so it is cut.
    async fn snapshot(&self) -> String {
        self.cloud.client.ok("CreateSnapshot", &[("VolumeId", &self.volume)]).await.text("snapshotId")
    }

    async fn detach(&self) {
        self.cloud.client.ok("DetachVolume", &[("VolumeId", &self.volume)]).await;
        self.cloud.volume_becomes(&self.volume, "available").await;
    }

    fn guest_writes(&self) -> u64 {
        self.cloud.sim.guest_writes("vm-1", &VolumeId::parse(&self.volume).unwrap()).expect("the guest has the disk")
    }

    /// State and progress, as a describe shows them.
    async fn shown(&self, snapshot: &str) -> (String, String) {
        let answer = self.cloud.client.ok("DescribeSnapshots", &[("SnapshotId.1", snapshot)]).await;
        (answer.text("status"), answer.text("progress"))
    }

    fn content(&self, snapshot: &str) -> Option<u64> {
        self.cloud.sim.snapshot_content(&SnapshotId::parse(snapshot).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_answered_once_it_is_cut_and_is_pending_with_its_progress_until_it_is_copied() {
    let copying = Copying::start().await;
    let snapshot = copying.snapshot().await;
    assert_ne!(copying.guest_writes(), copying.written, "what is written after the answer is not in it");
    assert_eq!(copying.shown(&snapshot).await, ("pending".into(), "0%".into()));
    let zone = ("AvailabilityZone", "us-east-1a");
    let refused = copying.cloud.client.fails("CreateVolume", &[zone, ("SnapshotId", &snapshot)]).await;
    assert_eq!(refused, ("IncorrectState".into(), "Snapshot is in invalid state - pending".into()));
    let shared = [("SnapshotId", snapshot.as_str()), ("Attribute", "createVolumePermission")];
    let to_all = [&shared[..], &[("OperationType", "add"), ("UserGroup.1", "all")]].concat();
    copying.cloud.client.ok("ModifySnapshotAttribute", &to_all).await;
    let asked = [("SourceSnapshotId", snapshot.as_str()), ("SourceRegion", "us-east-1")];
    let copy = copying.cloud.client.ok("CopySnapshot", &asked).await.text("snapshotId");
    let failed = copying.cloud.client.ok("DescribeSnapshots", &[("SnapshotId.1", &copy)]).await;
    assert_eq!(failed.text("status"), "error");
    assert_eq!(failed.text("statusMessage"), "Source snapshot is not complete");
    copying.cloud.sim.copy_in_background(1);
    let mut seen = 0;
    copying.cloud.until("copied", async || copying.shown(&snapshot).await.1 != "0%").await;
    copying.cloud.sim.copy_in_background(20);
    loop {
        let (state, progress) = copying.shown(&snapshot).await;
        let percent: u32 = progress.strip_suffix('%').unwrap().parse().unwrap();
        assert!(percent >= seen, "{percent} after {seen}");
        assert_eq!(state == "completed", percent == 100, "{state} at {progress}");
        seen = percent;
        if percent == 100 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(copying.content(&snapshot), Some(copying.written));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_used_as_ever_while_a_snapshot_of_it_is_copied_and_only_its_deletion_waits() {
    let copying = Copying::start().await;
    let cloud = &copying.cloud;
    let first = copying.snapshot().await;
    copying.detach().await;
    cloud.attach(&copying.volume, &cloud.instances().await[1], "/dev/sdg").await;
    let second = copying.snapshot().await;
    cloud.sim.forget_exports("storage-a");
    let id = VolumeId::parse(&copying.volume).unwrap();
    cloud
        .until("exported again", async || {
            let report = cloud.context.nodes.storage("storage-a").unwrap().observe().await.unwrap();
            report.exports.iter().any(|export| export.volume == id)
        })
        .await;
    copying.detach().await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &copying.volume)]).await;
    let removals = cloud.sim.calls("ensure_no_volume");
    let asked = cloud.sim.calls("ensure_snapshot");
    cloud.until("asked often", async || cloud.sim.calls("ensure_snapshot") > asked + 4).await;
    assert_eq!(cloud.volume_state(&copying.volume).await, "deleting");
    assert_eq!(cloud.sim.calls("ensure_no_volume"), removals, "it would take along what is not copied");
    cloud.sim.copy_in_background(50);
    cloud.volume_becomes(&copying.volume, "gone").await;
    for snapshot in [&first, &second] {
        assert_eq!(copying.shown(snapshot).await.0, "completed");
        assert_eq!(copying.content(snapshot), Some(copying.written));
        cloud.client.ok("DeleteSnapshot", &[("SnapshotId", snapshot)]).await;
    }
    walk::nothing_is_left(cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_overflows_while_it_is_copied_is_in_error_and_leaves_nothing() {
    let copying = Copying::start().await;
    let cloud = &copying.cloud;
    let snapshot = copying.snapshot().await;
    cloud.sim.overflow();
    cloud.sim.copy_in_background(100);
    cloud.snapshot_becomes(&snapshot, "error").await;
    let id = SnapshotId::parse(&snapshot).unwrap();
    let row = db::snapshots::find(&mut cloud.pool.get().await.unwrap(), &id).await.unwrap().unwrap();
    assert!(row.state_reason.unwrap().contains("overflowed"));
    assert_eq!(copying.content(&snapshot), None);
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    copying.detach().await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &copying.volume)]).await;
    cloud.volume_becomes(&copying.volume, "gone").await;
    walk::nothing_is_left(cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_gone_after_it_was_answered_is_in_error_and_not_taken_anew() {
    let copying = Copying::start().await;
    let cloud = &copying.cloud;
    let snapshot = copying.snapshot().await;
    copying.guest_writes();
    cloud.sim.forget_copies();
    cloud.snapshot_becomes(&snapshot, "error").await;
    assert_eq!((copying.content(&snapshot), cloud.sim.copies()), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_progress_that_is_shown_stays_when_the_node_begins_to_copy_anew() {
    let copying = Copying::start().await;
    let cloud = &copying.cloud;
    let snapshot = copying.snapshot().await;
    cloud.sim.copy_in_background(40);
    cloud.until("40 %", async || copying.shown(&snapshot).await.1 != "0%").await;
    cloud.sim.copy_in_background(0);
    cloud.sim.restart_copies();
    let (_, before) = copying.shown(&snapshot).await;
    let asked = cloud.sim.calls("ensure_snapshot");
    cloud.until("asked again", async || cloud.sim.calls("ensure_snapshot") > asked + 2).await;
    assert_eq!(copying.shown(&snapshot).await, ("pending".into(), before));
    cloud.sim.copy_in_background(100);
    cloud.snapshot_becomes(&snapshot, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_deleted_while_it_is_copied_is_gone_and_holds_nothing_up() {
    let copying = Copying::start().await;
    let cloud = &copying.cloud;
    let snapshot = copying.snapshot().await;
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    cloud.snapshot_becomes(&snapshot, "gone").await;
    copying.detach().await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &copying.volume)]).await;
    cloud.volume_becomes(&copying.volume, "gone").await;
    walk::nothing_is_left(cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_cut_outlasts_a_node_that_is_away_for_longer_than_a_step_may_fail() {
    let copying = Copying::start().await;
    let cloud = &copying.cloud;
    let snapshot = copying.snapshot().await;
    let away = Fault { verb: "ensure_snapshot", after: 0, times: 6, kind: FaultKind::FailBefore(ErrorKind::Retry) };
    cloud.sim.push_fault(away);
    cloud.until("back", async || cloud.sim.faults_left() == 0).await;
    cloud.sim.copy_in_background(100);
    cloud.snapshot_becomes(&snapshot, "completed").await;
    assert_eq!(copying.content(&snapshot), Some(copying.written));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_a_snapshot_is_copied_is_followed_by_another() {
    let (url, sim) = (postgres::database().await, SimCloud::new());
    sim.copy_in_background(0);
    let first = Cloud::join(&url, &sim, SWEPT_OFTEN).await;
    let volume = first.volume().await;
    first.attach(&volume, &first.instances().await[0], "/dev/sdf").await;
    let id = VolumeId::parse(&volume).unwrap();
    let written = sim.guest_writes("vm-1", &id);
    let snapshot = first.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    sim.guest_writes("vm-1", &id).unwrap();
    drop(first);
    sim.copy_in_background(50);
    let second = Cloud::join(&url, &sim, SWEPT_OFTEN).await;
    second.snapshot_becomes(&snapshot, "completed").await;
    assert_eq!(sim.snapshot_content(&SnapshotId::parse(&snapshot).unwrap()), written);
}
