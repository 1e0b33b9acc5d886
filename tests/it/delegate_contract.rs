//! What every delegate must do, whatever is behind it and whichever way it is called: the same tests over the real drivers,
//! the simulation, and the simulation over HTTP.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use vbs::config::{self, SecretSource};
use vbs::delegate::client::Client;
use vbs::delegate::guard::Guarded;
use vbs::delegate::server::{StorageService, VmmService};
use vbs::delegate::sim::SimCloud;
use vbs::delegate::volume::local::LocalStorage;
use vbs::delegate::{
    ConnectSpec, CopySpec, Detach, DiskSpec, ErrorKind, ExportSpec, Generation, Limits, MachineRef, ObservedDisk,
    ObservedMachine, Pause, PauseSpec, Result, Secret, SnapshotReport, SnapshotSpec, VmmDelegate, VolumeDelegate,
    VolumeSpec,
};
use vbs::ids::{SnapshotId, VolumeId};
use vbs::server::{self, Handler};

use crate::support::tgtd::Tgtd;

const MIB: u64 = 1 << 20;
/// What volumes are multiples of: LVM gives whole extents, of 4 MiB when nobody has said otherwise.
const UNIT: u64 = 4 * MIB;
const NOW: Generation = Generation(100);

/// How it was refused.
pub fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("it is refused").kind
}

/// The export of an attachment; each `attempt` is another attachment of the volume.
pub fn export(volume: &VolumeId, initiator_iqn: &str, attempt: u32) -> ExportSpec {
    ExportSpec {
        volume: volume.clone(),
        iqn: format!("iqn.2026-01.net.example:{volume}.{attempt}"),
        lun: 1,
        chap_user: format!("{volume}-{attempt}"),
        chap_secret: Secret(format!("secret-of-attempt-{attempt}")),
        initiator_iqn: initiator_iqn.into(),
        beside: Vec::new(),
    }
}

async fn new_volume(storage: &dyn VolumeDelegate, size_bytes: u64) -> VolumeId {
    let spec = VolumeSpec { volume: VolumeId::generate(), size_bytes, snapshot: None };
    storage.ensure_volume(NOW, &spec).await.unwrap();
    spec.volume
}

async fn sizes(storage: &dyn VolumeDelegate, volume: &VolumeId) -> Vec<u64> {
    let seen = storage.observe().await.unwrap().volumes;
    seen.into_iter().filter(|(id, _)| id == volume).map(|(_, size)| size).collect()
}

