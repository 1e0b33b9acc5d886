//! Volumes of another storage node's snapshots: what every pair of nodes must do, whichever drivers they have and whichever way
//! they reach each other, and what is left of the way when either is killed on it.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use vbs::config::{self, Remote, SecretSource};
use vbs::delegate::client::Client;
use vbs::delegate::guard::Guarded;
use vbs::delegate::server::StorageService;
use vbs::delegate::sim::SimCloud;
use vbs::delegate::source::{RestoreSpec, SnapshotSource};
use vbs::delegate::volume::local::LocalStorage;
use vbs::delegate::{ErrorKind, Generation, Result, SnapshotSpec, VolumeDelegate, VolumeSpec};
use vbs::ids::{SnapshotId, VolumeId};
use vbs::server::{self, Handler, Refusal, Request, Response};

use crate::delegate_contract::{kind, node_key, serve, whole_snapshot};
use crate::support::tgtd::Tgtd;

const MIB: u64 = 1 << 20;
const UNIT: u64 = 4 * MIB;
const NOW: Generation = Generation(100);
const PATIENCE: Duration = Duration::from_secs(60);

type Node = Arc<dyn VolumeDelegate>;

/// Asks until the volume is whole, as the workers do.
async fn restored(to: &Node, spec: &RestoreSpec, from: &Node) -> Result<()> {
    let source: Arc<dyn SnapshotSource> = from.clone();
    let begun = Instant::now();
    while to.ensure_restored(NOW, spec, source.clone()).await? < 100 {
        assert!(begun.elapsed() < PATIENCE, "no end");
    }
    Ok(())
}

/// A snapshot of a new volume, and the volume's removal.
async fn snapshot_on(node: &Node, size_bytes: u64) -> SnapshotSpec {
    let volume = VolumeId::generate();
    let spec = VolumeSpec { volume: volume.clone(), size_bytes, snapshot: None };
    node.ensure_volume(NOW, &spec).await.unwrap();
    let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume, cut: false };
    whole_snapshot(&**node, NOW, &spec).await;
    node.ensure_no_volume(NOW, &spec.volume).await.unwrap();
    spec
}

async fn a_snapshot_of_one_is_a_volume_of_the_other(from: &Node, to: &Node) {
    let cut = snapshot_on(from, 2 * UNIT).await;
    let of = |size_bytes, snapshot: &SnapshotId| RestoreSpec {
        volume: VolumeId::generate(),
        size_bytes,
        snapshot: snapshot.clone(),
    };
    for bad in [of(UNIT, &cut.snapshot), of(2 * UNIT, &SnapshotId::generate())] {
        assert_eq!(kind(restored(to, &bad, from).await), ErrorKind::Fatal);
        to.ensure_no_volume(NOW, &bad.volume).await.unwrap();
    }
    let good = of(3 * UNIT, &cut.snapshot);
    for _ in 0..2 {
        restored(to, &good, from).await.unwrap();
        assert_eq!(to.observe().await.unwrap().volumes, [(good.volume.clone(), 3 * UNIT)]);
    }
    let again = to.ensure_restored(Generation(1), &good, from.clone()).await;
    assert_eq!(kind(again), ErrorKind::Stale);
    from.ensure_no_snapshot(NOW, &cut).await.unwrap();
    // What it was made of is not needed any more.
    restored(to, &good, from).await.unwrap();
    for _ in 0..2 {
        to.ensure_no_volume(NOW, &good.volume).await.unwrap();
    }
    for node in [from, to] {
        let left = node.observe().await.unwrap();
        assert!(left.volumes.is_empty() && left.snapshots.is_empty(), "{left:?}");
    }
}

async fn files(config: &config::Storage) -> Node {
    let local = Arc::new(LocalStorage::open(config, &CancellationToken::new()).await.unwrap());
    Arc::new(Guarded::open(local, &config.data_dir).await.unwrap())
}

