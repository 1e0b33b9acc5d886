//! Every kind of difference between rows and nodes: what is shown, what is done, and that what is not ours is left alone.

use vbs::db;
use vbs::delegate::sim::SimCloud;
use vbs::ids::{SnapshotId, VolumeId};

use crate::support::cli::Cli;
use crate::support::cloud::Cloud;
use crate::support::{postgres, walk};

/// Swept only when the test says so.
const CALM: &str = "workers = { sweep_s = 3600, poll_s = 1 }";
const GIB: u64 = 1 << 30;

/// A cloud whose nodes also have what another vbs keeps there: a volume, a snapshot, a target, a disk, a log-in.
struct Shared {
    cloud: Cloud,
    cli: Cli,
    stranger: VolumeId,
    strange_snapshot: SnapshotId,
}

impl Shared {
    async fn start() -> Self {
        Self::start_on(&SimCloud::new()).await
    }

    async fn start_on(sim: &SimCloud) -> Self {
        let cloud = Cloud::join(&postgres::database().await, sim, CALM).await;
        let cli = Cli::of(&cloud);
        let (stranger, strange_snapshot) = (VolumeId::generate(), SnapshotId::generate());
        cloud.sim.add_volume("storage-a", &stranger, 3 * GIB);
        cloud.sim.add_snapshot("storage-a", &strange_snapshot);
        let iqn = format!("iqn.2026-01.internal.vbs:{stranger}.0123456789abcdef");
        cloud.sim.add_export("storage-a", &stranger, &iqn);
        cloud.sim.leave_disk("vm-2", &stranger, &iqn);
        cloud.sim.leave_log_in("vmm-a", &stranger, &format!("{iqn}0"));
        Self { cloud, cli, stranger, strange_snapshot }
    }

