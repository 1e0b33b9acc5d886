//! A whole vbs on simulated nodes: a gateway on a port of its own, a database of its own, one account.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vbs::config::Config;
use vbs::db::{self, Pool};
use vbs::delegate::sim::SimCloud;
use vbs::gateway::Gateway;
use vbs::seal::Sealer;
use vbs::workers::Context;
use vbs::{credentials, delegates, server};

use super::client::{Answer, Client};
use super::postgres;

/// How long anything may take here.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The account that owns the machines.
pub const ACCOUNT: &str = "123456789012";

/// A running vbs.
pub struct Cloud {
    pub client: Client,
    pub sim: SimCloud,
    pub pool: Pool,
    pub context: Arc<Context>,
    sealer: Sealer,
    stop: CancellationToken,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl Cloud {
    /// Starts one with two machines in us-east-1a and one in us-east-1b.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same, with more lines in its configuration file.
    pub async fn start_with(more: &str) -> Self {
        Self::join(&postgres::database().await, &SimCloud::new(), more).await
    }

    /// Starts a gateway on a database and nodes that others may use too.
    pub async fn join(url: &str, sim: &SimCloud, more: &str) -> Self {
        Self::join_nodes(url, sim, more, &simulated()).await
    }

    /// The same on the nodes of a configuration file's end.
    pub async fn join_nodes(url: &str, sim: &SimCloud, more: &str, nodes: &str) -> Self {
        let config = configuration(url, more, nodes);
        let sealer = Sealer::of(&config).unwrap();
        let stop = CancellationToken::new();
        let nodes = delegates::open(&config, sim, &stop).await.unwrap();
        let listener = server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let pool = Pool::new(url, 4).unwrap();
        let mut conn = pool.get().await.unwrap();
        if db::accounts::find(&mut conn, ACCOUNT).await.unwrap().is_none() {
            db::accounts::create(&mut conn, ACCOUNT, "test").await.unwrap();
        }
        let key = credentials::create(&mut conn, &sealer, ACCOUNT).await.unwrap();
        drop(conn);
        let gateway = Gateway::prepare(config, nodes).await.unwrap();
        let context = gateway.context().clone();
        vbs::workers::sweeper::sweep(&context).await.unwrap();
        let running = tokio::spawn({
            let stop = stop.clone();
            async move { gateway.run(listener, stop).await.unwrap() }
        });
        let client = Client { address, access_key_id: key.id, secret: key.secret.to_string() };
        Self { client, sim: sim.clone(), pool, context, sealer, stop, running: Some(running) }
    }

    /// Another account's access to the same gateway.
    pub async fn another_account(&self, id: &str) -> Client {
        let mut conn = self.pool.get().await.unwrap();
        db::accounts::create(&mut conn, id, id).await.unwrap();
        let key = credentials::create(&mut conn, &self.sealer, id).await.unwrap();
        let (access_key_id, secret) = (key.id, key.secret.to_string());
        Client { access_key_id, secret, ..self.client.clone() }
    }

    /// Makes a volume of 1 GiB and waits until it is there.
    pub async fn volume(&self) -> String {
        let answer = self.client.ok("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")]).await;
        let id = answer.text("volumeId");
        self.volume_becomes(&id, "available").await;
        id
    }

    /// The ids of the instances, those in us-east-1a first.
    pub async fn instances(&self) -> Vec<String> {
        let mut found = db::instances::list(&mut self.pool.get().await.unwrap()).await.unwrap();
        found.sort_by_key(|instance| (instance.zone.clone(), instance.machine.clone()));
        found.into_iter().map(|instance| instance.id.to_string()).collect()
    }

    /// Attaches, and waits until it is done.
    pub async fn attach(&self, volume: &str, instance: &str, device: &str) {
        let parameters = [("VolumeId", volume), ("InstanceId", instance), ("Device", device)];
        self.client.ok("AttachVolume", &parameters).await;
        self.until("attached", async || self.attachment_state(volume).await.as_deref() == Some("attached")).await;
    }

    /// The state of the volume's attachment, if it has one.
    pub async fn attachment_state(&self, volume: &str) -> Option<String> {
        let answer = self.client.ok("DescribeVolumes", &[("VolumeId.1", volume)]).await;
        let (_, set) = answer.body.split_once("<attachmentSet>")?;
        Answer { status: 200, body: set.to_owned() }.find("status")
    }

    /// Waits until a describe shows the volume in this state.
    pub async fn volume_becomes(&self, id: &str, state: &str) {
        self.until(&format!("{id} {state}"), async || self.volume_state(id).await == state).await;
    }

    /// The state of a volume as a describe shows it; `gone` when there is none.
    pub async fn volume_state(&self, id: &str) -> String {
        let answer = self.client.call("DescribeVolumes", &[("VolumeId.1", id)]).await;
        if answer.find("Code").as_deref() == Some("InvalidVolume.NotFound") {
            "gone".into()
        } else {
            answer.text("status")
        }
    }

    /// Waits until a describe shows the snapshot in this state.
    pub async fn snapshot_becomes(&self, id: &str, state: &str) {
        self.until(&format!("{id} {state}"), async || {
            let answer = self.client.call("DescribeSnapshots", &[("SnapshotId.1", id)]).await;
            match answer.find("Code").as_deref() {
                Some("InvalidSnapshot.NotFound") => state == "gone",
                _ => answer.text("status") == state,
            }
        })
        .await;
    }

    /// Lets the sweeper look at everything, and waits until what it has set off is done.
    pub async fn sweep(&self) {
        vbs::workers::sweeper::sweep(&self.context).await.unwrap();
        self.settle().await;
    }

    /// Waits until a condition holds.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let waiting = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            let live = db::workflows::list(&mut self.pool.get().await.unwrap(), true, 20).await.unwrap();
            panic!("still not {what}; the workflows are {live:#?}");
        }
    }

    /// Waits until no workflow is live: every test must be able to end so.
    pub async fn settle(&self) {
        self.until("settled", async || {
            db::workflows::count_live(&mut self.pool.get().await.unwrap()).await.unwrap() == 0
        })
        .await;
    }

    /// Stops the gateway as SIGTERM does.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap();
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// Four nodes in memory.
fn simulated() -> String {
    format!(
        r#"
        [[volume_node]]
        name = "storage-a"
        zone = "us-east-1a"
        delegate = {{ sim = {{}} }}
        [[volume_node]]
        name = "storage-b"
        zone = "us-east-1b"
        delegate = {{ sim = {{}} }}
        [[vmm_node]]
        name = "vmm-a"
        zone = "us-east-1a"
        default_owner = "{ACCOUNT}"
        delegate = {{ sim = {{ machines = ["vm-1", "vm-2"] }} }}
        [[vmm_node]]
        name = "vmm-b"
        zone = "us-east-1b"
        default_owner = "{ACCOUNT}"
        delegate = {{ sim = {{ machines = ["vm-3"] }} }}
        "#
    )
}

/// What stands in a gateway's file: the database, whatever else, the nodes.
pub fn file(url: &str, more: &str, nodes: &str) -> String {
    let master_key = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/master.key");
    format!(
        r#"
        region = "us-east-1"
        zones = ["us-east-1a", "us-east-1b"]
        master_key = {{ file = "{master_key}" }}
        database = {{ url = "{url}", pool = 8 }}
        {more}
        {nodes}
        "#
    )
}

fn configuration(url: &str, more: &str, nodes: &str) -> Config {
    let path = std::env::temp_dir().join(format!("vbs-test-{}.toml", uuid::Uuid::new_v4()));
    std::fs::write(&path, file(url, more, nodes)).unwrap();
    let config = Config::load(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    config
}