fn over_http(name: &str, node: Node, key: &SecretSource) -> Node {
    let remote = serve(StorageService::new(name, key, node).unwrap(), key, config::Server::default());
    Arc::new(Client::new(name, &remote).unwrap())
}

#[tokio::test]
async fn every_two_nodes_that_can_reach_each_other_restore_each_others_snapshots() {
    let (tgtd, cloud) = (Tgtd::start(), SimCloud::new());
    let dirs: [TempDir; 2] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let key = node_key(&dirs[0]);
    let sim =
        |name: &str| -> Node { Arc::new(Guarded::in_memory(Arc::new(cloud.storage(name, &config::Sim::default())))) };
    let locals = [files(&tgtd.storage(dirs[0].path())).await, files(&tgtd.storage(dirs[1].path())).await];
    let sims = [sim("sim-1"), sim("sim-2")];
    let remotes = [over_http("files", locals[0].clone(), &key), over_http("sim", sims[0].clone(), &key)];
    let pairs = [
        (&locals[0], &locals[1]),
        (&sims[0], &sims[1]),
        (&sims[0], &locals[0]),
        (&locals[0], &sims[0]),
        (&remotes[0], &remotes[1]),
        (&remotes[1], &remotes[0]),
        (&remotes[0], &locals[1]),
        (&remotes[0], &sims[1]),
    ];
    for (from, to) in pairs {
        a_snapshot_of_one_is_a_volume_of_the_other(from, to).await;
    }
    // Of a node that only its own gateway can reach no other can read.
    let cut = snapshot_on(&locals[1], UNIT).await;
    let spec = RestoreSpec { volume: VolumeId::generate(), size_bytes: UNIT, snapshot: cut.snapshot };
    assert_eq!(kind(restored(&remotes[0], &spec, &locals[1]).await), ErrorKind::Fatal);
}

/// A storage node's service that notes the offsets read, and takes its time for each.
struct Noted {
    service: StorageService,
    reads: Arc<Mutex<Vec<u64>>>,
}

impl Handler for Noted {
    async fn handle(&self, request: Request) -> Response {
        if let Some(at) = request.headers.get("x-vbs-read") {
            self.reads.lock().unwrap().push(at.to_str().unwrap().parse().unwrap());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.service.handle(request).await
    }

    fn refuse(&self, id: &str, refusal: Refusal) -> Response {
        self.service.refuse(id, refusal)
    }
}

/// The node that has the snapshot: it can go away and come back at the same address.
struct Source {
    node: Node,
    key: SecretSource,
    address: SocketAddr,
    reads: Arc<Mutex<Vec<u64>>>,
    serving: Option<tokio::task::JoinHandle<()>>,
}

impl Source {
    fn start(&mut self) {
        let service = StorageService::new("source", &self.key, self.node.clone()).unwrap();
        let noted = Arc::new(Noted { service, reads: self.reads.clone() });
        let listener = server::listen(self.address).unwrap();
        self.address = listener.local_addr().unwrap();
        let config = config::Server::default();
        let serving = async move { server::serve(&config, listener, noted, std::future::pending()).await.unwrap() };
        self.serving = Some(tokio::spawn(serving));
    }

    async fn die(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
    }

    fn client(&self) -> Node {
        let remote = Remote { url: format!("http://{}", self.address), key: self.key.clone(), ca: None, pins: vec![] };
        Arc::new(Client::new("source", &remote).unwrap())
    }

    fn reads(&self) -> Vec<u64> {
        std::mem::take(&mut self.reads.lock().unwrap())
    }
}

/// A `vbs volume-delegate`, killed when the test ends.
struct Delegate {
    child: Child,
    file: PathBuf,
}

impl Delegate {
    fn start(file: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.args(["volume-delegate", "--config"]).arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), file: file.to_owned() }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.kill();
        *self = Self::start(&self.file.clone());
    }
}

