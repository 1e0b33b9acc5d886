//! The QEMU driver on a real QEMU with a real guest and a real tgtd.
//!
//! A guest takes ten seconds to boot under emulation, so the scenes below share one, one after another.

use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use vbs::config;
use vbs::delegate::client::Client;
use vbs::delegate::guard::Guarded;
use vbs::delegate::server::VmmService;
use vbs::delegate::vmm::qemu::Qemu;
use vbs::delegate::vmm::qmp::Qmp;
use vbs::delegate::{
    ConnectSpec, Detach, DiskSpec, ErrorKind, ExportSpec, Generation, Growth, Limits, MachineRef, ObservedMachine,
    Pause, PauseSpec, Portal, Secret, VmmDelegate,
};
use vbs::dev::console;
use vbs::dev::guest_image::{self, GuestImage};
use vbs::dev::guests::{Guest, PROGRAM};
use vbs::ids::{SnapshotId, VolumeId};

use crate::support::tgtd::Tgtd;
use crate::{delegate_contract, monitor_faults};

pub const MACHINE: &str = "vm-1";
const SIZE: u64 = 64 << 20;
pub const GENERATION: Generation = Generation(1);

/// A process that ends with the test.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A tgtd of our own, driven by hand.
pub struct Target {
    process: Process,
    dir: PathBuf,
    portal: SocketAddr,
}

impl Target {
    fn start(dir: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let portal = free.local_addr().unwrap();
        drop(free);
        Self { process: Self::spawn(dir, portal), dir: dir.to_owned(), portal }
    }

    /// Ends it as a crash would; nothing it was told is left.
    fn crash(&mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    fn spawn(dir: &Path, portal: SocketAddr) -> Process {
        let mut tgtd = Command::new("tgtd");
        tgtd.args(["-f", "-C", "1", "--iscsi"]).arg(format!("portal={portal}")).env("TGT_IPC_SOCKET", dir.join("ipc"));
        let process = Process(tgtd.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("package tgt"));
        wait_for("tgtd", || TcpStream::connect(portal).is_ok());
        process
    }

    fn admin(&self, args: &[&str]) -> String {
        let mut tgtadm = Command::new("tgtadm");
        tgtadm.args(["-C", "1", "--lld", "iscsi"]).args(args).env("TGT_IPC_SOCKET", self.dir.join("ipc"));
        let output = tgtadm.output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exports a volume under a name of its own for this attachment.
    pub fn export(&self, volume: &Volume, tid: &str) -> ExportSpec {
        let iqn = format!("iqn.2026-01.test.vbs:{}.{tid}", volume.id.serial());
        let user = format!("user-{tid}");
        let initiator = format!("iqn.2026-01.test.vbs:{MACHINE}");
        let file = volume.file.to_str().unwrap();
        let target = ["--mode", "target", "--tid", tid];
        let account = ["--mode", "account", "--user", &user];
        self.admin(&[&target[..], &["--op", "new", "--targetname", &iqn]].concat());
        self.admin(&["--mode", "logicalunit", "--op", "new", "--tid", tid, "--lun", "1", "--backing-store", file]);
        self.set_serial(tid, &volume.id.serial());
        self.admin(&[&account[..], &["--op", "new", "--password", "secretsecret12"]].concat());
        self.admin(&[&account[..], &["--op", "bind", "--tid", tid]].concat());
        self.admin(&[&target[..], &["--op", "bind", "--initiator-name", &initiator]].concat());
        ExportSpec {
            volume: volume.id.clone(),
            iqn,
            lun: 1,
            chap_user: user,
            chap_secret: Secret("secretsecret12".into()),
            initiator_iqn: initiator,
            beside: Vec::new(),
        }
    }

    fn set_serial(&self, tid: &str, serial: &str) {
        let what = format!("scsi_sn={serial}");
        self.admin(&["--mode", "logicalunit", "--op", "update", "--tid", tid, "--lun", "1", "--params", &what]);
    }

    /// Whether anybody is logged in to a target. tgtd notices a log-out a moment after it.
    pub fn becomes_free(&self, tid: &str) {
        wait_for("the log-out", || !self.admin(&["--mode", "conn", "--op", "show", "--tid", tid]).contains("Session"));
    }
}

pub struct Volume {
    pub id: VolumeId,
    file: PathBuf,
}

impl Volume {
    pub fn new(dir: &Path) -> Self {
        let id = VolumeId::generate();
        let file = dir.join(id.as_str());
        std::fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
        Self { id, file }
    }

    /// The number that block `n` of 4096 bytes holds.
    fn block(&self, n: u64) -> Option<u64> {
        let mut block = [0; 4096];
        let mut file = std::fs::File::open(&self.file).unwrap();
        file.seek(SeekFrom::Start(n * 4096)).unwrap();
        file.read_exact(&mut block).unwrap();
        std::str::from_utf8(&block).ok()?.trim().parse().ok()
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.file).unwrap()
    }
}

/// One guest, one target and the driver under test.
pub struct Lab {
    pub dir: TempDir,
    pub target: Target,
    pub guest: Guest,
    qemu_process: Process,
    qemu: Qemu,
}

impl Lab {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = guest_image().await;
        let guest = Guest::open(dir.path(), &dir.path().join("qmp"), 1).await.unwrap();
        let qemu_process = boot(&guest, &image);
        let target = Target::start(dir.path());
        let qemu = Qemu::start(&dir.path().join("vmm"), &driver_config(dir.path())).await.unwrap();
        guest.wait_ready(Duration::from_secs(120)).await.unwrap();
        Self { dir, target, guest, qemu_process, qemu }
    }