/// Asks until the snapshot stands apart from its volume, as the workers do.
pub async fn whole_snapshot(
    storage: &dyn VolumeDelegate,
    generation: Generation,
    spec: &SnapshotSpec,
) -> SnapshotReport {
    let patience = Instant::now() + Duration::from_secs(120);
    let mut before = 0;
    loop {
        let report = storage.ensure_snapshot(generation, spec).await.unwrap();
        assert!(report.progress >= before, "{} % after {before} %", report.progress);
        before = report.progress;
        match before {
            100 => return report,
            _ if Instant::now() > patience => panic!("{} is at {before} %", spec.snapshot),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn volumes_are_made_grown_and_removed_however_often_it_is_asked(storage: &dyn VolumeDelegate) {
    let volume = VolumeId::generate();
    for (asked, there) in [(UNIT, UNIT), (UNIT, UNIT), (3 * UNIT, 3 * UNIT), (UNIT, 3 * UNIT)] {
        let spec = VolumeSpec { volume: volume.clone(), size_bytes: asked, snapshot: None };
        storage.ensure_volume(NOW, &spec).await.unwrap();
        assert_eq!(sizes(storage, &volume).await, [there]);
    }
    for _ in 0..2 {
        storage.ensure_no_volume(NOW, &volume).await.unwrap();
        assert!(sizes(storage, &volume).await.is_empty());
    }
}

async fn snapshots_outlive_their_volumes_and_make_new_ones(storage: &dyn VolumeDelegate) {
    let volume = new_volume(storage, 2 * UNIT).await;
    let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: volume.clone(), cut: false };
    let report = whole_snapshot(storage, NOW, &spec).await;
    assert_eq!(report.size_bytes, 2 * UNIT);
    assert!(report.data_bytes <= report.size_bytes);
    storage.ensure_no_volume(NOW, &volume).await.unwrap();
    assert_eq!(storage.ensure_snapshot(NOW, &spec).await.unwrap(), report);
    assert!(storage.observe().await.unwrap().snapshots.contains(&spec.snapshot));

    let restored = VolumeId::generate();
    let from = |size_bytes, snapshot: &SnapshotId| VolumeSpec {
        volume: restored.clone(),
        size_bytes,
        snapshot: Some(snapshot.clone()),
    };
    assert_eq!(kind(storage.ensure_volume(NOW, &from(UNIT, &spec.snapshot)).await), ErrorKind::Fatal);
    assert_eq!(kind(storage.ensure_volume(NOW, &from(UNIT, &SnapshotId::generate())).await), ErrorKind::Fatal);
    storage.ensure_volume(NOW, &from(3 * UNIT, &spec.snapshot)).await.unwrap();
    assert_eq!(sizes(storage, &restored).await, [3 * UNIT]);

    for _ in 0..2 {
        storage.ensure_no_snapshot(NOW, &spec).await.unwrap();
    }
    assert!(!storage.observe().await.unwrap().snapshots.contains(&spec.snapshot));
    assert_eq!(kind(storage.ensure_snapshot(NOW, &spec).await), ErrorKind::Fatal);
    storage.ensure_no_volume(NOW, &restored).await.unwrap();
}

async fn copies_of_snapshots_outlive_them(storage: &dyn VolumeDelegate) {
    let volume = new_volume(storage, 2 * UNIT).await;
    let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: volume.clone(), cut: false };
    let source = whole_snapshot(storage, NOW, &spec).await;
    storage.ensure_no_volume(NOW, &volume).await.unwrap();
    let copy = CopySpec { snapshot: SnapshotId::generate(), source: spec.snapshot.clone() };
    let lost = CopySpec { source: SnapshotId::generate(), ..copy.clone() };
    assert_eq!(kind(storage.ensure_snapshot_copy(NOW, &lost).await), ErrorKind::Fatal);
    assert_eq!(storage.ensure_snapshot_copy(NOW, &copy).await.unwrap(), source);
    storage.ensure_no_snapshot(NOW, &spec).await.unwrap();
    assert_eq!(storage.ensure_snapshot_copy(NOW, &copy).await.unwrap(), source, "it is there");
    assert_eq!(storage.observe().await.unwrap().snapshots, std::slice::from_ref(&copy.snapshot));
    let restored = VolumeSpec { volume, size_bytes: 2 * UNIT, snapshot: Some(copy.snapshot.clone()) };
    storage.ensure_volume(NOW, &restored).await.unwrap();
    storage.ensure_no_volume(NOW, &restored.volume).await.unwrap();
    let spec = SnapshotSpec { snapshot: copy.snapshot, ..spec };
    assert_eq!(kind(storage.ensure_no_snapshot(Generation(1), &spec).await), ErrorKind::Stale);
    storage.ensure_no_snapshot(NOW, &spec).await.unwrap();
}

async fn a_volume_has_one_export_and_stays_while_it_has(storage: &dyn VolumeDelegate) {
    let volume = new_volume(storage, UNIT).await;
    let of = |attempt| export(&volume, "iqn.2026-01.net.example:host", attempt);
    assert_eq!(
        kind(storage.ensure_exported(NOW, &export(&VolumeId::generate(), "iqn.2026-01.a:b", 1)).await),
        ErrorKind::Fatal
    );
    let mut hostile = of(1);
    hostile.initiator_iqn = "ALL".into();
    assert_eq!(kind(storage.ensure_exported(NOW, &hostile).await), ErrorKind::Fatal);
    let portal = storage.ensure_exported(NOW, &of(1)).await.unwrap();
    for attempt in [1, 2] {
        assert_eq!(storage.ensure_exported(NOW, &of(attempt)).await.unwrap(), portal);
        let exports = storage.observe().await.unwrap().exports;
        let ours: Vec<_> = exports.iter().filter(|export| export.volume == volume).collect();
        assert_eq!(ours.len(), 1, "{ours:?}");
        assert_eq!((&ours[0].iqn, ours[0].whole, ours[0].sessions.len()), (&of(attempt).iqn, true, 0));
    }
    assert_eq!(kind(storage.ensure_no_volume(NOW, &volume).await), ErrorKind::Retry);
    for _ in 0..2 {
        storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap();
    }
    assert!(storage.observe().await.unwrap().exports.iter().all(|export| export.volume != volume));
    storage.ensure_no_volume(NOW, &volume).await.unwrap();
}

async fn of_exports_beside_each_other_each_ends_by_itself(storage: &dyn VolumeDelegate) {
    let volume = new_volume(storage, UNIT).await;
    let of = |attempt, initiator: &str| export(&volume, initiator, attempt);
    let (one, two) = ("iqn.2026-01.net.example:host", "iqn.2026-01.net.example:other");
    // The third has the initiator of the first: two machines of one host.
    let mut specs = [of(1, one), of(2, two), of(3, one)];
    let iqns: Vec<String> = specs.iter().map(|spec| spec.iqn.clone()).collect();
    for spec in &mut specs {
        spec.beside = iqns.iter().filter(|iqn| **iqn != spec.iqn).cloned().collect();
    }
    let exports = async || {
        let seen = storage.observe().await.unwrap().exports;
        assert!(seen.iter().all(|export| export.whole), "{seen:?}");
        let mut seen: Vec<String> = seen.into_iter().map(|export| export.iqn).collect();
        seen.sort();
        seen
    };
    let portal = storage.ensure_exported(NOW, &specs[0]).await.unwrap();
    for spec in specs.iter().chain(&specs) {
        assert_eq!(storage.ensure_exported(NOW, spec).await.unwrap(), portal);
    }
    assert_eq!(exports().await, iqns);
    for _ in 0..2 {
        storage.ensure_not_exported(NOW, &volume, &iqns[1..]).await.unwrap();
        assert_eq!(exports().await, iqns[1..]);
    }
    assert_eq!(kind(storage.ensure_no_volume(NOW, &volume).await), ErrorKind::Retry);
    // What is beside nobody any more ends with the next export.
    specs[2].beside.clear();
    storage.ensure_exported(NOW, &specs[2]).await.unwrap();
    assert_eq!(exports().await, iqns[2..]);
    storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap();
    storage.ensure_no_volume(NOW, &volume).await.unwrap();
}

async fn a_worker_that_was_overtaken_is_refused(storage: &dyn VolumeDelegate) {
    let volume = new_volume(storage, UNIT).await;
    let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: volume.clone(), cut: false };
    // A snapshot is leased apart from its volume.
    whole_snapshot(storage, Generation(50), &spec).await;
    assert_eq!(kind(storage.ensure_no_snapshot(Generation(49), &spec).await), ErrorKind::Stale);
    assert_eq!(kind(storage.ensure_no_volume(Generation(99), &volume).await), ErrorKind::Stale);
    storage.ensure_no_volume(Generation(101), &volume).await.unwrap();
    let again = VolumeSpec { volume, size_bytes: UNIT, snapshot: None };
    assert_eq!(kind(storage.ensure_volume(NOW, &again).await), ErrorKind::Stale, "it would bring it back");
    storage.ensure_no_snapshot(NOW, &spec).await.unwrap();
}

