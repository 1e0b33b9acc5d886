//! ModifyVolume, DescribeVolumesModifications, DescribeVolumeStatus and the attributes of a volume over HTTP.

use std::time::Duration;

use diesel_async::RunQueryDsl;
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};
use vbs::delegate::{ErrorKind, Limits};
use vbs::ids::VolumeId;

use crate::support::client::Answer;
use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

/// Short enough that a step which fails for good turns back within a test.
const IMPATIENT: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 1 }";
const GIB: u64 = 1 << 30;

async fn modify(cloud: &Cloud, volume: &str, size: &str) -> Answer {
    cloud.client.ok("ModifyVolume", &[("VolumeId", volume), ("Size", size)]).await
}

async fn modification(cloud: &Cloud, volume: &str) -> Answer {
    cloud.client.ok("DescribeVolumesModifications", &[("VolumeId.1", volume)]).await
}

async fn modification_becomes(cloud: &Cloud, volume: &str, state: &str) {
    let shown = async || modification(cloud, volume).await.text("modificationState") == state;
    cloud.until(&format!("the modification is {state}"), shown).await;
}

/// The size that DescribeVolumes shows.
async fn shown_size(cloud: &Cloud, volume: &str) -> String {
    cloud.client.ok("DescribeVolumes", &[("VolumeId.1", volume)]).await.text("size")
}

/// The size that the storage node has.
async fn real_size(cloud: &Cloud, volume: &str) -> u64 {
    let report = cloud.context.nodes.storage("storage-a").unwrap().observe().await.unwrap();
    report.volumes.iter().find(|(id, _)| id.as_str() == volume).unwrap().1
}

