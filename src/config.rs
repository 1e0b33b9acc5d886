//! One TOML file for every role, read and validated once, at start.
//!
//! A key that is not known is an error, so that a misspelt limit is not silently the default. Secrets never stand in the
//! file itself: it names another file or an environment variable ([`SecretSource`]).

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

mod hypervisor;
mod storage;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

pub use hypervisor::{Hypervisor, OpenIscsi, Qemu, Toolstack, Vmm, Xen};
pub use storage::{Iet, Layout, Lio, Lvm, Storage, Target, Tgt, Thick, Thin, Volumes};

/// What the gateway and the operator's commands read (`vbs gateway --config FILE`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The region's name, such as `us-east-1`.
    pub region: String,
    /// The availability zones of the region, at least one.
    pub zones: Vec<String>,
    /// The key under which secrets are encrypted at rest: 32 bytes as 64 hexadecimal digits.
    pub master_key: SecretSource,
    /// Further keys, under which secrets may still be encrypted: the former one while `vbs master-key rotate` has not
    /// finished, or the coming one while not all gateways encrypt under it.
    #[serde(default)]
    pub further_master_keys: Vec<SecretSource>,
    /// The naming authority that target names start with (RFC 3720, 3.2.6.3.1), such as `iqn.2026-01.net.example`.
    #[serde(default = "defaults::iqn_prefix")]
    pub iqn_prefix: String,
    /// Postgres.
    pub database: Database,
    /// The EC2 front.
    #[serde(default)]
    pub gateway: Gateway,
    /// What an account, an instance and a volume may have of everything at most.
    #[serde(default)]
    pub quotas: Quotas,
    /// The workflow workers inside the gateway.
    #[serde(default)]
    pub workers: Workers,
    /// The storage nodes.
    #[serde(default, rename = "volume_node")]
    pub volume_nodes: Vec<VolumeNode>,
    /// The hypervisor nodes.
    #[serde(default, rename = "vmm_node")]
    pub vmm_nodes: Vec<VmmNode>,
}

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSource {
    /// A file that holds the secret and perhaps a line end.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

/// Postgres.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `postgres://user@host/database`, or with `?host=/directory` for a unix socket. A password belongs into `PGPASSFILE`
    /// or the URL's file: see `url_file`.
    #[serde(default)]
    pub url: Option<String>,
    /// A file that holds the URL, when it carries a password.
    #[serde(default)]
    pub url_file: Option<PathBuf>,
    /// The most connections this process opens.
    #[serde(default = "defaults::pool")]
    pub pool: usize,
    /// Whether the gateway applies missing migrations at start.
    #[serde(default)]
    pub migrate: bool,
}

/// A server's address and limits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Where to listen.
    pub listen: SocketAddr,
    /// A PEM file with the certificate chain; TLS is on when both this and `tls_key` are given.
    pub tls_cert: Option<PathBuf>,
    /// A PEM file with the private key.
    pub tls_key: Option<PathBuf>,
    /// The most connections at once. For one more, one is ended that waits for its client, of the address that has most of them.
    pub max_connections: usize,
    /// Seconds a client may take to send a request's headers, or its body.
    #[serde(deserialize_with = "seconds")]
    pub read_timeout_s: u64,
    /// Seconds a connection may stay open between requests.
    #[serde(deserialize_with = "seconds")]
    pub idle_timeout_s: u64,
    /// Seconds for which a gateway serves on after SIGTERM while `/readyz` says that it will not for long: balancers need that
    /// time to send their clients elsewhere.
    #[serde(deserialize_with = "seconds")]
    pub drain_s: u64,
    /// Seconds that requests in flight get to finish then.
    #[serde(deserialize_with = "seconds")]
    pub grace_s: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8773)),
            tls_cert: None,
            tls_key: None,
            max_connections: 2048,
            read_timeout_s: 20,
            idle_timeout_s: 75,
            drain_s: 0,
            grace_s: 20,
        }
    }
}

/// The EC2 front.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Address and limits.
    pub server: Server,
    /// Whether signatures of version 2 (libcloud, old boto scripts) are accepted.
    pub sigv2: bool,
    /// How many requests an account may make.
    pub throttle: Throttle,
}

