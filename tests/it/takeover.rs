//! Workers that die, lose their lease or stop: another finishes what they began, and none does it twice.

use std::time::Duration;

use diesel_async::RunQueryDsl;
use vbs::db;
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};

use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

const SHORT_LEASE: &str = "workers = { lease_s = 1, poll_s = 1, sweep_s = 1 }";
const ONLY_ANSWERS: &str = "workers = { concurrency = 0 }";

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_any_verb_of_an_attach_is_followed_by_another() {
    for verb in ["ensure_exported", "ensure_connected", "ensure_attached"] {
        for kind in [FaultKind::Hang(Duration::from_secs(60)), FaultKind::EffectThenHang(Duration::from_secs(60))] {
            let (url, sim) = (postgres::database().await, SimCloud::new());
            let first = Cloud::join(&url, &sim, SHORT_LEASE).await;
            let volume = first.volume().await;
            sim.push_fault(Fault::once(verb, kind));
            let instance = &first.instances().await[0];
            let parameters = [("VolumeId", &*volume), ("InstanceId", instance), ("Device", "/dev/sdf")];
            first.client.ok("AttachVolume", &parameters).await;
            first.until("hanging", async || sim.calls(verb) == 1).await;
            drop(first);
            let second = Cloud::join(&url, &sim, SHORT_LEASE).await;
            second
                .until("attached", async || second.attachment_state(&volume).await.as_deref() == Some("attached"))
                .await;
            second.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
            second.volume_becomes(&volume, "available").await;
            second.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
            second.volume_becomes(&volume, "gone").await;
            walk::nothing_is_left(&second).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_lease_was_taken_changes_nothing_any_more() {
    let cloud = Cloud::start_with(SHORT_LEASE).await;
    let volume = cloud.volume().await;
    cloud.sim.push_fault(Fault::once("ensure_connected", FaultKind::Hang(Duration::from_millis(1500))));
    let instance = &cloud.instances().await[0];
    let parameters = [("VolumeId", &*volume), ("InstanceId", instance), ("Device", "/dev/sdf")];
    cloud.client.ok("AttachVolume", &parameters).await;
    cloud.until("hanging", async || cloud.sim.calls("ensure_connected") == 1).await;
    // What a second worker's claim does after the first one's lease has run out.
    let taken = "UPDATE workflows SET lease_generation = nextval('lease_generations'), lease_owner = NULL, \
                 lease_until = NULL WHERE finished_at IS NULL";
    diesel::sql_query(taken).execute(&mut cloud.pool.get().await.unwrap()).await.unwrap();
    cloud.until("attached", async || cloud.attachment_state(&volume).await.as_deref() == Some("attached")).await;
    let all = db::workflows::list(&mut cloud.pool.get().await.unwrap(), true, 1).await.unwrap();
    let (_, events) = db::workflows::show(&mut cloud.pool.get().await.unwrap(), all[0].id).await.unwrap().unwrap();
    assert_eq!(events.iter().filter(|event| event.event == "succeeded").count(), 1, "{events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_gives_its_leases_back() {
    let (url, sim) = (postgres::database().await, SimCloud::new());
    let first = Cloud::join(&url, &sim, "workers = { lease_s = 3600 }").await;
    sim.push_fault(Fault::once("ensure_volume", FaultKind::Hang(Duration::from_secs(20))));
    let parameters = [("AvailabilityZone", "us-east-1a"), ("Size", "1")];
    let volume = first.client.ok("CreateVolume", &parameters).await.text("volumeId");
    first.until("begun", async || sim.calls("ensure_volume") == 1).await;
    first.stop().await;
    let second = Cloud::join(&url, &sim, "").await;
    second.volume_becomes(&volume, "available").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_workers_leaves_the_work_to_one_that_has_some() {
    let (url, sim) = (postgres::database().await, SimCloud::new());
    let front = Cloud::join(&url, &sim, ONLY_ANSWERS).await;
    let worker = Cloud::join(&url, &sim, "workers = { poll_s = 3600 }").await;
    let parameters = [("AvailabilityZone", "us-east-1a"), ("Size", "1")];
    let volume = front.client.ok("CreateVolume", &parameters).await.text("volumeId");
    worker.volume_becomes(&volume, "available").await;
}
