//! The driver on a node that is a directory: a sysfs, a xenstore and programs that change the two as the real ones were seen
//! to.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::delegate::vmm::open_iscsi::sysfs::{Backend, Block, Session, Sysfs, Unit};
use crate::delegate::{ErrorKind, ExportSpec, Limits, Portal, Secret};
use crate::ids::VolumeId;

const UUID: &str = "11111111-2222-3333-4444-555555555555";
const INITIATOR: &str = "iqn.2026-01.t:dom0";
const G: Generation = Generation(1);

mod known_faults;

struct Lab {
    dir: TempDir,
    xen: Xen,
    portal: std::net::TcpListener,
    connect: ConnectSpec,
    disk: DiskSpec,
}

/// What the stand-ins share: where things are, and how a domain's disk looks in xenstore and in the kernel.
const COMMON: &str = r#"#!/bin/sh
cd DIR
echo "$(basename "$0") $*" >> log
state() { # backend frontend online
    grep -v "/51792/" xenstore > new
    cat >> new <<END
/local/domain/0/backend/vbd/7/51792/params = "$(cat path)"
/local/domain/0/backend/vbd/7/51792/physical-device = "8:10"
/local/domain/0/backend/vbd/7/51792/state = "$1"
/local/domain/0/backend/vbd/7/51792/online = "$3"
/local/domain/7/device/vbd/51792/state = "$2"
END
    mv new xenstore
    mkdir -p sys/bus/xen-backend/devices/vbd-7-51792
    echo 8:10 > sys/bus/xen-backend/devices/vbd-7-51792/physical_device
}
none() {
    grep -v "/51792/" xenstore > new
    mv new xenstore
    rm -r sys/bus/xen-backend/devices/vbd-7-51792
}
"#;

/// `xl` takes a `--force` that stands first, `xm` one that stands last.
const TOOL: &str = r#"
case "$(basename "$0") $1 $2 $4" in
*" block-attach "*)
    if grep -q /7/51792/ xenstore; then echo "Device 51792 (vbd) is already connected." >&2; exit 1; fi
    echo "${3#phy:}" > path
    if [ -e refuses-attach ]; then state 3 1 1; echo "no luck" >&2; exit 1; fi
    if [ -e closes ]; then state 5 5 1; exit 0; fi
    if [ -e connects-late ]; then
        state 3 1 1
        (sleep 0.2; state 4 4 1) > /dev/null 2>&1 < /dev/null &
        echo "libxl: error: hotplug script timed out" >&2
        exit 1
    fi
    state 4 4 1 ;;
"xl block-detach --force "*|"xm block-detach "*" --force") none ;;
*" block-detach "*) if [ -e holds ]; then state 5 5 0; echo "refusing to close" >&2; exit 1; fi; none ;;
esac
"#;

const ISCSIADM: &str = r#"
session() { # number
    class=sys/class/iscsi_session/session$1 connection=sys/class/iscsi_connection/connection$1:0 host=host$(($1 + 1))
    mkdir -p $class $connection sys/devices/platform/$host/session$1 sys/class/scsi_host/$host
    ln -sfn ../../../devices/platform/$host/session$1 $class/device
    echo IQN > $class/targetname
    echo 127.0.0.1 > $connection/persistent_address
    echo PORT > $connection/persistent_port
    : > sys/class/scsi_host/$host/scan
    echo LOGGED_IN > $class/state
}
end() { # number
    rm -r sys/class/iscsi_session/session$1 sys/class/iscsi_connection/connection$1:0 sys/devices/platform/host$(($1 + 1))
}
case "$*" in
*--logout) [ ! -e keeps-session ] || exit "$(cat keeps-session)" ;;
*"-o new"|*"-o delete") [ ! -e no-database ] || exit 6 ;;
esac
case "$*" in
*"-o new") mkdir -p nodes/IQN; printf 'node.startup = automatic\n' > nodes/IQN/PORTAL ;;
*--login)
    [ -e refuses-login ] && { echo "login failed due to authorization failure" >&2; exit 24; }
    [ ! -e fails ] || exit "$(cat fails)"
    [ -e times-out ] && { echo "initiator reported error (8 - connection timed out)" >&2; exit 8; }
    session 1
    [ -e hangs ] && exec sleep 60
    [ ! -e status ] || exit "$(cat status)" ;;
