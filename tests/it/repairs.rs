//! What changed behind our back is put right: exports and disks that went missing, disks and log-ins that stayed too long.

use vbs::db;
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};
use vbs::delegate::{ErrorKind, ObservedSession};
use vbs::ids::VolumeId;

use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

/// Swept only when the test says so.
const CALM: &str = "workers = { sweep_s = 3600 }";
const SWEPT_OFTEN: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 1 }";

/// The name of the target of the volume's live attachment.
async fn live_iqn(cloud: &Cloud, volume: &VolumeId) -> String {
    let live = db::attachments::live_of_volume(&mut cloud.pool.get().await.unwrap(), volume).await.unwrap();
    live[0].0.iqn.clone()
}

async fn sessions(cloud: &Cloud) -> Vec<ObservedSession> {
    cloud.context.nodes.hypervisor("vmm-a").unwrap().observe().await.unwrap().sessions
}

async fn detach(cloud: &Cloud, volume: &str) {
    cloud.client.ok("DetachVolume", &[("VolumeId", volume)]).await;
    cloud.volume_becomes(volume, "available").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_that_a_node_forgot_and_disks_that_a_machine_lost_are_put_back() {
    let cloud = Cloud::start_with(SWEPT_OFTEN).await;
    let volume = cloud.volume().await;
    let id = VolumeId::parse(&volume).unwrap();
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    let exported = async || {
        let report = cloud.context.nodes.storage("storage-a").unwrap().observe().await.unwrap();
        report.exports.iter().any(|export| export.volume == id && export.whole)
    };
    cloud.sim.forget_exports("storage-a");
    cloud.until("exported again", exported).await;
    cloud.sim.stop_machine("vm-1");
    cloud
        .until("known to be stopped", async || {
            let all = db::instances::list(&mut cloud.pool.get().await.unwrap()).await.unwrap();
            all.iter().any(|one| one.machine == "vm-1" && one.state.to_string() == "stopped")
        })
        .await;
    assert_eq!(cloud.attachment_state(&volume).await.as_deref(), Some("attached"));
    let instances = cloud.instances().await;
    cloud.sim.start_machine("vm-1");
    cloud.until("plugged in again", async || cloud.sim.guest_writes("vm-1", &id).is_some()).await;
    assert_eq!(cloud.instances().await, instances, "the machine got another id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_node_is_logged_in_itself_gets_its_disk_back_after_any_restart() {
    let sim = SimCloud::new();
    sim.let_nodes_log_in();
    let cloud = Cloud::join(&postgres::database().await, &sim, CALM).await;
    let (volume, instance) = (cloud.volume().await, cloud.instances().await[0].clone());
    let id = VolumeId::parse(&volume).unwrap();
    cloud.attach(&volume, &instance, "/dev/sdf").await;
    let iqn = live_iqn(&cloud, &id).await;
    for target_is_lost in [false, true] {
        cloud.sim.stop_machine("vm-1");
        if target_is_lost {
            cloud.sim.forget_exports("storage-a");
        }
        cloud.sweep().await;
        let kept = ObservedSession { volume: id.clone(), iqn: iqn.clone() };
        assert_eq!(sessions(&cloud).await, [kept], "the log-in of an attachment that is not over");
        cloud.sim.start_machine("vm-1");
        cloud.sweep().await;
        cloud.sim.guest_writes("vm-1", &id).expect("the disk is back");
        assert_eq!(sessions(&cloud).await, []);
    }
    // Detached while the machine is off, it leaves no log-in.
    cloud.sim.stop_machine("vm-1");
    detach(&cloud, &volume).await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_renamed_gets_its_disks_back_under_its_new_initiator() {
    let cloud = Cloud::start_with(CALM).await;
    let volume = cloud.volume().await;
    let id = VolumeId::parse(&volume).unwrap();
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    let before = live_iqn(&cloud, &id).await;
    cloud.sim.rename_machine("vm-1", "vm-9");
    cloud.sweep().await;
    cloud.sim.guest_writes("vm-9", &id).expect("the disk is back");
    assert_eq!(live_iqn(&cloud, &id).await, before);
    detach(&cloud, &volume).await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_that_a_delegate_left_is_ended_and_one_of_a_live_attachment_or_of_a_stranger_is_not() {
    let cloud = Cloud::start_with(CALM).await;
    let (volume, live) = (cloud.volume().await, cloud.volume().await);
    let (id, live_id) = (VolumeId::parse(&volume).unwrap(), VolumeId::parse(&live).unwrap());
    let instance = &cloud.instances().await[0];
    cloud.attach(&volume, instance, "/dev/sdf").await;
    cloud.attach(&live, instance, "/dev/sdg").await;
    let (over, wanted) = (live_iqn(&cloud, &id).await, live_iqn(&cloud, &live_id).await);
    detach(&cloud, &volume).await;
    let stranger = format!("iqn.2026-01.internal.vbs:{id}.0123456789abcdef");
    cloud.sim.leave_log_in("vmm-a", &id, &over);
    cloud.sim.leave_log_in("vmm-a", &live_id, &wanted);
    cloud.sim.leave_log_in("vmm-a", &id, &stranger);
    // A node may say what it likes of whose a target is.
    cloud.sim.leave_log_in("vmm-b", &live_id, &over);
    for _ in 0..2 {
        cloud.sweep().await;
    }
    let left: Vec<String> = sessions(&cloud).await.into_iter().map(|session| session.iqn).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&wanted) && left.contains(&stranger), "{left:?}");
    let elsewhere = cloud.context.nodes.hypervisor("vmm-b").unwrap().observe().await.unwrap().sessions;
    assert_eq!(elsewhere.len(), 1);
    assert!(cloud.sim.guest_writes("vm-1", &live_id).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_a_delegate_left_in_a_machine_is_taken_away_whether_its_guest_lets_go_or_not() {
    for holds_on in [false, true] {
        let cloud = Cloud::start_with(CALM).await;
        let volume = cloud.volume().await;
        let id = VolumeId::parse(&volume).unwrap();
        let instances = cloud.instances().await;
        let (first, second) = (&instances[0], &instances[1]);
        cloud.attach(&volume, first, "/dev/sdf").await;
        let over = live_iqn(&cloud, &id).await;
        detach(&cloud, &volume).await;
        cloud.attach(&volume, second, "/dev/sdf").await;
        cloud.sim.leave_disk("vm-1", &id, &over);
        cloud.sim.hold_on("vm-1", holds_on);
        cloud.sweep().await;
        assert!(cloud.sim.guest_writes("vm-1", &id).is_none(), "the disk is another's now");
        assert!(cloud.sim.guest_writes("vm-2", &id).is_some(), "the live attachment was touched");
        detach(&cloud, &volume).await;
        cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
        cloud.volume_becomes(&volume, "gone").await;
        walk::nothing_is_left(&cloud).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_back_does_not_keep_the_rest_broken() {
    let cloud = Cloud::start_with(CALM).await;
    let volume = cloud.volume().await;
    let id = VolumeId::parse(&volume).unwrap();
    let instance = &cloud.instances().await[0];
    cloud.attach(&volume, instance, "/dev/sdf").await;
    let over = live_iqn(&cloud, &id).await;
    detach(&cloud, &volume).await;
    cloud.attach(&volume, instance, "/dev/sdf").await;
    cloud.sim.leave_log_in("vmm-a", &id, &over);
    cloud.sim.push_fault(Fault::once("ensure_disconnected", FaultKind::FailBefore(ErrorKind::Retry)));
    cloud.sim.forget_exports("storage-a");
    cloud.sweep().await;
    let report = cloud.context.nodes.storage("storage-a").unwrap().observe().await.unwrap();
    assert_eq!((report.exports.len(), sessions(&cloud).await.len()), (1, 1));
    cloud.sweep().await;
    assert_eq!(sessions(&cloud).await, []);
}
