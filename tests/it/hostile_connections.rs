//! A gateway that thousands of connections are thrown at: whoever is honest is served all the time, memory stays within its bound, and
//! all of it is given back. The figures are printed.
//!
//! The gateway is the program, in a process of its own. The crowd comes from one address of the loopback, the honest client from
//! another.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use vbs::seal::Sealer;
use vbs::{config, credentials, db};

use crate::support::client::Client;
use crate::support::cloud::PATIENCE;
use crate::support::postgres;

/// Connections that the gateway takes; the crowd has five times as many.
const PLACES: usize = 400;
/// How long the crowd stays.
const SIEGE: Duration = Duration::from_secs(12);
/// What the gateway may have of memory: a program at rest, the most that each connection buffers in both directions, those on
/// their way out too, and what is held of small and large bodies. In KiB.
const MOST_KIB: u64 = 60 * 1024 + (PLACES + PLACES / 8) as u64 * (2 * 128 + 64) + 64 * 1024;
/// How long an honest request may take, and how many there are at least while the crowd is there.
const LONGEST: Duration = Duration::from_secs(5);
const FEWEST: usize = 12;

/// What a member of the crowd does with a connection, until it is put out.
#[derive(Clone, Copy)]
enum Attack {
    /// Sends nothing.
    Silent,
    /// Sends a header, a byte at a time.
    Trickle,
    /// Announces a body of a MiB, sends most of it, and waits.
    BodyWithoutEnd,
    /// Sends a head that is nearly as large as one may be, but for its end.
    HugeHead,
    /// Sends a head that is larger than one may be.
    TooHugeHead,
    /// Asks five hundred times at once, and reads no answer.
    Pipeline,
    /// Asks once, and keeps the connection.
    Hoard,
}

/// How many of each there are.
const CROWD: [(Attack, usize); 7] = [
    (Attack::Silent, 700),
    (Attack::Trickle, 300),
    (Attack::BodyWithoutEnd, 150),
    (Attack::HugeHead, 300),
    (Attack::TooHugeHead, 50),
    (Attack::Pipeline, 150),
    (Attack::Hoard, 300),
];

struct Gateway {
    child: Child,
    address: SocketAddr,
}

