//! CreateSnapshot, DeleteSnapshot and DescribeSnapshots over HTTP.

use std::time::Duration;

use vbs::delegate::SnapshotMethod;
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};
use vbs::ids::{SnapshotId, VolumeId};

use crate::support::cloud::Cloud;
use crate::support::postgres;
use crate::support::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_answered_and_described_with_the_elements_clients_need() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let parameters = [
        ("VolumeId", volume.as_str()),
        ("Description", "before <the> upgrade"),
        ("TagSpecification.1.ResourceType", "snapshot"),
        ("TagSpecification.1.Tag.1.Key", "Name"),
        ("TagSpecification.1.Tag.1.Value", "nightly"),
    ];
    let answer = cloud.client.ok("CreateSnapshot", &parameters).await;
    assert_eq!((answer.text("status"), answer.text("volumeSize")), ("pending".into(), "1".into()));
    assert!(answer.body.contains("<progress/><ownerId>123456789012</ownerId>"), "{}", answer.body);
    assert_eq!(answer.text("description"), "before <the> upgrade");
    let beyond = cloud.client.fails("CreateSnapshot", &[("VolumeId", &volume), ("Description", "vör")]).await;
    let text = "Value (vör) for parameter description is invalid. Character sets beyond ASCII are not supported.";
    assert_eq!(beyond, ("InvalidParameterValue".into(), text.into()));
    let id = answer.text("snapshotId");
    cloud.snapshot_becomes(&id, "completed").await;
    let shown = cloud.client.ok("DescribeSnapshots", &[("SnapshotId.1", &id), ("MaxResults", "0")]).await;
    assert_eq!((shown.text("progress"), shown.text("startTime")), ("100%".into(), answer.text("startTime")));
    assert!(
        shown.body.contains("<tagSet><item><key>Name</key><value>nightly</value></item></tagSet><storageTier>standard")
    );
    shown.text("completionTime");
    for (name, value, hits) in [
        ("volume-id", volume.as_str(), 1),
        ("status", "completed", 1),
        ("progress", "100%", 1),
        ("description", "before*", 1),
        ("tag:Name", "night??", 1),
        ("owner-id", "123456789012", 1),
        ("volume-size", "2", 0),
        ("start-time", "19*", 0),
    ] {
        let answer =
            cloud.client.ok("DescribeSnapshots", &[("Filter.1.Name", name), ("Filter.1.Value.1", value)]).await;
        assert_eq!(answer.all("snapshotId").len(), hits, "{name}={value}");
    }
    for (owner, hits) in [("self", 1), ("123456789012", 1), ("amazon", 0), ("999999999999", 0)] {
        assert_eq!(
            cloud.client.ok("DescribeSnapshots", &[("Owner.1", owner)]).await.all("snapshotId").len(),
            hits,
            "{owner}"
        );
    }
    assert_eq!(cloud.client.fails("DescribeSnapshots", &[("Owner.1", "foo")]).await.0, "InvalidUserID.Malformed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_not_answered_before_it_is_cut_also_when_postgres_breaks_off_meanwhile() {
    let proxy = Proxy::start(&postgres::database().await);
    let cloud = Cloud::join(&proxy.url, &SimCloud::new(), "workers = { lease_s = 1, poll_s = 1 }").await;
    cloud.sim.set_snapshot_method(SnapshotMethod::Atomic);
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    let id = VolumeId::parse(&volume).unwrap();
    let before = cloud.sim.guest_writes("vm-1", &id);
    cloud.sim.push_fault(Fault::once("ensure_snapshot", FaultKind::Hang(Duration::from_secs(2))));
    let breaking = async {
        cloud.until("begun", async || cloud.sim.calls("ensure_snapshot") == 1).await;
        proxy.cut();
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.restore();
    };
    let parameters = [("VolumeId", volume.as_str())];
    let (answer, ()) = tokio::join!(cloud.client.ok("CreateSnapshot", &parameters), breaking);
    assert!(cloud.sim.guest_writes("vm-1", &id) > before);
    let snapshot = answer.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "completed").await;
    assert_eq!(cloud.sim.snapshot_content(&SnapshotId::parse(&snapshot).unwrap()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_outlives_its_volume_makes_new_ones_and_is_deleted_once() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let id = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&id, "completed").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    let zone = ("AvailabilityZone", "us-east-1a");
    let copy = cloud.client.ok("CreateVolume", &[zone, ("SnapshotId", &id), ("Size", "3")]).await;
    assert_eq!((copy.text("size"), copy.text("snapshotId")), ("3".into(), id.clone()));
    let same = cloud.client.ok("CreateVolume", &[zone, ("SnapshotId", &id)]).await;
    assert_eq!(same.text("size"), "1");
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &id)]).await;
    let gone = ("InvalidSnapshot.NotFound".to_owned(), format!("The snapshot '{id}' does not exist."));
    assert_eq!(cloud.client.fails("DeleteSnapshot", &[("SnapshotId", &id)]).await, gone);
    assert_eq!(cloud.client.fails("CreateVolume", &[zone, ("SnapshotId", &id)]).await, gone);
    assert_eq!(cloud.client.fails("DescribeSnapshots", &[("SnapshotId.1", &id)]).await, gone);
    for made in [copy, same] {
        cloud.volume_becomes(&made.text("volumeId"), "available").await;
    }
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_accounts_snapshot_does_not_exist() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let id = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&id, "completed").await;
    let stranger = cloud.another_account("999999999999").await;
    for (action, parameters) in [
        ("DescribeSnapshots", vec![("SnapshotId.1", id.as_str())]),
        ("DeleteSnapshot", vec![("SnapshotId", &id)]),
        ("CreateVolume", vec![("AvailabilityZone", "us-east-1a"), ("SnapshotId", &id)]),
        ("CreateTags", vec![("ResourceId.1", &id), ("Tag.1.Key", "mine")]),
    ] {
        assert_eq!(stranger.fails(action, &parameters).await.0, "InvalidSnapshot.NotFound", "{action}");
    }
    assert_eq!(stranger.ok("DescribeSnapshots", &[]).await.all("snapshotId").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tags_of_a_deleted_snapshot_are_gone_though_its_node_still_has_it() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let tag = [("TagSpecification.1.ResourceType", "snapshot"), ("TagSpecification.1.Tag.1.Key", "Name")];
    let id = cloud
        .client
        .ok("CreateSnapshot", &[&[("VolumeId", volume.as_str())], &tag[..]].concat())
        .await
        .text("snapshotId");
    cloud.snapshot_becomes(&id, "completed").await;
    assert_eq!(cloud.client.ok("DescribeTags", &[]).await.all("resourceId"), std::slice::from_ref(&id));
    cloud.sim.push_fault(Fault::once("ensure_no_snapshot", FaultKind::Hang(Duration::from_millis(500))));
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &id)]).await;
    assert!(cloud.client.ok("DescribeTags", &[]).await.all("resourceId").is_empty());
    cloud.settle().await;
}