impl Default for Gateway {
    fn default() -> Self {
        Self { server: Server::default(), sigv2: true, throttle: Throttle::default() }
    }
}

/// How many requests an account may make, of each action for itself and at each gateway. Without a word there is no end.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Throttle {
    /// Of each action that only reads.
    pub reads: Option<Bucket>,
    /// Of each other action.
    pub writes: Option<Bucket>,
    /// Of single actions, by name, instead.
    pub actions: BTreeMap<String, Bucket>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// The most requests at once.
    pub burst: u32,
    /// The requests a second that it lets through for as long as it likes.
    pub per_second: f64,
}

/// What an account, an instance and a volume may have at most. Those of accounts have no end unless one is said, here or by
/// `vbs account quota`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// The most volumes of an account, those included that could not be made or are being deleted.
    pub volumes: Option<u32>,
    /// The most GiB of an account's volumes together.
    pub gib: Option<u32>,
    /// The most IOPS of an account's `io1` and `io2` volumes together.
    pub iops: Option<u32>,
    /// The most snapshots of an account.
    pub snapshots: Option<u32>,
    /// The most volumes attached to one instance, at most 26: what fits a PC's bus beside its own devices.
    pub attachments: u16,
    /// The most snapshots of one volume that are being taken at once.
    pub pending_snapshots: u16,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { volumes: None, gib: None, iops: None, snapshots: None, attachments: 26, pending_snapshots: 5 }
    }
}

/// The workflow workers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// The most workflows one gateway runs at once of those that need the same nodes; 0 makes a gateway that only answers.
    pub concurrency: usize,
    /// Seconds a claimed workflow stays a worker's own without a sign of life.
    #[serde(deserialize_with = "seconds")]
    pub lease_s: u64,
    /// Seconds between looks at the table when no notification comes.
    #[serde(deserialize_with = "seconds")]
    pub poll_s: u64,
    /// Seconds a step is tried again before its workflow turns back.
    #[serde(deserialize_with = "seconds")]
    pub step_deadline_s: u64,
    /// Seconds between the sweeper's rounds.
    #[serde(deserialize_with = "seconds")]
    pub sweep_s: u64,
}

impl Default for Workers {
    fn default() -> Self {
        Self { concurrency: 64, lease_s: 30, poll_s: 2, step_deadline_s: 120, sweep_s: 5 }
    }
}

/// How the gateway reaches a node's delegate.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Link<L> {
    /// In this process.
    Local(L),
    /// In this process and in memory, with nothing behind it.
    Sim(Sim),
    /// Over HTTP.
    Remote(Remote),
}

impl Remote {
    /// A node at this URL over plain HTTP, with the usual time-outs.
    pub fn new(url: String, key: SecretSource) -> Self {
        let (timeout_s, copy_timeout_s) = (defaults::timeout_s(), defaults::copy_timeout_s());
        Self { url, key, ca: None, pins: Vec::new(), timeout_s, copy_timeout_s }
    }
}

impl<L> Link<L> {
    fn remote(&self) -> Option<&Remote> {
        match self {
            Self::Remote(remote) => Some(remote),
            Self::Local(_) | Self::Sim(_) => None,
        }
    }
}

/// A simulated node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sim {
    /// The machines of a simulated hypervisor node.
    pub machines: Vec<String>,
    /// A simulated storage node's capacity in GiB.
    pub capacity_gib: Option<u64>,
}

/// A node's delegate over HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// `http://ADDRESS:PORT` or `https://…`
    pub url: String,
    /// The key shared with the node.
    pub key: SecretSource,
    /// A PEM file with the only authority whose certificates are accepted of the node, with `https`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The only certificates that are accepted of the node, with `https`: SHA-256 in hexadecimal. With `ca` both must hold.
    #[serde(default)]
    pub pins: Vec<String>,
    /// Seconds that the node may take for a call that copies nothing; it may wait for an earlier call, a guest or a session. A
    /// mere look gets 20 at most.
    #[serde(default = "defaults::timeout_s")]
    pub timeout_s: u64,
    /// Seconds that it may take for a call that copies or zeroes a whole volume.
    #[serde(default = "defaults::copy_timeout_s")]
    pub copy_timeout_s: u64,
}

