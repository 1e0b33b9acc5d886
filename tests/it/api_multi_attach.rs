//! Volumes that several instances have at once.

use diesel_async::RunQueryDsl;
use vbs::db;
use vbs::db::instances::{self, Terminated};
use vbs::delegate::sim::{Fault, FaultKind};
use vbs::delegate::{ErrorKind, ExportSpec, Generation, Limits, Secret, VolumeDelegate};
use vbs::ids::{InstanceId, SnapshotId, VolumeId};

use crate::support::cloud::Cloud;
use crate::support::walk;

const CALM: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 3600 }";
/// More machines in the zone than may have a volume at once.
const MANY: &str = r#"
    [[vmm_node]]
    name = "vmm-m"
    zone = "us-east-1a"
    default_owner = "123456789012"
    delegate = { sim = { machines = [
        "m-01", "m-02", "m-03", "m-04", "m-05", "m-06", "m-07", "m-08", "m-09", "m-10", "m-11", "m-12", "m-13", "m-14", "m-15"
    ] } }
"#;

/// A volume of this type that several instances may have.
async fn shared(cloud: &Cloud, volume_type: &str) -> String {
    let parameters = [
        ("AvailabilityZone", "us-east-1a"),
        ("Size", "4"),
        ("VolumeType", volume_type),
        ("Iops", "100"),
        ("MultiAttachEnabled", "true"),
    ];
    let made = cloud.client.ok("CreateVolume", &parameters).await;
    assert_eq!(made.text("multiAttachEnabled"), "true");
    let id = made.text("volumeId");
    cloud.volume_becomes(&id, "available").await;
    id
}

/// The instances that a describe shows the volume to be attached to, with the states of the attachments.
async fn attachments(cloud: &Cloud, volume: &str) -> Vec<(String, String)> {
    let shown = cloud.client.ok("DescribeVolumes", &[("VolumeId.1", volume)]).await;
    // The volume's own status comes first.
    shown.all("instanceId").into_iter().zip(shown.all("status").into_iter().skip(1)).collect()
}

async fn until_attached(cloud: &Cloud, volume: &str, count: usize) {
    cloud
        .until(&format!("attached to {count}"), async || {
            let shown = attachments(cloud, volume).await;
            shown.len() == count && shown.iter().all(|(_, state)| state == "attached")
        })
        .await;
}

async fn ask(cloud: &Cloud, volume: &str, instance: &str, device: &str) {
    let parameters = [("VolumeId", volume), ("InstanceId", instance), ("Device", device)];
    cloud.client.ok("AttachVolume", &parameters).await;
}

async fn attach_both(cloud: &Cloud, volume: &str) -> Vec<String> {
    let instances = cloud.instances().await;
    ask(cloud, volume, &instances[0], "/dev/sdf").await;
    ask(cloud, volume, &instances[1], "/dev/sdg").await;
    until_attached(cloud, volume, 2).await;
    instances
}

async fn detach(cloud: &Cloud, volume: &str, instance: &str) {
    cloud.client.ok("DetachVolume", &[("VolumeId", volume), ("InstanceId", instance)]).await;
}