impl Gateway {
    async fn start(url: &str) -> (Self, Client) {
        let dir = tempfile::tempdir().unwrap();
        let master_key = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/master.key");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let text = format!(
            r#"
            region = "us-east-1"
            zones = ["us-east-1a"]
            master_key = {{ file = "{master_key}" }}
            database = {{ url = "{url}", pool = 8 }}
            [gateway.server]
            listen = "{free}"
            max_connections = {PLACES}
            [[volume_node]]
            name = "storage-a"
            zone = "us-east-1a"
            delegate = {{ sim = {{}} }}
            "#
        );
        let file = dir.path().join("vbs.toml");
        std::fs::write(&file, text).unwrap();
        let sealer = Sealer::of(&config::Config::load(&file).unwrap()).unwrap();
        let mut conn = db::connect(url).await.unwrap();
        db::accounts::create(&mut conn, "123456789012", "test").await.unwrap();
        let key = credentials::create(&mut conn, &sealer, "123456789012").await.unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.args(["gateway", "--config"]).arg(&file).env("VBS_LOG", "warn").stdout(Stdio::null());
        let gateway = Self { child: command.spawn().unwrap(), address: free };
        let client = Client { address: free, access_key_id: key.id, secret: key.secret.to_string() };
        let started = Instant::now();
        while TcpStream::connect(free).await.is_err() {
            assert!(started.elapsed() < PATIENCE, "the gateway does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (gateway, client)
    }

    /// A line of the process's status, in KiB.
    fn memory_kib(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let rest = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
        rest.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One member of the crowd: comes again a second after it was put out.
async fn besiege(attack: Attack, address: SocketAddr, connections: Arc<AtomicU64>) {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
        if let Ok(stream) = socket.connect(address).await {
            connections.fetch_add(1, Ordering::Relaxed);
            let _ = annoy(attack, stream).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Ends when the gateway ends the connection.
async fn annoy(attack: Attack, mut stream: TcpStream) -> std::io::Result<()> {
    const ASK: &str = "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
    match attack {
        Attack::Silent => {}
        Attack::Trickle => {
            stream.write_all(b"GET / HTTP/1.1\r\nX: ").await?;
            loop {
                stream.write_all(b"x").await?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Attack::BodyWithoutEnd => {
            stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1048576\r\n\r\n").await?;
            stream.write_all(&vec![b'a'; 1_000_000]).await?;
        }
        Attack::HugeHead => {
            stream.write_all(b"GET / HTTP/1.1\r\nX: ").await?;
            stream.write_all(&vec![b'x'; 120_000]).await?;
        }
        Attack::TooHugeHead => {
            stream.write_all(b"GET / HTTP/1.1\r\nX: ").await?;
            stream.write_all(&vec![b'x'; 400_000]).await?;
        }
        Attack::Pipeline => {
            stream.write_all(ASK.repeat(500).as_bytes()).await?;
            // Reading would help it; this only waits for the end.
            loop {
                stream.write_all(ASK.as_bytes()).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Attack::Hoard => stream.write_all(ASK.as_bytes()).await?,
    }
    let mut sink = [0; 4096];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

/// Asks one thing after another, each over a connection of its own, and tells how long each answer took.
async fn served_for(client: &Client, time: Duration) -> Vec<Duration> {
    let started = Instant::now();
    let mut taken = Vec::new();
    while started.elapsed() < time {
        let asked = Instant::now();
        client.ok("DescribeVolumes", &[]).await;
        taken.push(asked.elapsed());
    }
    taken.sort_unstable();
    taken
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_client_is_served_through_a_siege_and_memory_stays_within_its_bound() {
    // Both ends of each connection are files, of this process and of the gateway.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let (gateway, client) = Gateway::start(&postgres::database().await).await;
    let calm = served_for(&client, Duration::from_secs(2)).await;
    let (files, memory) = (gateway.files(), gateway.memory_kib("VmRSS"));

    let connections = Arc::new(AtomicU64::new(0));
    let members = CROWD.iter().flat_map(|(attack, count)| std::iter::repeat_n(*attack, *count));
    let crowd: Vec<_> =
        members.map(|attack| tokio::spawn(besiege(attack, gateway.address, connections.clone()))).collect();
    let full = Instant::now();
    while connections.load(Ordering::Relaxed) < 2 * PLACES as u64 {
        assert!(full.elapsed() < PATIENCE, "the crowd does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let besieged = tokio::time::timeout(SIEGE + PATIENCE, served_for(&client, SIEGE)).await.expect("to be served");
    let peak = gateway.memory_kib("VmHWM");
    let came = connections.load(Ordering::Relaxed);
    for member in crowd {
        member.abort();
    }
    let gone = Instant::now();
    while gateway.files() > files + 8 {
        assert!(gone.elapsed() < PATIENCE, "{} files are open, and {files} were before", gateway.files());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = served_for(&client, Duration::from_secs(2)).await;
    for (when, taken) in [("calm", &calm), ("besieged", &besieged), ("after", &after)] {
        let [median, high, most] = [50, 99, 100].map(|percent| percentile(taken, percent));
        println!("{when}: {} requests, p50 {median:?}, p99 {high:?}, most {most:?}", taken.len());
    }
    println!(
        "{came} connections for {PLACES} places; memory {} MiB at rest, {} MiB at most of {} MiB; all released after {:?}",
        memory >> 10,
        peak >> 10,
        MOST_KIB >> 10,
        gone.elapsed()
    );
    assert!(came > 5 * PLACES as u64, "{came} connections are no siege");
    assert!(peak <= MOST_KIB, "{peak} KiB");
    assert!(besieged.len() >= FEWEST, "{} honest requests in {SIEGE:?}", besieged.len());
    assert!(percentile(&besieged, 100) < LONGEST, "{:?}", percentile(&besieged, 100));
}
