//! The file and tgt drivers with real initiators: who gets in, what bytes they find, and that nobody is thrown out.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use vbs::delegate::guard::Guarded;
use vbs::delegate::volume::local::LocalStorage;
use vbs::delegate::{ErrorKind, ExportSpec, Generation, Portal, Secret, SnapshotSpec, VolumeDelegate, VolumeSpec};
use vbs::ids::{SnapshotId, VolumeId};

use crate::delegate_contract::export;
use crate::support::tgtd::Tgtd;

const MIB: u64 = 1 << 20;
const NOW: Generation = Generation(1);
const HOST: &str = "iqn.2026-01.net.example:host";

struct Node {
    tgtd: Tgtd,
    dir: TempDir,
    storage: Guarded<LocalStorage>,
}

impl Node {
    async fn start() -> Self {
        let (tgtd, dir) = (Tgtd::start(), tempfile::tempdir().unwrap());
        let storage = Self::open(&tgtd, dir.path()).await;
        Self { tgtd, dir, storage }
    }

    async fn open(tgtd: &Tgtd, dir: &Path) -> Guarded<LocalStorage> {
        let config = tgtd.storage(dir);
        let local = LocalStorage::open(&config, &CancellationToken::new()).await.unwrap();
        Guarded::open(Arc::new(local), dir).await.unwrap()
    }

    /// Ends the delegate and starts another on the same directory and the same tgtd.
    async fn restart(self) -> Self {
        let Self { tgtd, dir, storage } = self;
        drop(storage);
        let storage = Self::open(&tgtd, dir.path()).await;
        Self { tgtd, dir, storage }
    }

    async fn volume(&self, snapshot: Option<SnapshotId>) -> VolumeId {
        let spec = VolumeSpec { volume: VolumeId::generate(), size_bytes: 4 * MIB, snapshot };
        self.storage.ensure_volume(NOW, &spec).await.unwrap();
        spec.volume
    }

    async fn sessions(&self, volume: &VolumeId) -> Vec<String> {
        let exports = self.storage.observe().await.unwrap().exports;
        exports.into_iter().find(|export| export.volume == *volume).expect("it is exported").sessions
    }

