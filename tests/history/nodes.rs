//! The nodes: simulated ones, in this process so that they outlive gateways that are killed, and reached over signed HTTP.
//!
//! Each gateway that is started gets addresses of its own for them, so that it can be told who asks.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use vbs::config::{self, SecretSource, Sim};
use vbs::delegate::guard::Guarded;
use vbs::delegate::server::{StorageService, VmmService};
use vbs::delegate::sim::SimCloud;
use vbs::delegate::{VmmDelegate, VolumeDelegate};
use vbs::ids::SnapshotId;
use vbs::server::{self, Handler, Refusal, Request, Response};

use crate::record::{Record, What};
use crate::watched::Watched;

/// The zones; each has a storage node and a hypervisor node.
pub const ZONES: [&str; 2] = ["us-east-1a", "us-east-1b"];
/// The machines of a hypervisor node.
pub const MACHINES: usize = 8;

/// The nodes of a zone.
pub struct Zone {
    pub name: &'static str,
    pub storage: Arc<dyn VolumeDelegate>,
    pub hypervisor: Arc<dyn VmmDelegate>,
}

pub struct Nodes {
    pub sim: SimCloud,
    pub zones: Vec<Zone>,
    key: SecretSource,
    record: Arc<Record>,
}

impl Nodes {
    pub fn new(key: SecretSource, record: &Arc<Record>) -> Self {
        let sim = SimCloud::new();
        let zones = ZONES.map(|zone| {
            let letter = &zone[zone.len() - 1..];
            let machines = (1..=MACHINES).map(|n| format!("vm-{letter}{n}"));
            let settings = Sim { machines: machines.collect(), capacity_gib: None };
            let (storage, hypervisor) = (format!("storage-{letter}"), format!("vmm-{letter}"));
            Zone {
                name: zone,
                storage: Arc::new(Guarded::in_memory(Arc::new(Watched {
                    inner: sim.storage(&storage, &settings),
                    node: storage,
                    record: record.clone(),
                }))),
                hypervisor: Arc::new(Guarded::in_memory(Arc::new(Watched {
                    inner: sim.vmm(&hypervisor, &settings),
                    node: hypervisor,
                    record: record.clone(),
                }))),
            }
        });
        Self { sim, zones: zones.into(), key, record: record.clone() }
    }

    /// Serves all nodes to one gateway; gives what its configuration says of them.
    pub fn serve(&self, gateway: &str, owner: &str) -> String {
        let SecretSource::File(key) = &self.key else { panic!("the key is in a file") };
        let of_zone = |zone: &Zone| {
            let letter = &zone.name[zone.name.len() - 1..];
            let (storage, hypervisor) = (format!("storage-{letter}"), format!("vmm-{letter}"));
            let service = StorageService::new(&storage, &self.key, zone.storage.clone()).unwrap();
            let storage_url = self.listen(gateway, service);
            let service = VmmService::new(&hypervisor, &self.key, zone.hypervisor.clone()).unwrap();
            let hypervisor_url = self.listen(gateway, service);
            let (zone, key) = (zone.name, key.display());
            format!(
                "[[volume_node]]\nname = '{storage}'\nzone = '{zone}'\n\
                 delegate = {{ remote = {{ url = '{storage_url}', key = {{ file = '{key}' }} }} }}\n\
                 [[vmm_node]]\nname = '{hypervisor}'\nzone = '{zone}'\ndefault_owner = '{owner}'\n\
                 delegate = {{ remote = {{ url = '{hypervisor_url}', key = {{ file = '{key}' }} }} }}\n"
            )
        };
        self.zones.iter().map(of_zone).collect()
    }

    fn listen(&self, gateway: &str, service: impl Handler) -> String {
        let listener = server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let noted =
            Noted { service, gateway: gateway.to_owned(), record: self.record.clone(), generations: Mutex::default() };
        tokio::spawn(async move {
            let config = config::Server::default();
            server::serve(&config, listener, Arc::new(noted), std::future::pending()).await.unwrap();
        });
        url
    }

    /// Whether a storage node has the snapshot.
    pub async fn has_snapshot(&self, snapshot: &SnapshotId) -> bool {
        for zone in &self.zones {
            if zone.storage.observe().await.is_ok_and(|report| report.snapshots.contains(snapshot)) {
                return true;
            }
        }
        false
    }

    /// Why the nodes are not as if nothing had ever been there; `None` when they are.
    pub async fn left_over(&self) -> Option<String> {
        for zone in &self.zones {
            let Ok(report) = zone.storage.observe().await else { return Some("a fault is left".into()) };
            if !(report.volumes.is_empty() && report.snapshots.is_empty() && report.exports.is_empty()) {
                return Some(format!("{report:?}"));
            }
            let Ok(report) = zone.hypervisor.observe().await else { return Some("a fault is left".into()) };
            let left = |machine: &&vbs::delegate::ObservedMachine| !machine.disks.is_empty() || machine.paused;
            if let Some(machine) = report.machines.iter().find(left) {
                return Some(format!("{machine:?}"));
            }
        }
        (self.sim.copies() + self.sim.restores() > 0).then(|| "something is still being copied".into())
    }
}

/// A node's service that notes under which generations a gateway has asked for something.
struct Noted<S> {
    service: S,
    gateway: String,
    record: Arc<Record>,
    generations: Mutex<HashSet<i64>>,
}

impl<S: Handler> Handler for Noted<S> {
    async fn handle(&self, request: Request) -> Response {
        let body: Option<serde_json::Value> = serde_json::from_slice(&request.body).ok();
        let generation = body.and_then(|body| body.get("generation")?.as_i64());
        if let Some(generation) = generation
            && self.generations.lock().unwrap_or_else(PoisonError::into_inner).insert(generation)
        {
            self.record.add(self.record.now(), &self.gateway, What::Asked { generation });
        }
        self.service.handle(request).await
    }

    fn refuse(&self, id: &str, refusal: Refusal) -> Response {
        self.service.refuse(id, refusal)
    }
}
