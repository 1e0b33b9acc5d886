//! CreateSnapshots: the volumes of a guest that writes to all of them, at one instant, all or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vbs::db;
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};
use vbs::delegate::{ErrorKind, SnapshotMethod};
use vbs::ids::{SnapshotId, VolumeId};

use crate::support::client::Answer;
use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

const IMPATIENT: &str = "workers = { step_deadline_s = 1, lease_s = 2, poll_s = 1, sweep_s = 1 }";

/// A cloud whose first machine has three volumes, in the order of their ids.
struct Three {
    cloud: Cloud,
    instance: String,
    volumes: Vec<String>,
}

impl Three {
    async fn start(more: &str) -> Self {
        Self::of(Cloud::start_with(more).await).await
    }

    async fn of(cloud: Cloud) -> Self {
        let instance = cloud.instances().await.remove(0);
        let mut volumes = vec![cloud.volume().await, cloud.volume().await, cloud.volume().await];
        volumes.sort();
        for (volume, device) in volumes.iter().zip(["/dev/sdf", "/dev/sdg", "/dev/sdh"]) {
            cloud.attach(volume, &instance, device).await;
        }
        Self { cloud, instance, volumes }
    }

    async fn take(&self, more: &[(&str, &str)]) -> Answer {
        let asked = [&[("InstanceSpecification.InstanceId", self.instance.as_str())], more].concat();
        self.cloud.client.ok("CreateSnapshots", &asked).await
    }

    fn write(&self, volume: usize) -> Option<u64> {
        self.cloud.sim.guest_writes("vm-1", &VolumeId::parse(&self.volumes[volume]).unwrap())
    }

    async fn all_become(&self, snapshots: &[String], state: &str) {
        for snapshot in snapshots {
            self.cloud.snapshot_becomes(snapshot, state).await;
        }
    }

    async fn nothing_is_left(self, snapshots: &[String]) {
        for snapshot in snapshots {
            self.cloud.client.call("DeleteSnapshot", &[("SnapshotId", snapshot)]).await;
        }
        for volume in &self.volumes {
            self.cloud.client.ok("DetachVolume", &[("VolumeId", volume)]).await;
            self.cloud.volume_becomes(volume, "available").await;
            self.cloud.client.ok("DeleteVolume", &[("VolumeId", volume)]).await;
        }
        walk::nothing_is_left(&self.cloud).await;
    }
}

