//! No secret is anywhere but where it belongs: a whole run of processes that log everything they can is searched, log by log and
//! row by row and file by file, for every secret it made.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use rustix::fs::{SeekFrom, seek};
use tempfile::TempDir;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use vbs::delegate::{reading, wire};
use vbs::dev::guests::PROGRAM;
use vbs::ids::SnapshotId;
use vbs::seal::Sealer;
use vbs::sigv4;

use crate::support::client::{Answer, Client, send};
use crate::support::postgres;
use crate::support::tgtd::{Shim, Tgtd};

const PATIENCE: Duration = Duration::from_secs(90);

/// A secret of the run, in the forms that it could show in.
struct Needle {
    what: String,
    forms: Vec<String>,
}

impl Needle {
    fn new(what: impl Into<String>, secret: &str) -> Self {
        assert!(secret.len() >= 12, "so short a text is found anywhere");
        let mut forms = vec![
            secret.to_owned(),
            hex::encode(secret),
            hex::encode_upper(secret),
            STANDARD_NO_PAD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
            percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string(),
        ];
        // A text of digits that stands for bytes, and the list of numbers that Debug makes of bytes.
        if let Ok(bytes) = hex::decode(secret) {
            forms.extend([STANDARD_NO_PAD.encode(&bytes), format!("{bytes:?}"), secret.to_uppercase()]);
        }
        forms.push(format!("{:?}", secret.as_bytes()));
        Self { what: what.into(), forms }
    }
}

/// What of the secrets a text shows.
fn shown<'a>(text: &str, needles: &'a [Needle]) -> Vec<&'a str> {
    let hides = |needle: &&Needle| needle.forms.iter().any(|form| text.contains(form.as_str()));
    needles.iter().filter(hides).map(|needle| needle.what.as_str()).collect()
}

/// Every file below a directory.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, mut files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files.extend(dirs.iter().flat_map(|dir| files_below(dir)));
    files
}

/// What a file holds, as text, without the holes of a disk.
fn text_of(path: &Path) -> String {
    let (file, mut bytes) = (fs::File::open(path).unwrap(), Vec::new());
    let mut end = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(end)) {
        end = seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut data = vec![0; usize::try_from(end - start).unwrap()];
        file.read_exact_at(&mut data, start).unwrap();
        bytes.extend(data);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn the_search_finds_a_secret_in_every_form() {
    let secret = "5e/cret+5ecret==5ecret";
    let digits = "00112233445566778899aabbccddeeff";
    let needles = [Needle::new("plain", secret), Needle::new("digits", digits)];
    for planted in [
        secret.to_owned(),
        format!("\\\\x{}", hex::encode(secret)),
        STANDARD_NO_PAD.encode(secret),
        "5e%2Fcret%2B5ecret%3D%3D5ecret".to_owned(),
        format!("{:?}", secret.as_bytes()),
    ] {
        assert_eq!(shown(&format!("a {planted} b"), &needles), ["plain"], "{planted}");
    }
    for planted in [digits.to_owned(), digits.to_uppercase(), STANDARD_NO_PAD.encode(hex::decode(digits).unwrap())] {
        assert_eq!(shown(&format!("a {planted} b"), &needles), ["digits"], "{planted}");
    }
    assert!(shown("neither", &needles).is_empty());
}

#[test]
fn the_search_finds_a_secret_in_the_middle_of_a_disk_in_a_directory_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("far/down/disk");
    fs::create_dir_all(disk.parent().unwrap()).unwrap();
    let file = fs::File::create(&disk).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(b"5ecret5ecret", 1 << 29).unwrap();
    let found: Vec<PathBuf> = files_below(dir.path());
    assert_eq!(found, [disk]);
    assert_eq!(shown(&text_of(&found[0]), &[Needle::new("it", "5ecret5ecret")]), ["it"]);
}

/// A process whose log is kept, killed when the test ends.
struct Process(Child);