second) session 2 ;;
"-m session -r "*" --logout") end $4 ;;
*--logout)
    [ -e sys/class/iscsi_session/session1 ] || exit 21
    end 1
    [ ! -e status ] || exit "$(cat status)" ;;
*"-o delete") [ -e nodes/IQN ] || exit 21; rm -r nodes/IQN ;;
*) exit 7 ;;
esac
"#;

/// What the kernel does by itself: it shows a session's unit when it is told to scan for it, and deletes one when it is told to.
async fn kernel(dir: PathBuf) {
    loop {
        for (host, session, block) in [("2", "1", "sdb"), ("3", "2", "sdc")] {
            let scan = dir.join(format!("sys/class/scsi_host/host{host}/scan"));
            let told = std::fs::read_to_string(&scan).unwrap_or_default();
            let target = dir.join(format!("sys/devices/platform/host{host}/session{session}/target{host}:0:0"));
            let (unit, class) = (target.join(format!("{host}:0:0:1")), dir.join("sys/class/block").join(block));
            if !told.is_empty() {
                let mut log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
                std::io::Write::write_all(&mut log, format!("scan {host}: {told}\n").as_bytes()).unwrap();
                std::fs::write(&scan, "").unwrap();
                let deaf = std::fs::remove_file(dir.join("misses-scan")).is_ok();
                if told == "0 0 1" && !deaf {
                    show(&dir, &target, &unit, &class);
                }
            }
            if std::fs::read(unit.join("delete")).is_ok_and(|told| told == b"1") {
                std::fs::remove_dir_all(unit).unwrap();
                std::fs::remove_dir_all(class).unwrap();
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a unit, all at once.
fn show(dir: &Path, target: &Path, unit: &Path, class: &Path) {
    std::fs::create_dir_all(class).unwrap();
    std::fs::write(class.join("inflight"), "       0        0\n").unwrap();
    let (made, block) = (dir.join("unit"), class.file_name().unwrap());
    std::fs::create_dir_all(made.join("block").join(block)).unwrap();
    let number = if block == "sdb" { "8:16\n" } else { "8:32\n" };
    std::fs::write(made.join("block").join(block).join("dev"), number).unwrap();
    let serial = std::fs::read(dir.join("serial")).unwrap();
    let page = [&[0, 0x80, 0, u8::try_from(serial.len()).unwrap()][..], &serial].concat();
    for (file, bytes) in [("state", &b"running\n"[..]), ("vpd_pg80", &page), ("delete", b"")] {
        std::fs::write(made.join(file), bytes).unwrap();
    }
    std::fs::create_dir_all(target).unwrap();
    std::fs::rename(made, unit).unwrap();
}

impl Lab {
    async fn start() -> Self {
        Self::of(config::Toolstack::Xl).await
    }

    async fn of(kind: config::Toolstack) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let portal = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = portal.local_addr().unwrap();
        let volume = VolumeId::generate();
        let iqn = format!("iqn.2026-01.t:{volume}.1");
        for (name, text) in [("xl", TOOL), ("xm", TOOL), ("iscsiadm", ISCSIADM), ("blockdev", "")] {
            let text = format!("{COMMON}{text}").replace("DIR", dir.path().to_str().unwrap()).replace("IQN", &iqn);
            let text = text.replace("PORTAL", &format!("{},{}", address.ip(), address.port()));
            std::fs::write(at(name), text.replace("PORT", &address.port().to_string())).unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        std::fs::write(at("serial"), volume.serial()).unwrap();
        std::fs::write(at("initiator"), format!("# generated\nInitiatorName={INITIATOR}\n")).unwrap();
        std::fs::create_dir_all(at("dev/disk/by-path")).unwrap();
        std::fs::write(at("dev/sdb"), "").unwrap();
        let link = format!("dev/disk/by-path/ip-{address}-iscsi-{iqn}-lun-1");
        symlink("../../sdb", at(&link)).unwrap();
        let guest = format!("/local/domain/7/name = \"guest\"\n/local/domain/7/vm = \"/vm/{UUID}\"\n");
        std::fs::write(at("xenstore"), format!("/local/domain/0/name = \"Domain-0\"\n{guest}")).unwrap();
        let socket = at("socket");
        xenbus::fake::serve(&socket, at("xenstore"));
        tokio::spawn(kernel(dir.path().to_owned()));
        let machine = MachineRef { name: "guest".into(), uuid: UUID.into() };
        let export = ExportSpec {
            volume: volume.clone(),
            iqn: iqn.clone(),
            lun: 1,
            chap_user: "user".into(),
            chap_secret: Secret("secret-enough".into()),
            initiator_iqn: INITIATOR.into(),
            beside: Vec::new(),
        };
        Self {
            xen: start(dir.path(), &socket, kind).await,
            connect: ConnectSpec { export, portal: Portal { address: address.to_string() }, machine: machine.clone() },
            disk: DiskSpec { volume, iqn, machine, device: "/dev/sdf".into(), limits: Limits::default() },
            portal,
            dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("log"));
        log
    }

    async fn disks(&self) -> (Vec<bool>, usize) {
        let seen = self.xen.observe().await.unwrap();
        (seen.machines[0].disks.iter().map(|disk| disk.attached).collect(), seen.sessions.len())
    }

    fn nothing_is_left(&self) {
        for gone in ["nodes", "sys/class/iscsi_session", "sys/bus/xen-backend/devices"] {
            let left: Vec<_> = std::fs::read_dir(self.path(gone)).into_iter().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        assert!(!std::fs::read_to_string(self.path("data/sessions.json")).unwrap_or_default().contains("iqn"));
    }
}

async fn start(dir: &Path, socket: &Path, kind: config::Toolstack) -> Xen {
    let text = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let sysfs = Sysfs { sys: dir.join("sys"), dev: dir.join("dev") };
    let host = Host {
        sysfs,
        proc: dir.join("proc"),
        iscsiadm: text("iscsiadm"),
        blockdev: text("blockdev"),
        log_in: Duration::from_secs(3),
        flush: Duration::from_secs(3),
        settle: Duration::from_secs(3),
    };
    let program = text(match kind {
        config::Toolstack::Xl => "xl",
        config::Toolstack::Xm => "xm",
    });
    let toolstack = Toolstack { kind, program, xenstore: socket.to_owned() };
    let open_iscsi = config::OpenIscsi {
        initiator_name: dir.join("initiator"),
        nodes_dir: dir.join("nodes"),
        ..config::OpenIscsi::default()
    };
    let config = config::Xen { detach_wait_s: 0, open_iscsi, ..config::Xen::default() };
    Xen::with(&dir.join("data"), &config, host, toolstack).await.unwrap()
}

#[tokio::test]
async fn a_disk_comes_and_goes_and_nothing_of_it_is_left() {
    let lab = Lab::start().await;
    assert_eq!(lab.xen.ensure_attached(G, &lab.disk).await.unwrap_err().kind, ErrorKind::Retry, "not connected");
    for _ in 0..2 {
        lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
        assert_eq!(lab.disks().await, (vec![false], 1));
    }
    let record = std::fs::read_dir(lab.path("nodes").join(&lab.disk.iqn)).unwrap().next().unwrap().unwrap();
    assert_eq!(record.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let record = std::fs::read_to_string(record.path()).unwrap();
    assert!(record.contains("node.startup = manual\n") && record.contains("password = secret-enough\n"), "{record}");
    for _ in 0..2 {
        lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
        assert_eq!(lab.disks().await, (vec![true], 0));
    }
    let log = lab.log();
    assert_eq!(log.matches("block-attach").count(), 1);
    let path = format!("phy:{}/dev/disk/by-path/ip-", lab.dir.path().display());
    assert!(log.contains(&format!("xl block-attach 7 {path}")) && log.contains("-lun-1 xvdf w\n"), "{log}");
    assert!(!log.contains("secret"), "on a command line everybody reads it: {log}");
    assert_eq!(lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap_err().kind, ErrorKind::Retry, "in use");
    for _ in 0..2 {
        assert_eq!(lab.xen.ensure_detached(G, &lab.disk, false).await.unwrap(), Detach::Gone);
    }
    for _ in 0..2 {
        lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
    }
    assert_eq!(lab.disks().await, (vec![], 0));
    lab.nothing_is_left();
}

#[tokio::test]
async fn a_guest_that_holds_on_is_asked_once_and_again_when_it_has_let_go() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
    lab.put("holds", "");
    lab.log();
    for _ in 0..3 {
        assert_eq!(lab.xen.ensure_detached(G, &lab.disk, false).await.unwrap(), Detach::Busy);
        assert_eq!(lab.disks().await, (vec![true], 0), "it goes on using it");
    }
    assert_eq!(lab.log(), "xl block-detach 7 51792\n");
    assert_eq!(lab.xen.ensure_attached(G, &lab.disk).await.unwrap_err().kind, ErrorKind::Retry);
    assert_eq!(lab.log(), "", "a disk in use is not torn out to be given anew");
    std::fs::remove_file(lab.path("holds")).unwrap();
    let text = std::fs::read_to_string(lab.path("xenstore")).unwrap();
    lab.put("xenstore", &text.replace("state = \"5\"", "state = \"6\""));
    assert_eq!(lab.xen.ensure_detached(G, &lab.disk, false).await.unwrap(), Detach::Gone);

    lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
    lab.put("holds", "");
    assert_eq!(lab.xen.ensure_detached(G, &lab.disk, true).await.unwrap(), Detach::Gone);
    lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
    lab.nothing_is_left();
}

#[tokio::test]
async fn an_attach_that_fails_leaves_nothing_and_says_why() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    lab.put("refuses-attach", "");
    let refused = lab.xen.ensure_attached(G, &lab.disk).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("no luck"), "{refused}");
    assert_eq!(lab.disks().await, (vec![false], 1));
    std::fs::remove_file(lab.path("refuses-attach")).unwrap();
    for (device, why) in [("xvd", "no disk"), ("/dev/vdf", "no disk")] {
        let bad = DiskSpec { device: device.into(), ..lab.disk.clone() };
        let refused = lab.xen.ensure_attached(G, &bad).await.unwrap_err();
        assert!(refused.kind == ErrorKind::Fatal && refused.message.contains(why), "{refused}");
    }
    // A disk of the machine's own, as its configuration has it.
    let text = std::fs::read_to_string(lab.path("xenstore")).unwrap();
    lab.put("xenstore", &format!("{text}/local/domain/0/backend/vbd/7/2128/state = \"4\"\n"));
    let refused = lab.xen.ensure_attached(G, &lab.disk).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Fatal && refused.message.contains("another disk as xvdf"), "{refused}");
}

#[tokio::test]
async fn a_log_in_that_fails_or_finds_another_disk_leaves_nothing() {
    let lab = Lab::start().await;
    lab.put("refuses-login", "");
    let refused = lab.xen.ensure_connected(G, &lab.connect).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("authorization"), "{refused}");
    lab.nothing_is_left();
    std::fs::remove_file(lab.path("refuses-login")).unwrap();
    lab.put("serial", "vol0123456789abcdef0");
    let refused = lab.xen.ensure_connected(G, &lab.connect).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Fatal, "{refused}");
    lab.nothing_is_left();
    drop(lab.portal);
}

