//! Three gateways on one Postgres, each behind a proxy of its own, and the nodes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::watch;
use vbs::config::{Config, SecretSource};
use vbs::db::{self, Pool};
use vbs::seal::Sealer;

use crate::gateway::Gateway;
use crate::nodes::{MACHINES, Nodes, ZONES};
use crate::postgres;
use crate::proxy::Proxy;
use crate::record::Record;

/// How many gateways there are.
pub const GATEWAYS: usize = 3;

/// The account whose clients all of them are.
const ACCOUNT: &str = "123456789012";
/// The account that snapshots are shared with.
pub const OTHER: &str = "999999999999";

/// How long anything may take that nothing is in the way of.
const PATIENCE: Duration = Duration::from_secs(120);

/// An instance, and the machine that it is.
pub struct Instance {
    pub id: String,
    pub zone: String,
    pub machine: String,
}

/// An access key.
pub struct Key {
    pub id: String,
    pub secret: String,
}

pub struct World {
    pub record: Arc<Record>,
    pub nodes: Nodes,
    pub pool: Pool,
    pub key: Key,
    pub other_key: Key,
    pub instances: Vec<Instance>,
    /// How many calls were made.
    calls: watch::Sender<u64>,
    places: Vec<Place>,
    dir: TempDir,
}

/// Where a gateway is: it may be away, but clients know the address.
struct Place {
    proxy: Proxy,
    address: Mutex<SocketAddr>,
    gateway: tokio::sync::Mutex<Option<Gateway>>,
    starts: Mutex<u32>,
}

impl World {
    pub async fn start() -> Self {
        let (url, dir) = (postgres::database().await, tempfile::tempdir().unwrap());
        let key = dir.path().join("node.key");
        std::fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
        let record = Arc::new(Record::new());
        let nodes = Nodes::new(SecretSource::File(key), &record);
        let pool = Pool::new(&url, 4).unwrap();
        let mut conn = pool.get().await.unwrap();
        let sealer = Sealer::of(&toml::from_str::<Config>(&configuration(&url, 0, "")).unwrap()).unwrap();
        let mut keys = Vec::new();
        for account in [ACCOUNT, OTHER] {
            db::accounts::create(&mut conn, account, account).await.unwrap();
            let key = vbs::credentials::create(&mut conn, &sealer, account).await.unwrap();
            keys.push(Key { id: key.id, secret: key.secret.to_string() });
        }
        let [key, other_key]: [Key; 2] = keys.try_into().ok().expect("two accounts");
        drop(conn);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let place = |_| Place {
            proxy: Proxy::start(&url),
            address: Mutex::new(nowhere),
            gateway: tokio::sync::Mutex::default(),
            starts: Mutex::default(),
        };
        let mut world = Self {
            record,
            nodes,
            pool,
            key,
            other_key,
            instances: Vec::new(),
            calls: watch::Sender::new(0),
            places: (0..GATEWAYS).map(place).collect(),
            dir,
        };
        for number in 0..GATEWAYS {
            world.revive(number, true).await;
        }
        world.instances = world.find_instances().await;
        world
    }