    pub async fn guest_runs(&self, command: &str) -> String {
        let answer = console::run(&self.guest.serial_socket(), command, Duration::from_secs(120)).await;
        let (output, status) = answer.unwrap_or_else(|e| panic!("{command}: {e}"));
        assert_eq!(status, 0, "{command}: {output}");
        output.trim().to_owned()
    }

    /// As an operator at the monitor.
    pub async fn monitor(&self, command: &str) -> serde_json::Value {
        let mut qmp = Qmp::connect(&self.guest.qmp_socket(), Duration::from_secs(10)).await.unwrap();
        qmp.execute(command, json!({})).await.unwrap()
    }

    pub async fn machine_rests(&self) -> bool {
        self.monitor("query-status").await["running"] == false
    }

    pub async fn observed(&self) -> ObservedMachine {
        let mut machines = self.qemu.observe().await.unwrap().machines;
        assert_eq!(machines.len(), 1);
        machines.remove(0)
    }

    pub fn connect_spec(&self, export: &ExportSpec) -> ConnectSpec {
        let portal = Portal { address: self.target.portal.to_string() };
        ConnectSpec { export: export.clone(), portal, machine: self.machine() }
    }

    fn machine(&self) -> MachineRef {
        MachineRef { name: MACHINE.into(), uuid: self.guest.uuid.clone() }
    }

    pub fn disk(&self, export: &ExportSpec) -> DiskSpec {
        DiskSpec {
            volume: export.volume.clone(),
            iqn: export.iqn.clone(),
            machine: self.machine(),
            device: "/dev/sdf".into(),
            limits: Limits::default(),
        }
    }

    /// A pause of a minute for a snapshot.
    pub fn pause(&self, export: &ExportSpec) -> PauseSpec {
        PauseSpec { disk: self.disk(export), snapshot: SnapshotId::generate(), seconds: 60 }
    }

    /// Connects and attaches, and returns the guest's name of the disk.
    async fn attach(&self, export: &ExportSpec) -> String {
        self.qemu.ensure_connected(GENERATION, &self.connect_spec(export)).await.unwrap();
        self.qemu.ensure_attached(GENERATION, &self.disk(export)).await.unwrap();
        self.guest_runs(&format!("disk {}", export.volume.serial())).await
    }