async fn modify(cloud: &Cloud, volume: &str, parameters: &[(&str, &str)]) {
    cloud.client.ok("ModifyVolume", &[&[("VolumeId", volume)], parameters].concat()).await;
    cloud
        .until("modified", async || {
            let shown = cloud.client.ok("DescribeVolumesModifications", &[("VolumeId.1", volume)]).await;
            shown.text("modificationState") == "completed"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_volume_is_shown_with_all_its_instances_and_in_use_until_the_last_is_gone() {
    for volume_type in ["io1", "io2"] {
        let cloud = Cloud::start().await;
        let volume = shared(&cloud, volume_type).await;
        let id = VolumeId::parse(&volume).unwrap();
        let instances = attach_both(&cloud, &volume).await;
        for machine in ["vm-1", "vm-2"] {
            assert!(cloud.sim.guest_writes(machine, &id).is_some(), "{machine} writes to it");
        }
        let shown: Vec<String> = attachments(&cloud, &volume).await.into_iter().map(|(instance, _)| instance).collect();
        assert_eq!(shown, instances[..2], "oldest first");
        let status = cloud.client.ok("DescribeVolumeStatus", &[("VolumeId.1", &volume)]).await;
        assert_eq!(status.all("instanceId"), instances[..2], "{}", status.body);
        let mapped = cloud.client.ok("DescribeInstances", &[("InstanceId.1", &instances[1])]).await;
        assert_eq!((mapped.text("deviceName"), mapped.text("volumeId")), ("/dev/sdg".into(), volume.clone()));

        // Each filter looks at each attachment, for itself.
        for (filters, found) in [
            (vec![("attachment.instance-id", instances[0].as_str())], true),
            (vec![("attachment.instance-id", &instances[1]), ("attachment.device", "/dev/sdf")], true),
            (vec![("attachment.device", "/dev/sdh")], false),
            (vec![("multi-attach-enabled", "true"), ("attachment.status", "attached")], true),
            (vec![("multi-attach-enabled", "false")], false),
        ] {
            let names: Vec<_> =
                (1..).map(|n| (format!("Filter.{n}.Name"), format!("Filter.{n}.Value.1"))).take(2).collect();
            let parameters: Vec<_> = names
                .iter()
                .zip(&filters)
                .flat_map(|((name, value), filter)| [(name.as_str(), filter.0), (value.as_str(), filter.1)])
                .collect();
            let shown = cloud.client.ok("DescribeVolumes", &parameters).await.body;
            assert_eq!(shown.contains(&format!("<item><volumeId>{volume}</volumeId><size>")), found, "{filters:?}");
            assert!(shown.matches("<size>").count() <= 1, "once, however many attachments there are");
        }
        let of_second =
            [("Filter.1.Name", "attachment-status.instance-id"), ("Filter.1.Value.1", instances[1].as_str())];
        assert_eq!(cloud.client.ok("DescribeVolumeStatus", &of_second).await.all("volumeId"), [volume.as_str()]);

        let (code, message) = cloud.client.fails("DeleteVolume", &[("VolumeId", &volume)]).await;
        assert_eq!(code, "VolumeInUse");
        assert!(instances[..2].iter().all(|instance| message.contains(instance)), "{message}");

        detach(&cloud, &volume, &instances[0]).await;
        cloud.until("one left", async || attachments(&cloud, &volume).await.len() == 1).await;
        assert_eq!(cloud.volume_state(&volume).await, "in-use");
        assert!(cloud.sim.guest_writes("vm-1", &id).is_none() && cloud.sim.guest_writes("vm-2", &id).is_some());
        // Attached again, it is the younger of the two.
        ask(&cloud, &volume, &instances[0], "/dev/sdf").await;
        until_attached(&cloud, &volume, 2).await;
        assert_eq!(attachments(&cloud, &volume).await[1].0, instances[0]);
        // Both end at once.
        for instance in &instances[..2] {
            detach(&cloud, &volume, instance).await;
        }
        cloud.volume_becomes(&volume, "available").await;
        cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
        cloud.volume_becomes(&volume, "gone").await;
        walk::nothing_is_left(&cloud).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shared_volume_is_refused_says_why() {
    let cloud = Cloud::start().await;
    let (volume, fixed, plain) = (shared(&cloud, "io2").await, shared(&cloud, "io1").await, cloud.volume().await);
    let instances = attach_both(&cloud, &volume).await;
    let of = ("VolumeId", volume.as_str());
    let already = format!("{volume} is already attached to an instance");
    let elsewhere =
        format!("The volume '{volume}' is not in the same availability zone as instance '{}'", instances[2]);
    let stranger =
        format!("The volume '{volume}' is not attached to instance '{}' as device '/dev/sdf'.", instances[2]);
    for (action, parameters, code, message) in [
        (
            "AttachVolume",
            vec![of, ("InstanceId", instances[0].as_str()), ("Device", "/dev/sdk")],
            "VolumeInUse",
            already.as_str(),
        ),
        (
            "AttachVolume",
            vec![of, ("InstanceId", &instances[2]), ("Device", "/dev/sdf")],
            "InvalidVolume.ZoneMismatch",
            &elsewhere,
        ),
        ("DetachVolume", vec![of], "MissingParameter", "The request must contain the parameter instanceId"),
        (
            "DetachVolume",
            vec![of, ("InstanceId", &instances[2]), ("Device", "/dev/sdf")],
            "InvalidAttachment.NotFound",
            &stranger,
        ),
        (
            "CreateVolume",
            vec![("AvailabilityZone", "us-east-1a"), ("Size", "1"), ("MultiAttachEnabled", "true")],
            "InvalidParameterCombination",
            "The parameter multi-attach-enabled is not supported for gp2 volumes.",
        ),
        (
            "ModifyVolume",
            vec![("VolumeId", &fixed), ("Size", "8")],
            "InvalidParameterValue",
            "io1 volumes with Multi-Attach enabled do not support modify-volume actions. Please review the EBS technical \
             documentation for information on the Multi-Attach limitations and considerations.",
        ),
        (
            "ModifyVolume",
            vec![
                ("VolumeId", &plain),
                ("Size", "4"),
                ("VolumeType", "io1"),
                ("Iops", "100"),
                ("MultiAttachEnabled", "true"),
            ],
            "InvalidParameterCombination",
            "Multi-Attach can't be enabled for io1 volumes after they were created.",
        ),
        (
            "ModifyVolume",
            vec![of, ("VolumeType", "gp3")],
            "InvalidParameterCombination",
            "The type of a volume with Multi-Attach enabled can't be modified.",
        ),
        (
            "ModifyVolume",
            vec![of, ("MultiAttachEnabled", "false")],
            "IncorrectState",
            &format!("Multi-Attach can't be disabled: volume '{volume}' is attached to more than one instance."),
        ),
    ] {
        let refused = cloud.client.fails(action, &parameters).await;
        assert_eq!(refused, (code.to_owned(), message.to_owned()), "{action} {parameters:?}");
    }
    // Not even by a statement that nobody checks.
    let mut conn = cloud.pool.get().await.unwrap();
    for statement in ["UPDATE volumes SET multi_attach = false", "UPDATE attachments SET multi_attach = false"] {
        diesel::sql_query(statement).execute(&mut conn).await.unwrap_err();
    }
    drop(conn);
    until_attached(&cloud, &volume, 2).await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_attaches_at_once_sixteen_instances_win() {
    let cloud = Cloud::start_with(MANY).await;
    let volume = shared(&cloud, "io2").await;
    let mut instances = cloud.instances().await;
    instances.pop();
    assert_eq!(instances.len(), 17, "of the volume's zone");
    let tries = instances.iter().map(|instance| {
        let (client, volume, instance) = (cloud.client.clone(), volume.clone(), instance.clone());
        tokio::spawn(async move {
            let parameters = [("VolumeId", volume.as_str()), ("InstanceId", &instance), ("Device", "/dev/sdf")];
            let answer = client.call("AttachVolume", &parameters).await;
            (answer.find("Code"), answer.find("Message"))
        })
    });
    let tries: Vec<_> = tries.collect();
    let mut refused = Vec::new();
    for each in tries {
        if let (Some(code), Some(message)) = each.await.unwrap() {
            refused.push((code, message));
        }
    }
    let full = format!("{volume} is already attached to 16 instances, the most that a volume may have");
    assert_eq!(refused, [("VolumeInUse".to_owned(), full)]);
    until_attached(&cloud, &volume, 16).await;
    for (instance, _) in attachments(&cloud, &volume).await {
        detach(&cloud, &volume, &instance).await;
    }
    cloud.volume_becomes(&volume, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_attach_is_switched_on_and_off_and_every_guest_sees_what_the_volume_becomes() {
    let cloud = Cloud::start().await;
    let (volume, instances) = (cloud.volume().await, cloud.instances().await);
    let id = VolumeId::parse(&volume).unwrap();
    modify(&cloud, &volume, &[("Size", "4"), ("VolumeType", "io2"), ("Iops", "100")]).await;
    cloud.attach(&volume, &instances[0], "/dev/sdf").await;
    modify(&cloud, &volume, &[("MultiAttachEnabled", "true")]).await;
    let shown = cloud.client.ok("DescribeVolumesModifications", &[("VolumeId.1", &volume)]).await;
    let fields = ["originalMultiAttachEnabled", "targetMultiAttachEnabled"].map(|field| shown.text(field));
    assert_eq!(fields, ["false", "true"]);
    ask(&cloud, &volume, &instances[1], "/dev/sdf").await;
    until_attached(&cloud, &volume, 2).await;

    let before = cloud.sim.calls("ensure_grown_disk");
    modify(&cloud, &volume, &[("Size", "8"), ("Iops", "200")]).await;
    assert_eq!(cloud.sim.calls("ensure_grown_disk") - before, 2, "each hypervisor was told");
    let limits = Limits { iops: 200, bytes_per_second: 0 };
    assert_eq!(["vm-1", "vm-2"].map(|machine| cloud.sim.limits(machine, &id)), [Some(limits); 2]);

    detach(&cloud, &volume, &instances[0]).await;
    until_attached(&cloud, &volume, 1).await;
    // While it is being switched off nobody slips in.
    cloud.sim.push_fault(Fault::once("ensure_grown_disk", FaultKind::Hang(std::time::Duration::from_millis(300))));
    let off = [("VolumeId", volume.as_str()), ("MultiAttachEnabled", "false")];
    cloud.client.ok("ModifyVolume", &off).await;
    let second = [("VolumeId", volume.as_str()), ("InstanceId", &instances[0]), ("Device", "/dev/sdf")];
    assert_eq!(cloud.client.fails("AttachVolume", &second).await.0, "VolumeInUse");
    cloud.settle().await;
    assert_eq!(cloud.client.fails("AttachVolume", &second).await.0, "VolumeInUse");
    let shown = cloud.client.ok("DescribeVolumes", &[("VolumeId.1", &volume)]).await;
    assert_eq!(shown.text("multiAttachEnabled"), "false");
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_holds_on_keeps_no_other_from_coming_going_or_being_mended() {
    let cloud = Cloud::start_with(CALM).await;
    let volume = shared(&cloud, "io2").await;
    let id = VolumeId::parse(&volume).unwrap();
    let instances = attach_both(&cloud, &volume).await;
    cloud.sim.hold_on("vm-1", true);
    detach(&cloud, &volume, &instances[0]).await;
    cloud.until("busy", async || attachments(&cloud, &volume).await[0].1 == "busy").await;
    detach(&cloud, &volume, &instances[1]).await;
    cloud.until("gone from the other", async || attachments(&cloud, &volume).await.len() == 1).await;
    ask(&cloud, &volume, &instances[1], "/dev/sdh").await;
    cloud
        .until("attached again", async || attachments(&cloud, &volume).await.get(1).is_some_and(|a| a.1 == "attached"))
        .await;
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some() && cloud.sim.guest_writes("vm-2", &id).is_some());

    cloud.sim.stop_machine("vm-2");
    cloud.sim.start_machine("vm-2");
    cloud
        .until("plugged in again", async || {
            vbs::workers::sweeper::sweep(&cloud.context).await.unwrap();
            cloud.sim.guest_writes("vm-2", &id).is_some()
        })
        .await;
    assert_eq!(attachments(&cloud, &volume).await[0], (instances[0].clone(), "busy".into()));
    cloud.sim.hold_on("vm-1", false);
    until_attached(&cloud, &volume, 1).await;
    detach(&cloud, &volume, &instances[1]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_that_fails_or_is_tried_again_leaves_the_other_as_it_is() {
    let cloud = Cloud::start_with(CALM).await;
    let volume = shared(&cloud, "io2").await;
    let id = VolumeId::parse(&volume).unwrap();
    let instances = cloud.instances().await;
    ask(&cloud, &volume, &instances[0], "/dev/sdf").await;
    until_attached(&cloud, &volume, 1).await;
    for verb in ["ensure_exported", "ensure_connected", "ensure_attached"] {
        cloud.sim.push_fault(Fault::once(verb, FaultKind::FailBefore(ErrorKind::Fatal)));
        ask(&cloud, &volume, &instances[1], "/dev/sdf").await;
        cloud.settle().await;
        assert_eq!(attachments(&cloud, &volume).await, [(instances[0].clone(), "attached".to_owned())], "{verb}");
        assert!(cloud.sim.guest_writes("vm-1", &id).is_some(), "{verb}");
    }
    for kind in [FaultKind::EffectThenLost, FaultKind::FailBefore(ErrorKind::Retry)] {
        for verb in ["ensure_exported", "ensure_connected", "ensure_attached"] {
            cloud.sim.push_fault(Fault::once(verb, kind.clone()));
        }
        ask(&cloud, &volume, &instances[1], "/dev/sdf").await;
        until_attached(&cloud, &volume, 2).await;
        for verb in ["ensure_detached", "ensure_disconnected", "ensure_not_exported"] {
            cloud.sim.push_fault(Fault::once(verb, kind.clone()));
        }
        detach(&cloud, &volume, &instances[1]).await;
        cloud.settle().await;
        until_attached(&cloud, &volume, 1).await;
        assert!(cloud.sim.guest_writes("vm-1", &id).is_some() && cloud.sim.faults_left() == 0);
    }
    detach(&cloud, &volume, &instances[0]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attachment_is_mended_and_an_export_that_is_nobodys_ends() {
    let cloud = Cloud::start_with(CALM).await;
    let volume = shared(&cloud, "io2").await;
    let id = VolumeId::parse(&volume).unwrap();
    attach_both(&cloud, &volume).await;
    let storage = cloud.context.nodes.storage("storage-a").unwrap();
    let exports = async || storage.observe().await.unwrap().exports;
    cloud.sim.forget_exports("storage-a");
    cloud.sweep().await;
    let both = exports().await;
    assert_eq!(both.iter().map(|export| export.sessions.len()).collect::<Vec<_>>(), [1, 1]);
    let spec = ExportSpec {
        volume: id.clone(),
        iqn: format!("iqn.2026-01.sim:{id}.left"),
        lun: 1,
        chap_user: "left".into(),
        chap_secret: Secret("left-over-secret".into()),
        initiator_iqn: "iqn.2026-01.sim:somebody".into(),
        beside: both.iter().map(|export| export.iqn.clone()).collect(),
    };
    let raw = cloud.sim.storage("storage-a", &vbs::config::Sim { machines: vec![], capacity_gib: None });
    raw.ensure_exported(Generation(1), &spec).await.unwrap();
    assert_eq!(exports().await.len(), 3);
    cloud.sweep().await;
    assert_eq!(exports().await, both);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_shared_volume_rests_every_guest_that_could_write_to_it() {
    let cloud = Cloud::start().await;
    let (volume, own) = (shared(&cloud, "io2").await, cloud.volume().await);
    let id = VolumeId::parse(&volume).unwrap();
    let instances = attach_both(&cloud, &volume).await;
    cloud.attach(&own, &instances[1], "/dev/sdk").await;
    let written = cloud.sim.guest_writes("vm-2", &id);
    let alone = [("VolumeId", volume.as_str())];
    let together = [("InstanceSpecification.InstanceId", instances[1].as_str())];
    for (action, parameters) in [("CreateSnapshot", &alone), ("CreateSnapshots", &together)] {
        let before = cloud.sim.calls("ensure_paused");
        let taken = cloud.client.ok(action, parameters).await;
        let snapshots: Vec<_> = taken.all("volumeId").into_iter().zip(taken.all("snapshotId")).collect();
        for (of, snapshot) in &snapshots {
            cloud.snapshot_becomes(snapshot, "completed").await;
            if *of == volume {
                let content = cloud.sim.snapshot_content(&SnapshotId::parse(snapshot).unwrap());
                assert!(content.is_some() && content == written, "{action}");
            }
        }
        assert!(cloud.sim.calls("ensure_paused") - before >= 2, "{action}");
    }
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some() && cloud.sim.guest_writes("vm-2", &id).is_some());
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_volume_goes_with_the_last_of_its_instances_if_that_one_says_so() {
    for last_takes_it in [false, true] {
        let cloud = Cloud::start_with(CALM).await;
        let volume = shared(&cloud, "io2").await;
        let instances = attach_both(&cloud, &volume).await;
        let (goes, device) = if last_takes_it { (&instances[1], "/dev/sdg") } else { (&instances[0], "/dev/sdf") };
        let parameters = [("InstanceId", goes.as_str()), ("BlockDeviceMapping.1.DeviceName", device)];
        cloud.client.ok("ModifyInstanceAttribute", &parameters).await;
        for (machine, instance, left) in [("vm-1", &instances[0], 1), ("vm-2", &instances[1], 0)] {
            assert_eq!(attachments(&cloud, &volume).await.len(), left + 1);
            cloud.sim.remove_machine(machine);
            let id = InstanceId::parse(instance).unwrap();
            cloud
                .until("over", async || {
                    vbs::workers::sweeper::sweep(&cloud.context).await.unwrap();
                    let mut conn = cloud.pool.get().await.unwrap();
                    instances::terminate(&mut conn, &id, false).await.unwrap() == Terminated::Done
                })
                .await;
            cloud.sweep().await;
            if left > 0 {
                until_attached(&cloud, &volume, left).await;
            }
        }
        cloud.volume_becomes(&volume, if last_takes_it { "gone" } else { "available" }).await;
        cloud.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_volume_may_be_shared_whatever_its_source_is() {
    let cloud = Cloud::start().await;
    let source = shared(&cloud, "io2").await;
    let of = ("SourceVolumeId", source.as_str());
    for (parameters, multi_attach) in [
        (vec![of, ("VolumeType", "io1"), ("Iops", "100"), ("MultiAttachEnabled", "true")], "true"),
        (vec![of, ("VolumeType", "io2"), ("Iops", "100")], "false"),
    ] {
        let copy = cloud.client.ok("CopyVolumes", &parameters).await;
        assert_eq!(copy.text("multiAttachEnabled"), multi_attach);
        cloud.volume_becomes(&copy.text("volumeId"), "available").await;
    }
    let refused = [of, ("VolumeType", "gp3"), ("MultiAttachEnabled", "true")];
    assert_eq!(cloud.client.fails("CopyVolumes", &refused).await.0, "InvalidParameterCombination");
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attaches_and_detaches_of_one_volume_in_any_order_end_where_the_rows_say() {
    let cloud = Cloud::start_with(MANY).await;
    let volume = shared(&cloud, "io2").await;
    let instances: Vec<String> = cloud.instances().await.into_iter().take(4).collect();
    let tasks: Vec<_> = instances
        .iter()
        .cloned()
        .map(|instance| {
            let (client, volume) = (cloud.client.clone(), volume.clone());
            tokio::spawn(async move {
                let parameters = [("VolumeId", volume.as_str()), ("InstanceId", &instance), ("Device", "/dev/sdf")];
                for _ in 0..4 {
                    for action in ["AttachVolume", "DetachVolume"] {
                        let answer = client.call(action, &parameters).await;
                        let code = answer.find("Code");
                        let expected =
                            [None, Some("VolumeInUse"), Some("IncorrectState"), Some("InvalidAttachment.NotFound")];
                        // A device that is still being freed is taken.
                        assert!(
                            expected.contains(&code.as_deref()) || code.as_deref() == Some("InvalidParameterValue"),
                            "{}",
                            answer.body
                        );
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    cloud.settle().await;
    let id = VolumeId::parse(&volume).unwrap();
    let live = db::attachments::live_of_volume(&mut cloud.pool.get().await.unwrap(), &id).await.unwrap();
    let exports = cloud.context.nodes.storage("storage-a").unwrap().observe().await.unwrap().exports;
    assert_eq!(exports.len(), live.len());
    assert_eq!(cloud.volume_state(&volume).await, if live.is_empty() { "available" } else { "in-use" });
    for (row, _) in &live {
        detach(&cloud, &volume, row.instance_id.as_str()).await;
    }
    cloud.volume_becomes(&volume, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    walk::nothing_is_left(&cloud).await;
}