/// All that a storage delegate must do.
pub async fn storage_contract(storage: &dyn VolumeDelegate) {
    storage.snapshot_method().await.unwrap();
    volumes_are_made_grown_and_removed_however_often_it_is_asked(storage).await;
    snapshots_outlive_their_volumes_and_make_new_ones(storage).await;
    copies_of_snapshots_outlive_them(storage).await;
    a_volume_has_one_export_and_stays_while_it_has(storage).await;
    of_exports_beside_each_other_each_ends_by_itself(storage).await;
    a_worker_that_was_overtaken_is_refused(storage).await;
    let left = storage.observe().await.unwrap();
    assert!(left.volumes.is_empty() && left.snapshots.is_empty() && left.exports.is_empty(), "{left:?}");
}

async fn observed(vmm: &dyn VmmDelegate, machine: &str) -> ObservedMachine {
    let machines = vmm.observe().await.unwrap().machines;
    machines.into_iter().find(|seen| seen.name == machine).expect("the machine is reported")
}

async fn disks(vmm: &dyn VmmDelegate, machine: &str) -> Vec<ObservedDisk> {
    observed(vmm, machine).await.disks
}

/// `good` and `disk` are of one volume, and the machine is not paused.
pub async fn a_machine_that_only_has_the_name_is_given_nothing(
    vmm: &dyn VmmDelegate,
    good: &ConnectSpec,
    disk: &DiskSpec,
) {
    let before = disks(vmm, &disk.machine.name).await;
    let machine = MachineRef { uuid: uuid::Uuid::new_v4().to_string(), ..disk.machine.clone() };
    let connect = ConnectSpec { machine: machine.clone(), ..good.clone() };
    let disk = DiskSpec { machine, ..disk.clone() };
    let pause = pause(&disk);
    assert_eq!(kind(vmm.ensure_connected(NOW, &connect).await), ErrorKind::Fatal);
    assert_eq!(kind(vmm.ensure_attached(NOW, &disk).await), ErrorKind::Fatal);
    assert_eq!(kind(vmm.ensure_paused(NOW, &pause).await), ErrorKind::Fatal);
    assert_eq!(vmm.ensure_resumed(NOW, &pause).await.unwrap(), Pause::Broken);
    assert_eq!(vmm.ensure_detached(NOW, &disk, true).await.unwrap(), Detach::Gone);
    vmm.ensure_disconnected(NOW, &disk).await.unwrap();
    let after = observed(vmm, &disk.machine.name).await;
    assert_eq!((after.disks, after.paused), (before, false), "the other machine keeps what it has");
}