    async fn until_sessions(&self, volume: &VolumeId, expected: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.sessions(volume).await != expected {
            assert!(Instant::now() < deadline, "sessions: {:?}", self.sessions(volume).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// QEMU's own initiator, as a guest's disk would use it.
fn qemu_io(portal: &Portal, spec: &ExportSpec) -> Command {
    let ExportSpec { iqn, chap_user, chap_secret: Secret(secret), initiator_iqn, .. } = spec;
    let options = format!(
        "driver=iscsi,transport=tcp,portal={},target={iqn},lun=1,user={chap_user},password={secret},\
         initiator-name={initiator_iqn}",
        portal.address
    );
    let mut command = Command::new("qemu-io");
    command.args(["--image-opts", &options]).stdin(Stdio::null());
    command
}

/// Logs in, runs the commands, logs out.
fn run(portal: &Portal, spec: &ExportSpec, commands: &[&str]) -> Output {
    let mut command = qemu_io(portal, spec);
    for text in commands {
        command.args(["-c", text]);
    }
    command.output().expect("qemu-io starts; it is in the Debian packages qemu-utils and qemu-block-extra")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// An initiator that stays logged in until [`LoggedIn::log_out`].
struct LoggedIn(Child);

impl LoggedIn {
    async fn start(node: &Node, portal: &Portal, spec: &ExportSpec) -> Self {
        let mut command = qemu_io(portal, spec);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        node.until_sessions(&spec.volume, &[&spec.initiator_iqn]).await;
        Self(child)
    }

    fn log_out(mut self) {
        writeln!(self.0.stdin.take().unwrap(), "quit").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

/// An initiator that stays logged in, and does what it is told.
struct Talking {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Talking {
    fn start(portal: &Portal, spec: &ExportSpec) -> Self {
        let mut command = qemu_io(portal, spec);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    /// Tells it a command, and gives its answer up to the line that ends one.
    fn says(&mut self, command: &str) -> String {
        writeln!(self.process.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut said = String::new();
        while !said.contains("ops;") && self.answers.read_line(&mut said).unwrap() > 0 {}
        said
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn bytes_written_over_iscsi_are_in_the_snapshot_and_in_what_is_made_of_it() {
    let node = Node::start().await;
    let volume = node.volume(None).await;
    let first = export(&volume, HOST, 1);
    let portal = node.storage.ensure_exported(NOW, &first).await.unwrap();
    let written = run(&portal, &first, &["read -P 0 0 4M", "write -P 0x5a 1M 64k", "flush"]);
    assert!(said(&written).contains("wrote 65536/65536") && !said(&written).contains("failed"), "{}", said(&written));

    let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: volume.clone(), cut: false };
    let report = node.storage.ensure_snapshot(NOW, &spec).await.unwrap();
    assert_eq!((report.size_bytes, report.data_bytes), (4 * MIB, 64 << 10));
    run(&portal, &first, &["write -P 0x77 1M 64k", "flush"]);

    let restored = node.volume(Some(spec.snapshot)).await;
    let second = export(&restored, HOST, 1);
    let portal = node.storage.ensure_exported(NOW, &second).await.unwrap();
    let read = run(&portal, &second, &["read -P 0 0 1M", "read -P 0x5a 1M 64k", "read -P 0 1088k 1M"]);
    assert_eq!(said(&read).matches("read ").count(), 3, "{}", said(&read));
    assert!(!said(&read).contains("failed"), "{}", said(&read));

    // What the guest's kernel will go by.
    let url = format!("iscsi://{}%{}@{}/{}/1", second.chap_user, second.chap_secret.0, portal.address, second.iqn);
    let page = Command::new("iscsi-inq").args(["-i", HOST, "-e", "1", "-c", "128", &url]).output().unwrap();
    assert!(said(&page).contains(&restored.serial()), "{}", said(&page));
}

#[tokio::test]
async fn nobody_gets_in_with_another_name_or_secret_or_through_an_export_of_before() {
    let node = Node::start().await;
    let volume = node.volume(None).await;
    let good = export(&volume, HOST, 1);
    let portal = node.storage.ensure_exported(NOW, &good).await.unwrap();
    let mut others = [good.clone(), good.clone(), good.clone()];
    others[0].chap_secret = Secret("secret-of-somebody-else".into());
    others[1].chap_user = "nobody".into();
    others[2].initiator_iqn = "iqn.2026-01.net.example:other".into();
    for other in &others {
        let refused = run(&portal, other, &["read 0 512"]);
        assert!(!refused.status.success(), "{other:?}: {}", said(&refused));
    }
    assert!(run(&portal, &good, &["read 0 512"]).status.success());

    let next = export(&volume, HOST, 2);
    node.storage.ensure_exported(NOW, &next).await.unwrap();
    assert!(!run(&portal, &good, &["read 0 512"]).status.success());
    assert!(run(&portal, &next, &["read 0 512"]).status.success());
}

#[tokio::test]
async fn who_had_a_volume_before_neither_gets_in_nor_leaves_bytes_behind() {
    let node = Node::start().await;
    let volume = node.volume(None).await;
    let old = export(&volume, HOST, 1);
    let portal = node.storage.ensure_exported(NOW, &old).await.unwrap();
    let mut session = Talking::start(&portal, &old);
    assert!(session.says("write -P 0x5a 0 4M").contains("wrote 4194304/4194304"));
    // One that does not log out holds the volume: nobody else gets it while there is a session.
    let new = export(&volume, "iqn.2026-01.net.example:another-tenant", 2);
    for refused in [
        node.storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap_err(),
        node.storage.ensure_exported(NOW, &new).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
    }
    session.says("quit");
    node.until_sessions(&volume, &[]).await;
    node.storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap();
    assert!(!run(&portal, &old, &["read 0 512"]).status.success(), "the old name is no target any more");

    node.storage.ensure_exported(NOW, &new).await.unwrap();
    let mixed = |change: fn(&mut ExportSpec, &ExportSpec)| {
        let mut spec = old.clone();
        change(&mut spec, &new);
        spec
    };
    for (how, tries) in [
        ("all of before", old.clone()),
        ("the new name", mixed(|old, new| old.iqn.clone_from(&new.iqn))),
        (
            "and the new initiator's",
            mixed(|old, new| *old = ExportSpec { chap_secret: old.chap_secret.clone(), ..new.clone() }),
        ),
        (
            "the new secret, as the old initiator",
            mixed(|old, new| {
                *old = ExportSpec { initiator_iqn: old.initiator_iqn.clone(), ..new.clone() };
            }),
        ),
        (
            "the old user in the new initiator's name",
            mixed(|old, new| {
                *old = ExportSpec { iqn: new.iqn.clone(), initiator_iqn: new.initiator_iqn.clone(), ..old.clone() };
            }),
        ),
    ] {
        let tried = run(&portal, &tries, &["read 0 512"]);
        assert!(!tried.status.success(), "{how}: {}", said(&tried));
    }
    // Nor does a look around tell the old initiator a name.
    let url = format!("iscsi://{}%{}@{}", old.chap_user, old.chap_secret.0, portal.address);
    let look = Command::new("iscsi-ls").args(["-i", HOST, &url]).stdin(Stdio::null()).output().unwrap();
    assert!(!said(&look).contains(&new.iqn), "{}", said(&look));
    let read = run(&portal, &new, &["read -P 0x5a 0 4M"]);
    assert!(said(&read).contains("read 4194304/4194304") && !said(&read).contains("failed"), "{}", said(&read));

    node.storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap();
    node.storage.ensure_no_volume(NOW, &volume).await.unwrap();
    let next = node.volume(None).await;
    let spec = export(&next, HOST, 1);
    node.storage.ensure_exported(NOW, &spec).await.unwrap();
    let read = run(&portal, &spec, &["read -P 0 0 4M"]);
    assert!(said(&read).contains("read 4194304/4194304") && !said(&read).contains("failed"), "{}", said(&read));
}

#[tokio::test]
async fn an_export_is_not_ended_under_a_session() {
    let node = Node::start().await;
    let volume = node.volume(None).await;
    let spec = export(&volume, HOST, 1);
    let portal = node.storage.ensure_exported(NOW, &spec).await.unwrap();
    let session = LoggedIn::start(&node, &portal, &spec).await;
    for refused in [
        node.storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap_err(),
        node.storage.ensure_exported(NOW, &export(&volume, HOST, 2)).await.unwrap_err(),
        node.storage.ensure_no_volume(NOW, &volume).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
    }
    node.storage.ensure_exported(NOW, &spec).await.unwrap();
    assert_eq!(node.sessions(&volume).await, [HOST]);
    session.log_out();
    node.storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap();
    assert!(!node.tgtd.tgtadm(&["--mode", "account", "--op", "show"]).contains(&spec.chap_user));
}

#[tokio::test]
async fn two_initiators_of_one_volume_read_what_the_other_wrote_and_one_ends_without_the_other() {
    let node = Node::start().await;
    let volume = node.volume(None).await;
    let mut specs = [export(&volume, HOST, 1), export(&volume, "iqn.2026-01.net.example:other", 2)];
    (specs[0].beside, specs[1].beside) = (vec![specs[1].iqn.clone()], vec![specs[0].iqn.clone()]);
    let mut portal = None;
    for spec in &specs {
        portal = Some(node.storage.ensure_exported(NOW, spec).await.unwrap());
    }
    let portal = portal.unwrap();
    // Who goes on all the while.
    let mut session = Talking::start(&portal, &specs[0]);
    assert!(session.says("write -P 0x11 0 64k").contains("wrote 65536/65536"));
    let written = run(&portal, &specs[1], &["read -P 0x11 0 64k", "write -P 0x22 1M 64k"]);
    assert!(!said(&written).contains("failed") && said(&written).contains("wrote"), "{}", said(&written));
    let read = session.says("read -P 0x22 1M 64k");
    assert!(read.contains("read 65536/65536") && !read.contains("failed"), "{read}");

    node.storage.ensure_not_exported(NOW, &volume, std::slice::from_ref(&specs[0].iqn)).await.unwrap();
    assert!(!run(&portal, &specs[1], &["read 0 512"]).status.success());
    for refused in [
        node.storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap_err(),
        node.storage.ensure_no_volume(NOW, &volume).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
    }
    assert!(session.says("write -P 0x33 2M 64k").contains("wrote 65536/65536"), "the other goes on");
    assert_eq!(node.sessions(&volume).await, [HOST]);
    session.says("quit");
    node.until_sessions(&volume, &[]).await;
    node.storage.ensure_not_exported(NOW, &volume, &[]).await.unwrap();
}

#[tokio::test]
async fn what_a_tgtd_that_died_forgot_is_put_back_and_a_dead_one_is_worth_another_try() {
    let mut node = Node::start().await;
    let volume = node.volume(None).await;
    let spec = export(&volume, HOST, 1);
    let portal = node.storage.ensure_exported(NOW, &spec).await.unwrap();
    run(&portal, &spec, &["write -P 0x11 0 4096", "flush"]);
    node.tgtd.kill();
    assert_eq!(node.storage.observe().await.unwrap_err().kind, ErrorKind::Retry);
    assert_eq!(node.storage.ensure_exported(NOW, &spec).await.unwrap_err().kind, ErrorKind::Retry);
    assert_eq!(node.storage.ensure_no_volume(NOW, &volume).await.unwrap_err().kind, ErrorKind::Retry);
    node.tgtd.crash_and_restart();
    assert!(node.storage.observe().await.unwrap().exports.is_empty());
    node.storage.ensure_exported(NOW, &spec).await.unwrap();
    let read = run(&portal, &spec, &["read -P 0x11 0 4096"]);
    assert!(read.status.success() && !said(&read).contains("failed"), "{}", said(&read));
}

#[tokio::test]
async fn every_layer_that_is_missing_or_wrong_is_mended() {
    let mut node = Node::start().await;
    let volume = node.volume(None).await;
    let spec = export(&volume, HOST, 1);
    let portal = node.storage.ensure_exported(NOW, &spec).await.unwrap();
    let stray = node.dir.path().join("stray");
    std::fs::write(&stray, [0x66; 8192]).unwrap();
    let path = stray.to_str().unwrap();
    let user = spec.chap_user.as_str();
    let breakages: [&[&[&str]]; 8] = [
        &[&["--mode", "target", "--op", "delete", "--tid", "1"]],
        &[&["--mode", "logicalunit", "--op", "delete", "--tid", "1", "--lun", "1"]],
        &[
            &["--mode", "logicalunit", "--op", "delete", "--tid", "1", "--lun", "1"],
            &["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "--backing-store", path],
        ],
        &[&["--mode", "account", "--op", "unbind", "--tid", "1", "--user", user]],
        &[&["--mode", "account", "--op", "delete", "--user", user]],
        &[&["--mode", "target", "--op", "unbind", "--tid", "1", "-Q", HOST]],
        &[
            &["--mode", "target", "--op", "bind", "--tid", "1", "-I", "127.0.0.1"],
            &["--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL"],
        ],
        &[
            &["--mode", "account", "--op", "new", "--user", "stranger", "--password", "secret-of-a-stranger"],
            &["--mode", "account", "--op", "bind", "--tid", "1", "--user", "stranger"],
        ],
    ];
    for restarts in [false, true] {
        for breakage in breakages {
            for args in breakage {
                node.tgtd.tgtadm(args);
            }
            let broken = node.storage.observe().await.unwrap().exports;
            assert!(broken.iter().all(|export| !export.whole), "{breakage:?}: {broken:?}");
            if restarts {
                node = node.restart().await;
            }
            node.storage.ensure_exported(NOW, &spec).await.unwrap();
            assert!(node.storage.observe().await.unwrap().exports[0].whole, "{breakage:?}");
            let read = run(&portal, &spec, &["read -P 0 0 4096"]);
            assert!(read.status.success() && !said(&read).contains("failed"), "{breakage:?}: {}", said(&read));
            let mut other = spec.clone();
            other.initiator_iqn.push('x');
            assert!(!run(&portal, &other, &["read 0 512"]).status.success(), "{breakage:?}");
            let (chap_user, chap_secret) = ("stranger".into(), Secret("secret-of-a-stranger".into()));
            let stranger = ExportSpec { chap_user, chap_secret, ..spec.clone() };
            assert!(!run(&portal, &stranger, &["read 0 512"]).status.success(), "{breakage:?}");
        }
    }
}