    async fn detach(&self, export: &ExportSpec) -> Detach {
        self.qemu.ensure_detached(GENERATION, &self.disk(export), false).await.unwrap()
    }

    async fn disconnect(&self, export: &ExportSpec, tid: &str) {
        self.qemu.ensure_disconnected(GENERATION, &self.disk(export)).await.unwrap();
        self.target.becomes_free(tid);
    }
}

/// Kept from run to run: unpacking the kernel takes longer than booting it.
pub async fn guest_image() -> GuestImage {
    guest_image::ensure(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-image")).await.unwrap()
}

/// A machine that runs until what is given is dropped.
pub fn boot(guest: &Guest, image: &GuestImage) -> Process {
    let mut qemu = Command::new(PROGRAM);
    qemu.args(guest.args(image)).stdin(Stdio::null()).stdout(Stdio::null());
    Process(qemu.spawn().expect("package qemu-system-x86"))
}

fn driver_config(dir: &Path) -> config::Qemu {
    config::Qemu { qmp_dir: dir.join("qmp"), iqn_prefix: "iqn.2026-01.test.vbs".into(), detach_wait_s: 3 }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_uses_keeps_and_loses_disks_as_it_is_told() {
    let mut lab = Lab::start().await;
    a_line_is_heard_whole_while_orphans_end(&lab).await;
    a_disk_comes_is_written_to_and_goes(&lab).await;
    a_wrong_secret_leaves_nothing_behind(&lab).await;
    a_disk_of_another_serial_number_is_not_given_to_the_guest(&lab).await;
    monitor_faults::whatever_the_monitor_answers_row_and_machine_agree(&lab).await;
    pauses_hold_break_and_add_up(&mut lab).await;
    a_guest_that_holds_on_is_busy_until_force_cuts_it_off(&lab).await;
    force_stops_a_guest_in_the_middle_of_writing(&lab).await;
    a_disk_is_as_fast_as_its_limits_allow(&lab).await;
    the_contract_is_kept_also_over_http(&lab).await;
    a_target_that_comes_back_frees_a_machine_that_waits_for_it(&mut lab).await;
    a_machine_that_hangs_is_not_a_machine_that_is_gone(&mut lab).await;
}

/// Busybox's shell forgets what it has read of a line when a process of its own ends meanwhile.
async fn a_line_is_heard_whole_while_orphans_end(lab: &Lab) {
    // One ends every 10 ms, for longer than the lines below take.
    lab.guest_runs("for n in $(seq 200); do (usleep $((n * 10000)) &); done").await;
    for line in 0..40 {
        let answer = console::run(&lab.guest.serial_socket(), ":", Duration::from_secs(10)).await;
        assert!(matches!(&answer, Ok((_, 0))), "line {line}: {answer:?}");
    }
}

async fn a_disk_comes_is_written_to_and_goes(lab: &Lab) {
    let volume = Volume::new(lab.dir.path());
    let export = lab.target.export(&volume, "1");
    let machine = lab.observed().await;
    assert_eq!((machine.running, machine.paused, machine.vcpus), (true, false, 1));
    assert_eq!((&machine.uuid, machine.memory_mib), (&lab.guest.uuid, u64::from(lab.guest.memory_mib)));
    assert_eq!(machine.disks, vec![]);

    // The monitor serves one client at a time; more than its queue holds get their turn too.
    futures_util::future::join_all((0..8).map(|_| lab.monitor("query-status"))).await;

    let device = lab.attach(&export).await;
    assert_eq!(lab.attach(&export).await, device, "a second time changes nothing");
    assert_eq!(lab.guest_runs(&format!("blockdev --getsize64 {device}")).await, SIZE.to_string());
    lab.guest_runs(&format!("write-numbered {device} 100 50")).await;
    assert_eq!([volume.block(49), volume.block(50), volume.block(149)], [None, Some(50), Some(149)]);
    let sum = lab.guest_runs(&format!("md5 {device} {SIZE}")).await;
    let md5 = Command::new("md5sum").arg(&volume.file).output().unwrap().stdout;
    assert!(String::from_utf8(md5).unwrap().starts_with(&sum));
    let disks = lab.observed().await.disks;
    assert_eq!((disks.len(), &disks[0].iqn, disks[0].attached), (1, &export.iqn, true));

    // tgtd goes on showing the size that the file had.
    std::fs::File::options().write(true).open(&volume.file).unwrap().set_len(2 * SIZE).unwrap();
    for (size, growth) in [(SIZE, Growth::Online), (2 * SIZE, Growth::AtNextAttach)] {
        assert_eq!(lab.qemu.ensure_grown(GENERATION, &lab.disk(&export), size).await.unwrap(), growth);
    }
    assert_eq!(lab.guest_runs(&format!("blockdev --getsize64 {device}")).await, SIZE.to_string());

    let refused = lab.qemu.ensure_disconnected(GENERATION, &lab.disk(&export)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Retry);
    let another = DiskSpec { iqn: "iqn.2026-01.test.vbs:another".into(), ..lab.disk(&export) };
    assert_eq!(lab.qemu.ensure_detached(GENERATION, &another, true).await.unwrap(), Detach::Gone);
    lab.qemu.ensure_disconnected(GENERATION, &another).await.unwrap();
    assert!(lab.observed().await.disks[0].attached, "the end of another attachment is not this one's");

    assert_eq!(lab.detach(&export).await, Detach::Gone);
    assert_eq!(lab.detach(&export).await, Detach::Gone);
    let disks = lab.observed().await.disks;
    assert_eq!((disks.len(), disks[0].attached), (1, false));
    lab.disconnect(&export, "1").await;
    lab.disconnect(&export, "1").await;
    assert_eq!(lab.observed().await.disks, vec![]);
}

async fn a_disk_is_as_fast_as_its_limits_allow(lab: &Lab) {
    let volume = Volume::new(lab.dir.path());
    let export = lab.target.export(&volume, "9");
    let slow = Limits { iops: 100, bytes_per_second: 0 };
    let within = |limits| DiskSpec { limits, ..lab.disk(&export) };
    lab.qemu.ensure_connected(GENERATION, &lab.connect_spec(&export)).await.unwrap();
    lab.qemu.ensure_attached(GENERATION, &within(slow)).await.unwrap();
    lab.qemu.ensure_attached(GENERATION, &within(slow)).await.unwrap();
    let device = lab.guest_runs(&format!("disk {}", export.volume.serial())).await;
    let seconds = async |bytes: &str, count: u32| {
        let begun = Instant::now();
        lab.guest_runs(&format!("dd if={device} of=/dev/null bs={bytes} count={count} iflag=direct status=none")).await;
        begun.elapsed().as_secs_f64()
    };
    assert!(seconds("4096", 300).await > 2.0, "300 reads at 100 a second");
    let enough = Limits { iops: 100_000, bytes_per_second: 4 << 20 };
    assert_eq!(lab.qemu.ensure_grown(GENERATION, &within(enough), SIZE).await.unwrap(), Growth::Online);
    assert!(seconds("1M", 12).await > 2.0, "12 MiB at 4 a second");
    lab.qemu.ensure_grown(GENERATION, &within(Limits::default()), SIZE).await.unwrap();
    let freely = seconds("1M", 12).await;
    assert!(freely < 2.0, "{freely} s without limits");
    assert_eq!(lab.detach(&export).await, Detach::Gone);
    lab.disconnect(&export, "9").await;
}

async fn a_disk_of_another_serial_number_is_not_given_to_the_guest(lab: &Lab) {
    let volume = Volume::new(lab.dir.path());
    let export = lab.target.export(&volume, "10");
    let connect = async || lab.qemu.ensure_connected(GENERATION, &lab.connect_spec(&export)).await;
    lab.target.set_serial("10", &VolumeId::generate().serial());
    assert_eq!(connect().await.unwrap_err().kind, ErrorKind::Fatal);
    assert_eq!(lab.observed().await.disks, vec![]);
    lab.target.becomes_free("10");
    lab.target.set_serial("10", &volume.id.serial());
    connect().await.unwrap();
    lab.disconnect(&export, "10").await;
}

async fn a_wrong_secret_leaves_nothing_behind(lab: &Lab) {
    let volume = Volume::new(lab.dir.path());
    let export = lab.target.export(&volume, "2");
    let wrong = ExportSpec { chap_secret: Secret("not-the-secret".into()), ..export.clone() };
    for _ in 0..2 {
        let refused = lab.qemu.ensure_connected(GENERATION, &lab.connect_spec(&wrong)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Retry);
        assert!(refused.message.contains("Authentication failure") && !refused.message.contains("not-the-secret"));
    }
    lab.attach(&export).await;
    assert_eq!(lab.detach(&export).await, Detach::Gone);
    lab.disconnect(&export, "2").await;
}

async fn pauses_hold_break_and_add_up(lab: &mut Lab) {
    let volumes = [Volume::new(lab.dir.path()), Volume::new(lab.dir.path())];
    let exports = [lab.target.export(&volumes[0], "3"), lab.target.export(&volumes[1], "4")];
    // Two snapshots of one volume and one of another.
    let [one, two, three] = [&exports[0], &exports[1], &exports[0]].map(|export| lab.pause(export));
    let for_seconds = |seconds| PauseSpec { seconds, ..one.clone() };
    let device = lab.attach(&exports[0]).await;
    lab.attach(&exports[1]).await;
    lab.guest_runs(&format!("start-writer {device}")).await;
    wait_for("the writer", || volumes[0].block(10).is_some());

    // Held: not a byte changes, for as long as anybody holds it, also after it is lengthened.
    let later = Generation(2);
    for (generation, pause) in [(GENERATION, &one), (GENERATION, &two), (later, &three), (GENERATION, &one)] {
        lab.qemu.ensure_paused(generation, pause).await.unwrap();
    }
    assert!(lab.observed().await.paused);
    let before = volumes[0].bytes();
    for (generation, pause) in [(GENERATION, &two), (later, &three)] {
        assert_eq!(lab.qemu.ensure_resumed(generation, pause).await.unwrap(), Pause::Held);
        assert!(lab.machine_rests().await, "not all pauses are over");
    }
    assert!(volumes[0].bytes() == before);
    assert_eq!(lab.qemu.ensure_resumed(GENERATION, &one).await.unwrap(), Pause::Held);
    assert!(!lab.machine_rests().await && !lab.observed().await.paused);
    wait_for("the writer to go on", || volumes[0].bytes() != before);

    // Broken: it runs out, or somebody else ends it. The caller is told, however it asks.
    lab.qemu.ensure_paused(GENERATION, &for_seconds(1)).await.unwrap();
    while lab.machine_rests().await {}
    assert_eq!(lab.qemu.ensure_resumed(GENERATION, &one).await.unwrap(), Pause::Broken);
    lab.qemu.ensure_paused(GENERATION, &for_seconds(1)).await.unwrap();
    while lab.machine_rests().await {}
    assert_eq!(lab.qemu.ensure_paused(GENERATION, &one).await.unwrap_err().kind, ErrorKind::Retry);
    assert!(!lab.machine_rests().await);
    for lengthens in [false, true] {
        lab.qemu.ensure_paused(GENERATION, &one).await.unwrap();
        let before = volumes[0].bytes();
        lab.monitor("cont").await;
        wait_for("the writer to go on", || volumes[0].bytes() != before);
        lab.monitor("stop").await;
        if lengthens {
            assert_eq!(lab.qemu.ensure_paused(GENERATION, &one).await.unwrap_err().kind, ErrorKind::Retry);
        } else {
            assert_eq!(lab.qemu.ensure_resumed(GENERATION, &one).await.unwrap(), Pause::Broken);
        }
        assert_eq!(lab.qemu.ensure_resumed(GENERATION, &one).await.unwrap(), Pause::Broken);
        assert!(!lab.machine_rests().await);
    }

    // A machine that the operator has paused stays paused.
    lab.monitor("stop").await;
    lab.qemu.ensure_paused(GENERATION, &one).await.unwrap();
    assert_eq!(lab.qemu.ensure_resumed(GENERATION, &one).await.unwrap(), Pause::Held);
    assert!(lab.machine_rests().await);
    lab.monitor("cont").await;

    delegate_contract::a_pause_is_of_the_newest_generation_that_asked_for_it(&lab.qemu, &one.disk).await;
    let connect = lab.connect_spec(&exports[0]);
    delegate_contract::a_machine_that_only_has_the_name_is_given_nothing(&lab.qemu, &connect, &one.disk).await;

    // The next life of the delegate ends the pauses of the last, and their callers are told.
    lab.qemu.ensure_paused(GENERATION, &for_seconds(600)).await.unwrap();
    lab.qemu.ensure_paused(later, &three).await.unwrap();
    let (config, elsewhere) = (driver_config(lab.dir.path()), lab.dir.path().join("elsewhere"));
    lab.qemu = Qemu::start(&elsewhere, &config).await.unwrap(); // The life before ends here, and its lock with it.
    lab.qemu = Qemu::start(&lab.dir.path().join("vmm"), &config).await.unwrap();
    while lab.machine_rests().await {}
    assert_eq!(lab.qemu.ensure_paused(GENERATION, &one).await.unwrap_err().kind, ErrorKind::Retry);
    assert_eq!(lab.qemu.ensure_resumed(later, &three).await.unwrap(), Pause::Broken);

    lab.guest_runs("stop-writer").await;
    for (export, tid) in exports.iter().zip(["3", "4"]) {
        assert_eq!(lab.detach(export).await, Detach::Gone);
        lab.disconnect(export, tid).await;
    }
}

async fn a_guest_that_holds_on_is_busy_until_force_cuts_it_off(lab: &Lab) {
    let volume = Volume::new(lab.dir.path());
    let first = lab.target.export(&volume, "5");
    lab.attach(&first).await;
    lab.monitor("stop").await;
    assert_eq!(lab.detach(&first).await, Detach::Busy);
    assert_eq!(lab.detach(&first).await, Detach::Busy);
    assert!(lab.observed().await.disks[0].attached);

    for _ in 0..2 {
        assert_eq!(lab.qemu.ensure_detached(GENERATION, &lab.disk(&first), true).await.unwrap(), Detach::Gone);
    }
    assert!(!lab.observed().await.disks[0].attached);
    lab.disconnect(&first, "5").await;
    assert_eq!(lab.observed().await.disks, vec![]);

    // The dead device is still in the guest, so the volume cannot come back to it, until the guest lets go.
    let second = lab.target.export(&volume, "6");
    lab.qemu.ensure_connected(GENERATION, &lab.connect_spec(&second)).await.unwrap();
    let refused = lab.qemu.ensure_attached(GENERATION, &lab.disk(&second)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Retry);
    lab.monitor("cont").await;
    while lab.qemu.ensure_attached(GENERATION, &lab.disk(&second)).await.is_err() {}
    let device = lab.attach(&second).await;
    lab.guest_runs(&format!("write-numbered {device} 1 7")).await;
    assert_eq!(volume.block(7), Some(7));
    assert_eq!(lab.detach(&second).await, Detach::Gone);
    lab.disconnect(&second, "6").await;
}

async fn force_stops_a_guest_in_the_middle_of_writing(lab: &Lab) {
    let volume = Volume::new(lab.dir.path());
    let export = lab.target.export(&volume, "7");
    let device = lab.attach(&export).await;
    lab.guest_runs(&format!("start-writer {device}")).await;
    wait_for("the writer", || volume.block(10).is_some());
    assert_eq!(lab.qemu.ensure_detached(GENERATION, &lab.disk(&export), true).await.unwrap(), Detach::Gone);
    lab.disconnect(&export, "7").await;
    let after = volume.bytes();
    lab.guest_runs("stop-writer").await;
    assert!(volume.bytes() == after);
}

/// With a storage node's own drivers at the other end.
async fn the_contract_is_kept_also_over_http(lab: &Lab) {
    let (tgtd, volumes, keys) = (Tgtd::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let storage = delegate_contract::files(&tgtd, &volumes).await;
    let dir = lab.dir.path().join("contract");
    let qemu = Arc::new(Qemu::start(&dir, &driver_config(lab.dir.path())).await.unwrap());
    let qemu = Arc::new(Guarded::open(qemu, &dir).await.unwrap());
    delegate_contract::vmm_contract(&storage, &*qemu, MACHINE).await;
    let key = delegate_contract::node_key(&keys);
    let service = VmmService::new("vmm-1", &key, qemu).unwrap();
    let served = delegate_contract::serve(service, &key, config::Server::default());
    delegate_contract::vmm_contract(&storage, &Client::new("vmm-1", &served).unwrap(), MACHINE).await;
}

async fn a_target_that_comes_back_frees_a_machine_that_waits_for_it(lab: &mut Lab) {
    let volume = Volume::new(lab.dir.path());
    let export = lab.target.export(&volume, "8");
    let pause = lab.pause(&export);
    let device = lab.attach(&export).await;
    lab.guest_runs(&format!("start-writer {device}")).await;
    wait_for("the writer", || volume.block(10).is_some());

    // The portal is there and the target is not, with a write in flight: the pause cannot come about, and in trying the
    // machine hangs.
    lab.target.crash();
    lab.target.process = Target::spawn(&lab.target.dir, lab.target.portal);
    let silent = lab.qemu.ensure_paused(GENERATION, &pause).await.unwrap_err();
    assert_eq!(silent.kind, ErrorKind::Retry, "{silent}");
    let before = volume.bytes();
    lab.target.export(&volume, "8");
    wait_for("the writer to go on", || volume.bytes() != before);
    lab.qemu.ensure_paused(GENERATION, &pause).await.unwrap();
    let before = volume.bytes();
    assert_eq!(lab.qemu.ensure_resumed(GENERATION, &pause).await.unwrap(), Pause::Held);
    wait_for("the writer to go on", || volume.bytes() != before);
    lab.guest_runs("stop-writer").await;
    assert_eq!(lab.detach(&export).await, Detach::Gone);
    lab.disconnect(&export, "8").await;
}

async fn a_machine_that_hangs_is_not_a_machine_that_is_gone(lab: &mut Lab) {
    let volume = Volume::new(lab.dir.path());
    let export = lab.target.export(&volume, "9");
    let pause = lab.pause(&export);
    lab.attach(&export).await;
    let known = lab.observed().await;

    // A target that is away: whatever would wait for it is not begun, and the machine runs on.
    lab.target.crash();
    let away = lab.qemu.ensure_detached(GENERATION, &lab.disk(&export), true).await.unwrap_err();
    assert_eq!(away.kind, ErrorKind::Retry);
    let away = lab.qemu.ensure_paused(GENERATION, &pause).await.unwrap_err();
    assert_eq!(away.kind, ErrorKind::Retry);
    assert!(!lab.machine_rests().await);

    let pid = rustix::process::Pid::from_child(&lab.qemu_process.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    assert_eq!(lab.observed().await, known);
    let silent = lab.qemu.ensure_detached(GENERATION, &lab.disk(&export), true).await.unwrap_err();
    assert_eq!(silent.kind, ErrorKind::Retry);

    lab.qemu_process.0.kill().unwrap();
    lab.qemu_process.0.wait().unwrap();
    assert_eq!(lab.detach(&export).await, Detach::Gone);
    lab.qemu.ensure_disconnected(GENERATION, &lab.disk(&export)).await.unwrap();
    let gone = lab.observed().await;
    assert_eq!((gone.running, gone.uuid, gone.disks), (false, known.uuid, vec![]));
}