/// A storage node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeNode {
    /// Its name; rows of the database hold it, so it never changes.
    pub name: String,
    /// The zone it is in.
    pub zone: String,
    /// How it is reached.
    pub delegate: Link<Storage>,
}

/// A hypervisor node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmNode {
    /// Its name; rows of the database hold it, so it never changes.
    pub name: String,
    /// The zone it is in.
    pub zone: String,
    /// The account that machines belong to which no `vbs instance assign` has given to another.
    #[serde(default)]
    pub default_owner: Option<String>,
    /// How it is reached.
    pub delegate: Link<Vmm>,
}

/// What a node's delegate reads (`vbs volume-delegate`, `vbs vmm-delegate`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateConfig<L> {
    /// The node's name, as the gateway's file has it.
    pub node: String,
    /// Address and limits.
    pub server: Server,
    /// The key shared with the gateways.
    pub key: SecretSource,
    /// The naming authority that the gateways' target names start with (their `iqn_prefix`): under another one nothing is
    /// exported or connected. Not given, any will do.
    #[serde(default)]
    pub iqn_prefix: Option<String>,
    /// The storage nodes whose snapshots a storage node reads for volumes of its own, as `HOST:PORT` of the gateway's `url`.
    /// Not given, any address that a node may have.
    #[serde(default)]
    pub snapshot_sources: Option<Vec<String>>,
    /// The drivers, or the simulation.
    pub delegate: Link<L>,
}

mod defaults {
    pub(super) fn pool() -> usize {
        16
    }
    pub(super) fn iqn_prefix() -> String {
        "iqn.2026-01.internal.vbs".into()
    }
    pub(super) fn timeout_s() -> u64 {
        60
    }
    pub(super) fn copy_timeout_s() -> u64 {
        5 * 3600
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or a file it names, cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not the TOML that is expected.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// The values do not fit together.
    #[error("{0}")]
    Invalid(String),
}

/// The longest time that a file may give, in seconds: a year. A clock that is told to add more than it can hold panics, in the middle
/// of a request and not at the start.
const MOST_SECONDS: u64 = 366 * 24 * 3600;

/// The most connections to the database: more than any Postgres takes.
const MOST_CONNECTIONS: usize = 10_000;

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(from)?;
    if seconds > MOST_SECONDS {
        return Err(serde::de::Error::custom(format!("{seconds} seconds are more than {MOST_SECONDS}, a year")));
    }
    Ok(seconds)
}

/// Reads a TOML file of any of the shapes above.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

impl Config {
    /// Reads and validates the gateway's file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = read(path)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if self.zones.is_empty() {
            return invalid("zones: at least one is needed".into());
        }
        if !(2..=MOST_CONNECTIONS).contains(&self.database.pool) {
            return invalid(format!("database.pool: from 2 to {MOST_CONNECTIONS}"));
        }
        let iqn = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        if !self.iqn_prefix.starts_with("iqn.") || self.iqn_prefix.len() > 128 || !self.iqn_prefix.bytes().all(iqn) {
            return invalid(format!("iqn_prefix {}: it has the form iqn.YYYY-MM.DOMAIN", self.iqn_prefix));
        }
        if !(1..=26).contains(&self.quotas.attachments) || self.quotas.pending_snapshots == 0 {
            return invalid("quotas: attachments is from 1 to 26, pending_snapshots at least 1".into());
        }
        let throttle = &self.gateway.throttle;
        let single = throttle.actions.values();
        for bucket in single.chain(&throttle.reads).chain(&throttle.writes) {
            if bucket.burst == 0 || !(0.001..=1e6).contains(&bucket.per_second) {
                return invalid("gateway.throttle: burst is at least 1, per_second from 0.001 to 1000000".into());
            }
        }
        let storage = self.volume_nodes.iter().filter_map(|node| node.delegate.remote());
        let mut remotes = storage.chain(self.vmm_nodes.iter().filter_map(|node| node.delegate.remote()));
        if remotes.any(|remote| remote.timeout_s == 0 || remote.copy_timeout_s == 0) {
            return invalid("remote: timeout_s and copy_timeout_s are at least 1".into());
        }
        let mut names = HashSet::new();
        let nodes = self.volume_nodes.iter().map(|n| (&n.name, &n.zone));
        for (name, zone) in nodes.chain(self.vmm_nodes.iter().map(|n| (&n.name, &n.zone))) {
            if !self.zones.contains(zone) {
                return invalid(format!("node {name}: zone {zone} is not in zones"));
            }
            if !names.insert(name) {
                return invalid(format!("node {name}: the name is given twice"));
            }
        }
        for owner in self.vmm_nodes.iter().filter_map(|n| n.default_owner.as_ref()) {
            if owner.len() != 12 || !owner.bytes().all(|b| b.is_ascii_digit()) {
                return invalid(format!("default_owner {owner}: an account id has 12 digits"));
            }
        }
        Ok(())
    }
}

