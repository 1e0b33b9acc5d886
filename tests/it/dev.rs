//! `vbs dev` from outside: what scripts may rely on.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vbs::dev::console;

use crate::support::client::Client;

const PATIENCE: Duration = Duration::from_secs(60);

/// A `vbs dev` that is stopped with the test.
struct Dev {
    process: Child,
    env: HashMap<String, String>,
}

impl Dev {
    /// Starts it, and waits for the line that says that it serves.
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        Self::start_by(command(dir, arguments), dir)
    }

    fn start_by(mut command: Command, dir: &Path) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("serves"), "{line:?}; the reason is above");
        let env = fs::read_to_string(dir.join("env")).unwrap();
        let pairs = env.lines().map(|line| line.strip_prefix("export ").unwrap().split_once('=').unwrap());
        Self { process, env: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect() }
    }

    fn signal(&mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.process.wait().unwrap()
    }

    fn instances(&self) -> Vec<&str> {
        self.env["VBS_INSTANCES"].split(',').collect()
    }

    /// Waits until the volume's attachment is in this state; `None`: until it has none.
    async fn attachment_becomes(&self, volume: &str, wanted: Option<&str>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let described = self.client().ok("DescribeVolumes", &[("VolumeId.1", volume)]).await;
            // The volume's own status comes before its attachment's.
            if described.all("status").get(1).map(String::as_str) == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{}", described.body);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn client(&self) -> Client {
        let address: SocketAddr = self.env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
        let (access_key_id, secret) =
            (self.env["AWS_ACCESS_KEY_ID"].clone(), self.env["AWS_SECRET_ACCESS_KEY"].clone());
        Client { address, access_key_id, secret }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.signal(Signal::TERM);
        }
    }
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
    command.args(["dev", "--listen", "127.0.0.1:0", "--data"]).arg(dir).args(arguments);
    command
}

/// Runs a command in the guest.
async fn in_guest(dir: &Path, command: &str) -> String {
    let (output, status) = console::run(&dir.join("qmp/vm-1.serial"), command, PATIENCE).await.unwrap();
    assert_eq!(status, 0, "{command}: {output}");
    output.trim().to_owned()
}

/// The number in a child's record.
fn pid(dir: &Path, child: &str) -> i64 {
    let record: Value = serde_json::from_slice(&fs::read(dir.join(format!("run/{child}.json"))).unwrap()).unwrap();
    record["process"]["pid"].as_i64().unwrap()
}

fn is_running(pid: i64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_run_after_a_sigkill_continues_with_the_children_and_a_sigterm_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Dev::start(dir.path(), &["--sim", "--instances", "2"]);
    assert_eq!(first.instances().len(), 2);
    let described = first.client().ok("DescribeAvailabilityZones", &[]).await;
    assert_eq!(described.all("zoneName"), ["us-east-1a", "us-east-1b", "us-east-1c"]);
    let postgres = pid(dir.path(), "postgres");
    first.signal(Signal::KILL);
    assert!(is_running(postgres));

    let mut second = Dev::start(dir.path(), &["--sim"]);
    assert_eq!(pid(dir.path(), "postgres"), postgres);
    for kept in ["VBS_INSTANCES", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        assert_eq!(first.env[kept], second.env[kept], "{kept}");
    }
    second.client().ok("DescribeAvailabilityZones", &[]).await;
    assert!(second.signal(Signal::TERM).success());
    assert!(!is_running(postgres));
    assert!(!dir.path().join("env").exists());
}

/// Those who test their own tools with it count on it.
#[tokio::test]
async fn simulated_instances_settle_within_a_tenth_of_a_second() {
    const ROUNDS: usize = 21;
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--sim"]);
    let (client, instance) = (dev.client(), dev.instances()[0].to_owned());
    let made = client.ok("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")]).await;
    let volume = made.text("volumeId");
    let becomes = async |wanted: &[&str]| {
        let start = Instant::now();
        loop {
            let described = client.ok("DescribeVolumes", &[("VolumeId.1", &volume)]).await;
            if described.all("status") == wanted {
                return start.elapsed();
            }
            assert!(start.elapsed() < PATIENCE, "{}", described.body);
        }
    };
    becomes(&["available"]).await;
    let (mut attached, mut detached) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        client.ok("AttachVolume", &[("VolumeId", &volume), ("InstanceId", &instance), ("Device", "/dev/sdf")]).await;
        attached.push(becomes(&["in-use", "attached"]).await);
        client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
        detached.push(becomes(&["available"]).await);
    }
    // Not each: the machine may be busy with something else most of the time.
    for mut times in [attached, detached] {
        times.sort();
        assert!(times[ROUNDS / 4] < Duration::from_millis(100), "{times:?}");
    }
}

