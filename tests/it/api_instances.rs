//! Instances: their status, types and attributes, and what becomes of their volumes when they are gone for good.

use std::time::Duration;

use diesel_async::RunQueryDsl;
use vbs::db::instances::{self, Terminated};
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};
use vbs::ids::InstanceId;

use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

/// Swept only when the test says so.
const CALM: &str = "workers = { sweep_s = 3600, lease_s = 2, poll_s = 1 }";
const SHORT_LEASE: &str = "workers = { lease_s = 1, poll_s = 1, sweep_s = 1 }";

/// The operator says that a machine which is off will not come back.
async fn terminate(cloud: &Cloud, instance: &str) -> Terminated {
    let id = InstanceId::parse(instance).unwrap();
    instances::terminate(&mut cloud.pool.get().await.unwrap(), &id, false).await.unwrap()
}

async fn goes_with_its_instance(cloud: &Cloud, volume: &str) -> String {
    cloud.client.ok("DescribeVolumes", &[("VolumeId.1", volume)]).await.text("deleteOnTermination")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_that_of_the_machine_and_only_running_ones_are_shown_unasked() {
    // Without a sweeper of its own, which might still be writing what it saw before.
    let cloud = Cloud::start_with("workers = { concurrency = 0 }").await;
    let all = cloud.instances().await;
    cloud.sim.stop_machine("vm-2");
    cloud.sweep().await;
    let answer = cloud.client.ok("DescribeInstanceStatus", &[]).await;
    let mut running = answer.all("instanceId");
    running.sort();
    let mut expected = vec![all[0].clone(), all[2].clone()];
    expected.sort();
    assert_eq!(running, expected);
    assert_eq!(answer.all("status"), ["ok", "passed", "ok", "passed"].repeat(2));
    let stopped = [("InstanceId.1", all[1].as_str())];
    assert!(cloud.client.ok("DescribeInstanceStatus", &stopped).await.body.contains("<instanceStatusSet/>"));
    let asked = [stopped[0], ("IncludeAllInstances", "true")];
    let answer = cloud.client.ok("DescribeInstanceStatus", &asked).await;
    assert_eq!((answer.text("name"), answer.all("status")), ("stopped".into(), vec!["not-applicable".to_owned(); 2]));
    for (name, value, count) in [
        ("instance-status.status", "ok", 2),
        ("system-status.reachability", "passed", 2),
        ("instance-state-name", "stopped", 1),
        ("availability-zone", "us-east-1b", 1),
        ("event.code", "*", 0),
        ("attached-ebs-status.status", "*", 0),
    ] {
        let filter = [("Filter.1.Name", name), ("Filter.1.Value.1", value), ("IncludeAllInstances", "true")];
        assert_eq!(cloud.client.ok("DescribeInstanceStatus", &filter).await.all("instanceId").len(), count, "{name}");
    }
    let unknown = [("InstanceId.1", "i-00000001"), ("InstanceId.2", all[0].as_str()), ("InstanceId.3", "i-00000002")];
    let found = cloud.client.fails("DescribeInstanceStatus", &unknown).await;
    assert_eq!(
        found,
        ("InvalidInstanceID.NotFound".into(), "The instance IDs 'i-00000001, i-00000002' do not exist".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_stands_for_the_shape_of_machines_and_tells_how_many_volumes_fit() {
    let cloud = Cloud::start_with("quotas = { attachments = 7 }").await;
    let answer = cloud.client.ok("DescribeInstanceTypes", &[]).await;
    assert_eq!(answer.all("instanceType"), ["vbs.1x128"], "three machines of one shape");
    assert_eq!(answer.text("maximumEbsAttachments"), "7");
    let described = cloud.client.ok("DescribeInstances", &[]).await;
    assert_eq!(described.all("instanceType"), ["vbs.1x128"; 3]);
    assert_eq!(
        cloud.client.fails("DescribeInstanceTypes", &[("InstanceType.1", "m5.large")]).await,
        ("InvalidInstanceType".into(), "The following supplied instance types do not exist: [m5.large]".into())
    );
    for (name, value, count) in [("memory-info.size-in-mib", "128", 1), ("bare-metal", "true", 0)] {
        let filter = [("Filter.1.Name", name), ("Filter.1.Value.1", value)];
        let answer = cloud.client.ok("DescribeInstanceTypes", &filter).await;
        assert_eq!(answer.all("instanceType").len(), count, "{name}");
    }
    let stranger = cloud.another_account("999999999999").await;
    assert_eq!(stranger.ok("DescribeInstanceTypes", &[]).await.all("instanceType"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_volume_goes_with_its_instance_is_set_by_device() {
    let cloud = Cloud::start().await;
    let (volume, instance) = (cloud.volume().await, cloud.instances().await.remove(0));
    cloud.attach(&volume, &instance, "/dev/sdf").await;
    let id = ("InstanceId", instance.as_str());
    let mapping = |device, delete| {
        [id, ("BlockDeviceMapping.1.DeviceName", device), ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", delete)]
    };
    assert_eq!(goes_with_its_instance(&cloud, &volume).await, "false");
    let trial = [&mapping("/dev/sdf", "true")[..], &[("DryRun", "true")]].concat();
    assert_eq!(cloud.client.fails("ModifyInstanceAttribute", &trial).await.0, "DryRunOperation");
    for (parameters, expected) in [
        (mapping("/dev/sdf", "true").to_vec(), "true"),
        (vec![id, ("Attribute", "blockDeviceMapping"), ("Value", "/dev/sdf=false")], "false"),
        (vec![id, ("BlockDeviceMapping.1.DeviceName", "xvdf")], "true"),
    ] {
        cloud.client.ok("ModifyInstanceAttribute", &parameters).await;
        assert_eq!(goes_with_its_instance(&cloud, &volume).await, expected, "{parameters:?}");
        let asked = [id, ("Attribute", "blockDeviceMapping")];
        let answer = cloud.client.ok("DescribeInstanceAttribute", &asked).await;
        assert_eq!(
            (answer.text("deviceName"), answer.text("deleteOnTermination")),
            ("/dev/sdf".into(), expected.into())
        );
        assert_eq!(cloud.client.ok("DescribeInstances", &[]).await.text("deleteOnTermination"), expected);
    }
    for (parameters, code, message) in [
        (
            mapping("/dev/sdg", "true").to_vec(),
            "InvalidInstanceAttributeValue",
            "No device is currently mapped at /dev/sdg",
        ),
        (vec![id], "InvalidParameterCombination", "No attributes specified."),
        (
            vec![id, ("InstanceType.Value", "m5.large")],
            "UnsupportedOperation",
            "The instance attribute instanceType is not supported here.",
        ),
    ] {
        let found = cloud.client.fails("ModifyInstanceAttribute", &parameters).await;
        assert_eq!(found, (code.to_owned(), message.to_owned()));
    }
    let stranger = cloud.another_account("999999999999").await;
    let gone = ("InvalidInstanceID.NotFound".to_owned(), format!("The instance ID '{instance}' does not exist"));
    assert_eq!(stranger.fails("ModifyInstanceAttribute", &mapping("/dev/sdf", "false")).await, gone);
    assert_eq!(stranger.fails("DescribeInstanceAttribute", &[id, ("Attribute", "kernel")]).await, gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attribute_of_an_instance_is_told_or_refused_by_name() {
    let cloud = Cloud::start().await;
    let instance = cloud.instances().await.remove(0);
    let ask = async |attribute| {
        let parameters = [("InstanceId", instance.as_str()), ("Attribute", attribute)];
        cloud.client.call("DescribeInstanceAttribute", &parameters).await
    };
    for (attribute, value) in [
        ("instanceType", "vbs.1x128"),
        ("rootDeviceName", "/dev/sda1"),
        ("disableApiTermination", "true"),
        ("instanceInitiatedShutdownBehavior", "stop"),
        ("ebsOptimized", "false"),
    ] {
        assert_eq!(ask(attribute).await.text("value"), value, "{attribute}");
    }
    assert_eq!(ask("sourceDestCheck").await.text("Code"), "UnsupportedOperation");
    assert_eq!(ask("colour").await.text("Code"), "InvalidParameterValue");
    assert_eq!(ask("").await.text("Message"), "The request must contain the parameter attribute");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_gone_for_good_takes_along_the_volumes_that_go_with_it_and_no_others() {
    let cloud = Cloud::start_with(CALM).await;
    let instance = cloud.instances().await.remove(0);
    let (stays, goes, taken_out) = (cloud.volume().await, cloud.volume().await, cloud.volume().await);
    for (volume, device) in [(&stays, "/dev/sdf"), (&goes, "/dev/sdg"), (&taken_out, "/dev/sdh")] {
        cloud.attach(volume, &instance, device).await;
    }
    for device in ["/dev/sdg", "/dev/sdh"] {
        let parameters = [("InstanceId", instance.as_str()), ("BlockDeviceMapping.1.DeviceName", device)];
        cloud.client.ok("ModifyInstanceAttribute", &parameters).await;
    }
    assert_eq!(terminate(&cloud, &instance).await, Terminated::Running);
    // This one its owner takes out while the guest holds on to it; it is kept.
    cloud.sim.hold_on("vm-1", true);
    cloud.client.ok("DetachVolume", &[("VolumeId", &taken_out)]).await;
    cloud.until("busy", async || cloud.attachment_state(&taken_out).await.as_deref() == Some("busy")).await;
    let shown = [("Filter.1.Name", "block-device-mapping.status"), ("Filter.1.Value.1", "detaching")];
    let described = cloud.client.ok("DescribeInstances", &shown).await;
    assert!(described.body.contains("<status>detaching</status>") && !described.body.contains("busy"));
    cloud.sim.remove_machine("vm-1");
    cloud
        .until("over", async || {
            vbs::workers::sweeper::sweep(&cloud.context).await.unwrap();
            terminate(&cloud, &instance).await == Terminated::Done
        })
        .await;
    for verb in ["ensure_detached", "ensure_disconnected", "ensure_not_exported", "ensure_no_volume"] {
        cloud.sim.push_fault(Fault::once(verb, FaultKind::EffectThenLost));
    }
    cloud.sweep().await;
    cloud.volume_becomes(&stays, "available").await;
    cloud.volume_becomes(&taken_out, "available").await;
    cloud.volume_becomes(&goes, "gone").await;
    let shown = cloud.client.ok("DescribeInstances", &[("InstanceId.1", &instance)]).await;
    assert!(shown.body.contains("<name>terminated</name>") && shown.body.contains("<blockDeviceMapping/>"));
    let attach = [("VolumeId", stays.as_str()), ("InstanceId", &instance), ("Device", "/dev/sdf")];
    assert_eq!(cloud.client.fails("AttachVolume", &attach).await.0, "InvalidInstanceID.NotFound");
    // Drivers detach when an instance is over, and take this for done.
    assert_eq!(cloud.client.fails("DetachVolume", &attach).await.0, "IncorrectState");
    for volume in [&stays, &taken_out] {
        cloud.client.ok("DeleteVolume", &[("VolumeId", volume)]).await;
        cloud.volume_becomes(volume, "gone").await;
    }
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_just_being_attached_ends_with_its_instance_too() {
    let cloud = Cloud::start_with(CALM).await;
    let (volume, instance) = (cloud.volume().await, cloud.instances().await.remove(0));
    cloud.sim.push_fault(Fault::once("ensure_connected", FaultKind::Hang(Duration::from_millis(1500))));
    let parameters = [("VolumeId", volume.as_str()), ("InstanceId", &instance), ("Device", "/dev/sdf")];
    cloud.client.ok("AttachVolume", &parameters).await;
    let goes = [("InstanceId", instance.as_str()), ("BlockDeviceMapping.1.DeviceName", "/dev/sdf")];
    cloud.client.ok("ModifyInstanceAttribute", &goes).await;
    cloud.sim.remove_machine("vm-1");
    cloud
        .until("over", async || {
            vbs::workers::sweeper::sweep(&cloud.context).await.unwrap();
            terminate(&cloud, &instance).await == Terminated::Done
        })
        .await;
    cloud.sweep().await;
    cloud.volume_becomes(&volume, "gone").await;
    walk::nothing_is_left(&cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_while_it_takes_a_volume_along_is_followed_by_another() {
    for verb in ["ensure_detached", "ensure_not_exported", "ensure_no_volume"] {
        let (url, sim) = (postgres::database().await, SimCloud::new());
        let first = Cloud::join(&url, &sim, SHORT_LEASE).await;
        let (volume, instance) = (first.volume().await, first.instances().await.remove(0));
        first.attach(&volume, &instance, "/dev/sdf").await;
        let goes = [("InstanceId", instance.as_str()), ("BlockDeviceMapping.1.DeviceName", "/dev/sdf")];
        first.client.ok("ModifyInstanceAttribute", &goes).await;
        sim.push_fault(Fault::once(verb, FaultKind::EffectThenHang(Duration::from_secs(60))));
        let before = sim.calls(verb);
        sim.remove_machine("vm-1");
        first.until("off", async || terminate(&first, &instance).await == Terminated::Done).await;
        first.until("hanging", async || sim.calls(verb) > before).await;
        drop(first);
        let second = Cloud::join(&url, &sim, SHORT_LEASE).await;
        second.volume_becomes(&volume, "gone").await;
        walk::nothing_is_left(&second).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_gone_together_with_its_node_gives_its_volumes_back() {
    let cloud = Cloud::start_with(CALM).await;
    let (volume, instance) = (cloud.volume().await, cloud.instances().await.remove(0));
    cloud.attach(&volume, &instance, "/dev/sdf").await;
    let mut conn = cloud.pool.get().await.unwrap();
    // As when the configuration has lost the node.
    diesel::sql_query("UPDATE instances SET node = 'burnt' WHERE machine = 'vm-1'").execute(&mut conn).await.unwrap();
    cloud.sim.remove_machine("vm-1");
    let id = InstanceId::parse(&instance).unwrap();
    assert_eq!(instances::terminate(&mut conn, &id, false).await.unwrap(), Terminated::Running);
    assert_eq!(instances::terminate(&mut conn, &id, true).await.unwrap(), Terminated::Done);
    drop(conn);
    cloud.sweep().await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.attach(&volume, &cloud.instances().await[1], "/dev/sdf").await;
}