async fn sql(cloud: &Cloud, statement: &str) {
    diesel::sql_query(statement).execute(&mut cloud.pool.get().await.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_volume_grows_and_becomes_another_type_under_its_guest() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    let written = cloud.sim.guest_writes("vm-1", &VolumeId::parse(&volume).unwrap());
    let asked = [("VolumeId", volume.as_str()), ("Size", "3"), ("VolumeType", "gp3"), ("Throughput", "200")];
    let answer = cloud.client.ok("ModifyVolume", &asked).await;
    assert_eq!((answer.text("modificationState"), answer.text("progress")), ("modifying".into(), "0".into()));
    assert_eq!((answer.find("endTime"), answer.find("originalThroughput")), (None, None));
    modification_becomes(&cloud, &volume, "completed").await;
    let shown = modification(&cloud, &volume).await;
    for (field, value) in [
        ("volumeId", volume.as_str()),
        ("originalSize", "1"),
        ("originalIops", "100"),
        ("originalVolumeType", "gp2"),
        ("targetSize", "3"),
        ("targetIops", "3000"),
        ("targetVolumeType", "gp3"),
        ("targetThroughput", "200"),
        ("targetMultiAttachEnabled", "false"),
        ("progress", "100"),
    ] {
        assert_eq!(shown.text(field), value, "{field}");
    }
    assert!(shown.find("endTime").is_some() && shown.find("statusMessage").is_none(), "{}", shown.body);
    let described = cloud.client.ok("DescribeVolumes", &[("VolumeId.1", &volume)]).await;
    let fields = ["size", "volumeType", "iops", "throughput"].map(|field| described.text(field));
    assert_eq!(fields, ["3", "gp3", "3000", "200"]);
    assert_eq!(real_size(&cloud, &volume).await, 3 * GIB);
    assert_eq!(cloud.sim.calls("ensure_grown_disk"), 1, "the hypervisor was told");
    let limits = Limits { iops: 3_000, bytes_per_second: 200 << 20 };
    assert_eq!(cloud.sim.limits("vm-1", &VolumeId::parse(&volume).unwrap()), Some(limits));
    assert_eq!(cloud.sim.volume_content(&VolumeId::parse(&volume).unwrap()), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_modifications_say_what_clients_search_for_and_change_nothing() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let id = ("VolumeId", volume.as_str());
    let never = format!("Modification for volume '{volume}' does not exist.");
    for (action, parameters, code, message) in [
        (
            "ModifyVolume",
            vec![("DryRun", "true"), ("VolumeId", "bad")],
            "DryRunOperation",
            "Request would have succeeded, but DryRun flag is set.",
        ),
        (
            "ModifyVolume",
            vec![("Size", "2")],
            "MissingParameter",
            "Value (null) for parameter volumeId is invalid. Parameter may not be null or empty.",
        ),
        (
            "ModifyVolume",
            vec![("VolumeId", "vol-00000000"), ("Size", "2")],
            "InvalidVolume.NotFound",
            "The volume 'vol-00000000' does not exist.",
        ),
        (
            "ModifyVolume",
            vec![id],
            "InvalidParameterValue",
            "Invalid input: Must specify at least one of size, type, iops, throughput or multi-attach.",
        ),
        (
            "ModifyVolume",
            vec![id, ("Size", "0")],
            "InvalidParameterValue",
            "New size cannot be smaller than existing size",
        ),
        (
            "ModifyVolume",
            vec![id, ("Size", "16385")],
            "InvalidParameterValue",
            "Volume of 16385GiB is too large for volume type gp2; maximum is 16384GiB",
        ),
        (
            "ModifyVolume",
            vec![id, ("MultiAttachEnabled", "true")],
            "InvalidParameterCombination",
            "The parameter multi-attach-enabled is not supported for gp2 volumes.",
        ),
        ("ModifyVolume", vec![id, ("KmsKeyId", "x")], "UnknownParameter", "The parameter KmsKeyId is not recognized"),
        (
            "DescribeVolumesModifications",
            vec![("VolumeId.1", &volume), ("Filter.1.Name", "nonsense")],
            "InvalidVolumeModification.NotFound",
            &never,
        ),
        (
            "DescribeVolumesModifications",
            vec![("VolumeId.1", "vol-00000000")],
            "InvalidVolume.NotFound",
            "The volume 'vol-00000000' does not exist.",
        ),
        (
            "DescribeVolumesModifications",
            vec![("Filter.1.Name", "nonsense")],
            "InvalidParameterValue",
            "The filter 'nonsense' is invalid",
        ),
        (
            "DescribeVolumesModifications",
            vec![("VolumeId.1", &volume), ("MaxResults", "5")],
            "InvalidParameterCombination",
            "The parameter volumeModificationSet cannot be used with the parameter maxResults",
        ),
        (
            "DescribeVolumesModifications",
            vec![("NextToken", "invalid")],
            "InvalidParameterValue",
            "Value ( invalid ) for parameter NextToken is invalid. The token is Invalid.",
        ),
    ] {
        assert_eq!(
            cloud.client.fails(action, &parameters).await,
            (code.to_owned(), message.to_owned()),
            "{parameters:?}"
        );
    }
    assert_eq!(shown_size(&cloud, &volume).await, "1");
    assert_eq!(cloud.sim.calls("ensure_grown"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_accounts_volume_does_not_exist() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let stranger = cloud.another_account("222222222222").await;
    let id = ("VolumeId", volume.as_str());
    modify(&cloud, &volume, "2").await;
    modification_becomes(&cloud, &volume, "completed").await;
    let gone = format!("The volume '{volume}' does not exist.");
    for (action, parameters) in [
        ("ModifyVolume", vec![id, ("Size", "2")]),
        ("DescribeVolumesModifications", vec![("VolumeId.1", volume.as_str())]),
        ("DescribeVolumeStatus", vec![("VolumeId.1", &volume)]),
        ("DescribeVolumeAttribute", vec![id, ("Attribute", "autoEnableIO")]),
        ("ModifyVolumeAttribute", vec![id, ("AutoEnableIO.Value", "true")]),
        ("EnableVolumeIO", vec![id]),
    ] {
        assert_eq!(stranger.fails(action, &parameters).await, ("InvalidVolume.NotFound".into(), gone.clone()));
    }
    for action in ["DescribeVolumesModifications", "DescribeVolumeStatus"] {
        assert!(!stranger.ok(action, &[]).await.body.contains(&volume));
    }
    assert_eq!(shown_size(&cloud, &volume).await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_has_one_modification_at_a_time_and_four_a_day_of_which_those_that_failed_do_not_count() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    cloud.sim.push_fault(Fault::once("ensure_grown", FaultKind::Hang(Duration::from_millis(500))));
    modify(&cloud, &volume, "2").await;
    let again = [("VolumeId", volume.as_str()), ("Size", "3")];
    let (code, message) = cloud.client.fails("ModifyVolume", &again).await;
    assert_eq!(code, "IncorrectModificationState");
    assert_eq!(message, format!("Volume {volume} cannot be modified in modification state MODIFYING"));
    assert_eq!(shown_size(&cloud, &volume).await, "1", "not before it has grown");
    modification_becomes(&cloud, &volume, "completed").await;
    cloud.sim.push_fault(Fault::once("ensure_grown", FaultKind::FailBefore(ErrorKind::NoRoom)));
    modify(&cloud, &volume, "3").await;
    modification_becomes(&cloud, &volume, "failed").await;
    let failed = modification(&cloud, &volume).await;
    assert_eq!(failed.text("statusMessage"), "There is not enough capacity where the volume is for its new size.");
    assert!(failed.find("endTime").is_some());
    assert_eq!((shown_size(&cloud, &volume).await, real_size(&cloud, &volume).await), ("2".into(), 2 * GIB));
    // What changes nothing counts.
    for size in ["2", "3", "3"] {
        modify(&cloud, &volume, size).await;
        modification_becomes(&cloud, &volume, "completed").await;
    }
    let (code, message) = cloud.client.fails("ModifyVolume", &again).await;
    assert_eq!(code, "VolumeModificationRateExceeded");
    let text = "You've reached the maximum modification rate per volume limit. Wait until ";
    assert!(
        message.starts_with(text)
            && message.ends_with("Z before you can issue the next modification request for this volume."),
        "{message}"
    );
    // The first of them was a day ago.
    sql(&cloud, "UPDATE volume_modifications SET recent[1] = now() - interval '25 hours'").await;
    modify(&cloud, &volume, "4").await;
    modification_becomes(&cloud, &volume, "completed").await;
    assert_eq!(cloud.client.fails("ModifyVolume", &again).await.0, "InvalidParameterValue", "it would shrink");
    let again = [("VolumeId", volume.as_str()), ("Size", "4")];
    assert_eq!(cloud.client.fails("ModifyVolume", &again).await.0, "VolumeModificationRateExceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_modifications_at_once_one_is_taken() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    cloud.sim.push_fault(Fault::once("ensure_grown", FaultKind::Hang(Duration::from_millis(500))));
    let tries: Vec<_> = (2..14)
        .map(|size: u32| {
            let (client, volume) = (cloud.client.clone(), volume.clone());
            tokio::spawn(async move {
                let answer = client.call("ModifyVolume", &[("VolumeId", &volume), ("Size", &size.to_string())]).await;
                (answer.status, answer.find("Code"))
            })
        })
        .collect();
    let mut taken = 0;
    for each in tries {
        match each.await.unwrap() {
            (200, _) => taken += 1,
            (400, Some(code)) => assert_eq!(code, "IncorrectModificationState"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(taken, 1);
    modification_becomes(&cloud, &volume, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_has_grown_is_shown_so_whatever_was_heard_of_it() {
    for kind in [FaultKind::EffectThenLost, FaultKind::Garbage] {
        let cloud = Cloud::start_with(IMPATIENT).await;
        let volume = cloud.volume().await;
        cloud.sim.push_fault(Fault::once("ensure_grown", kind));
        modify(&cloud, &volume, "2").await;
        modification_becomes(&cloud, &volume, "completed").await;
        assert_eq!((shown_size(&cloud, &volume).await, real_size(&cloud, &volume).await), ("2".into(), 2 * GIB));
    }
    let cloud = Cloud::start_with(IMPATIENT).await;
    let volume = cloud.volume().await;
    cloud.sim.push_fault(Fault::always("ensure_grown", FaultKind::EffectThenLost));
    modify(&cloud, &volume, "2").await;
    modification_becomes(&cloud, &volume, "completed").await;
    assert_eq!(shown_size(&cloud, &volume).await, "2", "its node was looked at");
    drop(cloud);
    let cloud = Cloud::start_with(IMPATIENT).await;
    let volume = cloud.volume().await;
    cloud.sim.push_fault(Fault::always("ensure_grown", FaultKind::Garbage));
    modify(&cloud, &volume, "2").await;
    modification_becomes(&cloud, &volume, "failed").await;
    let shown = modification(&cloud, &volume).await;
    assert_eq!(shown.text("statusMessage"), "The volume could not be modified. Try again later.");
    assert_eq!((shown_size(&cloud, &volume).await, real_size(&cloud, &volume).await), ("1".into(), GIB));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_be_told_sees_the_new_size_at_its_next_attach() {
    for kind in [ErrorKind::Fatal, ErrorKind::Retry] {
        let cloud = Cloud::start_with(IMPATIENT).await;
        let volume = cloud.volume().await;
        cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
        cloud.sim.push_fault(Fault::always("ensure_grown_disk", FaultKind::FailBefore(kind)));
        modify(&cloud, &volume, "2").await;
        modification_becomes(&cloud, &volume, "completed").await;
        let shown = modification(&cloud, &volume).await;
        let message = "An instance that has the volume attached sees its new size when it is attached again.";
        assert_eq!(shown.text("statusMessage"), message);
        assert_eq!(shown_size(&cloud, &volume).await, "2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_a_volume_grows_is_followed_by_another() {
    for verb in ["ensure_grown", "ensure_grown_disk"] {
        for kind in [FaultKind::Hang(Duration::from_secs(60)), FaultKind::EffectThenHang(Duration::from_secs(60))] {
            let (url, sim) = (postgres::database().await, SimCloud::new());
            let short_lease = "workers = { lease_s = 1, poll_s = 1, sweep_s = 1 }";
            let first = Cloud::join(&url, &sim, short_lease).await;
            let volume = first.volume().await;
            first.attach(&volume, &first.instances().await[0], "/dev/sdf").await;
            sim.push_fault(Fault::once(verb, kind));
            modify(&first, &volume, "2").await;
            first.until("hanging", async || sim.calls(verb) == 1).await;
            drop(first);
            let second = Cloud::join(&url, &sim, short_lease).await;
            modification_becomes(&second, &volume, "completed").await;
            assert_eq!((shown_size(&second, &volume).await, real_size(&second, &volume).await), ("2".into(), 2 * GIB));
            assert!(sim.calls("ensure_grown_disk") > 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_a_volume_while_it_grows_finds_it_grown() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    cloud.sim.push_fault(Fault::once("ensure_grown", FaultKind::Hang(Duration::from_millis(500))));
    // One that is cut before, and still being copied, keeps its size.
    cloud.sim.copy_in_background(0);
    let earlier = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    modify(&cloud, &volume, "2").await;
    let snapshot = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.sim.copy_in_background(100);
    for (id, size) in [(&earlier, "1"), (&snapshot, "2")] {
        cloud.snapshot_becomes(id, "completed").await;
        let shown = cloud.client.ok("DescribeSnapshots", &[("SnapshotId.1", id)]).await;
        assert_eq!(shown.text("volumeSize"), size, "a volume of the size that is shown can be made from it");
    }
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &earlier)]).await;
    let parameters = [("AvailabilityZone", "us-east-1a"), ("SnapshotId", snapshot.as_str())];
    let restored = cloud.client.ok("CreateVolume", &parameters).await.text("volumeId");
    cloud.volume_becomes(&restored, "available").await;
    // One that is deleted while it grows is gone, with its modification.
    let slow = FaultKind::Hang(Duration::from_millis(500));
    cloud.sim.push_fault(Fault::once("ensure_grown", slow));
    modify(&cloud, &volume, "3").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    let asked = [("VolumeId.1", volume.as_str())];
    for action in ["DescribeVolumesModifications", "DescribeVolumeStatus"] {
        assert_eq!(cloud.client.fails(action, &asked).await.0, "InvalidVolume.NotFound");
        assert!(!cloud.client.ok(action, &[]).await.body.contains(&volume));
    }
    cloud.client.ok("DeleteVolume", &[("VolumeId", &restored)]).await;
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modification_that_has_to_wait_holds_up_neither_attach_nor_detach_and_no_guest_that_holds_on_holds_it_up() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let instance = &cloud.instances().await[0];
    // As while a thick volume's snapshot is copied.
    let busy = FaultKind::FailBefore(ErrorKind::Busy);
    cloud.sim.push_fault(Fault { verb: "ensure_grown", after: 0, times: 6, kind: busy });
    modify(&cloud, &volume, "2").await;
    cloud.until("waiting", async || cloud.sim.calls("ensure_grown") > 0).await;
    cloud.attach(&volume, instance, "/dev/sdf").await;
    assert_eq!(modification(&cloud, &volume).await.text("modificationState"), "modifying");
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    modification_becomes(&cloud, &volume, "completed").await;
    cloud.attach(&volume, instance, "/dev/sdf").await;
    cloud.sim.hold_on("vm-1", true);
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.until("busy", async || cloud.attachment_state(&volume).await.as_deref() == Some("busy")).await;
    modify(&cloud, &volume, "3").await;
    modification_becomes(&cloud, &volume, "completed").await;
    cloud.sim.hold_on("vm-1", false);
    cloud.volume_becomes(&volume, "available").await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modifications_are_found_by_filters_and_in_pages() {
    let cloud = Cloud::start().await;
    let mut volumes = Vec::new();
    for size in 1..=6 {
        let volume = cloud.volume().await;
        modify(&cloud, &volume, &size.to_string()).await;
        modification_becomes(&cloud, &volume, "completed").await;
        volumes.push(volume);
    }
    let untouched = cloud.volume().await;
    let found = async |filters: &[(&str, &str)]| {
        let answer = cloud.client.ok("DescribeVolumesModifications", filters).await;
        assert!(!answer.body.contains(&untouched));
        answer.all("targetSize")
    };
    let by = |name, value| [("Filter.1.Name", name), ("Filter.1.Value.1", value)];
    assert_eq!(found(&[]).await.len(), 6);
    for (name, value, count) in [
        ("modification-state", "completed", 6),
        ("modification-state", "failed", 0),
        ("target-size", "4", 1),
        ("original-size", "1", 6),
        ("original-iops", "10?", 6),
        ("target-iops", "100", 6),
        ("original-volume-type", "gp2", 6),
        ("target-volume-type", "gp3", 0),
        ("target-multi-attach-enabled", "false", 6),
        ("targetMultiAttachEnabled", "true", 0),
        ("originalMultiAttachEnabled", "false", 6),
        ("start-time", "2*.000Z", 6),
        ("volume-id", &volumes[2], 1),
    ] {
        assert_eq!(found(&by(name, value)).await.len(), count, "{name}={value}");
    }
    let one = [("VolumeId.1", volumes[0].as_str()), ("Filter.1.Name", "target-size"), ("Filter.1.Value.1", "2")];
    assert_eq!(found(&one).await, [""; 0], "a filter that selects nothing is no fault");
    let first = cloud.client.ok("DescribeVolumesModifications", &[("MaxResults", "5")]).await;
    let next = [("MaxResults", "5"), ("NextToken", &*first.text("nextToken"))];
    let second = cloud.client.ok("DescribeVolumesModifications", &next).await;
    let mut seen = [first.all("volumeId"), second.all("volumeId")].concat();
    seen.sort();
    volumes.sort();
    assert_eq!((seen, second.find("nextToken")), (volumes, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_ok_while_its_node_answers_and_impaired_when_it_was_silent_for_long() {
    let cloud = Cloud::start_with("workers = { sweep_s = 3600 }").await;
    let volume = cloud.volume().await;
    let instance = cloud.instances().await.remove(0);
    cloud.attach(&volume, &instance, "/dev/sdf").await;
    let id = ("VolumeId.1", volume.as_str());
    let status = async || cloud.client.ok("DescribeVolumeStatus", &[id]).await;
    cloud.sweep().await;
    let shown = status().await;
    let details = "<volumeStatus><status>ok</status><details><item><name>io-enabled</name><status>passed</status></item>\
        <item><name>io-performance</name><status>not-applicable</status></item></details></volumeStatus>\
        <actionsSet/><eventsSet/>";
    assert!(shown.body.contains(details), "{}", shown.body);

    cloud.sim.push_fault(Fault::always("observe_storage", FaultKind::FailBefore(ErrorKind::Retry)));
    cloud.sweep().await;
    assert_eq!(status().await.text("status"), "insufficient-data");
    sql(&cloud, "UPDATE nodes SET answered_at = now() - interval '6 minutes' WHERE kind = 'storage'").await;
    let shown = status().await;
    assert_eq!((shown.text("status"), shown.text("eventType")), ("impaired".into(), "io-performance:stalled".into()));
    assert_eq!((shown.text("description"), shown.text("ioPerformance")), ("Stalled".into(), "stalled".into()));
    let event = shown.text("eventId");
    assert_eq!(status().await.text("eventId"), event, "the same event");

    let since = shown.text("notBefore");
    for (name, value, found) in [
        ("volume-status.status", "impaired", true),
        ("volume-status.status", "ok", false),
        ("volume-status.details-name", "io-perf*", true),
        ("volume-status.details-name", "initialization-state", false),
        ("volume-status.details-status", "stalled", true),
        ("volume-status.details-status", "failed", false),
        ("attachment-status.instance-id", &instance, true),
        ("attachment-status.io-performance", "stalled", true),
        ("availability-zone", "us-east-1a", true),
        ("event.event-id", &event, true),
        ("event.event-type", "io-performance:*", true),
        ("event.description", "Stalled", true),
        ("event.not-before", &since, true),
        ("event.not-after", "*", false),
        ("action.code", "*", false),
        ("action.event-id", "*", false),
        ("action.description", "*", false),
    ] {
        for ids in [&[id][..], &[]] {
            let parameters = [ids, &[("Filter.1.Name", name), ("Filter.1.Value.1", value)][..]].concat();
            let answer = cloud.client.ok("DescribeVolumeStatus", &parameters).await;
            assert_eq!(answer.body.contains(&volume), found, "{name}={value}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_volumes_comes_in_pages_and_tells_of_their_snapshots() {
    let cloud = Cloud::start().await;
    let mut volumes = Vec::new();
    for _ in 0..5 {
        volumes.push(cloud.volume().await);
    }
    let snapshot = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volumes[0])]).await.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "completed").await;
    let parameters =
        [("AvailabilityZone", "us-east-1a"), ("SnapshotId", &*snapshot), ("VolumeInitializationRate", "100")];
    let restored = cloud.client.ok("CreateVolume", &parameters).await.text("volumeId");
    cloud.volume_becomes(&restored, "available").await;
    let shown = cloud.client.ok("DescribeVolumeStatus", &[("VolumeId.1", &restored)]).await;
    let details = "<initializationStatusDetails><initializationType>provisioned-rate</initializationType>\
        <progress>100</progress><estimatedTimeToCompleteInSeconds>0</estimatedTimeToCompleteInSeconds>";
    assert!(shown.body.contains(details), "{}", shown.body);
    assert!(shown.body.contains("<name>initialization-state</name><status>completed</status>"));
    volumes.push(restored);
    volumes.sort();
    let first = cloud.client.ok("DescribeVolumeStatus", &[("MaxResults", "5"), ("VolumeId.1", "")]).await;
    let next = [("NextToken", &*first.text("nextToken"))];
    let second = cloud.client.ok("DescribeVolumeStatus", &next).await;
    assert_eq!([first.all("volumeId"), second.all("volumeId")].concat(), volumes);
    for (id, message) in [("bad", "Invalid id: \"bad\" (expecting \"vol-...\")"), ("vol-0", "Invalid id: \"vol-0\"")] {
        let refused = cloud.client.fails("DescribeVolumeStatus", &[("VolumeId.1", id)]).await;
        assert_eq!(refused, ("InvalidVolumeID.Malformed".into(), message.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_kept_and_shown_one_at_a_time() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let id = ("VolumeId", volume.as_str());
    let shown =
        async |attribute| cloud.client.ok("DescribeVolumeAttribute", &[id, ("Attribute", attribute)]).await.body;
    assert!(shown("autoEnableIO").await.contains("<autoEnableIO><value>false</value></autoEnableIO>"));
    assert_eq!(
        cloud.client.ok("ModifyVolumeAttribute", &[id, ("AutoEnableIO.Value", "true")]).await.text("return"),
        "true"
    );
    let body = shown("autoEnableIO").await;
    assert!(body.contains("<autoEnableIO><value>true</value></autoEnableIO>") && !body.contains("productCodes"));
    assert!(shown("productCodes").await.contains("<productCodes/>"));
    assert_eq!(cloud.client.ok("EnableVolumeIO", &[id]).await.text("return"), "true");
    let absent = "Value (null) for parameter volumeId is invalid. Parameter may not be null or empty.";
    for (action, parameters, code, message) in [
        ("DescribeVolumeAttribute", vec![id], "InvalidParameterCombination", "No attributes specified."),
        (
            "DescribeVolumeAttribute",
            vec![id, ("Attribute", "")],
            "InvalidParameterCombination",
            "No attributes specified.",
        ),
        (
            "DescribeVolumeAttribute",
            vec![id, ("Attribute", "bad")],
            "InvalidParameterValue",
            "Value (bad) for parameter attribute is invalid. Unknown attribute.",
        ),
        ("ModifyVolumeAttribute", vec![id], "InvalidParameterCombination", "No attributes specified."),
        ("ModifyVolumeAttribute", vec![("AutoEnableIO.Value", "true")], "MissingParameter", "volumeId"),
        (
            "ModifyVolumeAttribute",
            vec![("VolumeId", "bad"), ("AutoEnableIO.Value", "true")],
            "InvalidVolumeID.Malformed",
            "The volume ID 'bad' is malformed",
        ),
        ("EnableVolumeIO", vec![], "MissingParameter", absent),
        (
            "EnableVolumeIO",
            vec![("VolumeId", "vol-00000000")],
            "InvalidVolume.NotFound",
            "The volume 'vol-00000000' does not exist.",
        ),
        (
            "EnableVolumeIO",
            vec![("DryRun", "true")],
            "DryRunOperation",
            "Request would have succeeded, but DryRun flag is set.",
        ),
    ] {
        assert_eq!(
            cloud.client.fails(action, &parameters).await,
            (code.to_owned(), message.to_owned()),
            "{parameters:?}"
        );
    }
}