/// A pause of a disk for a snapshot.
fn pause(disk: &DiskSpec) -> PauseSpec {
    PauseSpec { disk: disk.clone(), snapshot: SnapshotId::generate(), seconds: 60 }
}

/// The disk is attached.
pub async fn a_pause_is_of_the_newest_generation_that_asked_for_it(vmm: &dyn VmmDelegate, disk: &DiskSpec) {
    let pauses = || async { observed(vmm, &disk.machine.name).await.paused };
    let ([old, new, newer], own) = ([200, 201, 202].map(Generation), pause(disk));
    // An undo, under the lease after that of the try which it undoes.
    vmm.ensure_paused(old, &own).await.unwrap();
    assert_eq!(vmm.ensure_resumed(new, &own).await.unwrap(), Pause::Broken);
    assert!(!pauses().await, "the guest waits for a pause to run out that nobody needs");
    // Another try.
    for generation in [new, newer] {
        vmm.ensure_paused(generation, &own).await.unwrap();
    }
    assert_eq!(kind(vmm.ensure_paused(new, &own).await), ErrorKind::Stale);
    assert_eq!(vmm.ensure_resumed(new, &own).await.unwrap(), Pause::Broken);
    assert!(pauses().await, "a ghost ended the pause of its successor");
    // Another snapshot of the same volume.
    let other = pause(disk);
    vmm.ensure_paused(old, &other).await.unwrap();
    assert_eq!(vmm.ensure_resumed(newer, &own).await.unwrap(), Pause::Held);
    assert!(pauses().await);
    assert_eq!(vmm.ensure_resumed(old, &other).await.unwrap(), Pause::Held);
    assert!(!pauses().await);
}

/// All that a hypervisor delegate must do, on a running machine of it that has no disks of ours, with a storage node it can
/// reach.
pub async fn vmm_contract(storage: &dyn VolumeDelegate, vmm: &dyn VmmDelegate, machine: &str) {
    let initiator = vmm.initiator_iqn(machine).await.unwrap();
    let volume = new_volume(storage, 2 * MIB).await;
    let export = export(&volume, &initiator, 1);
    let uuid = observed(vmm, machine).await.uuid;
    let meant = MachineRef { name: machine.into(), uuid };
    let disk = DiskSpec {
        volume: volume.clone(),
        iqn: export.iqn.clone(),
        machine: meant.clone(),
        device: "/dev/sdf".into(),
        limits: Limits::default(),
    };
    // Undoing what was never done is success.
    assert_eq!(vmm.ensure_detached(NOW, &disk, false).await.unwrap(), Detach::Gone);
    vmm.ensure_disconnected(NOW, &disk).await.unwrap();
    assert_eq!(kind(vmm.ensure_attached(NOW, &disk).await), ErrorKind::Retry, "nothing to attach yet");

    let portal = storage.ensure_exported(NOW, &export).await.unwrap();
    let good = ConnectSpec { export: export.clone(), portal, machine: meant.clone() };
    let mut bad = good.clone();
    bad.export.chap_secret = Secret("another-secret".into());
    assert_eq!(kind(vmm.ensure_connected(NOW, &bad).await), ErrorKind::Retry, "a wrong secret");
    bad = good.clone();
    bad.export.iqn.push('x');
    assert_eq!(kind(vmm.ensure_connected(NOW, &bad).await), ErrorKind::Retry, "a target that is not there");

    for _ in 0..2 {
        vmm.ensure_connected(NOW, &good).await.unwrap();
    }
    let seen = |attached| ObservedDisk { volume: volume.clone(), iqn: export.iqn.clone(), attached };
    assert_eq!(disks(vmm, machine).await, [seen(false)]);
    assert_eq!(kind(storage.ensure_not_exported(NOW, &volume, &[]).await), ErrorKind::Retry, "a session is there");
    for _ in 0..2 {
        vmm.ensure_attached(NOW, &disk).await.unwrap();
    }
    assert_eq!(disks(vmm, machine).await, [seen(true)]);
    assert_eq!(kind(vmm.ensure_disconnected(NOW, &disk).await), ErrorKind::Retry, "a device is there");

    a_machine_that_only_has_the_name_is_given_nothing(vmm, &good, &disk).await;

    let rest = pause(&disk);
    assert_eq!(vmm.ensure_resumed(NOW, &rest).await.unwrap(), Pause::Broken, "there was none");
    for _ in 0..2 {
        vmm.ensure_paused(NOW, &rest).await.unwrap();
    }
    let seen = observed(vmm, machine).await;
    assert!(seen.paused && seen.running);
    assert_eq!(vmm.ensure_resumed(NOW, &rest).await.unwrap(), Pause::Held);
    assert!(!observed(vmm, machine).await.paused);
    a_pause_is_of_the_newest_generation_that_asked_for_it(vmm, &disk).await;

    assert_eq!(kind(vmm.ensure_detached(Generation(99), &disk, true).await), ErrorKind::Stale);
    while vmm.ensure_detached(NOW, &disk, false).await.unwrap() == Detach::Busy {}
    assert_eq!(vmm.ensure_detached(NOW, &disk, false).await.unwrap(), Detach::Gone);
    for _ in 0..2 {
        vmm.ensure_disconnected(NOW, &disk).await.unwrap();
    }
    assert!(disks(vmm, machine).await.is_empty());
    storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap();
    storage.ensure_no_volume(NOW, &volume).await.unwrap();
}

