//! The workflows end to end, over the API, on simulated nodes: what a caller sees, and what is left on the nodes.

use vbs::db;
use vbs::delegate::ErrorKind;
use vbs::delegate::sim::{Fault, FaultKind};
use vbs::ids::VolumeId;

use crate::support::cloud::Cloud;
use crate::support::walk;

/// Short enough that a step which fails for good turns back within a test.
const IMPATIENT: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 1 }";

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_walks_through_its_whole_life_and_leaves_nothing_behind() {
    let cloud = Cloud::start().await;
    walk::whole_life(&cloud).await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_cannot_be_made_is_in_error_frees_its_token_and_can_be_deleted() {
    let cloud = Cloud::start().await;
    cloud.sim.push_fault(Fault::once("ensure_volume", FaultKind::FailBefore(ErrorKind::NoRoom)));
    let parameters = [("AvailabilityZone", "us-east-1a"), ("Size", "1"), ("ClientToken", "t-1")];
    let failed = cloud.client.ok("CreateVolume", &parameters).await.text("volumeId");
    cloud.volume_becomes(&failed, "error").await;
    let again = cloud.client.ok("CreateVolume", &parameters).await.text("volumeId");
    assert_ne!(again, failed);
    for id in [&failed, &again] {
        cloud.until("settled", async || cloud.volume_state(id).await != "creating").await;
        cloud.client.ok("DeleteVolume", &[("VolumeId", id)]).await;
        cloud.volume_becomes(id, "gone").await;
    }
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_that_fails_for_good_at_any_step_gives_the_volume_back_and_says_why() {
    for verb in ["ensure_exported", "ensure_connected", "ensure_attached"] {
        for kind in [FaultKind::FailBefore(ErrorKind::Fatal), FaultKind::Garbage] {
            let cloud = Cloud::start_with(IMPATIENT).await;
            let volume = cloud.volume().await;
            cloud.sim.push_fault(Fault::always(verb, kind));
            let instance = &cloud.instances().await[0];
            let parameters = [("VolumeId", &*volume), ("InstanceId", instance), ("Device", "/dev/sdf")];
            cloud.client.ok("AttachVolume", &parameters).await;
            cloud.volume_becomes(&volume, "available").await;
            let workflows = db::workflows::list(&mut cloud.pool.get().await.unwrap(), true, 1).await.unwrap();
            assert_eq!(workflows[0].outcome.as_deref(), Some("undone"));
            assert!(workflows[0].error.as_ref().is_some_and(|error| !error.is_empty()), "{workflows:#?}");
            cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
            cloud.volume_becomes(&volume, "gone").await;
            walk::nothing_is_left(&cloud).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_fails_for_good_is_in_error_and_the_guest_goes_on() {
    let cloud = Cloud::start_with(IMPATIENT).await;
    let volume = cloud.volume().await;
    let id = VolumeId::parse(&volume).unwrap();
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    cloud.sim.push_fault(Fault::always("ensure_snapshot", FaultKind::FailBefore(ErrorKind::Retry)));
    let snapshot = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "error").await;
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some(), "the guest is still paused");
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    cloud.snapshot_becomes(&snapshot, "gone").await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_given_up_leaves_no_guest_standing_still() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let id = VolumeId::parse(&volume).unwrap();
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    cloud.sim.push_fault(Fault::once("ensure_resumed", FaultKind::FailBefore(ErrorKind::Fatal)));
    let snapshot = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "error").await;
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some(), "the undo did not end the pause of the try before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_takes_the_name_of_another_gets_none_of_its_disks() {
    let cloud = Cloud::start_with(IMPATIENT).await;
    let (volume, late) = (cloud.volume().await, cloud.volume().await);
    let instance = &cloud.instances().await[0];
    cloud.attach(&volume, instance, "/dev/sdf").await;
    // One that is under way when the machine goes.
    let slow = FaultKind::Hang(std::time::Duration::from_millis(500));
    cloud.sim.push_fault(Fault::once("ensure_connected", slow));
    let parameters = [("VolumeId", &*late), ("InstanceId", instance), ("Device", "/dev/sdg")];
    let before = cloud.sim.calls("ensure_connected");
    cloud.client.ok("AttachVolume", &parameters).await;
    cloud.until("begun", async || cloud.sim.calls("ensure_connected") > before).await;
    cloud.sim.replace_machine("vm-1");
    cloud.volume_becomes(&late, "available").await;
    cloud.until("known", async || cloud.instances().await.len() == 4).await;
    cloud.settle().await; // A sweep that had looked at the machine before may have found something to repair.
    let before = cloud.sim.calls("ensure_connected");
    for _ in 0..3 {
        vbs::workers::sweeper::sweep(&cloud.context).await.unwrap();
        cloud.settle().await;
    }
    assert_eq!(cloud.sim.calls("ensure_connected"), before, "repairs of what is not broken");
    for volume in [&volume, &late] {
        assert!(cloud.sim.guest_writes("vm-1", &VolumeId::parse(volume).unwrap()).is_none(), "another's disk");
    }
    let node = cloud.context.nodes.hypervisor("vmm-a").unwrap();
    assert!(node.observe().await.unwrap().machines.iter().all(|machine| machine.disks.is_empty()));
    // The owner can have the volume back.
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_may_fail_once_in_every_way_and_the_whole_life_still_passes() {
    let verbs = [
        "ensure_volume",
        "ensure_no_volume",
        "ensure_snapshot",
        "ensure_no_snapshot",
        "ensure_exported",
        "ensure_not_exported",
        "ensure_connected",
        "ensure_disconnected",
        "ensure_attached",
        "ensure_detached",
        "ensure_paused",
        "ensure_resumed",
    ];
    let cloud = Cloud::start().await;
    for verb in verbs {
        for kind in [FaultKind::FailBefore(ErrorKind::Retry), FaultKind::EffectThenLost, FaultKind::Garbage] {
            cloud.sim.push_fault(Fault::once(verb, kind));
            walk::whole_life(&cloud).await;
            walk::nothing_is_left(&cloud).await;
            assert_eq!(cloud.sim.faults_left(), 0, "{verb} was never called");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_holds_on_makes_a_detach_busy_until_it_lets_go() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let instance = cloud.instances().await[0].clone();
    cloud.attach(&volume, &instance, "/dev/sdf").await;
    cloud.sim.hold_on("vm-1", true);
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.until("busy", async || cloud.attachment_state(&volume).await.as_deref() == Some("busy")).await;
    assert_eq!(cloud.volume_state(&volume).await, "in-use");
    let id = VolumeId::parse(&volume).unwrap();
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some(), "something was torn down under the guest");
    // A guest that holds on for hours does not hold up snapshots.
    let snapshot = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "completed").await;
    // Nor is its name free before the disk is gone.
    let other = cloud.volume().await;
    let again = [("VolumeId", &*other), ("InstanceId", &*instance), ("Device", "xvdf")];
    let (code, message) = cloud.client.fails("AttachVolume", &again).await;
    assert_eq!(code, "InvalidParameterValue");
    assert_eq!(message, "Invalid value 'xvdf' for unixDevice. Attachment point xvdf is already in use");
    cloud.sim.hold_on("vm-1", false);
    cloud.volume_becomes(&volume, "available").await;
    cloud.attach(&other, &instance, "xvdf").await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn force_takes_the_disk_from_a_guest_that_holds_on() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    cloud.sim.hold_on("vm-1", true);
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.until("busy", async || cloud.attachment_state(&volume).await.as_deref() == Some("busy")).await;
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume), ("Force", "true")]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_deleted_while_it_is_made_is_unmade() {
    let cloud = Cloud::start().await;
    let slow = FaultKind::Hang(std::time::Duration::from_millis(500));
    cloud.sim.push_fault(Fault::once("ensure_volume", slow));
    let parameters = [("AvailabilityZone", "us-east-1a"), ("Size", "1")];
    let volume = cloud.client.ok("CreateVolume", &parameters).await.text("volumeId");
    cloud.until("begun", async || cloud.sim.calls("ensure_volume") == 1).await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_detached_while_it_is_attached_comes_back() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    cloud.sim.push_fault(Fault::once("ensure_connected", FaultKind::Hang(std::time::Duration::from_millis(500))));
    let instance = &cloud.instances().await[0];
    let parameters = [("VolumeId", &*volume), ("InstanceId", instance), ("Device", "/dev/sdf")];
    cloud.client.ok("AttachVolume", &parameters).await;
    cloud.until("begun", async || cloud.sim.calls("ensure_connected") == 1).await;
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    walk::nothing_is_left(&cloud).await;
}
