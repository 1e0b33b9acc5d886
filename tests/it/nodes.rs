//! Nodes: where new volumes go, what a drained node still does, and what an operator is shown.

use std::process::Command;

use vbs::db;
use vbs::delegate::ErrorKind;
use vbs::delegate::sim::{Fault, FaultKind, SimCloud};

use crate::support::cloud::Cloud;
use crate::support::postgres;

/// Two storage nodes more in us-east-1a, of 4 and of 2 GiB.
const SMALL_NODES: &str = r#"
    [[volume_node]]
    name = "small-4"
    zone = "us-east-1a"
    delegate = { sim = { capacity_gib = 4 } }
    [[volume_node]]
    name = "small-2"
    zone = "us-east-1a"
    delegate = { sim = { capacity_gib = 2 } }
"#;

/// A cloud whose us-east-1a has only these two; the node without a limit is drained.
async fn small_nodes() -> Cloud {
    let cloud = Cloud::start_with(SMALL_NODES).await;
    drain(&cloud, "storage-a", true).await;
    cloud
}

/// Drains a node or takes that back, and waits until the gateway knows.
async fn drain(cloud: &Cloud, node: &str, drained: bool) {
    let mut conn = cloud.pool.get().await.unwrap();
    let all = db::nodes::list(&mut conn).await.unwrap();
    let row = all.iter().find(|row| row.name == node).unwrap();
    db::nodes::set_drained(&mut conn, node, &row.kind, &row.zone, drained).await.unwrap();
    cloud.until("known", async || cloud.context.placement.is_drained(node) == drained).await;
}

async fn node_of(cloud: &Cloud, volume: &str) -> String {
    let id = vbs::ids::VolumeId::parse(volume).unwrap();
    db::volumes::find(&mut cloud.pool.get().await.unwrap(), &id).await.unwrap().unwrap().node
}