/// The nodes of a simulated cloud: one of each kind, with one machine.
fn sim(cloud: &SimCloud) -> (Arc<dyn VolumeDelegate>, Arc<dyn VmmDelegate>) {
    let config = config::Sim { machines: vec!["m1".into()], capacity_gib: Some(1) };
    let storage = Guarded::in_memory(Arc::new(cloud.storage("storage-1", &config)));
    let vmm = Guarded::in_memory(Arc::new(cloud.vmm("vmm-1", &config)));
    (Arc::new(storage), Arc::new(vmm))
}

#[tokio::test]
async fn the_simulation_keeps_the_contract() {
    let cloud = SimCloud::new();
    let (storage, vmm) = sim(&cloud);
    storage_contract(&*storage).await;
    vmm_contract(&*storage, &*vmm, "m1").await;
    cloud.copy_in_background(30);
    storage_contract(&*storage).await;
}

/// A node's service on a port of its own; gives what a gateway's file says of it.
pub fn serve(service: impl Handler, key: &SecretSource, config: config::Server) -> config::Remote {
    let listener = server::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let ca = config.tls_cert.clone();
    tokio::spawn(async move {
        server::serve(&config, listener, Arc::new(service), std::future::pending()).await.unwrap();
    });
    config::Remote { ca, ..config::Remote::new(url, key.clone()) }
}

async fn a_snapshot_that_overflowed_is_lost_for_good(cloud: &SimCloud, storage: &dyn VolumeDelegate) {
    let volume = new_volume(storage, MIB).await;
    let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: volume.clone(), cut: false };
    assert!(storage.ensure_snapshot(NOW, &spec).await.unwrap().progress < 100);
    cloud.overflow();
    for _ in 0..2 {
        assert_eq!(kind(storage.ensure_snapshot(NOW, &spec).await), ErrorKind::Fatal);
    }
    storage.ensure_no_snapshot(NOW, &spec).await.unwrap();
    storage.ensure_no_volume(NOW, &volume).await.unwrap();
}

/// The key of a node, in a file.
pub fn node_key(dir: &TempDir) -> SecretSource {
    std::fs::write(dir.path().join("key"), "0123456789abcdef0123456789abcdef").unwrap();
    SecretSource::File(dir.path().join("key"))
}

