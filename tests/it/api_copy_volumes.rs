//! CopyVolumes over HTTP: a volume with the bytes that another one had at the call.

use std::time::Duration;

use vbs::delegate::sim::{Fault, FaultKind, SimCloud};
use vbs::delegate::{ErrorKind, SnapshotMethod};
use vbs::ids::VolumeId;

use crate::support::client::Client;
use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

const IMPATIENT: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 1 }";

async fn attached(cloud: &Cloud) -> String {
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    volume
}

fn write(sim: &SimCloud, volume: &str) -> Option<u64> {
    sim.guest_writes("vm-1", &VolumeId::parse(volume).unwrap())
}

fn content(sim: &SimCloud, volume: &str) -> Option<u64> {
    sim.volume_content(&VolumeId::parse(volume).unwrap())
}

async fn copy(client: &Client, source: &str, more: &[(&str, &str)]) -> String {
    client.ok("CopyVolumes", &[&[("SourceVolumeId", source)], more].concat()).await.text("volumeId")
}

async fn clear(cloud: &Cloud, source: &str, others: &[&str]) {
    cloud.client.call("DetachVolume", &[("VolumeId", source)]).await;
    cloud.volume_becomes(source, "available").await;
    for volume in [others, &[source]].concat() {
        cloud.client.call("DeleteVolume", &[("VolumeId", volume)]).await;
        cloud.volume_becomes(volume, "gone").await;
    }
    walk::nothing_is_left(cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_what_was_written_before_the_answer_and_nothing_of_later() {
    for method in [SnapshotMethod::Atomic, SnapshotMethod::Copy] {
        let cloud = Cloud::start().await;
        cloud.sim.set_snapshot_method(method);
        let source = attached(&cloud).await;
        let written = write(&cloud.sim, &source);
        let asked = [
            ("SourceVolumeId", source.as_str()),
            ("Size", "3"),
            ("VolumeType", "gp3"),
            ("TagSpecification.1.ResourceType", "volume"),
            ("TagSpecification.1.Tag.1.Key", "copied"),
        ];
        let answer = cloud.client.ok("CopyVolumes", &asked).await;
        assert!(answer.body.contains("<volumeSet><item><volumeId>"), "{}", answer.body);
        assert_eq!((answer.text("status"), answer.text("sourceVolumeId")), ("creating".into(), source.clone()));
        let id = answer.text("volumeId");
        write(&cloud.sim, &source).expect("the guest goes on");
        cloud.volume_becomes(&id, "available").await;
        assert_eq!(content(&cloud.sim, &id), written);
        let shown = cloud.client.ok("DescribeVolumes", &[("VolumeId.1", &id)]).await;
        assert_eq!((shown.text("sourceVolumeId"), shown.text("size")), (source.clone(), "3".into()));
        assert!(shown.body.contains("<snapshotId/>") && shown.all("key") == ["copied"], "{}", shown.body);
        assert!(cloud.client.ok("DescribeSnapshots", &[]).await.all("snapshotId").is_empty());
        // The copy is a volume like others, and so is a copy of it.
        let second = copy(&cloud.client, &id, &[]).await;
        cloud.volume_becomes(&second, "available").await;
        assert_eq!(content(&cloud.sim, &second), written);
        clear(&cloud, &source, &[&id, &second]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_asked_for_once_a_token_and_of_ones_own_volumes_only() {
    let cloud = Cloud::start().await;
    let stranger = cloud.another_account("999999999999").await;
    let source = cloud.volume().await;
    let token = [("ClientToken", "t-1")];
    let first = copy(&cloud.client, &source, &token).await;
    assert_eq!(copy(&cloud.client, &source, &token).await, first);
    let of_source = ("SourceVolumeId", source.as_str());
    for (parameters, code) in [
        (vec![], "MissingParameter"),
        (vec![("SourceVolumeId", "vol-0000000a")], "InvalidVolume.NotFound"),
        (vec![of_source, token[0], ("Size", "2")], "IdempotentParameterMismatch"),
        (vec![of_source, ("Encrypted", "true")], "UnsupportedOperation"),
        (vec![of_source, ("MultiAttachEnabled", "true")], "InvalidParameterCombination"),
        (vec![of_source, ("DryRun", "true")], "DryRunOperation"),
        (vec![("SourceVolumeId", "bad"), ("DryRun", "true")], "InvalidParameterValue"),
    ] {
        assert_eq!(cloud.client.fails("CopyVolumes", &parameters).await.0, code, "{parameters:?}");
    }
    assert_eq!(stranger.fails("CopyVolumes", &[of_source]).await.0, "InvalidVolume.NotFound");
    let bigger = copy(&cloud.client, &source, &[("Size", "2")]).await;
    cloud.volume_becomes(&bigger, "available").await;
    let smaller = [("SourceVolumeId", bigger.as_str()), ("Size", "1")];
    assert_eq!(cloud.client.fails("CopyVolumes", &smaller).await.0, "InvalidParameterValue");
    // The token is good for as long as the copy is, and its source is not asked about.
    let second_token = [("ClientToken", "t-2")];
    let second = copy(&cloud.client, &bigger, &second_token).await;
    cloud.volume_becomes(&second, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &bigger)]).await;
    cloud.volume_becomes(&bigger, "gone").await;
    assert_eq!(copy(&cloud.client, &bigger, &second_token).await, second);
    let of_none = |token| [("SourceVolumeId", bigger.as_str()), ("ClientToken", token)];
    assert_eq!(cloud.client.fails("CopyVolumes", &of_none("t-3")).await.0, "InvalidVolume.NotFound");
    let tried = [of_none("t-2").as_slice(), &[("DryRun", "true")]].concat();
    assert_eq!(cloud.client.fails("CopyVolumes", &tried).await.0, "InvalidVolume.NotFound");
    clear(&cloud, &source, &[&first, &second]).await;
}

/// As a client does whose connection breaks, or whose gateway dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_asked_for_again_is_not_answered_before_it_is_cut() {
    let cloud = Cloud::start().await;
    let source = attached(&cloud).await;
    let written = write(&cloud.sim, &source);
    cloud.sim.push_fault(Fault::once("ensure_snapshot", FaultKind::Hang(Duration::from_secs(1))));
    let token = [("ClientToken", "t-1")];
    let first = tokio::spawn({
        let (client, source) = (cloud.client.clone(), source.clone());
        async move { copy(&client, &source, &token).await }
    });
    cloud.until("begun", async || cloud.sim.faults_left() == 0).await;
    let second = copy(&cloud.client, &source, &token).await;
    write(&cloud.sim, &source).expect("the guest goes on");
    assert_eq!(first.await.unwrap(), second);
    cloud.volume_becomes(&second, "available").await;
    assert_eq!(content(&cloud.sim, &second), written);
    clear(&cloud, &source, &[&second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_of_a_copy_may_fail_once_in_every_way_and_one_that_cannot_be_made_leaves_nothing() {
    let cloud = Cloud::start_with(IMPATIENT).await;
    let source = attached(&cloud).await;
    let mut made = Vec::new();
    for verb in ["ensure_paused", "ensure_snapshot", "ensure_resumed", "ensure_volume", "ensure_no_snapshot"] {
        for kind in [FaultKind::FailBefore(ErrorKind::Retry), FaultKind::EffectThenLost] {
            let written = write(&cloud.sim, &source);
            cloud.sim.push_fault(Fault::once(verb, kind));
            let id = copy(&cloud.client, &source, &[]).await;
            cloud.volume_becomes(&id, "available").await;
            assert_eq!((content(&cloud.sim, &id), cloud.sim.faults_left()), (written, 0), "{verb}");
            made.push(id);
        }
    }
    for (verb, kind) in [("ensure_snapshot", ErrorKind::Fatal), ("ensure_volume", ErrorKind::NoRoom)] {
        cloud.sim.push_fault(Fault::once(verb, FaultKind::FailBefore(kind)));
        let id = copy(&cloud.client, &source, &[]).await;
        cloud.volume_becomes(&id, "error").await;
        made.push(id);
    }
    cloud.sim.push_fault(Fault::once("ensure_volume", FaultKind::Hang(Duration::from_millis(500))));
    let unwanted = copy(&cloud.client, &source, &[]).await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &unwanted)]).await;
    cloud.volume_becomes(&unwanted, "gone").await;
    clear(&cloud, &source, &made.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_any_verb_of_a_copy_is_followed_by_another() {
    for verb in ["ensure_snapshot", "ensure_volume", "ensure_no_snapshot"] {
        let (url, sim) = (postgres::database().await, SimCloud::new());
        sim.set_snapshot_method(SnapshotMethod::Atomic);
        let first = Cloud::join(&url, &sim, IMPATIENT).await;
        let source = attached(&first).await;
        let written = write(&sim, &source);
        let before = sim.calls(verb);
        sim.push_fault(Fault::once(verb, FaultKind::EffectThenHang(Duration::from_secs(60))));
        let (client, of) = (first.client.clone(), source.clone());
        let asked = tokio::spawn(async move { client.call("CopyVolumes", &[("SourceVolumeId", &of)]).await });
        first.until("hanging", async || sim.calls(verb) > before).await;
        asked.abort();
        drop(first);
        let second = Cloud::join(&url, &sim, IMPATIENT).await;
        let volumes = second.client.ok("DescribeVolumes", &[]).await.all("volumeId");
        let id = volumes.into_iter().find(|id| *id != source).unwrap();
        second.volume_becomes(&id, "available").await;
        assert_eq!(content(&sim, &id), written, "{verb}");
        clear(&second, &source, &[&id]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_asked_for_while_its_source_grows_is_of_the_grown_one() {
    let cloud = Cloud::start().await;
    let source = cloud.volume().await;
    cloud.sim.push_fault(Fault::once("ensure_grown", FaultKind::Hang(Duration::from_millis(300))));
    cloud.client.ok("ModifyVolume", &[("VolumeId", &source), ("Size", "2")]).await;
    let id = copy(&cloud.client, &source, &[]).await;
    cloud.volume_becomes(&id, "available").await;
    assert_eq!(cloud.client.ok("DescribeVolumes", &[("VolumeId.1", &id)]).await.text("size"), "2");
    clear(&cloud, &source, &[&id]).await;
}