#[tokio::test]
async fn nothing_is_logged_out_that_a_guest_a_zombie_or_a_request_still_has() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    let kernel = lab.path("sys/bus/xen-backend/devices/vbd-9-51792");
    std::fs::create_dir_all(&kernel).unwrap();
    std::fs::write(kernel.join("physical_device"), "8:10\n").unwrap();
    let refused = lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("domain 9"), "{refused}");
    assert_eq!(lab.xen.ensure_detached(G, &lab.disk, true).await.unwrap(), Detach::Busy);
    std::fs::remove_dir_all(&kernel).unwrap();

    let session = lab.path("sys/class/iscsi_session/session1/state");
    std::fs::write(&session, "FAILED\n").unwrap();
    let refused = lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("is away"), "{refused}");
    std::fs::write(&session, "LOGGED_IN\n").unwrap();
    std::fs::create_dir_all(lab.path("sys/class/block/sdb/sdb1/holders/dm-3")).unwrap();
    let refused = lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap_err();
    assert!(refused.message.contains("dm-3"), "{refused}");
    assert!(!lab.log().contains("--logout"));
}

#[tokio::test]
async fn a_disk_that_the_kernel_has_given_up_goes_all_the_same() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    let unit = "sys/devices/platform/host2/session1/target2:0:0/2:0:0:1";
    lab.put(&format!("{unit}/state"), "offline\n");
    lab.put("blockdev", "#!/bin/sh\necho 'No such device or address' >&2; exit 1\n");
    lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
    lab.nothing_is_left();
}

