//! AttachVolume, DetachVolume and DescribeInstances over HTTP.

use std::collections::HashSet;

use vbs::db::instances::{self, Assigned};
use vbs::db::schema::attachments;
use vbs::delegate::ErrorKind;
use vbs::delegate::sim::{Fault, FaultKind};
use vbs::ids::InstanceId;

use diesel::prelude::*;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use crate::support::cloud::Cloud;

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_shows_at_the_volume_and_at_the_instance_under_the_name_the_caller_gave() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let instance = cloud.instances().await.remove(0);
    let parameters = [("VolumeId", volume.as_str()), ("InstanceId", &instance), ("Device", "xvdh")];
    let answer = cloud.client.ok("AttachVolume", &parameters).await;
    assert_eq!((answer.text("status"), answer.text("device")), ("attaching".into(), "xvdh".into()));
    assert_eq!(cloud.volume_state(&volume).await, "in-use", "at once");
    cloud.until("attached", async || cloud.attachment_state(&volume).await.as_deref() == Some("attached")).await;
    let shown = cloud.client.ok("DescribeInstances", &[("InstanceId.1", &instance)]).await;
    let mapping = format!(
        "<blockDeviceMapping><item><deviceName>xvdh</deviceName><ebs><volumeId>{volume}</volumeId><status>attached</status>"
    );
    assert!(shown.body.contains(&mapping), "{}", shown.body);
    let filter = [("Filter.1.Name", "block-device-mapping.volume-id"), ("Filter.1.Value.1", volume.as_str())];
    assert_eq!(cloud.client.ok("DescribeInstances", &filter).await.all("instanceId"), std::slice::from_ref(&instance));
    let answer = cloud
        .client
        .ok("DetachVolume", &[("VolumeId", &volume), ("InstanceId", &instance), ("Device", "/dev/sdh")])
        .await;
    assert_eq!(answer.text("status"), "detaching");
    cloud.volume_becomes(&volume, "available").await;
    let shown = cloud.client.ok("DescribeInstances", &[("InstanceId.1", &instance)]).await;
    assert!(shown.body.contains("<blockDeviceMapping/>"), "{}", shown.body);
    cloud.settle().await;
}

/// Each request meets the end of the detach at another moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_deleted_while_its_detach_ends_is_in_use_until_it_is_deleted() {
    let cloud = Cloud::start().await;
    let instance = cloud.instances().await.remove(0);
    let mut deletes = tokio::task::JoinSet::new();
    for letter in 'b'..='q' {
        let volume = cloud.volume().await;
        cloud.attach(&volume, &instance, &format!("/dev/sd{letter}")).await;
        let client = cloud.client.clone();
        deletes.spawn(async move {
            client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
            let mut refusals = std::collections::BTreeSet::new();
            loop {
                let answer = client.call("DeleteVolume", &[("VolumeId", &volume)]).await;
                match answer.find("Code") {
                    Some(code) => refusals.insert(code),
                    None => return refusals,
                };
            }
        });
    }
    while let Some(refusals) = deletes.join_next().await {
        let refusals = refusals.unwrap();
        assert!(refusals.iter().all(|code| code == "VolumeInUse"), "{refusals:?}");
    }
    cloud.settle().await;
}