#[test]
fn a_second_run_on_the_same_directory_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Dev::start(dir.path(), &["--sim"]);
    let second = command(dir.path(), &["--sim"]).output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another vbs dev runs on"));
    assert!(is_running(pid(dir.path(), "postgres")));
}

#[test]
fn a_directory_that_was_begun_with_real_nodes_is_not_simulated_later() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("machines"), "real 1\n").unwrap();
    let refused = command(dir.path(), &["--sim"]).output().unwrap();
    assert!(!refused.status.success());
    assert_eq!(fs::read_to_string(dir.path().join("machines")).unwrap(), "real 1\n");
}

#[tokio::test]
async fn a_guest_keeps_its_disk_and_its_bytes_over_a_sigkill_and_over_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Dev::start(dir.path(), &[]);
    let instance = first.instances()[0].to_owned();
    let made = first.client().ok("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")]).await;
    let volume = made.text("volumeId");
    let attach = [("VolumeId", &*volume), ("InstanceId", &*instance), ("Device", "/dev/sdf")];
    let deadline = Instant::now() + PATIENCE;
    while first.client().call("AttachVolume", &attach).await.status != 200 {
        assert!(Instant::now() < deadline, "the volume does not become available");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    first.attachment_becomes(&volume, Some("attached")).await;
    let find = format!("disk {} 40", volume.replace("vol-", "vol"));
    let disk = in_guest(dir.path(), &find).await;
    in_guest(dir.path(), &format!("dd if=/dev/urandom of={disk} bs=65536 count=32 oflag=direct")).await;
    let read = format!("md5 $({find}) 2097152");
    let bytes = in_guest(dir.path(), &read).await;

    // Killed together with its tgtd, while the guest goes on: the export comes back under the guest's feet.
    let (guest, tgtd) = (pid(dir.path(), "vm-1"), pid(dir.path(), "tgtd"));
    first.signal(Signal::KILL);
    kill_process(Pid::from_raw(i32::try_from(tgtd).unwrap()).unwrap(), Signal::KILL).unwrap();
    let mut second = Dev::start(dir.path(), &[]);
    assert_eq!((second.instances()[0], pid(dir.path(), "vm-1")), (&*instance, guest));
    assert_ne!(pid(dir.path(), "tgtd"), tgtd);
    assert_eq!(in_guest(dir.path(), &read).await, bytes);

    // Stopped, and the guest with it: the next one is the same instance and gets its disk back.
    assert!(second.signal(Signal::TERM).success());
    assert!(!is_running(guest));
    let third = Dev::start(dir.path(), &[]);
    assert_eq!(third.instances(), [&*instance]);
    third.attachment_becomes(&volume, Some("attached")).await;
    assert_eq!(in_guest(dir.path(), &read).await, bytes);
    third.client().ok("DetachVolume", &[("VolumeId", &volume)]).await;
    third.attachment_becomes(&volume, None).await;
    third.client().ok("DeleteVolume", &[("VolumeId", &volume)]).await;
}

/// All that a real run starts comes up, is taken over after a SIGKILL, and is gone after a SIGTERM.
fn comes_up_and_leaves_nothing(dir: &Path, command: impl Fn() -> Command) {
    let pids = || ["postgres", "tgtd", "vm-1"].map(|child| pid(dir, child));
    let mut first = Dev::start_by(command(), dir);
    let started = pids();
    assert!(started.into_iter().all(is_running));
    assert_ne!(fs::metadata(format!("/proc/{}", started[0])).unwrap().uid(), 0, "Postgres never runs as root");
    first.signal(Signal::KILL);
    let mut second = Dev::start_by(command(), dir);
    assert_eq!(pids(), started);
    assert!(second.signal(Signal::TERM).success());
    let ours = |process: &fs::DirEntry| {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(dir.to_str().unwrap())
    };
    let left: Vec<_> = fs::read_dir("/proc").unwrap().flatten().filter(ours).collect();
    assert!(left.is_empty() && !started.into_iter().any(is_running), "{left:?}");
}

/// In a directory that nobody else can get to: the user that Postgres runs as when this is root neither.
#[test]
fn all_of_it_runs_below_a_closed_directory() {
    let closed = tempfile::tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let dir = closed.path().join("data");
    comes_up_and_leaves_nothing(&dir, || command(&dir, &[]));
    if let Ok(elsewhere) = fs::read_to_string(dir.join("postgres.location")) {
        fs::remove_dir_all(elsewhere.trim_end()).unwrap();
    }
}