fn of_size<'a>(size: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("AvailabilityZone", "us-east-1a"), ("Size", size)], more].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_go_where_there_is_room_and_a_zone_that_has_none_says_so_at_once() {
    let cloud = small_nodes().await;
    let parameters = of_size("2", &[]);
    let made = (0..3).map(|_| cloud.client.ok("CreateVolume", &parameters));
    let made: Vec<String> =
        futures_util::future::join_all(made).await.iter().map(|answer| answer.text("volumeId")).collect();
    let mut nodes = Vec::new();
    for volume in &made {
        cloud.volume_becomes(volume, "available").await;
        nodes.push(node_of(&cloud, volume).await);
    }
    nodes.sort();
    assert_eq!(nodes, ["small-2", "small-4", "small-4"]);
    let (code, _) = cloud.client.fails("CreateVolume", &of_size("1", &[])).await;
    assert_eq!(code, "InsufficientVolumeCapacity");
    // Room that was given back counts at once, though no sweep has seen it.
    cloud.client.ok("DeleteVolume", &[("VolumeId", &made[0])]).await;
    cloud.volume_becomes(&made[0], "gone").await;
    cloud.until("accepted", async || cloud.client.call("CreateVolume", &of_size("2", &[])).await.status == 200).await;
    cloud.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_repeated_needs_no_room() {
    let cloud = small_nodes().await;
    let token = [("ClientToken", "t-1")];
    let first = cloud.client.ok("CreateVolume", &of_size("4", &token)).await.text("volumeId");
    cloud.volume_becomes(&first, "available").await;
    let (code, _) = cloud.client.fails("CreateVolume", &of_size("4", &[])).await;
    assert_eq!(code, "InsufficientVolumeCapacity");
    assert_eq!(cloud.client.ok("CreateVolume", &of_size("4", &token)).await.text("volumeId"), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_gets_nothing_new_and_goes_on_with_what_it_has() {
    let cloud = Cloud::start().await;
    let (volume, other) = (cloud.volume().await, cloud.volume().await);
    let (one, two) = (cloud.instances().await[0].clone(), cloud.instances().await[1].clone());
    cloud.attach(&volume, &one, "/dev/sdf").await;
    for node in ["storage-a", "vmm-a"] {
        drain(&cloud, node, true).await;
    }
    let snapshot = cloud.client.ok("CreateSnapshot", &[("VolumeId", &volume)]).await.text("snapshotId");
    cloud.snapshot_becomes(&snapshot, "completed").await;
    let restore = [("AvailabilityZone", "us-east-1a"), ("SnapshotId", &*snapshot)];
    for parameters in [of_size("1", &[]), restore.to_vec()] {
        assert_eq!(cloud.client.fails("CreateVolume", &parameters).await.0, "InsufficientVolumeCapacity");
    }
    let attach = [("VolumeId", &*other), ("InstanceId", &*two), ("Device", "/dev/sdf")];
    assert_eq!(cloud.client.fails("AttachVolume", &attach).await.0, "IncorrectState");
    assert_eq!(cloud.volume_state(&other).await, "available");
    cloud.sim.stop_machine("vm-1");
    cloud.sim.start_machine("vm-1");
    cloud.sweep().await;
    let id = vbs::ids::VolumeId::parse(&volume).unwrap();
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some(), "repairs go on");
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    for node in ["storage-a", "vmm-a"] {
        drain(&cloud, node, false).await;
    }
    cloud.attach(&cloud.volume().await, &one, "/dev/sdf").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_known_to_a_gateway_that_starts_before_it_answers() {
    let (url, sim) = (postgres::database().await, SimCloud::new());
    let first = Cloud::join(&url, &sim, "").await;
    drain(&first, "storage-a", true).await;
    let second = Cloud::join(&url, &sim, "").await;
    assert_eq!(second.client.fails("CreateVolume", &of_size("1", &[])).await.0, "InsufficientVolumeCapacity");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_reports_is_as_old_as_the_question() {
    let cloud = Cloud::start_with(&format!("workers = {{ sweep_s = 3600 }}{SMALL_NODES}")).await;
    drain(&cloud, "storage-a", true).await;
    // The node has something new to report, or its row would stay as it is.
    let node = node_of(&cloud, &cloud.volume().await).await;
    let took = std::time::Duration::from_secs(1);
    cloud.sim.push_fault(Fault::always("observe_storage", FaultKind::Hang(took)));
    cloud.sweep().await;
    // What was accepted meanwhile may be missing in it, and must not be taken for known.
    let facts = db::nodes::facts(&mut cloud.pool.get().await.unwrap()).await.unwrap();
    let reported = facts.into_iter().find(|facts| facts.name == node).unwrap();
    assert_eq!((node.as_str(), reported.free_bytes), ("small-4", Some(3 << 30)));
    assert!(reported.age_s.unwrap() >= took.as_secs_f64(), "{reported:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_reports_is_kept_while_it_is_silent_and_rewritten_only_when_it_says_something_new() {
    let cloud = Cloud::start_with("workers = { concurrency = 0, sweep_s = 3600 }").await;
    let row = async || {
        let all = db::nodes::list(&mut cloud.pool.get().await.unwrap()).await.unwrap();
        all.into_iter().find(|row| row.name == "storage-a").unwrap()
    };
    let first = row().await;
    assert_eq!((&*first.kind, &*first.zone, &*first.drivers), ("storage", "us-east-1a", "sim"));
    assert_eq!((first.capacity_bytes, first.error.as_deref()), (Some(i64::MAX), None));
    cloud.sweep().await;
    assert_eq!(row().await.answered_at, first.answered_at, "nothing but time has passed");
    cloud.sim.push_fault(Fault::once("observe_storage", FaultKind::Garbage));
    cloud.sim.push_fault(Fault::once("observe_storage", FaultKind::FailBefore(ErrorKind::Retry)));
    cloud.sweep().await;
    let silent = row().await;
    assert_eq!((silent.answered_at, &*silent.drivers), (first.answered_at, "sim"));
    assert!(silent.error.is_some_and(|error| !error.contains('\0')));
    cloud.sweep().await;
    let back = row().await;
    assert!(back.error.is_none() && back.answered_at > first.answered_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_lists_drains_and_forgets_nodes() {
    let cloud = Cloud::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vbs.toml");
    let text = format!(
        r#"
        region = "us-east-1"
        zones = ["us-east-1a"]
        master_key = {{ env = "NOT_READ" }}
        database = {{ url = "{}" }}
        [[volume_node]]
        name = "storage-a"
        zone = "us-east-1a"
        delegate = {{ sim = {{}} }}
        "#,
        cloud.context.database_url
    );
    std::fs::write(&file, text).unwrap();
    let vbs = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        let output = command.arg("node").args(arguments).arg("--config").arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    cloud.volume().await;
    assert!(vbs(&["drain", "storage-a"]).0);
    cloud.until("known", async || cloud.context.placement.is_drained("storage-a")).await;
    let (_, listed) = vbs(&["list"]);
    let line = |name: &str| listed.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("storage-a").contains("us-east-1a\tdrained\tsim\tno limit\t"), "{listed}");
    assert!(line("storage-a").contains("\t1 volumes, 0 snapshots\t"), "{listed}");
    assert!(line("vmm-b").contains("\tnot in the configuration\t"), "{listed}");
    assert!(vbs(&["undrain", "storage-a"]).0);
    cloud.until("known", async || !cloud.context.placement.is_drained("storage-a")).await;
    assert!(!vbs(&["drain", "no-such-node"]).0);
    assert!(!vbs(&["forget", "storage-a"]).0, "the configuration has it");
    assert!(vbs(&["forget", "vmm-b"]).0);
    cloud.volume().await;
}
