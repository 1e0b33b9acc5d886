//! CopySnapshot over HTTP: a copy that is whole, the caller's own, and independent of its source.

use std::time::Duration;

use futures_util::future::join_all;
use vbs::delegate::ErrorKind;
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};
use vbs::ids::{SnapshotId, VolumeId};

use crate::support::client::{Answer, Client};
use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

const STRANGER: &str = "999999999999";
const REGION: (&str, &str) = ("SourceRegion", "us-east-1");
const IMPATIENT: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 1 }";

/// A snapshot of a volume that was written to once; its content is that number.
async fn snapshot(cloud: &Cloud) -> (String, u64) {
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    let written = cloud.sim.guest_writes("vm-1", &VolumeId::parse(&volume).unwrap()).unwrap();
    let id = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&id, "completed").await;
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    (id, written)
}

async fn copy(client: &Client, source: &str) -> String {
    client.ok("CopySnapshot", &[REGION, ("SourceSnapshotId", source)]).await.text("snapshotId")
}

async fn shown(client: &Client, id: &str) -> Answer {
    client.ok("DescribeSnapshots", &[("SnapshotId.1", id)]).await
}

fn content(sim: &SimCloud, snapshot: &str) -> Option<u64> {
    sim.snapshot_content(&SnapshotId::parse(snapshot).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_the_bytes_of_its_source_and_outlives_it() {
    let cloud = Cloud::start().await;
    let (source, written) = snapshot(&cloud).await;
    cloud.sim.push_fault(Fault::once("ensure_snapshot_copy", FaultKind::Hang(Duration::from_millis(300))));
    let asked = [
        REGION,
        ("SourceSnapshotId", source.as_str()),
        ("DestinationRegion", "us-east-1"),
        ("PresignedUrl", "https://ec2.us-east-1.amazonaws.com/?Action=CopySnapshot"),
        ("Description", "a copy"),
        ("CompletionDurationMinutes", "45"),
        ("TagSpecification.1.ResourceType", "snapshot"),
        ("TagSpecification.1.Tag.1.Key", "copied"),
    ];
    let answer = cloud.client.ok("CopySnapshot", &asked).await;
    assert_eq!(answer.all("key"), ["copied"]);
    let id = answer.text("snapshotId");
    let pending = shown(&cloud.client, &id).await;
    assert_eq!((pending.text("status"), pending.text("volumeSize")), ("pending".into(), "0".into()));
    assert_eq!(pending.text("statusMessage"), "Metadata not updated");
    // It is asked for while the copy is made; the copy is whole all the same.
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &source)]).await;
    cloud.snapshot_becomes(&id, "completed").await;
    cloud.settle().await;
    assert_eq!((content(&cloud.sim, &source), content(&cloud.sim, &id)), (None, Some(written)));
    let done = shown(&cloud.client, &id).await;
    assert_eq!((done.text("volumeId"), done.text("volumeSize")), ("vol-ffffffff".into(), "1".into()));
    assert_eq!((done.text("description"), done.text("transferType")), ("a copy".into(), "time-based".into()));
    assert_eq!((done.text("completionDurationMinutes"), done.find("statusMessage")), ("45".into(), None));
    let again = copy(&cloud.client, &id).await;
    cloud.snapshot_becomes(&again, "completed").await;
    assert!(shown(&cloud.client, &again).await.body.contains("<description/>"), "nothing is inherited");
    for made in [&id, &again] {
        cloud.client.ok("DeleteSnapshot", &[("SnapshotId", made)]).await;
    }
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_snapshot_is_copied_to_ones_own_and_another_cannot_be_told_from_none() {
    let cloud = Cloud::start().await;
    let stranger = cloud.another_account(STRANGER).await;
    let (source, written) = snapshot(&cloud).await;
    let mut refused = Vec::new();
    for id in [source.as_str(), "snap-0123456789abcdef0"] {
        let answer = shown(&stranger, &copy(&stranger, id).await).await;
        assert_eq!(
            (answer.text("status"), answer.text("statusMessage")),
            ("error".into(), "Source snapshot is not found".into())
        );
        refused.push((answer.all("volumeSize"), answer.all("progress"), answer.all("volumeId")));
    }
    assert_eq!(refused[0], refused[1]);
    let share = [("SnapshotId", source.as_str()), ("CreateVolumePermission.Add.1.UserId", STRANGER)];
    cloud.client.ok("ModifySnapshotAttribute", &share).await;
    let own = copy(&stranger, &source).await;
    cloud.settle().await;
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &source)]).await;
    cloud.settle().await;
    let answer = shown(&stranger, &own).await;
    assert_eq!((answer.text("status"), answer.text("ownerId")), ("completed".into(), STRANGER.into()));
    assert_eq!(content(&cloud.sim, &own), Some(written));
    assert_eq!(cloud.client.ok("DescribeSnapshots", &[]).await.all("snapshotId").len(), 0);
    for id in stranger.ok("DescribeSnapshots", &[]).await.all("snapshotId") {
        stranger.ok("DeleteSnapshot", &[("SnapshotId", &id)]).await;
    }
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_met_are_refused_in_the_words_of_ec2() {
    let cloud = Cloud::start().await;
    let source = ("SourceSnapshotId", "snap-0123456789abcdef0");
    for (parameters, code, message) in [
        (vec![REGION], "MissingParameter", "The request must contain the parameter SourceSnapshotId"),
        (vec![source], "MissingParameter", "The request must contain the parameter SourceRegion"),
        (
            vec![REGION, ("SourceSnapshotId", "bad"), ("DryRun", "true")],
            "InvalidParameterValue",
            "The specified snapshotId is invalid",
        ),
        (vec![("SourceRegion", "eu-west-9"), source], "InvalidRegion", "eu-west-9 is not a valid region name"),
        (
            vec![REGION, source, ("DestinationRegion", "us-west-2")],
            "InvalidParameterValue",
            "DestinationRegion 'us-west-2' does not match the current region (us-east-1).",
        ),
        (vec![REGION, source, ("Encrypted", "true")], "UnsupportedOperation", "Encrypted snapshots are not supported."),
        (
            vec![REGION, source, ("DestinationRegion", "us-west-2"), ("DryRun", "true")],
            "DryRunOperation",
            "Request would have succeeded, but DryRun flag is set.",
        ),
    ] {
        let refused = cloud.client.fails("CopySnapshot", &parameters).await;
        assert_eq!(refused, (code.to_owned(), message.to_owned()), "{parameters:?}");
    }
    for minutes in ["0", "14", "20", "2895"] {
        let asked = [REGION, source, ("CompletionDurationMinutes", minutes)];
        assert_eq!(cloud.client.fails("CopySnapshot", &asked).await.0, "InvalidParameterValue", "{minutes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_copies_of_an_account_are_made_at_once_however_many_are_asked_for_together() {
    let cloud = Cloud::start().await;
    let stranger = cloud.another_account(STRANGER).await;
    let (source, written) = snapshot(&cloud).await;
    cloud.sim.push_fault(Fault::always("ensure_snapshot_copy", FaultKind::FailBefore(ErrorKind::Busy)));
    let asked = [REGION, ("SourceSnapshotId", source.as_str())];
    let answers = join_all((0..30).map(|_| cloud.client.call("CopySnapshot", &asked))).await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((made.len(), refused.len()), (20, 10));
    for answer in refused {
        assert_eq!((answer.status, answer.text("Code")), (400, "ResourceLimitExceeded".to_owned()));
    }
    copy(&stranger, &source).await;
    cloud.sim.end_faults();
    for answer in &made {
        let id = answer.text("snapshotId");
        cloud.snapshot_becomes(&id, "completed").await;
        assert_eq!(content(&cloud.sim, &id), Some(written));
    }
    copy(&cloud.client, &source).await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verb_may_fail_in_every_way_and_a_copy_that_cannot_be_made_is_in_error() {
    let cloud = Cloud::start_with(IMPATIENT).await;
    let (source, written) = snapshot(&cloud).await;
    for kind in [FaultKind::FailBefore(ErrorKind::Retry), FaultKind::EffectThenLost, FaultKind::Garbage] {
        cloud.sim.push_fault(Fault::once("ensure_snapshot_copy", kind));
        let id = copy(&cloud.client, &source).await;
        cloud.snapshot_becomes(&id, "completed").await;
        assert_eq!(content(&cloud.sim, &id), Some(written));
        cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &id)]).await;
    }
    cloud.sim.push_fault(Fault::once("ensure_snapshot_copy", FaultKind::FailBefore(ErrorKind::NoRoom)));
    let failed = copy(&cloud.client, &source).await;
    cloud.snapshot_becomes(&failed, "error").await;
    cloud.sim.push_fault(Fault::once("ensure_snapshot_copy", FaultKind::Hang(Duration::from_millis(500))));
    let unwanted = copy(&cloud.client, &source).await;
    for id in [&failed, &unwanted, &source] {
        cloud.client.ok("DeleteSnapshot", &[("SnapshotId", id)]).await;
    }
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_copies_is_followed_by_another() {
    let (url, sim) = (postgres::database().await, SimCloud::new());
    let first = Cloud::join(&url, &sim, IMPATIENT).await;
    let (source, written) = snapshot(&first).await;
    sim.push_fault(Fault::once("ensure_snapshot_copy", FaultKind::EffectThenHang(Duration::from_secs(60))));
    let id = copy(&first.client, &source).await;
    first.until("hanging", async || sim.calls("ensure_snapshot_copy") == 1).await;
    drop(first);
    let second = Cloud::join(&url, &sim, IMPATIENT).await;
    second.snapshot_becomes(&id, "completed").await;
    assert_eq!(content(&sim, &id), Some(written));
}
