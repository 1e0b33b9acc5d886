//! The real tgtd behind a `tgtadm` that goes wrong: each kind of fault at each command of an export's life. After it the same
//! call does its work, row and reality agree, the bytes are intact, who has another secret stays outside, and nothing is left.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use vbs::config;
use vbs::delegate::guard::Guarded;
use vbs::delegate::target::tgt_show;
use vbs::delegate::volume::local::LocalStorage;
use vbs::delegate::{
    ErrorKind, ExportSpec, Generation, Portal, Result, Secret, SnapshotSpec, VolumeDelegate, VolumeSpec,
};
use vbs::ids::{SnapshotId, VolumeId};

use crate::delegate_contract::export;
use crate::support::tgtd::{Shim, Tgtd};

const NOW: Generation = Generation(1);
const HOST: &str = "iqn.2026-01.net.example:host";
const SIZE: u64 = 1 << 20;

/// What a command does, quick ones first; those that hang cost the driver's ten seconds each.
const QUICK: [&str; 9] = [
    "refuses",
    "fails though done",
    "lies",
    "babbles",
    "breaks off",
    "blabs",
    "is killed before",
    "is killed after",
    "comes late",
];
const SLOW: [&str; 2] = ["hangs", "hangs though done"];

/// A storage node of files whose tgtadm may go wrong.
struct Node {
    tgtd: Tgtd,
    shim: Shim,
    dir: TempDir,
    storage: Guarded<LocalStorage>,
    /// An export that nothing may happen to, whatever happens to the others.
    neighbour: ExportSpec,
}

impl Node {
    async fn start() -> Self {
        let (tgtd, shim, dir) = (Tgtd::start(), Shim::new(), tempfile::tempdir().unwrap());
        let tgt = config::Tgt { tgtadm: shim.program(), ..tgtd.config() };
        let (data_dir, volumes) = (dir.path().to_owned(), config::Volumes::File);
        let config = config::Storage { data_dir, volumes, target: config::Target::Tgt(tgt) };
        let local = LocalStorage::open(&config, &CancellationToken::new()).await.unwrap();
        let storage = Guarded::open(Arc::new(local), dir.path()).await.unwrap();
        let volume = VolumeSpec { volume: VolumeId::generate(), size_bytes: SIZE, snapshot: None };
        storage.ensure_volume(NOW, &volume).await.unwrap();
        let neighbour = export(&volume.volume, HOST, 77);
        storage.ensure_exported(NOW, &neighbour).await.unwrap();
        shim.forget_calls();
        Self { tgtd, shim, dir, storage, neighbour }
    }

    /// The whole life of an export, one command of which goes wrong. Gives all its commands.
    async fn life(&self, fault: Option<(usize, &str)>) -> Vec<String> {
        let case = &format!("{fault:?}");
        let spec = VolumeSpec { volume: VolumeId::generate(), size_bytes: SIZE, snapshot: None };
        let (volume, storage) = (&spec.volume, &self.storage);
        storage.ensure_volume(NOW, &spec).await.unwrap();
        let file = self.dir.path().join("volumes").join(volume.as_str());
        let bytes = [0x5a; 4096];
        fs::OpenOptions::new().write(true).open(&file).and_then(|file| write_at(&file, &bytes)).unwrap();
        let export = export(volume, HOST, 1);
        self.shim.plan(fault);

        let portal = self.until(case, async || storage.ensure_exported(NOW, &export).await).await;
        if fault.is_some_and(|(_, kind)| kind == "comes late") {
            self.late().await;
            self.until(case, async || storage.ensure_exported(NOW, &export).await).await;
        }
        self.is_right(&export, &portal, case);
        let snapshot = SnapshotSpec { snapshot: SnapshotId::generate(), volume: volume.clone(), cut: false };
        storage.ensure_snapshot(NOW, &snapshot).await.unwrap();
        let seen = self.until(case, async || storage.observe().await).await;
        // A look that was lied to shows less; the next one is right.
        let shown = seen.exports.iter().any(|seen| seen.iqn == export.iqn && seen.whole);
        let seen = if shown { seen } else { storage.observe().await.unwrap() };
        let whole =
            |iqn: &str| seen.exports.iter().any(|seen| seen.iqn == *iqn && seen.whole && seen.sessions.is_empty());
        assert!(whole(&export.iqn), "{case}: {seen:?}");

        self.until(case, async || storage.ensure_not_exported(NOW, volume, &[]).await).await;
        if fault.is_some_and(|(_, kind)| kind == "comes late") {
            self.late().await;
            self.until(case, async || storage.ensure_not_exported(NOW, volume, &[]).await).await;
        }
        self.until(case, async || storage.ensure_no_volume(NOW, volume).await).await;
        assert!(!self.shim.is_pending(), "{case}: it has not come");
        let commands = self.shim.calls();
        // As the sweeper and its repair do, with what is seen and what no row knows.
        for export in storage.observe().await.unwrap().exports {
            if export.volume != self.neighbour.volume {
                storage.ensure_not_exported(NOW, &export.volume, &[]).await.unwrap();
            }
        }
        // An account alone, to which nobody is let in, goes with the next export that ends.
        storage.ensure_not_exported(NOW, volume, &[]).await.unwrap();
        let left = tgt_show::targets(&self.tgtd.tgtadm(&["--mode", "target", "--op", "show"]));
        let [left] = &left[..] else { panic!("{case}: {left:?}") };
        let right = (&self.neighbour.iqn, vec![self.neighbour.chap_user.clone()], vec![HOST.to_owned()]);
        assert_eq!((&left.name, left.accounts.clone(), left.acl.clone()), right, "{case}: the neighbour");
        let accounts = tgt_show::accounts(&self.tgtd.tgtadm(&["--mode", "account", "--op", "show"]));
        assert_eq!(accounts, [self.neighbour.chap_user.as_str()], "{case}");
        assert!(!file.exists(), "{case}");
        let kept = fs::read(self.dir.path().join("snapshots").join(snapshot.snapshot.as_str())).unwrap();
        assert!(kept[..4096] == bytes && kept[4096..].iter().all(|byte| *byte == 0), "{case}: other bytes");
        storage.ensure_no_snapshot(NOW, &snapshot).await.unwrap();
        commands
    }