#[tokio::test]
async fn what_a_delegate_that_was_killed_has_left_is_taken_up_or_taken_away() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    let Lab { dir, xen, disk, connect, portal } = lab;
    drop(xen);
    std::fs::remove_file(dir.path().join("data/sessions.json")).unwrap();
    let xen = start(dir.path(), &dir.path().join("socket"), config::Toolstack::Xl).await;
    let lab = Lab { dir, xen, portal, connect, disk };
    assert_eq!(lab.disks().await, (vec![], 1), "whom it was for is lost, that it is there is not");
    // The sweeper's call for a session that nobody has a row for.
    let orphan = DiskSpec { machine: MachineRef { name: String::new(), uuid: String::new() }, ..lab.disk.clone() };
    lab.xen.ensure_disconnected(G, &orphan).await.unwrap();
    lab.nothing_is_left();
}

#[tokio::test]
async fn a_disk_is_held_to_its_limits_from_the_attach_on_and_to_others_when_they_change() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    let group = format!("sys/fs/cgroup/vbs/{}", lab.disk.iqn);
    for dir in [&*group, "proc/6"] {
        std::fs::create_dir_all(lab.path(dir)).unwrap();
    }
    lab.put("sys/fs/cgroup/cgroup.controllers", "io\n");
    for control in ["sys/fs/cgroup/cgroup.subtree_control", "sys/fs/cgroup/vbs/cgroup.subtree_control"] {
        lab.put(control, "");
    }
    let (max, procs) = (format!("{group}/io.max"), format!("{group}/cgroup.procs"));
    lab.put(&max, "");
    lab.put(&procs, "");
    lab.put("sys/class/block/sdb/size", "2\n");
    lab.put("sys/devices/platform/host2/session1/target2:0:0/2:0:0:1/rescan", "");
    lab.put("proc/6/comm", "7.xvdf-0\n");
    lab.put("proc/6/stat", "6 (7.xvdf-0) S 2 0 0 0 -1 2129984 0\n");
    let limited = |iops| DiskSpec { limits: Limits { iops, bytes_per_second: 0 }, ..lab.disk.clone() };
    let held = || std::fs::read_to_string(lab.path(&max)).unwrap();
    let line = |iops| format!("8:16 rbps=max wbps=max riops={iops} wiops={iops}");

    lab.xen.ensure_grown(G, &limited(100), 1024).await.unwrap();
    assert_eq!(held(), "", "no machine has it yet");
    lab.xen.ensure_attached(G, &limited(100)).await.unwrap();
    assert_eq!(held(), line(100));
    assert_eq!(std::fs::read_to_string(lab.path(&procs)).unwrap(), "6");
    // By an earlier life, and by another program.
    lab.put(&max, "");
    lab.xen.ensure_attached(G, &limited(200)).await.unwrap();
    assert_eq!(held(), line(200));
    lab.put(&max, "");
    assert_eq!(lab.xen.ensure_grown(G, &limited(300), 1024).await.unwrap(), Growth::Online);
    assert_eq!(held(), line(300));
    // The guest was started anew, and its disk has another thread.
    lab.put(&procs, "");
    lab.disks().await;
    assert_eq!(std::fs::read_to_string(lab.path(&procs)).unwrap(), "6");
}

/// A disk that the kernel serves to domain 7 as `xvdf`.
pub(super) fn connected(iqn: &str, number: (u32, u32)) -> View {
    let unit = Unit {
        dir: "/nonexistent".into(),
        state: "running".into(),
        vendor: String::new(),
        serial: None,
        block: Some(Block { name: "sdb".into(), number }),
    };
    let session = Session { id: 1, iqn: iqn.into(), portal: None, logged_in: true, host: 2, units: vec![unit] };
    let backend = Backend { domain: 7, vdev: 51792, number: Some(number) };
    View { sessions: vec![session], backends: vec![backend], ..View::default() }
}
