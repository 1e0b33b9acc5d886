//! A node that takes every question and answers none holds up what waits for it, and nothing else.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use vbs::db;
use vbs::db::instances::Instance;
use vbs::ids::InstanceId;
use vbs::state::InstanceState;

use crate::support::cloud::{ACCOUNT, Cloud};

/// Far fewer than there is to do on the silent nodes.
const PLACES: usize = 3;

/// A node that is reached, and never says a word.
struct Silent {
    accepts: AbortHandle,
    url: String,
}

impl Silent {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let accepts = tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                held.push(listener.accept().await.unwrap());
            }
        });
        Self { accepts: accepts.abort_handle(), url }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

/// A cloud with a silent storage node, the only one of us-east-1b that takes anything, and a silent hypervisor node in us-east-1a.
async fn with_silent_nodes(silent: &Silent, dir: &Path) -> Cloud {
    let key = dir.join("node.key");
    std::fs::write(&key, "0".repeat(64)).unwrap();
    let (url, key) = (&silent.url, key.display());
    let more = format!(
        r#"
        workers = {{ concurrency = {PLACES}, sweep_s = 1, poll_s = 1 }}
        [[volume_node]]
        name = "silent-storage"
        zone = "us-east-1b"
        delegate = {{ remote = {{ url = "{url}", key = {{ file = "{key}" }} }} }}
        [[vmm_node]]
        name = "silent-vmm"
        zone = "us-east-1a"
        delegate = {{ remote = {{ url = "{url}", key = {{ file = "{key}" }} }} }}
        "#
    );
    let cloud = Cloud::start_with(&more).await;
    let mut conn = cloud.pool.get().await.unwrap();
    db::nodes::set_drained(&mut conn, "storage-b", "storage", "us-east-1b", true).await.unwrap();
    cloud.until("known", async || cloud.context.placement.is_drained("storage-b")).await;
    let machine = Instance {
        id: InstanceId::generate(),
        node: "silent-vmm".into(),
        zone: "us-east-1a".into(),
        machine: "far".into(),
        machine_uuid: uuid::Uuid::new_v4().to_string(),
        account_id: Some(ACCOUNT.into()),
        state: InstanceState::Running,
        initiator_iqn: "iqn.2026-01.sim:far".into(),
        vcpus: 1,
        memory_mib: 1024,
        launched_at: chrono::Utc::now(),
    };
    db::instances::create(&mut conn, &machine).await.unwrap();
    cloud
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_nodes_hold_up_neither_the_work_of_others_nor_the_look_at_them() {
    let (silent, dir) = (Silent::start().await, tempfile::tempdir().unwrap());
    let cloud = with_silent_nodes(&silent, dir.path()).await;
    let far = {
        let all = db::instances::list(&mut cloud.pool.get().await.unwrap()).await.unwrap();
        all.iter().find(|instance| instance.machine == "far").unwrap().id.to_string()
    };
    // More than there are places, to be made on the one and attached to a machine of the other.
    for n in 0..=PLACES {
        cloud.client.ok("CreateVolume", &[("AvailabilityZone", "us-east-1b"), ("Size", "1")]).await;
        let device = format!("/dev/sd{}", char::from(b'f' + u8::try_from(n).unwrap()));
        let volume = cloud.volume().await;
        cloud.client.ok("AttachVolume", &[("VolumeId", &volume), ("InstanceId", &far), ("Device", &device)]).await;
    }
    let stuck = async || {
        let live = db::workflows::list(&mut cloud.pool.get().await.unwrap(), false, 99).await.unwrap();
        let of = |kind| live.iter().filter(|row| row.kind == kind && row.lease_owner.is_some()).count();
        (of("create_volume"), of("attach_volume"))
    };
    cloud.until("all places taken", async || stuck().await == (PLACES, PLACES)).await;

    let begun = Instant::now();
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[1], "/dev/sdf").await;
    cloud.sim.forget_exports("storage-a");
    let exported = async || {
        let storage = cloud.context.nodes.storage("storage-a").unwrap();
        storage.observe().await.unwrap().exports.iter().any(|export| export.volume.as_str() == volume && export.whole)
    };
    cloud.until("repaired", exported).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}: a silent node was waited for", begun.elapsed());
    assert_eq!(stuck().await, (PLACES, PLACES));
}