/// As whoever runs the tests, and when that is root, as somebody else, whose home has all it needs.
#[test]
fn all_of_it_runs_as_an_ordinary_user() {
    const NOBODY: u32 = 65534;
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("data");
    if !rustix::process::geteuid().is_root() {
        return comes_up_and_leaves_nothing(&dir, || command(&dir, &[]));
    }
    std::os::unix::fs::chown(place.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let program = place.path().join("vbs");
    fs::copy(env!("CARGO_BIN_EXE_vbs"), &program).unwrap();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(Into::into).or(home).unwrap_or_default();
    let kept = std::env::var_os("VBS_GUEST_KERNEL_DIR").map_or_else(|| cache.join("vbs/guest-kernel"), Into::into);
    let kernel = place.path().join("kernel");
    if kept.exists() {
        assert!(Command::new("cp").arg("-rL").args([&kept, &kernel]).status().unwrap().success());
    }
    comes_up_and_leaves_nothing(&dir, || {
        let mut setpriv = Command::new("setpriv");
        setpriv.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]).arg(&program);
        setpriv.args(command(&dir, &[]).get_args()).env("HOME", place.path()).env_remove("XDG_CACHE_HOME");
        if kernel.exists() {
            setpriv.env("VBS_GUEST_KERNEL_DIR", &kernel);
        }
        setpriv
    });
}

/// Where the guest below keeps its count, in bytes: behind so much data that a copy comes there late.
const COUNT_AT: u64 = 192 << 20;

/// The number that the guest has last written to a volume or snapshot of ours.
fn count(dir: &Path, kind: &str, id: &str) -> u64 {
    let file = fs::File::open(dir.join("storage").join(kind).join(id)).unwrap();
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, COUNT_AT).unwrap();
    String::from_utf8_lossy(&block).trim_matches(['\0', ' ', '\n']).parse().unwrap_or(0)
}

#[tokio::test]
async fn a_set_of_two_volumes_of_a_guest_that_counts_on_both_is_of_one_instant() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let (client, instance) = (dev.client(), dev.instances()[0].to_owned());
    let (mut volumes, mut disks) = (Vec::new(), Vec::new());
    for device in ["/dev/sdf", "/dev/sdg"] {
        let made = client.ok("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")]).await;
        let volume = made.text("volumeId");
        let attach = [("VolumeId", &*volume), ("InstanceId", &*instance), ("Device", device)];
        let deadline = Instant::now() + PATIENCE;
        while client.call("AttachVolume", &attach).await.status != 200 {
            assert!(Instant::now() < deadline, "the volume does not become available");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        dev.attachment_becomes(&volume, Some("attached")).await;
        disks.push(in_guest(dir.path(), &format!("disk {} 40", volume.replace("vol-", "vol"))).await);
        volumes.push(volume);
    }
    // One of them takes much longer to copy.
    let big = fs::File::options().write(true).open(dir.path().join("storage/volumes").join(&volumes[0])).unwrap();
    big.write_all_at(&vec![0x5a; usize::try_from(COUNT_AT).unwrap()], 0).unwrap();
    let seek = COUNT_AT / 4096;
    let write = format!("dd of=$d bs=4096 seek={seek} iflag=fullblock oflag=direct conv=notrunc status=none");
    let round = format!("for d in {}; do printf %-4095d\\\\n $n | {write}; done", disks.join(" "));
    let forever = format!("n=0; while :; do n=$((n+1)); {round}; done");
    in_guest(dir.path(), &format!("setsid sh -c '{forever}' </dev/null >/dev/null 2>&1 &")).await;
    let mut before = 0;
    for _ in 0..3 {
        let deadline = Instant::now() + PATIENCE;
        while count(dir.path(), "volumes", &volumes[1]) <= before {
            assert!(Instant::now() < deadline, "the guest does not go on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let taken = client.ok("CreateSnapshots", &[("InstanceSpecification.InstanceId", &instance)]).await;
        let snapshots = taken.all("snapshotId");
        let of: HashMap<String, &String> = taken.all("volumeId").into_iter().zip(&snapshots).collect();
        for snapshot in &snapshots {
            loop {
                let shown = client.ok("DescribeSnapshots", &[("SnapshotId.1", snapshot)]).await;
                match shown.text("status").as_str() {
                    "completed" => break,
                    "pending" if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
                    other => panic!("{other}: {}", shown.body),
                }
            }
        }
        // The guest counts on the first, then on the second.
        let [first, second] = [0, 1].map(|n| count(dir.path(), "snapshots", of[&volumes[n]]));
        assert!(first > before && (first == second || first == second + 1), "{first} and {second} are of two instants");
        before = first;
    }
}