impl Drop for Delegate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until so many per cent are done; a node that does not answer is asked again.
async fn until(percent: u8, to: &Node, spec: &RestoreSpec, from: &Node) {
    let begun = Instant::now();
    loop {
        match to.ensure_restored(NOW, spec, from.clone()).await {
            Ok(done) if done >= percent => return,
            Err(error) => assert_eq!(error.kind, ErrorKind::Retry, "{error}"),
            Ok(_) => {}
        }
        assert!(begun.elapsed() < PATIENCE, "not at {percent} %");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const CHUNKS: u64 = 64;

#[tokio::test(flavor = "multi_thread")]
async fn whichever_node_is_killed_on_the_way_what_was_copied_is_not_copied_again() {
    let dirs: [TempDir; 2] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let (tgtd, key) = (Tgtd::start(), node_key(&dirs[0]));
    let node = files(&tgtd.storage(dirs[0].path())).await;
    let volume = VolumeId::generate();
    let spec = VolumeSpec { volume: volume.clone(), size_bytes: CHUNKS * MIB, snapshot: None };
    node.ensure_volume(NOW, &spec).await.unwrap();
    let file = File::options().write(true).open(dirs[0].path().join("volumes").join(volume.as_str())).unwrap();
    let bytes: Vec<u8> = (0..CHUNKS * MIB).map(|at| u8::try_from((at / 4096 + at / MIB) % 251).unwrap()).collect();
    file.write_all_at(&bytes, 0).unwrap();
    let cut = SnapshotSpec { snapshot: SnapshotId::generate(), volume, cut: false };
    whole_snapshot(&*node, NOW, &cut).await;
    let mut source =
        Source { node, key: key.clone(), address: ([127, 0, 0, 1], 0).into(), reads: Arc::default(), serving: None };
    source.start();

    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (file, portal) = (dirs[1].path().join("node.toml"), tgtd.config().portal);
    let SecretSource::File(key_file) = &key else { panic!("the key is in a file") };
    let text = format!(
        "node = 'there'\nkey = {{ file = '{}' }}\nserver = {{ listen = '{address}' }}\n[delegate.local]\ndata_dir = '{}'\n\
         [delegate.local.target.tgt]\nsocket_dir = '{}'\ncontrol_port = 1\nportal = '{portal}'\n",
        key_file.display(),
        dirs[1].path().display(),
        tgtd.config().socket_dir.display(),
    );
    std::fs::write(&file, text).unwrap();
    let mut delegate = Delegate::start(&file);
    let remote = Remote { url: format!("http://{address}"), key, ca: None, pins: vec![] };
    let to: Node = Arc::new(Client::new("there", &remote).unwrap());
    let from = source.client();
    let spec = RestoreSpec { volume: VolumeId::generate(), size_bytes: CHUNKS * MIB, snapshot: cut.snapshot };

    until(20, &to, &spec, &from).await;
    delegate.restart();
    let before = source.reads();
    assert!(before.len() >= 20 && before[0] == 0, "{before:?}");
    until(35, &to, &spec, &from).await;
    source.die().await;
    let after = source.reads();
    assert!(after.iter().all(|at| *at >= 8 * MIB), "what was copied before the kill is copied again: {after:?}");
    let begun = Instant::now();
    while let Ok(progress) = to.ensure_restored(NOW, &spec, from.clone()).await {
        assert!(progress < 100 && begun.elapsed() < PATIENCE, "nobody says that the source is away");
    }
    source.start();
    until(100, &to, &spec, &from).await;
    let last = source.reads();
    assert!(last.iter().all(|at| *at >= 30 * MIB), "what was copied before the source died is copied again: {last:?}");
    let copied = std::fs::read(dirs[1].path().join("volumes").join(spec.volume.as_str())).unwrap();
    assert!(copied == bytes, "other bytes");
    assert_eq!(std::fs::read_dir(dirs[1].path().join("restores")).unwrap().count(), 0);
    delegate.kill();
}