    async fn find_instances(&self) -> Vec<Instance> {
        let begun = Instant::now();
        loop {
            let found = db::instances::list(&mut self.pool.get().await.unwrap()).await.unwrap();
            if found.len() == ZONES.len() * MACHINES {
                let instance = |row: db::instances::Instance| Instance {
                    id: row.id.to_string(),
                    zone: row.zone,
                    machine: row.machine,
                };
                let mut found: Vec<_> = found.into_iter().map(instance).collect();
                found.sort_by(|a, b| a.machine.cmp(&b.machine));
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{} machines are known", found.len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Counts a call.
    pub fn count_call(&self) {
        self.calls.send_modify(|calls| *calls += 1);
    }

    /// Waits until so many more calls were made.
    pub async fn after_calls(&self, more: u64) {
        let mut calls = self.calls.subscribe();
        let until = *calls.borrow() + more;
        calls.wait_for(|calls| *calls >= until).await.expect("the world is there");
    }

    /// Where clients look for a gateway.
    pub fn address(&self, number: usize) -> SocketAddr {
        *self.places[number].address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way of a gateway to Postgres.
    pub fn proxy(&self, number: usize) -> &Proxy {
        &self.places[number].proxy
    }

    /// SIGKILL.
    pub async fn kill(&self, number: usize) {
        self.places[number].gateway.lock().await.take();
    }

    /// Starts a gateway that was killed, at the address that it had or at another one; one that cannot start, since its way to
    /// Postgres is cut, is not started.
    pub async fn revive(&self, number: usize, elsewhere: bool) {
        let place = &self.places[number];
        let mut gateway = place.gateway.lock().await;
        if gateway.is_some() {
            return;
        }
        let start = {
            let mut starts = place.starts.lock().unwrap_or_else(PoisonError::into_inner);
            *starts += 1;
            *starts
        };
        let port = if elsewhere { 0 } else { self.address(number).port() };
        let name = format!("gateway-{}.{start}", number + 1);
        let config = configuration(&place.proxy.url, port, &self.nodes.serve(&name, ACCOUNT));
        *gateway = Gateway::start(&config, &self.path(&name)).await;
        if let Some(gateway) = &*gateway {
            *place.address.lock().unwrap_or_else(PoisonError::into_inner) = gateway.address;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.toml"))
    }

    /// SIGSTOP, a while, SIGCONT; does nothing when it is away.
    pub async fn pause(&self, number: usize, time: Duration) {
        let gateway = self.places[number].gateway.lock().await;
        if let Some(gateway) = &*gateway {
            gateway.pause();
            tokio::time::sleep(time).await;
            gateway.go_on();
        }
    }

    /// Makes everything well again, and waits until all gateways serve.
    pub async fn heal(&self) {
        for place in &self.places {
            place.proxy.restore();
        }
        for instance in &self.instances {
            self.nodes.sim.hold_on(&instance.machine, false);
        }
        let begun = Instant::now();
        for number in 0..GATEWAYS {
            while self.places[number].gateway.lock().await.is_none() {
                self.revive(number, true).await;
                assert!(begun.elapsed() < PATIENCE, "gateway {} does not start", number + 1);
            }
        }
    }

    /// Waits until no workflow is live.
    pub async fn settle(&self) {
        let begun = Instant::now();
        loop {
            let mut conn = self.pool.get().await.unwrap();
            if db::workflows::count_live(&mut conn).await.unwrap() == 0 {
                return;
            }
            if begun.elapsed() > PATIENCE {
                let live = db::workflows::list(&mut conn, false, 20).await.unwrap();
                panic!("these workflows do not end: {live:#?}");
            }
            drop(conn);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What no gateway may ever say, when one has said it.
    pub fn said_what_none_may(&self) -> Option<String> {
        let logs = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).find_map(|path| {
            let log = std::fs::read_to_string(path).unwrap();
            let never = |line: &&str| ["panicked", "deadlock detected"].iter().any(|words| line.contains(words));
            log.lines().find(never).map(str::to_owned)
        })
    }

    /// Keeps the logs of the gateways for whoever looks into what went wrong.
    pub fn keep_logs(self) -> PathBuf {
        self.dir.keep()
    }
}

/// Leases are short, so that a pause is longer than one, and what fails does not fail for long.
fn configuration(url: &str, port: u16, nodes: &str) -> String {
    let master_key = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/master.key");
    format!(
        "region = 'us-east-1'\nzones = ['{}', '{}']\nmaster_key = {{ file = '{master_key}' }}\n\
         database = {{ url = '{url}', pool = 16 }}\n\
         workers = {{ concurrency = 16, lease_s = 6, poll_s = 1, sweep_s = 2, step_deadline_s = 10 }}\n\
         [gateway.server]\nlisten = '127.0.0.1:{port}'\ngrace_s = 2\n{nodes}",
        ZONES[0], ZONES[1],
    )
}