    /// What an audit shows beside what is the stranger's: kind, resource, and whether it is repaired.
    fn audit(&self, arguments: &[&str]) -> Vec<(String, String, bool)> {
        let said = self.cli.run(&[&["audit"], arguments].concat());
        let (_, out) = said.out.split_once("after the repair:\n").unwrap_or(("", &said.out));
        assert_eq!(said.code, 1, "the stranger's five are differences: {} {}", said.out, said.err);
        let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split('\t').collect()).collect();
        assert!(lines.iter().all(|line| line.len() == 6), "{out}");
        let (strange, ours): (Vec<_>, Vec<_>) = lines
            .into_iter()
            .partition(|line| line[2].contains(self.stranger.as_str()) || line[2] == self.strange_snapshot.as_str());
        let mut kinds: Vec<&str> = strange.iter().map(|line| line[0]).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, ["device-extra", "session-extra", "snapshot-extra", "target-extra", "volume-extra"]);
        assert!(strange.iter().all(|line| line[5] == "left alone: the database does not know it"), "{strange:?}");
        ours.into_iter().map(|line| (line[0].into(), line[2].into(), line[5] == "repair")).collect()
    }

    /// A difference is shown, and mended by the sweeper alone; made once more, it is mended by `vbs audit --repair`. What is the
    /// stranger's is there all the time.
    async fn is_mended(&self, kind: &str, name: &str, spoil: impl Fn()) {
        let expected = [(kind.to_owned(), name.to_owned(), true)];
        spoil();
        assert_eq!(self.audit(&[]), expected);
        self.cloud.sweep().await;
        assert_eq!(self.audit(&[]), [], "the sweeper did not mend it");
        spoil();
        assert_eq!(self.audit(&["--repair"]), [], "the audit did not mend it");
        self.cloud.settle().await;
    }

    /// A difference is shown, and nothing is done about it.
    async fn is_left(&self, kind: &str, name: &str) {
        self.cloud.sweep().await;
        assert_eq!(self.audit(&["--repair"]), [(kind.to_owned(), name.to_owned(), false)]);
    }

    async fn attached(&self) -> (String, VolumeId, String) {
        let volume = self.cloud.volume().await;
        let id = VolumeId::parse(&volume).unwrap();
        self.cloud.attach(&volume, &self.cloud.instances().await[0], "/dev/sdf").await;
        let live = db::attachments::live_iqns(&mut self.cloud.pool.get().await.unwrap(), &id).await.unwrap();
        (volume, id, live[0].clone())
    }

    async fn snapshot(&self, volume: &str) -> (String, SnapshotId) {
        let snapshot = self.cloud.client.ok("CreateSnapshot", &[("VolumeId", volume)]).await.text("snapshotId");
        self.cloud.snapshot_becomes(&snapshot, "completed").await;
        let id = SnapshotId::parse(&snapshot).unwrap();
        (snapshot, id)
    }

    async fn detach_and_delete(&self, volume: &str) {
        self.cloud.client.ok("DetachVolume", &[("VolumeId", volume)]).await;
        self.cloud.volume_becomes(volume, "available").await;
        self.delete(volume).await;
    }

    async fn delete(&self, volume: &str) {
        self.cloud.client.ok("DeleteVolume", &[("VolumeId", volume)]).await;
        self.cloud.volume_becomes(volume, "gone").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_or_a_part_of_it_a_session_or_a_device_that_is_missing_is_put_back() {
    let shared = Shared::start().await;
    let (volume, id, iqn) = shared.attached().await;
    let sim = &shared.cloud.sim;
    shared.is_mended("target-missing", &iqn, || sim.lose_export(&iqn)).await;
    shared.is_mended("target-broken", &iqn, || sim.break_export(&iqn)).await;
    shared.is_mended("session-missing", &iqn, || sim.lose_disk("vm-1", &id)).await;
    shared.is_mended("device-missing", &iqn, || sim.unplug("vm-1", &id)).await;
    assert!(sim.guest_writes("vm-1", &id).is_some());
    shared.detach_and_delete(&volume).await;
    assert_eq!(shared.audit(&[]), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_a_device_a_session_a_volume_or_a_snapshot_of_ours_that_is_over_is_taken_away() {
    let shared = Shared::start().await;
    let cloud = &shared.cloud;
    let (volume, id, iqn) = shared.attached().await;
    let (snapshot, snapshot_id) = shared.snapshot(&volume).await;
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    shared.is_mended("target-extra", &iqn, || cloud.sim.add_export("storage-a", &id, &iqn)).await;
    shared.is_mended("device-extra", &iqn, || cloud.sim.leave_disk("vm-1", &id, &iqn)).await;
    shared.is_mended("session-extra", &iqn, || cloud.sim.leave_log_in("vmm-a", &id, &iqn)).await;
    cloud.client.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    cloud.snapshot_becomes(&snapshot, "gone").await;
    shared.delete(&volume).await;
    shared.is_mended("snapshot-extra", &snapshot, || cloud.sim.add_snapshot("storage-a", &snapshot_id)).await;
    shared.is_mended("volume-extra", &volume, || cloud.sim.add_volume("storage-a", &id, GIB)).await;
    shared.is_mended("target-extra", &iqn, || cloud.sim.add_export("storage-a", &id, &iqn)).await;
    assert_eq!(cloud.sim.volume_content(&id), None);
    // On another node it was never ours.
    cloud.sim.add_volume("storage-b", &id, GIB);
    shared.is_left("volume-extra", &volume).await;
}

/// A target and what may be behind it are told apart: the one of a volume of ours is ours on any node, and holds no bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_of_a_volume_of_ours_ends_on_any_node_also_long_after_the_volume_was_deleted() {
    let shared = Shared::start().await;
    let cloud = &shared.cloud;
    let (volume, id, iqn) = shared.attached().await;
    let other = format!("iqn.2026-01.internal.vbs:{id}.0123456789abcdef");
    for node in ["storage-a", "storage-b"] {
        shared.is_mended("target-extra", &other, || cloud.sim.add_export(node, &id, &other)).await;
    }
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some(), "the live attachment was touched");
    cloud.sim.stop_machine("vm-1");
    shared.is_mended("target-extra", &iqn, || cloud.sim.add_export("storage-b", &id, &iqn)).await;
    cloud.sim.start_machine("vm-1");
    cloud.sweep().await;
    assert!(cloud.sim.guest_writes("vm-1", &id).is_some(), "the target of the live attachment was ended");
    shared.detach_and_delete(&volume).await;
    let everywhere = async || {
        for node in ["storage-a", "storage-b"] {
            shared.is_mended("target-extra", &iqn, || cloud.sim.add_export(node, &id, &iqn)).await;
        }
    };
    everywhere().await;
    let purge = diesel::sql_query("DELETE FROM volumes");
    diesel_async::RunQueryDsl::execute(purge, &mut cloud.pool.get().await.unwrap()).await.unwrap();
    everywhere().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_or_a_log_in_of_a_live_attachment_is_taken_from_all_but_the_machine_that_it_is_of() {
    for nodes_log_in in [false, true] {
        let sim = SimCloud::new();
        if nodes_log_in {
            sim.let_nodes_log_in();
        }
        let shared = Shared::start_on(&sim).await;
        let cloud = &shared.cloud;
        let (_, id, iqn) = shared.attached().await;
        for machine in ["vm-2", "vm-3"] {
            for holds_on in [false, true] {
                cloud.sim.hold_on(machine, holds_on);
                shared.is_mended("device-extra", &iqn, || cloud.sim.leave_disk(machine, &id, &iqn)).await;
                assert_eq!(cloud.sim.guest_writes(machine, &id), None);
                assert!(cloud.sim.guest_writes("vm-1", &id).is_some(), "the live attachment was touched");
            }
        }
        shared.is_mended("session-extra", &iqn, || cloud.sim.leave_log_in("vmm-b", &id, &iqn)).await;
        cloud.sim.leave_log_in("vmm-a", &id, &iqn);
        assert_eq!(shared.audit(&[]), [], "its own node may be logged in");
        assert!(cloud.sim.guest_writes("vm-1", &id).is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attachment_of_a_shared_volume_has_a_disk_of_its_own_and_no_other_has() {
    let shared = Shared::start().await;
    let cloud = &shared.cloud;
    let parameters = [
        ("AvailabilityZone", "us-east-1a"),
        ("Size", "4"),
        ("VolumeType", "io2"),
        ("Iops", "100"),
        ("MultiAttachEnabled", "true"),
    ];
    let volume = cloud.client.ok("CreateVolume", &parameters).await.text("volumeId");
    cloud.volume_becomes(&volume, "available").await;
    let id = VolumeId::parse(&volume).unwrap();
    for instance in &cloud.instances().await[..2] {
        let parameters = [("VolumeId", &*volume), ("InstanceId", instance), ("Device", "/dev/sdf")];
        cloud.client.ok("AttachVolume", &parameters).await;
        cloud.settle().await;
    }
    assert_eq!(shared.audit(&[]), []);
    let live = db::attachments::live_of_volume(&mut cloud.pool.get().await.unwrap(), &id).await.unwrap();
    for (attachment, _) in live {
        shared.is_mended("device-extra", &attachment.iqn, || cloud.sim.leave_disk("vm-3", &id, &attachment.iqn)).await;
        for machine in ["vm-1", "vm-2"] {
            assert!(cloud.sim.guest_writes(machine, &id).is_some(), "{machine} has lost its disk");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_missing_is_shown_as_impaired_and_is_as_before_when_it_is_back() {
    let shared = Shared::start().await;
    let cloud = &shared.cloud;
    let (volume, other) = (cloud.volume().await, cloud.volume().await);
    let id = VolumeId::parse(&volume).unwrap();
    let (snapshot, snapshot_id) = shared.snapshot(&other).await;
    let health = async || {
        let answer = cloud.client.ok("DescribeVolumeStatus", &[("VolumeId.1", &volume)]).await;
        answer.text("status")
    };
    assert_eq!(health().await, "ok");
    let kept = cloud.sim.lose_volume(&id).unwrap();
    shared.is_left("volume-missing", &volume).await;
    assert_eq!(health().await, "insufficient-data");
    let long_ago = "UPDATE volumes SET missing_since = missing_since - interval '6 minutes'";
    diesel_async::RunQueryDsl::execute(diesel::sql_query(long_ago), &mut cloud.pool.get().await.unwrap())
        .await
        .unwrap();
    assert_eq!(health().await, "impaired");
    let instance = &cloud.instances().await[0];
    let parameters = [("VolumeId", &*volume), ("InstanceId", instance), ("Device", "/dev/sdf")];
    cloud.client.ok("AttachVolume", &parameters).await;
    cloud.settle().await;
    assert_eq!(cloud.volume_state(&volume).await, "available", "it was taken for lost");
    cloud.sim.put_volume_back("storage-a", &id, kept);
    cloud.sweep().await;
    assert_eq!(health().await, "ok");
    assert_eq!(shared.audit(&[]), []);
    cloud.attach(&volume, instance, "/dev/sdf").await;
    cloud.sim.lose_snapshot(&snapshot_id);
    shared.is_left("snapshot-missing", &snapshot).await;
    cloud.sim.add_snapshot("storage-a", &snapshot_id);
    assert_eq!(shared.audit(&[]), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_node_has_too_is_shown_and_left_on_both() {
    let shared = Shared::start().await;
    let cloud = &shared.cloud;
    let volume = cloud.volume().await;
    let id = VolumeId::parse(&volume).unwrap();
    let (snapshot, snapshot_id) = shared.snapshot(&volume).await;
    cloud.sim.add_volume("storage-b", &id, GIB);
    cloud.sim.add_snapshot("storage-b", &snapshot_id);
    cloud.sweep().await;
    let both = [("volume-elsewhere".to_owned(), volume, false), ("snapshot-elsewhere".to_owned(), snapshot, false)];
    assert_eq!(shared.audit(&["--repair"]), both);
    assert_eq!(shared.audit(&[]), both);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_nothing_is_named_and_nothing_is_concluded_from_it() {
    use vbs::delegate::ErrorKind;
    use vbs::delegate::sim::{Fault, FaultKind};
    let cloud = Cloud::start_with(CALM).await;
    let cli = Cli::of(&cloud);
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    cloud.sim.push_fault(Fault::always("observe_storage", FaultKind::FailBefore(ErrorKind::Retry)));
    cloud.sweep().await;
    let said = cli.run(&["audit", "--repair"]);
    let silent: Vec<Vec<&str>> = said.out.lines().map(|line| line.split('\t').collect()).collect();
    let named: Vec<_> = silent.iter().filter(|line| line.len() == 6).map(|line| (line[0], line[1])).collect();
    let both = [("node-silent", "storage-a"), ("node-silent", "storage-b")];
    assert!(!named.is_empty() && named.chunks(2).all(|named| named == both), "{}", said.out);
    assert!(silent.iter().all(|line| line.len() < 6 || line[4].contains("injected")), "{}", said.out);
    cloud.sim.end_faults();
    assert_eq!(cli.ok(&["audit"]), "");
    assert_eq!(cloud.attachment_state(&volume).await.as_deref(), Some("attached"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_smaller_than_its_row_grows_and_a_larger_one_is_left() {
    let shared = Shared::start().await;
    let (volume, id, _) = shared.attached().await;
    shared.is_mended("volume-smaller", &volume, || shared.cloud.sim.resize_volume(&id, GIB / 2)).await;
    shared.cloud.sim.resize_volume(&id, 2 * GIB);
    shared.is_left("volume-larger", &volume).await;
    let modify = [("VolumeId", &*volume), ("Size", "2")];
    shared.cloud.client.ok("ModifyVolume", &modify).await;
    shared.cloud.settle().await;
    assert_eq!(shared.audit(&[]), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_were_restarted_get_all_of_it_back_and_a_machine_that_is_gone_keeps_its_volume() {
    let shared = Shared::start().await;
    let cloud = &shared.cloud;
    let mut volumes = Vec::new();
    for device in ["/dev/sdf", "/dev/sdg", "/dev/sdh"] {
        let volume = cloud.volume().await;
        cloud.attach(&volume, &cloud.instances().await[0], device).await;
        volumes.push(volume);
    }
    // tgtd forgets what is ours, and the hypervisor is restarted too.
    let ours = async |volume: &String| {
        let mut conn = cloud.pool.get().await.unwrap();
        db::attachments::live_iqns(&mut conn, &VolumeId::parse(volume).unwrap()).await.unwrap().remove(0)
    };
    for volume in &volumes {
        cloud.sim.lose_export(&ours(volume).await);
    }
    cloud.sim.stop_machine("vm-1");
    cloud.sim.start_machine("vm-1");
    let count =
        |found: &[(String, String, bool)], kind: &str| found.iter().filter(|one| one.0 == kind && one.2).count();
    let found = shared.audit(&[]);
    assert_eq!((count(&found, "target-missing"), count(&found, "session-missing"), found.len()), (3, 3, 6));
    assert_eq!(shared.audit(&[]), found, "an audit changed something");
    assert_eq!(shared.audit(&["--repair"]), []);
    for volume in &volumes {
        assert!(cloud.sim.guest_writes("vm-1", &VolumeId::parse(volume).unwrap()).is_some());
    }
    cloud.sim.remove_machine("vm-1");
    cloud.sweep().await;
    let found = shared.audit(&["--repair"]);
    assert!(found.len() == 3 && found.iter().all(|one| one.0 == "machine-gone" && !one.2), "{found:?}");
    for volume in &volumes {
        assert_eq!(cloud.attachment_state(volume).await.as_deref(), Some("attached"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_copy_of_a_volume_leaves_when_its_undo_is_given_up_is_found_and_taken_away() {
    use vbs::delegate::ErrorKind;
    use vbs::delegate::sim::{Fault, FaultKind};
    let shared = Shared::start().await;
    let cloud = &shared.cloud;
    let source = cloud.volume().await;
    for verb in ["ensure_volume", "ensure_no_volume"] {
        cloud.sim.push_fault(Fault::always(verb, FaultKind::FailBefore(ErrorKind::Fatal)));
    }
    cloud.client.ok("CopyVolumes", &[("SourceVolumeId", &source)]).await;
    cloud.until("undoing", async || cloud.sim.calls("ensure_no_volume") > 0).await;
    let live = db::workflows::list(&mut cloud.pool.get().await.unwrap(), false, 1).await.unwrap();
    assert_eq!(shared.audit(&[]), [], "it is still its copy's");
    shared.cli.ok(&["workflow", "give-up", &live[0].id.to_string(), "--reason", "no room"]);
    cloud.sim.end_faults();
    let snapshot = live[0].params["snapshot"].as_str().unwrap().to_owned();
    assert_eq!(shared.audit(&["--repair"]), [], "{snapshot} is left");
    shared.delete(live[0].params["volume"].as_str().unwrap()).await;
    shared.delete(&source).await;
    assert_eq!(shared.audit(&[]), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_without_differences_says_nothing_and_one_without_gateways_says_so() {
    let cloud = Cloud::start_with(CALM).await;
    let cli = Cli::of(&cloud);
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;
    assert_eq!(cli.ok(&["audit"]), "");
    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;
    cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "gone").await;
    walk::nothing_is_left(&cloud).await;
    let idle = Cloud::start_with("workers = { concurrency = 0 }").await;
    assert!(Cli::of(&idle).refused(&["audit"]).contains("is one running?"));
    idle.settle().await;
}