#[tokio::test]
async fn the_simulation_over_http_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let key = node_key(&dir);
    let cloud = SimCloud::new();
    let (storage, vmm) = sim(&cloud);
    let plain = config::Server::default();
    let storage = serve(StorageService::new("storage-1", &key, storage).unwrap(), &key, plain.clone());
    let vmm = serve(VmmService::new("vmm-1", &key, vmm).unwrap(), &key, plain);
    let storage = Client::new("storage-1", &storage).unwrap();
    storage_contract(&storage).await;
    vmm_contract(&storage, &Client::new("vmm-1", &vmm).unwrap(), "m1").await;
    cloud.copy_in_background(30);
    storage_contract(&storage).await;
    a_snapshot_that_overflowed_is_lost_for_good(&cloud, &storage).await;

    let stranger = Client::new("storage-2", &vmm).unwrap();
    let refused = VmmDelegate::observe(&stranger).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
    let gone = config::Remote::new("http://127.0.0.1:1".into(), key);
    let refused = VmmDelegate::observe(&Client::new("vmm-1", &gone).unwrap()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
}

#[tokio::test]
async fn over_https_a_node_is_believed_only_with_a_certificate_of_its_own_authority_or_a_pinned_one() {
    let dir = tempfile::tempdir().unwrap();
    let [good, other] = ["good", "other"].map(|name| {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (cert, key) = (dir.path().join(format!("{name}.pem")), dir.path().join(format!("{name}.key")));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (cert, key)
    });
    let certificate = good.0.clone();
    let tls = config::Server { tls_cert: Some(good.0), tls_key: Some(good.1), ..config::Server::default() };
    let key = node_key(&dir);
    let remote = serve(StorageService::new("storage-1", &key, sim(&SimCloud::new()).0).unwrap(), &key, tls);
    for _ in 0..2 {
        VolumeDelegate::observe(&Client::new("storage-1", &remote).unwrap()).await.unwrap();
    }
    let fingerprint = |pem: &std::path::Path| {
        let mut openssl = std::process::Command::new("openssl");
        let said = openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(pem).output().unwrap();
        String::from_utf8(said.stdout).unwrap().trim().rsplit_once('=').unwrap().1.to_owned()
    };
    let pins = [&certificate, &other.0].map(|file| fingerprint(file));
    let pinned = |ca: Option<&std::path::PathBuf>, pins: &[String]| config::Remote {
        ca: ca.cloned(),
        pins: pins.to_vec(),
        ..remote.clone()
    };
    for trusted in [pinned(None, &pins[..1]), pinned(None, &pins), pinned(remote.ca.as_ref(), &pins[..1])] {
        VolumeDelegate::observe(&Client::new("storage-1", &trusted).unwrap()).await.unwrap();
    }
    for wrong in [
        pinned(Some(&other.0), &[]),
        pinned(None, &pins[1..]),
        pinned(remote.ca.as_ref(), &pins[1..]),
        pinned(Some(&other.0), &pins[..1]),
    ] {
        let refused = VolumeDelegate::observe(&Client::new("storage-1", &wrong).unwrap()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
    }
    assert!(Client::new("storage-1", &pinned(None, &["ab".into()])).is_err());
    assert!(Client::new("storage-1", &config::Remote { ca: None, ..remote }).is_err());
}

#[tokio::test]
async fn a_node_that_was_restarted_or_says_nonsense_is_worth_another_try() {
    let dir = tempfile::tempdir().unwrap();
    let key = node_key(&dir);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let good = answer("\"atomic\"");
    // Each of these is all that one connection ever says.
    let said = [
        good.clone(),
        good,
        answer("{\"kind\":"),
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n".into(),
        "?\r\n\r\n".into(),
    ];
    let node = std::thread::spawn(move || {
        for text in said {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
        }
    });
    let client = Client::new("storage-1", &config::Remote::new(url, key)).unwrap();
    for _ in 0..2 {
        client.snapshot_method().await.expect("the second time over a new connection");
    }
    for _ in 0..3 {
        assert_eq!(kind(client.snapshot_method().await), ErrorKind::Retry);
    }
    node.join().unwrap();
}

/// A storage node of files in a directory, which a tgtd exports.
pub async fn files(tgtd: &Tgtd, dir: &TempDir) -> Guarded<LocalStorage> {
    let config = tgtd.storage(dir.path());
    let local = Arc::new(LocalStorage::open(&config, &CancellationToken::new()).await.unwrap());
    Guarded::open(local, dir.path()).await.unwrap()
}

#[tokio::test]
async fn the_file_and_tgt_drivers_keep_the_contract_also_over_http() {
    let (tgtd, dir, keys) = (Tgtd::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let storage = Arc::new(files(&tgtd, &dir).await);
    storage_contract(&*storage).await;
    let key = node_key(&keys);
    let served = serve(StorageService::new("storage-1", &key, storage).unwrap(), &key, config::Server::default());
    storage_contract(&Client::new("storage-1", &served).unwrap()).await;
}
