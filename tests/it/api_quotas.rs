//! Quotas and throttling: what an account may have, and how often it may ask.

use std::collections::BTreeMap;

use vbs::db::quotas::{self, Counts, Most};
use vbs::delegate::sim::SimCloud;

use crate::support::client::Client;
use crate::support::cloud::{ACCOUNT, Cloud};
use crate::support::postgres;

const ZONE: (&str, &str) = ("AvailabilityZone", "us-east-1a");

/// Asks so many times at once for a volume of this size, and counts the answers by their code.
async fn ask_at_once(clients: &[Client], times: usize, size: &'static str) -> BTreeMap<String, usize> {
    let tries = (0..times).map(|n| {
        let client = clients[n % clients.len()].clone();
        tokio::spawn(async move {
            client.call("CreateVolume", &[ZONE, ("Size", size)]).await.find("Code").unwrap_or_else(|| "made".into())
        })
    });
    let mut codes = BTreeMap::new();
    for each in tries.collect::<Vec<_>>() {
        *codes.entry(each.await.unwrap()).or_insert(0) += 1;
    }
    codes
}

async fn used(cloud: &Cloud) -> Counts {
    quotas::used(&mut cloud.pool.get().await.unwrap(), ACCOUNT).await.unwrap()
}

fn codes(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_held_by_any_number_of_creates_at_once_through_two_gateways() {
    let (url, sim, quota) = (postgres::database().await, SimCloud::new(), "quotas = { volumes = 20 }");
    let cloud = Cloud::join(&url, &sim, quota).await;
    let other = Cloud::join(&url, &sim, quota).await;
    let clients = [cloud.client.clone(), other.client.clone()];
    let found = ask_at_once(&clients, 60, "1").await;
    assert_eq!(found, codes(&[("made", 20), ("VolumeLimitExceeded", 40)]));
    cloud.settle().await;
    assert_eq!(used(&cloud).await, Counts { volumes: 20, gib: 20, ..Counts::default() });
    let (_, message) = cloud.client.fails("CreateVolume", &[ZONE, ("Size", "1")]).await;
    assert_eq!(message, "Maximum number of active volumes, '20', exceeded.");
    // What is deleted makes room; another account has room of its own.
    let ids = cloud.client.ok("DescribeVolumes", &[]).await.all("volumeId");
    for id in &ids[..5] {
        cloud.client.ok("DeleteVolume", &[("VolumeId", id)]).await;
    }
    cloud.settle().await;
    assert_eq!(ask_at_once(&clients, 10, "1").await, codes(&[("made", 5), ("VolumeLimitExceeded", 5)]));
    cloud.another_account("999999999999").await.ok("CreateVolume", &[ZONE, ("Size", "1")]).await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gibibytes_and_paid_iops_have_quotas_of_their_own_and_an_account_may_have_its_own_numbers() {
    let cloud = Cloud::start_with("quotas = { gib = 100, iops = 1000 }").await;
    let found = ask_at_once(std::slice::from_ref(&cloud.client), 10, "30").await;
    assert_eq!(found, codes(&[("made", 3), ("VolumeLimitExceeded", 7)]));
    let io1 = [ZONE, ("Size", "10"), ("VolumeType", "io1"), ("Iops", "500")];
    cloud.client.ok("CreateVolume", &io1).await;
    assert_eq!(cloud.client.fails("CreateVolume", &io1).await.0, "VolumeLimitExceeded");
    let own = Most { gib: Some(1000), ..Most::default() };
    quotas::set_own(&mut cloud.pool.get().await.unwrap(), ACCOUNT, own).await.unwrap();
    cloud.client.ok("CreateVolume", &io1).await;
    let (code, message) = cloud.client.fails("CreateVolume", &io1).await;
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("MaxIOPSLimitExceeded", "Maximum number of provisioned IOPS, '1000', exceeded.")
    );
    cloud.client.ok("CreateVolume", &[ZONE, ("Size", "10"), ("VolumeType", "gp3"), ("Iops", "3000")]).await;
    cloud.settle().await;
    assert_eq!(used(&cloud).await, Counts { volumes: 6, gib: 120, iops: 1000, snapshots: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_by_its_token_needs_no_room_and_takes_none() {
    let cloud = Cloud::start_with("quotas = { volumes = 2 }").await;
    let first = [ZONE, ("Size", "1"), ("ClientToken", "first")];
    let id = cloud.client.ok("CreateVolume", &first).await.text("volumeId");
    let tries: Vec<_> = (0..40)
        .map(|n| {
            let (client, token) = (cloud.client.clone(), if n % 2 == 0 { "first" } else { "second" });
            tokio::spawn(async move { client.ok("CreateVolume", &[ZONE, ("Size", "1"), ("ClientToken", token)]).await })
        })
        .collect();
    for each in tries {
        each.await.unwrap();
    }
    assert_eq!(cloud.client.ok("CreateVolume", &first).await.text("volumeId"), id, "though the quota is full");
    let third = [ZONE, ("Size", "1"), ("ClientToken", "third")];
    assert_eq!(cloud.client.fails("CreateVolume", &third).await.0, "VolumeLimitExceeded");
    cloud.settle().await;
    assert_eq!(used(&cloud).await.volumes, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_have_a_quota_and_volumes_from_them_have_that_of_volumes() {
    let cloud = Cloud::start_with("quotas = { volumes = 2, snapshots = 2, pending_snapshots = 1 }").await;
    cloud.sim.copy_in_background(0);
    let volume = cloud.volume().await;
    let first = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    assert_eq!(
        cloud.client.fails("CreateSnapshot", &[("VolumeId", &volume)]).await.0,
        "ConcurrentSnapshotLimitExceeded"
    );
    cloud.sim.copy_in_background(100);
    cloud.snapshot_becomes(&first, "completed").await;
    let from = [ZONE, ("SnapshotId", first.as_str())];
    cloud.client.ok("CreateVolume", &from).await;
    assert_eq!(cloud.client.fails("CreateVolume", &from).await.0, "VolumeLimitExceeded");
    let second = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&second, "completed").await;
    assert_eq!(cloud.client.fails("CreateSnapshot", &[("VolumeId", &volume)]).await.0, "SnapshotLimitExceeded");
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &first)]).await;
    cloud.snapshot_becomes(&first, "gone").await;
    cloud.settle().await;
    cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await;
    cloud.settle().await;
    assert_eq!(used(&cloud).await, Counts { volumes: 2, gib: 2, iops: 0, snapshots: 2 });
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_too_often_is_told_so_an_account_and_an_action_at_a_time() {
    let cloud = Cloud::start_with(
        "[gateway.throttle]\nactions = { DescribeVolumes = { burst = 3, per_second = 0.001 } }\n\
         [quotas]\nvolumes = 9",
    )
    .await;
    let stranger = cloud.another_account("999999999999").await;
    for _ in 0..3 {
        cloud.client.ok("DescribeVolumes", &[]).await;
    }
    let answer = cloud.client.call("DescribeVolumes", &[]).await;
    assert_eq!((answer.status, answer.text("Code").as_str()), (503, "RequestLimitExceeded"));
    assert_eq!(answer.text("Message"), "Request limit exceeded.");
    cloud.client.ok("DescribeSnapshots", &[]).await;
    stranger.ok("DescribeVolumes", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_volume_is_about_to_grow_by_is_taken_already() {
    let cloud = Cloud::start_with("quotas = { gib = 10 }\nworkers = { concurrency = 0 }").await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let made = cloud.client.ok("CreateVolume", &[ZONE, ("Size", "2")]).await;
        ids.push(made.text("volumeId"));
    }
    diesel_async::RunQueryDsl::execute(
        diesel::sql_query("UPDATE volumes SET state = 'available'"),
        &mut *cloud.pool.get().await.unwrap(),
    )
    .await
    .unwrap();
    cloud.client.ok("ModifyVolume", &[("VolumeId", &ids[0]), ("Size", "7")]).await;
    let (code, _) = cloud.client.fails("ModifyVolume", &[("VolumeId", &ids[1]), ("Size", "4")]).await;
    assert_eq!(code, "VolumeModificationSizeLimitExceeded");
    cloud.client.ok("ModifyVolume", &[("VolumeId", &ids[1]), ("Size", "3")]).await;
}
