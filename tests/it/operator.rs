//! Workflows that cannot finish: what an operator sees of them, and what becomes of the volume when one is given up.

use std::time::Duration;

use diesel_async::RunQueryDsl;
use vbs::db;
use vbs::delegate::ErrorKind;
use vbs::delegate::sim::{Fault, FaultKind};
use vbs::ids::VolumeId;

use crate::support::cli::Cli;
use crate::support::cloud::Cloud;
use crate::support::walk;

const CALM: &str = "workers = { sweep_s = 3600, poll_s = 1 }";
const AWAY: FaultKind = FaultKind::FailBefore(ErrorKind::Retry);

/// The number of the live workflow of this kind, once it has failed or waited.
async fn stuck(cloud: &Cloud, kind: &str) -> String {
    let find = async || {
        let live = db::workflows::list(&mut cloud.pool.get().await.unwrap(), false, 100).await.unwrap();
        live.into_iter().find(|row| row.kind == kind && row.attempts > 0).map(|row| row.id.to_string())
    };
    cloud.until(&format!("{kind} stuck"), async || find().await.is_some()).await;
    find().await.unwrap()
}

async fn sql(cloud: &Cloud, statement: &str) {
    diesel::sql_query(statement).execute(&mut cloud.pool.get().await.unwrap()).await.unwrap();
}

async fn begin_attach(cloud: &Cloud, volume: &str, instance: &str) {
    let parameters = [("VolumeId", volume), ("InstanceId", instance), ("Device", "/dev/sdf")];
    cloud.client.ok("AttachVolume", &parameters).await;
}

/// An attach that turns back, and cannot undo its last step.
async fn stuck_undo(cloud: &Cloud, volume: &str) -> String {
    cloud.sim.push_fault(Fault::once("ensure_attached", FaultKind::EffectThenLost));
    cloud.sim.push_fault(Fault::always("ensure_attached", FaultKind::FailBefore(ErrorKind::Fatal)));
    cloud.sim.push_fault(Fault::always("ensure_detached", AWAY));
    begin_attach(cloud, volume, &cloud.instances().await[0]).await;
    cloud.until("turned", async || cloud.sim.calls("ensure_detached") > 0).await;
    stuck(cloud, "attach_volume").await
}

