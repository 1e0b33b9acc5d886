//! From configuration to delegates: opens what the file names, and serves a node's own to the gateways.

use std::io;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{Config, ConfigError, DelegateConfig, Hypervisor, Link, Storage, Vmm};
use crate::delegate::check::Rules;
use crate::delegate::client::Client;
use crate::delegate::guard::Guarded;
use crate::delegate::server::{StorageService, VmmService};
use crate::delegate::sim::SimCloud;
use crate::delegate::sources::Sources;
use crate::delegate::vmm::qemu::Qemu;
use crate::delegate::vmm::xen::Xen;
use crate::delegate::volume::local::LocalStorage;
use crate::delegate::{DelegateError, VmmDelegate, VolumeDelegate};
use crate::server::{self, ServerError};
use crate::workers::Nodes;
use crate::workers::nodes::{VmmNode, VolumeNode};

/// Why a delegate cannot be opened or served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is to blame.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A driver does not start.
    #[error("{node}: {error}")]
    Driver {
        /// The node.
        node: String,
        /// Why.
        error: DelegateError,
    },
    /// The address cannot be listened on.
    #[error("{0}")]
    Listen(#[from] io::Error),
    /// The server does not start.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Opens the delegates of all nodes of a gateway's file. All simulated nodes share one simulated cloud.
/// At `stop` local storage ends its copies; all else is the gateway's to end.
pub async fn open(config: &Config, sim: &SimCloud, stop: &CancellationToken) -> Result<Nodes, OpenError> {
    let mut nodes = Nodes::default();
    for node in &config.volume_nodes {
        let delegate = open_storage(&node.name, &node.delegate, sim, stop).await?;
        nodes.volume.insert(node.name.clone(), VolumeNode { zone: node.zone.clone(), delegate });
    }
    for node in &config.vmm_nodes {
        let delegate = open_vmm(&node.name, &node.delegate, sim).await?;
        let (zone, default_owner) = (node.zone.clone(), node.default_owner.clone());
        nodes.vmm.insert(node.name.clone(), VmmNode { zone, default_owner, delegate });
    }
    Ok(nodes)
}

async fn open_storage(
    name: &str,
    link: &Link<Storage>,
    sim: &SimCloud,
    stop: &CancellationToken,
) -> Result<Arc<dyn VolumeDelegate>, OpenError> {
    let failed = |error| OpenError::Driver { node: name.to_owned(), error };
    Ok(match link {
        Link::Local(drivers) => {
            let local = Arc::new(LocalStorage::open(drivers, stop).await.map_err(failed)?);
            Arc::new(Guarded::open(local, &drivers.data_dir).await.map_err(failed)?)
        }
        Link::Sim(settings) => Arc::new(Guarded::in_memory(Arc::new(sim.storage(name, settings)))),
        Link::Remote(remote) => Arc::new(Client::new(name, remote)?),
    })
}

async fn open_vmm(name: &str, link: &Link<Vmm>, sim: &SimCloud) -> Result<Arc<dyn VmmDelegate>, OpenError> {
    let failed = |error| OpenError::Driver { node: name.to_owned(), error };
    Ok(match link {
        Link::Local(drivers) => {
            let local: Arc<dyn VmmDelegate> = match &drivers.hypervisor {
                Hypervisor::Qemu(qemu) => Arc::new(Qemu::start(&drivers.data_dir, qemu).await.map_err(failed)?),
                Hypervisor::Xen(xen) => Arc::new(Xen::start(&drivers.data_dir, xen).await.map_err(failed)?),
            };
            Arc::new(Guarded::open(local, &drivers.data_dir).await.map_err(failed)?)
        }
        Link::Sim(settings) => Arc::new(Guarded::in_memory(Arc::new(sim.vmm(name, settings)))),
        Link::Remote(remote) => Arc::new(Client::new(name, remote)?),
    })
}

/// `vbs volume-delegate`: serves this node's storage until `stop`.
pub async fn serve_storage(config: DelegateConfig<Storage>, stop: CancellationToken) -> Result<(), OpenError> {
    let delegate = open_storage(&config.node, &config.delegate, &SimCloud::new(), &stop).await?;
    let listener = server::listen(config.server.listen)?;
    info!(node = config.node, address = %listener.local_addr()?, "serving storage");
    let sources = Sources::of(config.snapshot_sources.as_deref(), config.server.listen);
    let service = StorageService::new(&config.node, &config.key, delegate)?
        .reading_from(sources)
        .under(Rules { iqn_prefix: config.iqn_prefix });
    Ok(server::serve(&config.server, listener, Arc::new(service), stop.cancelled()).await?)
}

/// `vbs vmm-delegate`: serves this node's hypervisor until `stop`.
pub async fn serve_vmm(config: DelegateConfig<Vmm>, stop: CancellationToken) -> Result<(), OpenError> {
    let delegate = open_vmm(&config.node, &config.delegate, &SimCloud::new()).await?;
    let listener = server::listen(config.server.listen)?;
    info!(node = config.node, address = %listener.local_addr()?, "serving a hypervisor");
    let service = VmmService::new(&config.node, &config.key, delegate)?.under(Rules { iqn_prefix: config.iqn_prefix });
    Ok(server::serve(&config.server, listener, Arc::new(service), stop.cancelled()).await?)
}