    /// Whatever has happened, nobody gets in without a secret.
    fn is_shut(&self, case: &str) {
        for target in tgt_show::targets(&self.tgtd.tgtadm(&["--mode", "target", "--op", "show"])) {
            assert!(target.acl.is_empty() || !target.accounts.is_empty(), "{case}: open without a secret: {target:?}");
        }
    }

    /// Asks as a worker does, until it is done.
    async fn until<T>(&self, case: &str, ask: impl AsyncFn() -> Result<T>) -> T {
        for _ in 0..5 {
            let answer = ask().await;
            self.is_shut(case);
            match answer {
                Ok(done) => return done,
                Err(error) => {
                    assert!(matches!(error.kind, ErrorKind::Retry | ErrorKind::Busy), "{case}: {error}");
                    assert!(!error.message.contains("secret-of-attempt"), "{case}: {error}");
                    assert!(error.message.len() < 4096, "{case}: {} bytes of words", error.message.len());
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{case}: not done, however often it is asked")
    }

    /// Waits until what comes late has come.
    async fn late(&self) {
        tokio::time::sleep(Duration::from_millis(700)).await;
    }

    /// There is one target, whole, and its initiator finds the bytes; nobody gets in with another secret.
    fn is_right(&self, export: &ExportSpec, portal: &Portal, case: &str) {
        let shown = self.tgtd.tgtadm(&["--mode", "target", "--op", "show"]);
        let targets = tgt_show::targets(&shown);
        let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(names, [&self.neighbour.iqn, &export.iqn], "{case}: {shown}");
        for (target, of) in targets.iter().zip([&self.neighbour, export]) {
            let serials: Vec<&str> =
                target.units.iter().filter(|unit| unit.lun == of.lun).map(|unit| unit.serial.as_str()).collect();
            assert_eq!(serials, [of.volume.serial()], "{case}: {shown}");
        }
        let (reads, said) = reads(portal, export);
        assert!(reads, "{case}: {said}\n{shown}");
        let stranger = ExportSpec { chap_secret: Secret("a-secret-of-nobody".into()), ..export.clone() };
        assert!(!self::reads(portal, &stranger).0, "{case}: {shown}");
        let end = Instant::now() + Duration::from_secs(60);
        while self.tgtd.tgtadm(&["--mode", "target", "--op", "show"]).contains("I_T nexus: ") {
            assert!(Instant::now() < end, "{case}: the log-out is not noticed");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn write_at(file: &fs::File, bytes: &[u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, 0)
}

/// Whether an initiator gets in and finds what was written, and what it said.
fn reads(portal: &Portal, spec: &ExportSpec) -> (bool, String) {
    let ExportSpec { iqn, chap_user, chap_secret: Secret(secret), initiator_iqn, .. } = spec;
    let options = format!(
        "driver=iscsi,transport=tcp,portal={},target={iqn},lun=1,user={chap_user},password={secret},\
         initiator-name={initiator_iqn}",
        portal.address
    );
    let mut command = Command::new("qemu-io");
    command.args(["--image-opts", &options, "-c", "read -P 0x5a 0 4096", "-c", "read -P 0 4096 4096"]);
    let output = command.stdin(Stdio::null()).output().expect("qemu-io is in the Debian package qemu-utils");
    let [said, failed] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    let right = output.status.success() && said.matches("read 4096/4096").count() == 2 && !said.contains("failed");
    (right, said + &failed)
}

/// Runs lives on a node of their own, in the order of their faults.
fn lives(faults: &[Option<(usize, &str)>]) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (node, mut commands) = (Node::start().await, Vec::new());
        for fault in faults {
            commands = node.life(*fault).await;
        }
        commands
    })
}

#[test]
fn an_export_lives_its_whole_life_whatever_any_of_its_commands_does() {
    let commands = lives(&[None]);
    assert!(commands.len() >= 12, "{commands:?}");
    // Those that hang do so beside each other, each kind and command on a tgtd of its own.
    let slow = SLOW.iter().flat_map(|kind| (0..commands.len()).step_by(3).map(move |at| vec![Some((at, *kind))]));
    let quick = QUICK.iter().map(|kind| (0..commands.len()).map(|at| Some((at, *kind))).collect());
    let runs: Vec<Vec<_>> = slow.chain(quick).collect();
    let cases: usize = runs.iter().map(Vec::len).sum();
    let threads: Vec<_> = runs.into_iter().map(|faults| std::thread::spawn(move || lives(&faults))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let (kinds, asked) = (QUICK.len() + SLOW.len(), commands.len());
    println!("{cases} cases: {kinds} kinds of fault at {asked} commands ({})", commands.join(", "));
}
