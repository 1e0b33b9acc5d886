//! What serves the nodes behind the gate.

use std::sync::{Arc, Mutex};

use hyper::StatusCode;
use vbs::config::{self, SecretSource};
use vbs::delegate::guard::Guarded;
use vbs::delegate::server::{StorageService, VmmService};
use vbs::delegate::sim::SimCloud;
use vbs::delegate::{VmmDelegate, VolumeDelegate, wire};
use vbs::server::{Handler, Request, Response};

/// What serves a node, from its start to its end.
#[derive(Clone)]
pub struct Up {
    pub service: Service,
    /// The name of this life, once somebody was told it.
    life: Arc<Mutex<Option<String>>>,
}

impl Up {
    pub fn new(sim: &SimCloud, name: &str, key: &SecretSource) -> Self {
        Self { service: Service::new(sim, name, key), life: Arc::default() }
    }

    /// Answers a call for another life; gives back one for this.
    pub async fn turn_away(&self, request: Request) -> Result<Request, Response> {
        let named = wire::life_of(request.query());
        if named.is_some() && named == self.life.lock().unwrap().as_deref() {
            return Ok(request);
        }
        let answer = self.service.handle(request).await;
        if answer.status == StatusCode::MISDIRECTED_REQUEST {
            let told: wire::AnotherLife = serde_json::from_slice(&answer.body).unwrap();
            *self.life.lock().unwrap() = Some(told.life);
        }
        Err(answer)
    }
}

#[derive(Clone)]
pub enum Service {
    Storage(Arc<StorageService>),
    Vmm(Arc<VmmService>),
}

impl Service {
    fn new(sim: &SimCloud, name: &str, key: &SecretSource) -> Self {
        let machines: &[&str] = if name == "vmm-a" { &["vm-1", "vm-2"] } else { &["vm-3"] };
        let machines = machines.iter().map(ToString::to_string).collect();
        if name.starts_with("storage") {
            let node = Guarded::in_memory(Arc::new(sim.storage(name, &config::Sim::default())));
            let node: Arc<dyn VolumeDelegate> = Arc::new(node);
            Self::Storage(Arc::new(StorageService::new(name, key, node).unwrap()))
        } else {
            let node = Guarded::in_memory(Arc::new(sim.vmm(name, &config::Sim { machines, capacity_gib: None })));
            let node: Arc<dyn VmmDelegate> = Arc::new(node);
            Self::Vmm(Arc::new(VmmService::new(name, key, node).unwrap()))
        }
    }

    pub async fn handle(&self, request: Request) -> Response {
        match self {
            Self::Storage(service) => service.handle(request).await,
            Self::Vmm(service) => service.handle(request).await,
        }
    }
}