/// The second call comes when the first has written nothing, and goes on while a worker already ends what the first began.
#[tokio::test(flavor = "multi_thread")]
async fn a_detach_by_force_beside_another_detach_never_waits_for_a_worker_that_waits_for_it() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    let mut first = cloud.pool.get().await.unwrap();
    let mut worker = cloud.pool.get().await.unwrap();
    first.batch_execute("BEGIN; SELECT 1 FROM attachments FOR UPDATE").await.unwrap();
    let forced = tokio::spawn({
        let (client, volume) = (cloud.client.clone(), volume.clone());
        async move { client.call("DetachVolume", &[("VolumeId", &volume), ("Force", "true")]).await }
    });
    let is_waiting = async || {
        let of_us = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        diesel::sql_query(of_us).execute(&mut cloud.pool.get().await.unwrap()).await.unwrap() > 0
    };
    cloud.until("waiting", is_waiting).await;
    // No gateway's worker is to have it yet.
    let enqueue = "INSERT INTO workflows (kind, lock_key, volume_id, lane, params, not_before) \
        SELECT 'detach_volume', id::text, volume_id, lane_of(id::text, volume_id), jsonb_build_object('attachment', id), \
        now() + interval '1 hour' FROM attachments";
    worker.batch_execute(enqueue).await.unwrap();
    worker.batch_execute("BEGIN; SELECT 1 FROM workflows WHERE finished_at IS NULL FOR UPDATE").await.unwrap();
    first.batch_execute("UPDATE attachments SET state = 'detaching'; COMMIT").await.unwrap();
    cloud.until("done or waiting", async || forced.is_finished() || is_waiting().await).await;
    worker.batch_execute("UPDATE attachments SET reason = 'ended'; COMMIT").await.unwrap();
    let answer = forced.await.unwrap();
    assert_eq!((answer.status, answer.text("status")), (200, "detaching".into()), "{}", answer.body);
    worker.batch_execute("UPDATE workflows SET not_before = now() WHERE finished_at IS NULL").await.unwrap();
    cloud.volume_becomes(&volume, "available").await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_attaches_say_what_clients_search_for_and_change_nothing() {
    let cloud = Cloud::start().await;
    let (volume, other) = (cloud.volume().await, cloud.volume().await);
    let instances = cloud.instances().await;
    let instance = instances[0].as_str();
    cloud.attach(&volume, instance, "/dev/sdf").await;
    let elsewhere = instances[2].as_str();
    for (parameters, code, message) in [
        (
            [("VolumeId", volume.as_str()), ("InstanceId", instance), ("Device", "/dev/sdg")],
            "VolumeInUse",
            format!("{volume} is already attached to an instance"),
        ),
        (
            [("VolumeId", &other), ("InstanceId", instance), ("Device", "xvdf")],
            "InvalidParameterValue",
            "Invalid value 'xvdf' for unixDevice. Attachment point xvdf is already in use".into(),
        ),
        (
            [("VolumeId", &other), ("InstanceId", instance), ("Device", "/dev/sda1")],
            "InvalidParameterValue",
            "Invalid value '/dev/sda1' for unixDevice. Attachment point /dev/sda1 is already in use".into(),
        ),
        (
            [("VolumeId", &other), ("InstanceId", instance), ("Device", "/dev/sdZZ")],
            "InvalidParameterValue",
            "Value (/dev/sdZZ) for parameter device is invalid. /dev/sdZZ is not a valid EBS device name.".into(),
        ),
        (
            [("VolumeId", &other), ("InstanceId", elsewhere), ("Device", "/dev/sdf")],
            "InvalidVolume.ZoneMismatch",
            format!("The volume '{other}' is not in the same availability zone as instance '{elsewhere}'"),
        ),
        (
            [("VolumeId", &other), ("InstanceId", "i-00000000"), ("Device", "/dev/sdf")],
            "InvalidInstanceID.NotFound",
            "The instance ID 'i-00000000' does not exist".into(),
        ),
        (
            [("VolumeId", "vol-00000000"), ("InstanceId", instance), ("Device", "/dev/sdf")],
            "InvalidVolume.NotFound",
            "The volume 'vol-00000000' does not exist.".into(),
        ),
        (
            [("VolumeId", &other), ("InstanceId", "nonsense"), ("Device", "/dev/sdf")],
            "InvalidInstanceID.Malformed",
            "Invalid id: \"nonsense\" (expecting \"i-...\")".into(),
        ),
    ] {
        assert_eq!(cloud.client.fails("AttachVolume", &parameters).await, (code.to_owned(), message), "{parameters:?}");
    }
    assert_eq!(cloud.volume_state(&other).await, "available");
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_not_ready_and_a_machine_that_is_off_are_refused_by_name() {
    let cloud = Cloud::start().await;
    let instance = cloud.instances().await[1].clone();
    let refusal = async |volume: &str| {
        cloud
            .client
            .fails("AttachVolume", &[("VolumeId", volume), ("InstanceId", &instance), ("Device", "/dev/sdf")])
            .await
    };
    cloud.sim.push_fault(Fault::once("ensure_volume", FaultKind::FailBefore(ErrorKind::Fatal)));
    let made = cloud.client.ok("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")]).await;
    let volume = made.text("volumeId");
    cloud.volume_becomes(&volume, "error").await;
    assert_eq!(refusal(&volume).await, ("IncorrectState".into(), format!("{volume} is not 'available'.")));
    cloud.sim.stop_machine("vm-2");
    cloud.sweep().await;
    let volume = cloud.volume().await;
    assert_eq!(refusal(&volume).await, ("IncorrectState".into(), format!("Instance '{instance}' is not 'running'.")));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_attaches_at_once_to_one_place_one_wins() {
    let cloud = Cloud::start().await;
    let instance = cloud.instances().await.remove(0);
    let mut volumes = Vec::new();
    for _ in 0..4 {
        volumes.push(cloud.volume().await);
    }
    let tries: Vec<_> = (0..12)
        .map(|n| {
            let (client, volume, instance) = (cloud.client.clone(), volumes[n % 4].clone(), instance.clone());
            tokio::spawn(async move {
                let parameters = [("VolumeId", volume.as_str()), ("InstanceId", &instance), ("Device", "/dev/sdf")];
                let answer = client.call("AttachVolume", &parameters).await;
                (answer.status, answer.find("Code"))
            })
        })
        .collect();
    let mut won = 0;
    for each in tries {
        match each.await.unwrap() {
            (200, _) => won += 1,
            (400, Some(code)) => assert!(code == "InvalidParameterValue" || code == "VolumeInUse", "{code}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(won, 1);
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detach_must_name_the_attachment_there_is() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let instances = cloud.instances().await;
    let state = cloud.client.fails("DetachVolume", &[("VolumeId", &volume)]).await;
    assert_eq!(state, ("IncorrectState".to_owned(), format!("Volume '{volume}' is in the 'available' state.")));
    cloud.attach(&volume, &instances[0], "/dev/sdf").await;
    for wrong in [("InstanceId", instances[1].as_str()), ("Device", "/dev/sdg")] {
        assert_eq!(
            cloud.client.fails("DetachVolume", &[("VolumeId", &volume), wrong]).await.0,
            "InvalidAttachment.NotFound"
        );
    }
    assert_eq!(cloud.attachment_state(&volume).await.as_deref(), Some("attached"));
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_gets_a_new_owner_without_the_volumes_and_tags_of_the_old_one() {
    let cloud = Cloud::start().await;
    let volume = cloud.volume().await;
    let instance = cloud.instances().await.remove(0);
    let other = cloud.another_account("210987654321").await;
    cloud.client.ok("CreateTags", &[("ResourceId.1", &instance), ("Tag.1.Key", "secret")]).await;
    cloud.attach(&volume, &instance, "/dev/sdf").await;
    let id = InstanceId::parse(&instance).unwrap();
    let assign = async || {
        let mut conn = cloud.pool.get().await.unwrap();
        instances::assign(&mut conn, &id, "210987654321").await.unwrap()
    };
    assert_eq!(assign().await, Assigned::Occupied);
    assert!(other.ok("DescribeInstances", &[]).await.all("instanceId").is_empty());
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    assert_eq!(assign().await, Assigned::Done);
    let shown = other.ok("DescribeInstances", &[]).await;
    assert_eq!(shown.all("instanceId"), std::slice::from_ref(&instance));
    assert!(!shown.body.contains("secret"), "{}", shown.body);
    assert!(cloud.client.ok("DescribeTags", &[]).await.all("key").is_empty());
    let parameters = [("VolumeId", volume.as_str()), ("InstanceId", &instance), ("Device", "/dev/sdf")];
    assert_eq!(cloud.client.fails("AttachVolume", &parameters).await.0, "InvalidInstanceID.NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_attaches_at_once_to_one_instance_no_more_win_than_it_may_have() {
    let cloud = Cloud::start().await;
    let instance = cloud.instances().await.remove(0);
    let create = [("AvailabilityZone", "us-east-1a"), ("Size", "1")];
    let mut volumes = Vec::new();
    for _ in 0..32 {
        volumes.push(cloud.client.ok("CreateVolume", &create).await.text("volumeId"));
    }
    cloud.settle().await;
    let tries: Vec<_> = volumes
        .into_iter()
        .zip(('b'..='d').flat_map(|first| ('a'..='z').map(move |second| format!("/dev/xvd{first}{second}"))))
        .map(|(volume, device)| {
            let (client, instance) = (cloud.client.clone(), instance.clone());
            tokio::spawn(async move {
                let parameters = [("VolumeId", volume.as_str()), ("InstanceId", &instance), ("Device", &device)];
                client.call("AttachVolume", &parameters).await.find("Code")
            })
        })
        .collect();
    let mut refused = 0;
    for each in tries {
        if let Some(code) = each.await.unwrap() {
            assert_eq!(code, "AttachmentLimitExceeded");
            refused += 1;
        }
    }
    assert_eq!(refused, 32 - 26);
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_attachments_ever_have_one_target_name_or_one_secret() {
    let cloud = Cloud::start().await;
    let (volume, instance) = (cloud.volume().await, cloud.instances().await[0].clone());
    let (mut names, mut secrets) = (HashSet::new(), HashSet::new());
    for _ in 0..3 {
        cloud.attach(&volume, &instance, "/dev/sdf").await;
        let exports = cloud.context.nodes.volume["storage-a"].delegate.observe().await.unwrap().exports;
        let (start, unique) = exports[0].iqn.rsplit_once('.').unwrap();
        assert!(start.ends_with(&volume) && unique.len() == 32, "128 bits of chance: {}", exports[0].iqn);
        assert!(names.insert(exports[0].iqn.clone()));
        // It is sealed with a salt: that two rows differ says nothing.
        let row: (uuid::Uuid, Vec<u8>) = attachments::table
            .filter(attachments::volume_id.eq(&volume).and(attachments::state.eq("attached")))
            .select((attachments::id, attachments::sealed_chap_secret))
            .get_result(&mut *cloud.pool.get().await.unwrap())
            .await
            .unwrap();
        let secret = cloud.context.sealer.open(&row.1, &row.0.to_string()).unwrap();
        assert!(secret.len() >= 12 && secrets.insert(secret.to_string()), "RFC 3720, 8.2.1: at least 96 bits");
        cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
        cloud.volume_becomes(&volume, "available").await;
    }
    // The database would not take one a second time, also of an attachment that is long over.
    let mut conn = cloud.pool.get().await.unwrap();
    let again = "INSERT INTO attachments (id, account_id, volume_id, instance_id, device, device_key, state, iqn, lun, chap_user, \
                 sealed_chap_secret, initiator_iqn) SELECT gen_random_uuid(), account_id, volume_id, instance_id, device, \
                 device_key, 'attaching', iqn, lun, chap_user, sealed_chap_secret, initiator_iqn FROM attachments LIMIT 1";
    let refused = diesel::sql_query(again).execute(&mut *conn).await.unwrap_err();
    assert!(refused.to_string().contains("attachments_iqn_key"), "{refused}");
    cloud.settle().await;
}