async fn delete(cloud: &Cloud, volume: &str) {
    cloud.client.ok("DeleteVolume", &[("VolumeId", volume)]).await;
    cloud.volume_becomes(volume, "gone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_cannot_finish_is_shown_with_its_history_and_goes_on_at_once_when_it_is_retried() {
    let cloud = Cloud::start_with(CALM).await;
    let cli = Cli::of(&cloud);
    let volume = cloud.volume().await;
    let id = stuck_undo(&cloud, &volume).await;
    let line = cli.ok(&["workflow", "list"]);
    let columns: Vec<&str> = line.trim_end().split('\t').collect();
    assert_eq!((columns[0], columns[1], columns[3], columns[4]), (&*id, "attach_volume", "backward", "step Attach"));
    assert!(columns[6].starts_with("ensure_detached: ") && columns[7].starts_with("ensure_attached: "), "{line}");
    let shown = cli.ok(&["workflow", "show", &id]);
    let expected = [
        "\tforward\tConnect\tbegun\t",
        "\tforward\tAttach\tbegun\t",
        "\tforward\tAttach\tfailed\tensure_attached: ",
        "\tbackward\t\tturned\tensure_attached: ",
        "\tbackward\tAttach\tfailed\tensure_detached: ",
    ];
    let mut rest = &*shown;
    for event in expected {
        rest = rest.split_once(event).unwrap_or_else(|| panic!("no {event:?} in its place: {shown}")).1;
    }
    // The next try is far, also for a worker that is at it just now; and all is well again.
    let far = "UPDATE workflows SET not_before = now() + interval '1 hour', lease_until = NULL, lease_owner = NULL, \
               lease_generation = nextval('lease_generations')";
    sql(&cloud, far).await;
    cloud.sim.end_faults();
    cli.ok(&["workflow", "retry", &id, "--reason", "the node is back"]);
    cloud.volume_becomes(&volume, "available").await;
    let shown = cli.ok(&["workflow", "show", &id]);
    assert!(shown.contains("\tretried\tolga: the node is back\n"), "{shown}");
    assert!(shown.contains("\tbackward\tConnect\tundone\t") && shown.contains("\nfinished\t"), "{shown}");
    assert!(cli.refused(&["workflow", "retry", &id]).contains("it is finished"));
    assert!(cli.refused(&["workflow", "retry", "4711"]).contains("no such workflow"));
    delete(&cloud, &volume).await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_waits_for_a_guest_that_holds_on_and_says_so() {
    let cloud = Cloud::start_with(CALM).await;
    let cli = Cli::of(&cloud);
    let volume = cloud.volume().await;
    cloud.sim.hold_on("vm-1", true);
    cloud.sim.push_fault(Fault::once("ensure_attached", FaultKind::EffectThenLost));
    cloud.sim.push_fault(Fault::always("ensure_attached", FaultKind::FailBefore(ErrorKind::Fatal)));
    begin_attach(&cloud, &volume, &cloud.instances().await[0]).await;
    cloud.until("asked twice", async || cloud.sim.calls("ensure_detached") > 1).await;
    let line = cli.ok(&["workflow", "list"]);
    assert!(line.contains("\tbackward\tstep Attach\t") && line.contains("the guest holds on to the disk"), "{line}");
    // Nothing is taken from under it meanwhile.
    let id = VolumeId::parse(&volume).unwrap();
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some());
    cloud.sim.hold_on("vm-1", false);
    cloud.volume_becomes(&volume, "available").await;
    delete(&cloud, &volume).await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_whose_machine_cannot_be_asked_ends_only_when_the_operator_says_it_is_off() {
    let cloud = Cloud::start_with(CALM).await;
    let cli = Cli::of(&cloud);
    let (volume, instances) = (cloud.volume().await, cloud.instances().await);
    let id = VolumeId::parse(&volume).unwrap();
    let workflow = stuck_undo(&cloud, &volume).await;
    let (give_up, why) = (["workflow", "give-up", &*workflow], ["--reason", "vmm-a burnt down"]);
    assert!(cli.refused(&give_up).contains("--reason"));
    assert!(cli.refused(&[&give_up[..], &why].concat()).contains("--fenced"));
    assert_eq!(cloud.volume_state(&volume).await, "in-use", "a refusal changed something");
    cli.ok(&[&give_up[..], &why, &["--fenced"]].concat());
    assert_eq!(cloud.volume_state(&volume).await, "available");
    let shown = cli.ok(&["workflow", "show", &workflow]);
    assert!(shown.contains("\tgiven-up\t") && shown.contains("\tolga: vmm-a burnt down\n"), "{shown}");

    // It was not off. The storage node lets nobody else in as long as it is logged in.
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some());
    cloud.sim.end_faults();
    begin_attach(&cloud, &volume, &instances[1]).await;
    let second = stuck(&cloud, "attach_volume").await;
    assert!(cli.ok(&["workflow", "show", &second]).contains("is logged in to"));
    assert!(cloud.sim.guest_writes("vm-2", &id).is_none(), "two machines write to one volume");
    cli.ok(&["workflow", "give-up", &second, "--reason", "too early"]);

    // However late it is found, what it has is known for ours; another vbs's beside it is left alone.
    let stranger = cloud.volume().await;
    let stranger = VolumeId::parse(&stranger).unwrap();
    cloud.sim.leave_disk("vm-1", &stranger, &format!("iqn.2026-01.internal.vbs:{stranger}.0123456789abcdef"));
    sql(&cloud, "UPDATE attachments SET detached_at = now() - interval '2 days' WHERE state = 'detached'").await;
    db::attachments::purge_detached(&mut cloud.pool.get().await.unwrap()).await.unwrap();
    for _ in 0..2 {
        cloud.sweep().await;
    }
    assert!(cloud.sim.guest_writes("vm-1", &id).is_none(), "the disk was not taken back");
    assert!(cloud.sim.guest_writes("vm-1", &stranger).is_some(), "a stranger's disk was touched");
    assert_eq!(cloud.volume_state(&volume).await, "available");
    cloud.attach(&volume, &instances[1], "/dev/sdf").await;
    assert!(cloud.sim.guest_writes("vm-2", &id).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detach_that_is_given_up_while_the_guest_holds_on_leaves_the_volume_attached() {
    let cloud = Cloud::start_with(CALM).await;
    let cli = Cli::of(&cloud);
    let volume = cloud.volume().await;
    let id = VolumeId::parse(&volume).unwrap();
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    cloud.sim.hold_on("vm-1", true);
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.until("busy", async || cloud.attachment_state(&volume).await.as_deref() == Some("busy")).await;
    let workflow = stuck(&cloud, "detach_volume").await;
    cli.ok(&["workflow", "give-up", &workflow, "--reason", "the guest needs it"]);
    assert_eq!(cloud.attachment_state(&volume).await.as_deref(), Some("attached"));
    cloud.settle().await;
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some());
    cloud.sim.hold_on("vm-1", false);
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    // Once the guest has let go, there is nothing to go back to.
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    cloud.sim.push_fault(Fault::always("ensure_disconnected", AWAY));
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.until("let go", async || cloud.sim.calls("ensure_disconnected") > 1).await;
    let workflow = stuck(&cloud, "detach_volume").await;
    assert!(cli.refused(&["workflow", "give-up", &workflow, "--reason", "no"]).contains("--fenced"));
    cli.ok(&["workflow", "retry", &workflow]);
    cloud.sim.end_faults();
    cloud.volume_becomes(&volume, "available").await;
    delete(&cloud, &volume).await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_is_given_up_leaves_an_error_that_can_be_deleted_again() {
    let cloud = Cloud::start_with(CALM).await;
    let cli = Cli::of(&cloud);
    let volume = cloud.volume().await;
    let snapshot = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "completed").await;
    cloud.sim.push_fault(Fault::always("ensure_no_snapshot", AWAY));
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    let workflow = stuck(&cloud, "delete_snapshot").await;
    cli.ok(&["workflow", "give-up", &workflow, "--reason", "the node is away"]);
    cloud.snapshot_becomes(&snapshot, "error").await;
    let restore = [("AvailabilityZone", "us-east-1a"), ("SnapshotId", &*snapshot)];
    assert_eq!(cloud.client.fails("CreateVolume", &restore).await.0, "IncorrectState", "half of it may be gone");

    // Given up while a worker is at it, who hears of it only afterwards.
    cloud.sim.push_fault(Fault::once("ensure_no_volume", FaultKind::Hang(Duration::from_secs(2))));
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.until("hanging", async || cloud.sim.calls("ensure_no_volume") == 1).await;
    let live = db::workflows::list(&mut cloud.pool.get().await.unwrap(), false, 1).await.unwrap();
    cli.ok(&["workflow", "give-up", &live[0].id.to_string(), "--reason", "it hangs"]);
    let id = VolumeId::parse(&volume).unwrap();
    cloud.until("gone from its node", async || cloud.sim.volume_content(&id).is_none()).await;
    assert_eq!(cloud.volume_state(&volume).await, "error");
    let attach = [("VolumeId", &*volume), ("InstanceId", &cloud.instances().await[0]), ("Device", "/dev/sdf")];
    assert_eq!(cloud.client.fails("AttachVolume", &attach).await.0, "IncorrectState");

    cloud.sim.end_faults();
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    cloud.snapshot_becomes(&snapshot, "gone").await;
    delete(&cloud, &volume).await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_made_turns_back_when_it_is_given_up_and_ends_in_error_when_its_undo_is() {
    let cloud = Cloud::start_with(CALM).await;
    let cli = Cli::of(&cloud);
    cloud.sim.push_fault(Fault::always("ensure_volume", FaultKind::EffectThenLost));
    cloud.sim.push_fault(Fault::always("ensure_no_volume", AWAY));
    let parameters = [("AvailabilityZone", "us-east-1a"), ("Size", "1")];
    let volume = cloud.client.ok("CreateVolume", &parameters).await.text("volumeId");
    let workflow = stuck(&cloud, "create_volume").await;
    let give_up = ["workflow", "give-up", &*workflow, "--reason", "wrong node"];
    assert!(cli.ok(&give_up).contains("turned back"));
    cloud.until("undoing", async || cloud.sim.calls("ensure_no_volume") > 0).await;
    assert_eq!(cloud.volume_state(&volume).await, "creating");
    assert!(cli.ok(&give_up).contains("it is over"));
    assert_eq!(cloud.volume_state(&volume).await, "error");
    assert!(cli.refused(&give_up).contains("it is finished"));
    cloud.settle().await;
    cloud.sim.end_faults();
    delete(&cloud, &volume).await;
    walk::nothing_is_left(&cloud).await;
}
