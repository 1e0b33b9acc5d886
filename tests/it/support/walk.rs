//! The walk that a volume takes through its life, and the look around afterwards.

use vbs::ids::{SnapshotId, VolumeId};

use super::cloud::Cloud;

/// Create, attach, write, snapshot, detach, delete; a new volume from the snapshot, attach, the same bytes, delete all.
pub async fn whole_life(cloud: &Cloud) {
    let client = &cloud.client;
    let instance = &cloud.instances().await[0];
    let volume = cloud.volume().await;
    let id = VolumeId::parse(&volume).unwrap();
    cloud.attach(&volume, instance, "/dev/sdf").await;
    let written = cloud.sim.guest_writes("vm-1", &id).expect("the guest has the disk");
    let snapshot = client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "completed").await;
    let later = cloud.sim.guest_writes("vm-1", &id).expect("the guest goes on after the snapshot");
    assert_ne!(written, later);
    assert_eq!(cloud.sim.snapshot_content(&SnapshotId::parse(&snapshot).unwrap()), Some(written));

    client.ok("DetachVolume", &[("VolumeId", &volume), ("InstanceId", instance)]).await;
    cloud.volume_becomes(&volume, "available").await;
    client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;

    let parameters = [("AvailabilityZone", "us-east-1a"), ("SnapshotId", &*snapshot)];
    let restored = client.ok("CreateVolume", &parameters).await.text("volumeId");
    cloud.volume_becomes(&restored, "available").await;
    assert_eq!(cloud.sim.volume_content(&VolumeId::parse(&restored).unwrap()), Some(written));
    cloud.attach(&restored, instance, "/dev/sdg").await;

    client.ok("DetachVolume", &[("VolumeId", &restored)]).await;
    cloud.volume_becomes(&restored, "available").await;
    client.ok("DeleteVolume", &[("VolumeId", &restored)]).await;
    client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    cloud.volume_becomes(&restored, "gone").await;
    cloud.snapshot_becomes(&snapshot, "gone").await;
}

/// No workflow is live, and the nodes have nothing of ours.
pub async fn nothing_is_left(cloud: &Cloud) {
    cloud.settle().await;
    assert_eq!(cloud.sim.copies(), 0, "a snapshot is still being copied");
    for (name, node) in &cloud.context.nodes.volume {
        let report = node.delegate.observe().await.unwrap();
        assert_eq!((report.volumes, report.snapshots, report.exports), (vec![], vec![], vec![]), "left on {name}");
    }
    for (name, node) in &cloud.context.nodes.vmm {
        let report = node.delegate.observe().await.unwrap();
        assert_eq!(report.sessions, vec![], "left on {name}");
        for machine in report.machines {
            assert_eq!((machine.disks, machine.paused), (vec![], false), "left in {} on {name}", machine.name);
        }
    }
}