impl Database {
    /// The connection URL, wherever it is kept.
    pub fn url(&self) -> Result<String, ConfigError> {
        match (&self.url, &self.url_file) {
            (Some(url), None) => Ok(url.clone()),
            (None, Some(file)) => SecretSource::File(file.clone()).read(),
            _ => Err(ConfigError::Invalid("database: give url or url_file, one of the two".into())),
        }
    }
}

impl SecretSource {
    /// Fetches the secret, without the line end that editors put behind it.
    pub fn read(&self) -> Result<String, ConfigError> {
        match self {
            Self::File(path) => std::fs::read_to_string(path)
                .map(|text| text.trim_end().to_owned())
                .map_err(|source| ConfigError::Read { path: path.clone(), source }),
            Self::Env(name) => std::env::var(name)
                .map_err(|_| ConfigError::Invalid(format!("the environment variable {name} is not set"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        region = "us-east-1"
        zones = ["us-east-1a"]
        master_key = { env = "VBS_MASTER_KEY" }
        [database]
        url = "postgres://vbs@localhost/vbs"
        [gateway]
        sigv2 = false
        [[volume_node]]
        name = "storage-1"
        zone = "us-east-1a"
        delegate = { sim = {} }
        [[vmm_node]]
        name = "vmm-1"
        zone = "us-east-1a"
        delegate = { remote = { url = "http://127.0.0.1:1", key = { file = "/etc/vbs/vmm-1.key" } } }
    "#;

    #[test]
    fn a_file_is_read_with_its_defaults() {
        let config: Config = toml::from_str(FILE).unwrap();
        config.validate().unwrap();
        assert!(!config.gateway.sigv2);
        assert_eq!(config.gateway.server.max_connections, 2048);
        assert!(matches!(&config.vmm_nodes[0].delegate, Link::Remote(r) if r.url == "http://127.0.0.1:1"));
    }

    #[test]
    fn times_and_pools_that_no_clock_and_no_database_has_are_refused() {
        let with = |line: &str| FILE.replace("sigv2 = false", line);
        for name in ["read_timeout_s", "idle_timeout_s", "grace_s"] {
            assert!(toml::from_str::<Config>(&with(&format!("server = {{ {name} = 31622400 }}"))).is_ok(), "{name}");
            assert!(toml::from_str::<Config>(&with(&format!("server = {{ {name} = 31622401 }}"))).is_err(), "{name}");
        }
        for name in ["lease_s", "poll_s", "step_deadline_s", "sweep_s"] {
            let with = |seconds: u64| format!("workers = {{ {name} = {seconds} }}\n{FILE}");
            assert!(toml::from_str::<Config>(&with(31_622_400)).is_ok(), "{name}");
            assert!(toml::from_str::<Config>(&with(1 << 60)).is_err(), "{name}");
        }
        let config: Config = toml::from_str(&FILE.replace("[gateway]", "pool = 10001\n[gateway]")).unwrap();
        assert!(config.validate().is_err());
    }

    #[test]
    fn misspelt_keys_unknown_zones_and_twin_names_are_refused() {
        assert!(toml::from_str::<Config>(&FILE.replace("sigv2", "sigv3")).is_err());
        for (from, to) in [("zone = \"us-east-1a\"", "zone = \"us-east-1b\""), ("vmm-1\"\n", "storage-1\"\n")] {
            let config: Config = toml::from_str(&FILE.replace(from, to)).unwrap();
            assert!(config.validate().is_err(), "{to}");
        }
    }
}