fn contents(sim: &SimCloud, snapshots: &[String]) -> Vec<Option<u64>> {
    snapshots.iter().map(|id| sim.snapshot_content(&SnapshotId::parse(id).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_of_one_instant_however_the_guest_writes_and_each_storage_node_cuts() {
    for method in [SnapshotMethod::Atomic, SnapshotMethod::Copy] {
        let three = Three::start("").await;
        three.cloud.sim.set_snapshot_method(method);
        // So slow that a guest which were not at rest would write between two cuts.
        three.cloud.sim.set_latency(Duration::from_millis(5));
        let stop = Arc::new(AtomicBool::new(false));
        (0..3).for_each(|volume| assert!(three.write(volume).is_some()));
        let volumes: Vec<_> = three.volumes.iter().map(|id| VolumeId::parse(id).unwrap()).collect();
        let (sim, stopped) = (three.cloud.sim.clone(), Arc::clone(&stop));
        // Each write has the next number, on the next volume.
        let writer = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for volume in &volumes {
                    while sim.guest_writes("vm-1", volume).is_none() && !stopped.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            }
        });
        let mut taken = Vec::new();
        for _ in 0..3 {
            let snapshots = three.take(&[]).await.all("snapshotId");
            assert_eq!(snapshots.len(), 3);
            three.all_become(&snapshots, "completed").await;
            let numbers: Vec<u64> = contents(&three.cloud.sim, &snapshots).into_iter().map(Option::unwrap).collect();
            let (first, last) = (numbers.iter().min().unwrap(), numbers.iter().max().unwrap());
            assert_eq!(last - first, 2, "{method:?}: {numbers:?} are not the last three writes of one instant");
            taken.extend(snapshots);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        three.nothing_is_left(&taken).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_has_the_fields_tags_and_volumes_that_were_asked_for() {
    let three = Three::start("").await;
    let client = &three.cloud.client;
    client
        .ok("CreateTags", &[("ResourceId.1", &three.volumes[0]), ("Tag.1.Key", "Name"), ("Tag.1.Value", "root")])
        .await;
    let answer = three
        .take(&[
            ("InstanceSpecification.ExcludeBootVolume", "true"),
            ("InstanceSpecification.ExcludeDataVolumeId.1", &three.volumes[2]),
            ("Description", "both"),
            ("CopyTagsFromSource", "volume"),
            ("TagSpecification.1.ResourceType", "snapshot"),
            ("TagSpecification.1.Tag.1.Key", "job"),
            ("TagSpecification.1.Tag.1.Value", "nightly"),
        ])
        .await;
    assert_eq!(answer.all("volumeId"), three.volumes[..2]);
    assert_eq!((answer.all("state"), answer.all("description")), (vec!["pending".into(); 2], vec!["both".into(); 2]));
    let snapshots = answer.all("snapshotId");
    three.all_become(&snapshots, "completed").await;
    let shown = client.ok("DescribeSnapshots", &[("Filter.1.Name", "tag:Name"), ("Filter.1.Value.1", "root")]).await;
    assert_eq!((shown.all("snapshotId").len(), shown.all("key")), (1, vec!["Name".into(), "job".into()]));
    assert_eq!(shown.text("volumeId"), three.volumes[0]);
    three.nothing_is_left(&snapshots).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_set_is_refused_and_strangers_learn_nothing() {
    let three = Three::start("").await;
    let stranger = three.cloud.another_account("999999999999").await;
    let instance = ("InstanceSpecification.InstanceId", three.instance.as_str());
    let loose = three.cloud.volume().await;
    let empty = three.cloud.instances().await.remove(1);
    for (parameters, code) in [
        (vec![], "MissingParameter"),
        (vec![("InstanceSpecification.InstanceId", "i-0000000a")], "InvalidInstanceID.NotFound"),
        (vec![("InstanceSpecification.InstanceId", "bad")], "InvalidInstanceID.Malformed"),
        (vec![("InstanceSpecification.InstanceId", empty.as_str())], "InvalidParameterValue"),
        (vec![instance, ("InstanceSpecification.ExcludeDataVolumeId.1", loose.as_str())], "InvalidParameterValue"),
        (vec![instance, ("CopyTagsFromSource", "instance")], "InvalidParameterValue"),
        (vec![instance, ("Location", "local")], "UnsupportedOperation"),
        (vec![instance, ("DryRun", "true")], "DryRunOperation"),
        (vec![instance, ("InstanceSpecification.Nonsense", "x")], "UnknownParameter"),
    ] {
        assert_eq!(three.cloud.client.fails("CreateSnapshots", &parameters).await.0, code, "{parameters:?}");
    }
    assert_eq!(stranger.fails("CreateSnapshots", &[instance]).await.0, "InvalidInstanceID.NotFound");
    assert_eq!(three.cloud.client.ok("DescribeSnapshots", &[]).await.all("snapshotId").len(), 0);
    three.cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_rest_its_guests_takes_one_volume_at_a_time() {
    let three = Three::start("workers = { sweep_s = 3600 }").await;
    let xen = "UPDATE nodes SET drivers = 'xen,open-iscsi' WHERE name = 'vmm-a'";
    let mut conn = three.cloud.pool.get().await.unwrap();
    diesel_async::RunQueryDsl::execute(diesel::sql_query(xen), &mut *conn).await.unwrap();
    drop(conn);
    let instance = ("InstanceSpecification.InstanceId", three.instance.as_str());
    assert_eq!(three.cloud.client.fails("CreateSnapshots", &[instance]).await.0, "UnsupportedOperation");
    let all_but_one = [
        ("InstanceSpecification.ExcludeDataVolumeId.1", three.volumes[0].as_str()),
        ("InstanceSpecification.ExcludeDataVolumeId.2", three.volumes[1].as_str()),
    ];
    let snapshots = three.take(&all_but_one).await.all("snapshotId");
    three.all_become(&snapshots, "completed").await;
    assert_eq!(snapshots.len(), 1);
    three.nothing_is_left(&snapshots).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_of_a_set_cannot_be_taken_none_is_and_the_guest_goes_on() {
    for (verb, times, error) in [
        ("ensure_snapshot", 1, ErrorKind::NoRoom),
        ("ensure_snapshot", 1, ErrorKind::Fatal),
        ("ensure_paused", 0, ErrorKind::Retry),
        ("ensure_resumed", 1, ErrorKind::Fatal),
    ] {
        let three = Three::start(IMPATIENT).await;
        three.cloud.sim.push_fault(Fault { verb, after: 2, times, kind: FaultKind::FailBefore(error) });
        let snapshots = three.take(&[]).await.all("snapshotId");
        three.all_become(&snapshots, "error").await;
        assert_eq!(contents(&three.cloud.sim, &snapshots), [None; 3]);
        assert!(three.write(0).is_some(), "the guest is still at rest");
        three.nothing_is_left(&snapshots).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_of_a_set_is_lost_while_it_is_copied_none_is_completed() {
    let three = Three::start(IMPATIENT).await;
    three.cloud.sim.copy_in_background(0);
    let snapshots = three.take(&[]).await.all("snapshotId");
    three.cloud.sim.overflow();
    three.all_become(&snapshots, "error").await;
    three.nothing_is_left(&snapshots).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_of_a_set_may_fail_once_in_every_way_and_it_is_taken_at_one_instant() {
    let three = Three::start("").await;
    let mut taken = Vec::new();
    for verb in ["ensure_no_snapshot", "ensure_paused", "ensure_snapshot", "ensure_resumed"] {
        for kind in [FaultKind::FailBefore(ErrorKind::Retry), FaultKind::EffectThenLost, FaultKind::Garbage] {
            let written: Vec<_> = (0..3).map(|volume| three.write(volume)).collect();
            three.cloud.sim.push_fault(Fault { verb, after: 1, times: 1, kind });
            let snapshots = three.take(&[]).await.all("snapshotId");
            three.all_become(&snapshots, "completed").await;
            assert_eq!(three.cloud.sim.faults_left(), 0, "{verb} was never called");
            assert_eq!(contents(&three.cloud.sim, &snapshots), written, "{verb}");
            taken.extend(snapshots);
        }
    }
    three.nothing_is_left(&taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_between_two_cuts_is_followed_by_another_that_cuts_all_anew() {
    let (url, sim) = (postgres::database().await, SimCloud::new());
    let first = Three::of(Cloud::join(&url, &sim, IMPATIENT).await).await;
    let hang = FaultKind::Hang(Duration::from_secs(60));
    sim.push_fault(Fault { verb: "ensure_snapshot", after: 2, times: 1, kind: hang });
    let (client, instance) = (first.cloud.client.clone(), first.instance.clone());
    let asked = tokio::spawn(async move {
        client.call("CreateSnapshots", &[("InstanceSpecification.InstanceId", &instance)]).await
    });
    first.cloud.until("hanging", async || sim.calls("ensure_snapshot") == 3).await;
    let rows = db::snapshots::of_node(&mut first.cloud.pool.get().await.unwrap(), "storage-a").await.unwrap();
    let mut snapshots: Vec<_> = rows.into_iter().map(|row| row.id.to_string()).collect();
    snapshots.sort();
    let Three { cloud, instance, volumes } = first;
    asked.abort();
    drop(cloud);
    let second = Three { cloud: Cloud::join(&url, &sim, IMPATIENT).await, instance, volumes };
    second.all_become(&snapshots, "completed").await;
    assert_eq!(contents(&sim, &snapshots), [Some(0); 3]);
    assert!(second.write(0).is_some(), "the guest is still at rest");
    second.nothing_is_left(&snapshots).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_deleted_before_the_cut_leaves_the_others_of_its_set() {
    let three = Three::start(IMPATIENT).await;
    let slow = FaultKind::Hang(Duration::from_millis(500));
    three.cloud.sim.push_fault(Fault::once("ensure_paused", slow));
    let (client, instance) = (three.cloud.client.clone(), three.instance.clone());
    let asked = tokio::spawn(async move {
        client.ok("CreateSnapshots", &[("InstanceSpecification.InstanceId", &instance)]).await.all("snapshotId")
    });
    three.cloud.until("begun", async || three.cloud.sim.calls("ensure_paused") > 0).await;
    let pending = three.cloud.client.ok("DescribeSnapshots", &[]).await.all("snapshotId");
    three.cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &pending[1])]).await;
    let mut snapshots = asked.await.unwrap();
    snapshots.sort();
    assert_eq!(snapshots, pending);
    for (snapshot, state) in snapshots.iter().zip(["completed", "gone", "completed"]) {
        three.cloud.snapshot_becomes(snapshot, state).await;
    }
    three.nothing_is_left(&snapshots).await;
}