impl Process {
    fn start(role: &str, config: &Path, log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.arg(role).arg("--config").arg(config).env("VBS_LOG", "trace");
        Self(command.stdout(Stdio::null()).stderr(fs::File::create(log).unwrap()).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The run: where its files are, and what was secret in it.
struct Run {
    dir: TempDir,
    database: String,
    needles: Vec<Needle>,
    /// The ids of requests that were answered.
    request_ids: Vec<String>,
}

impl Run {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a secret, in a file.
    fn secret(&mut self, name: &str) -> String {
        let secret = Sealer::generate_master_key();
        fs::write(self.path(name), &secret).unwrap();
        self.needles.push(Needle::new(name, &secret));
        secret
    }

    /// A certificate with its key, in files, and its fingerprint.
    fn certificate(&mut self, name: &str) -> String {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = made.signing_key.serialize_pem();
        fs::write(self.path(&format!("{name}.pem")), made.cert.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), &key).unwrap();
        let line = key.lines().nth(1).unwrap();
        self.needles.push(Needle::new(format!("the TLS key of {name}"), line));
        hex::encode(<sha2::Sha256 as sha2::Digest>::digest(made.cert.der()))
    }

    /// Runs an operator's command; gives what it printed.
    fn vbs(&self, args: &[&str], config: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.args(args).env("VBS_CONFIG", self.path(config)).env("VBS_LOG", "trace");
        let output = command.output().unwrap();
        let log = fs::File::options().create(true).append(true).open(self.path("operator.log")).unwrap();
        std::io::Write::write_all(&mut &log, &output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Adds the signatures of the grants for reading a snapshot of a node that were made since: they differ in their second.
    fn note_grants(&mut self, node: &str, address: SocketAddr, key: &str, snapshot: &str, since: DateTime<Utc>) {
        let (path, authority) = (format!("{}{snapshot}", reading::PATH), address.to_string());
        let request = sigv4::Outgoing {
            method: "GET",
            path: &path,
            query: "",
            host: &authority,
            body: &[],
            access_key_id: node,
            secret: key,
            region: node,
            service: wire::SERVICE,
        };
        let signature = |query: &str| query.rsplit_once("X-Amz-Signature=").unwrap().1.to_owned();
        let real = signature(&reading::query(node, key, &authority, &SnapshotId::parse(snapshot).unwrap()).0);
        let seconds = since.timestamp()..=Utc::now().timestamp();
        let at = |second| signature(&sigv4::presign(&request, 3600, DateTime::from_timestamp(second, 0).unwrap()));
        let all: Vec<String> = seconds.map(at).collect();
        assert!(all.contains(&real), "grants are made otherwise");
        self.needles.extend(all.iter().map(|grant| Needle::new("the signature of a grant", grant)));
    }

    async fn select(&self, query: &str) -> Vec<String> {
        let (client, connection) = tokio_postgres::connect(&self.database, NoTls).await.unwrap();
        tokio::spawn(connection);
        let rows = client.simple_query(query).await.unwrap();
        let text = |row: &SimpleQueryMessage| match row {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        rows.iter().filter_map(text).collect()
    }

    /// Every row of every table, as text.
    async fn rows(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        for table in self.select("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").await {
            for row in self.select(&format!("SELECT t::text FROM \"{table}\" t")).await {
                rows.push((table.clone(), row));
            }
        }
        rows
    }

    /// Adds the CHAP secrets that the rows hold sealed now.
    async fn note_chap_secrets(&mut self, sealer: &Sealer) -> usize {
        let query = "SELECT id::text || ' ' || encode(sealed_chap_secret, 'hex') FROM attachments";
        let found = self.select(query).await;
        for row in &found {
            let (id, stored) = row.split_once(' ').unwrap();
            let secret = sealer.open(&hex::decode(stored).unwrap(), id).unwrap();
            self.needles.push(Needle::new(format!("the CHAP secret of {id}"), &secret));
        }
        found.len()
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Calls, and notes the signature and the answer's id.
async fn call(run: &mut Run, client: &Client, action: &str, parameters: &[(&str, &str)]) -> Answer {
    let request = client.signed(action, parameters);
    let signature = request.headers()["authorization"].to_str().unwrap().rsplit_once('=').unwrap().1.to_owned();
    run.needles.push(Needle::new(format!("the signature of {action}"), &signature));
    let answer = send(client.address, request).await;
    run.request_ids.extend(answer.find("requestId").or_else(|| answer.find("RequestID")));
    answer
}

async fn becomes(client: &Client, volume: &str, states: &[&str]) {
    until(&format!("{volume} {states:?}"), async || {
        let answer = client.call("DescribeVolumes", &[("VolumeId.1", volume)]).await;
        answer.all("status") == states
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_no_row_and_no_file_of_a_whole_run_shows_a_secret() {
    let (mut tgtd, far_tgtd, shim) = (Tgtd::start(), Tgtd::start(), Shim::new());
    let (dir, database) = (tempfile::tempdir().unwrap(), postgres::database().await);
    let mut run = Run { dir, database, needles: Vec::new(), request_ids: Vec::new() };
    let [master, coming, storage_key, far_key, vmm_key, password] =
        ["master.key", "coming.key", "storage.secret", "far.secret", "vmm.secret", "password"]
            .map(|name| run.secret(name));
    let pins = ["storage", "far", "vmm"].map(|name| run.certificate(name));
    fs::write(run.path("database-url"), format!("{}&password={password}", run.database)).unwrap();
    let addresses = [(); 4].map(|()| free_address());
    write_configurations(&run, addresses, &pins, [&tgtd, &far_tgtd], &shim);
    let qmp = run.path("qmp");
    fs::create_dir(&qmp).unwrap();
    let mut qemu = Command::new(PROGRAM);
    qemu.args([
        "-name",
        "vm-1",
        "-uuid",
        "6b1f1d80-0000-4000-8000-000000000001",
        "-accel",
        "tcg",
        "-M",
        "pc",
        "-m",
        "64",
    ]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-qmp"]);
    qemu.arg(format!("unix:{},server=on,wait=off", qmp.join("vm-1.qmp").display())).stdin(Stdio::null());
    let qemu = Process(qemu.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("package qemu-system-x86"));

    run.vbs(&["migrate"], "vbs.toml");
    run.vbs(&["account", "create", "tenant", "--id", "123456789012"], "vbs.toml");
    let made = run.vbs(&["access-key", "create", "tenant"], "vbs.toml");
    let (id, secret) = made.trim().split_once('\t').unwrap();
    let (id, secret) = (id.to_owned(), secret.to_owned());
    run.needles.push(Needle::new("the access key's secret", &secret));
    let processes = [
        Process::start("volume-delegate", &run.path("storage.toml"), &run.path("storage.log")),
        Process::start("volume-delegate", &run.path("far.toml"), &run.path("far.log")),
        Process::start("vmm-delegate", &run.path("vmm.toml"), &run.path("vmm.log")),
        Process::start("gateway", &run.path("vbs.toml"), &run.path("gateway.log")),
    ];
    until("the servers", async || addresses.iter().all(|address| TcpStream::connect(address).is_ok())).await;
    let client = Client { address: addresses[0], access_key_id: id.clone(), secret: secret.clone() };
    until("the machine", async || client.call("DescribeInstances", &[]).await.find("instanceId").is_some()).await;
    let instance = client.ok("DescribeInstances", &[]).await.text("instanceId");

    let create = [("AvailabilityZone", "us-east-1a"), ("Size", "1")];
    let volume = call(&mut run, &client, "CreateVolume", &create).await.text("volumeId");
    becomes(&client, &volume, &["available"]).await;
    // The fifth command of an export makes the CHAP account; this once tgtadm repeats all that it was told, and fails.
    shim.plan(Some((4, "blabs")));
    let attach = [("VolumeId", &*volume), ("InstanceId", &*instance), ("Device", "/dev/sdf")];
    assert_eq!(call(&mut run, &client, "AttachVolume", &attach).await.status, 200);
    becomes(&client, &volume, &["in-use", "attached"]).await;
    assert!(!shim.is_pending());
    let taken = call(&mut run, &client, "CreateSnapshot", &[("VolumeId", &volume)]).await;
    let snapshot = taken.text("snapshotId");
    until("the snapshot", async || {
        client.ok("DescribeSnapshots", &[("SnapshotId.1", &snapshot)]).await.text("status") == "completed"
    })
    .await;
    // A volume in another zone: its node reads the snapshot of the one that has it, by a grant.
    let begun = Utc::now();
    let elsewhere = [("AvailabilityZone", "us-east-1b"), ("SnapshotId", &*snapshot)];
    let restored = call(&mut run, &client, "CreateVolume", &elsewhere).await.text("volumeId");
    becomes(&client, &restored, &["available"]).await;
    run.note_grants("storage", addresses[1], &storage_key, &snapshot, begun);
    // Requests that are refused are logged, too.
    let stranger = Client { secret: Sealer::generate_master_key(), ..client.clone() };
    run.needles.push(Needle::new("a secret that is another's", &stranger.secret));
    assert_eq!(call(&mut run, &stranger, "DescribeVolumes", &[]).await.status, 401);
    assert_eq!(call(&mut run, &client, "AttachVolume", &attach).await.status, 400);

    let sealer = Sealer::new(&master).unwrap();
    let mut chap_secrets = run.note_chap_secrets(&sealer).await;
    let detach = [("VolumeId", &*volume), ("Force", "true")];
    assert_eq!(call(&mut run, &client, "DetachVolume", &detach).await.status, 200);
    becomes(&client, &volume, &["available"]).await;

    // An attachment that cannot be made, for a while, and turns back.
    let second = call(&mut run, &client, "CreateVolume", &create).await.text("volumeId");
    becomes(&client, &second, &["available"]).await;
    tgtd.kill();
    let attach = [("VolumeId", &*second), ("InstanceId", &*instance), ("Device", "/dev/sdg")];
    assert_eq!(call(&mut run, &client, "AttachVolume", &attach).await.status, 200);
    until("the attach that turns back", async || {
        !run.select("SELECT id FROM workflows WHERE kind = 'attach_volume' AND direction = 'backward'").await.is_empty()
    })
    .await;
    chap_secrets += run.note_chap_secrets(&sealer).await;
    tgtd.crash_and_restart();
    becomes(&client, &second, &["available"]).await;

    let rotated = run.vbs(&["master-key", "rotate"], "rotated.toml");
    assert!(rotated.contains("encrypted anew"), "{rotated}");
    assert_eq!(run.note_chap_secrets(&Sealer::new(&coming).unwrap()).await, 2, "they open under the new key");
    assert!(chap_secrets >= 2);
    for args in
        [&["access-key", "list"][..], &["workflow", "list", "--all"], &["node", "list"], &["master-key", "list"]]
    {
        fs::write(run.path(&format!("printed-{}", args[0])), run.vbs(args, "rotated.toml")).unwrap();
    }
    look_everywhere(&run, &processes, &id).await;
    drop((processes, qemu, far_key, vmm_key));
}

fn write_configurations(
    run: &Run,
    addresses: [SocketAddr; 4],
    pins: &[String; 3],
    [tgtd, far_tgtd]: [&Tgtd; 2],
    shim: &Shim,
) {
    let [gateway, storage, far, vmm] = addresses;
    let dir = run.dir.path().display();
    let node = |name: &str, address: SocketAddr| {
        format!(
            "node = '{name}'\nkey = {{ file = '{dir}/{name}.secret' }}\niqn_prefix = 'iqn.2026-01.internal.vbs'\n\
             server = {{ listen = '{address}', tls_cert = '{dir}/{name}.pem', tls_key = '{dir}/{name}.key' }}\n\
             [delegate.local]\ndata_dir = '{dir}/{name}-data'\n"
        )
    };
    let files = |tgtd: &Tgtd, tgtadm: &Path| {
        let (tgt, tgtadm) = (tgtd.config(), tgtadm.display());
        let (socket_dir, portal) = (tgt.socket_dir.display(), tgt.portal);
        format!(
            "[delegate.local.target.tgt]\nsocket_dir = '{socket_dir}'\ncontrol_port = 1\nportal = '{portal}'\ntgtadm = '{tgtadm}'\n"
        )
    };
    let qemu = format!(
        "[delegate.local.hypervisor.qemu]\nqmp_dir = '{dir}/qmp'\niqn_prefix = 'iqn.2026-01.net.example'\ndetach_wait_s = 1\n"
    );
    fs::create_dir(run.path("storage-data")).unwrap();
    fs::create_dir(run.path("far-data")).unwrap();
    fs::write(run.path("storage.toml"), node("storage", storage) + &files(tgtd, &shim.program())).unwrap();
    fs::write(run.path("far.toml"), node("far", far) + &files(far_tgtd, &far_tgtd.config().tgtadm)).unwrap();
    fs::write(run.path("vmm.toml"), node("vmm", vmm) + &qemu).unwrap();
    let remote = |name: &str, zone: char, address: SocketAddr, pin: &str| {
        format!(
            "name = '{name}'\nzone = 'us-east-1{zone}'\n\
             delegate = {{ remote = {{ url = 'https://{address}', key = {{ file = '{dir}/{name}.secret' }}, pins = ['{pin}'] }} }}\n"
        )
    };
    let gateway = |keys: &str| {
        format!(
            "region = 'us-east-1'\nzones = ['us-east-1a', 'us-east-1b']\n{keys}\n\
             database = {{ url_file = '{dir}/database-url' }}\ngateway = {{ server = {{ listen = '{gateway}' }} }}\n\
             workers = {{ step_deadline_s = 4, sweep_s = 1, poll_s = 1 }}\n\
             [[volume_node]]\n{}[[volume_node]]\n{}[[vmm_node]]\ndefault_owner = '123456789012'\n{}",
            remote("storage", 'a', storage, &pins[0]),
            remote("far", 'b', far, &pins[1]),
            remote("vmm", 'a', vmm, &pins[2]),
        )
    };
    let file = |name: &str| format!("{{ file = '{dir}/{name}.key' }}");
    fs::write(run.path("vbs.toml"), gateway(&format!("master_key = {}", file("master")))).unwrap();
    let rotated = format!("master_key = {}\nfurther_master_keys = [{}]", file("coming"), file("master"));
    fs::write(run.path("rotated.toml"), gateway(&rotated)).unwrap();
}

/// Searches logs, rows, what the delegates keep, what operators were shown, and what others of the machine see.
async fn look_everywhere(run: &Run, processes: &[Process], key_id: &str) {
    let mut searched = 0;
    let mut check = |place: &str, text: &str| {
        assert_eq!(shown(text, &run.needles), Vec::<&str>::new(), "in {place}");
        for mark in ["Signature=", "Signature%3D"] {
            let signature = text.split(mark).skip(1).find(|rest| rest.starts_with(|c: char| c.is_ascii_hexdigit()));
            assert_eq!(signature.and_then(|rest| rest.get(..32)), None, "a signature in {place}");
        }
        searched += text.len();
    };
    let logs = ["gateway.log", "storage.log", "far.log", "vmm.log", "operator.log"].map(|name| {
        let log = String::from_utf8_lossy(&fs::read(run.path(name)).unwrap()).into_owned();
        assert!(log.contains("TRACE") && log.len() > 10_000, "{name} has nothing to search");
        (name, log)
    });
    for (name, log) in &logs {
        check(name, log);
    }
    let (_, gateway_log) = &logs[0];
    for id in &run.request_ids {
        let lines: Vec<&str> =
            gateway_log.lines().filter(|line| line.contains(&format!("request_id=\"{id}\""))).collect();
        assert!(lines.iter().filter(|line| line.contains(": answered ")).count() == 1, "{id}: {lines:?}");
    }
    assert!(run.request_ids.len() >= 8);
    let (_, storage_log) = &logs[1];
    assert!(storage_log.contains("--password <secret>"), "the command that has a secret is logged, without it");
    assert!(storage_log.contains(&format!("{}snap-", reading::PATH)), "no node has read the snapshot of another");

    let rows = run.rows().await;
    for (table, row) in &rows {
        check(&format!("a row of {table}: {row}"), row);
    }
    let some = |table: &str, part: &str| rows.iter().any(|(of, row)| of == table && row.contains(part));
    assert!(some("access_keys", key_id) && some("attachments", "iqn.") && some("snapshots", "snap-"));
    assert!(some("workflow_events", "<secret>"), "what tgtadm repeated is in an event, without the secret");

    let kept: Vec<PathBuf> =
        ["storage-data", "far-data", "vmm-data"].iter().flat_map(|dir| files_below(&run.path(dir))).collect();
    for path in &kept {
        check(&path.display().to_string(), &text_of(path));
    }
    let names = |of: &str, part: &str| {
        let dir = run.path(of);
        kept.iter().any(|path| path.starts_with(&dir) && path.to_string_lossy().contains(part))
    };
    assert!(names("storage-data", "snap-") && names("far-data", "vol-"), "{kept:?}");
    for entry in fs::read_dir(run.dir.path()).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("printed-") {
            let printed = fs::read_to_string(entry.path()).unwrap();
            check(&format!("{}", entry.path().display()), &printed);
        }
    }
    for Process(process) in processes {
        for file in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{}/{file}", process.id())).unwrap();
            check(file, &String::from_utf8_lossy(&text));
        }
    }
    println!("{} secrets are nowhere in {searched} bytes and {} rows", run.needles.len(), rows.len());
}
