//! The storage contract on a delegate that somebody else has started: the lab, or any storage node that may be used for it.
//!
//! `VBS_CONTRACT_STORAGE_URL` says where it is, `VBS_CONTRACT_STORAGE_KEY` names the file with its key, and
//! `VBS_CONTRACT_STORAGE_NODE` its name, if that is not `storage`. The node must be empty, and is left so. Who asks for this
//! test and does not say these gets a failure: a test that passes because it found nothing to test is worse than none.

use std::path::PathBuf;

use vbs::config::{Remote, SecretSource};
use vbs::delegate::client::Client;
use vbs::delegate::{ErrorKind, Generation, SnapshotSpec, VolumeDelegate, VolumeSpec};
use vbs::ids::{SnapshotId, VolumeId};

use crate::delegate_contract::{storage_contract, whole_snapshot};

const GIB: u64 = 1 << 30;
const NOW: Generation = Generation(1);

fn node() -> Client {
    let said = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} says which storage node to test"));
    let key = PathBuf::from(said("VBS_CONTRACT_STORAGE_KEY"));
    let name = std::env::var("VBS_CONTRACT_STORAGE_NODE").unwrap_or_else(|_| "storage".into());
    let remote = Remote { url: said("VBS_CONTRACT_STORAGE_URL"), key: SecretSource::File(key), ca: None, pins: vec![] };
    Client::new(&name, &remote).expect("the URL and the key are good")
}

#[tokio::test]
#[ignore = "needs the lab"]
async fn a_storage_node_keeps_the_contract() {
    let node = node();
    let seen = node.observe().await.expect("the storage node answers");
    println!("the drivers are {:?}, {} of {} bytes are free", seen.drivers, seen.free_bytes, seen.capacity_bytes);
    storage_contract(&node).await;
}

#[tokio::test]
#[ignore = "needs the lab"]
async fn more_than_a_storage_node_has_is_refused_early_and_leaves_nothing() {
    let node = node();
    let before = node.observe().await.expect("the storage node answers");
    let too_big = |snapshot| VolumeSpec {
        volume: VolumeId::generate(),
        size_bytes: before.free_bytes.next_multiple_of(GIB) + GIB,
        snapshot,
    };
    assert_eq!(node.ensure_volume(NOW, &too_big(None)).await.unwrap_err().kind, ErrorKind::NoRoom);
    let small = VolumeSpec { volume: VolumeId::generate(), size_bytes: 8 << 20, snapshot: None };
    node.ensure_volume(NOW, &small).await.unwrap();
    let spec = SnapshotSpec { snapshot: SnapshotId::generate(), volume: small.volume.clone(), cut: false };
    whole_snapshot(&node, NOW, &spec).await;
    let from = too_big(Some(spec.snapshot.clone()));
    assert_eq!(node.ensure_volume(NOW, &from).await.unwrap_err().kind, ErrorKind::NoRoom);
    let grown = VolumeSpec { volume: small.volume.clone(), ..too_big(None) };
    assert_eq!(node.ensure_volume(NOW, &grown).await.unwrap_err().kind, ErrorKind::NoRoom);
    node.ensure_no_snapshot(NOW, &spec).await.unwrap();
    node.ensure_no_volume(NOW, &small.volume).await.unwrap();
    let after = node.observe().await.unwrap();
    assert_eq!((after.volumes, after.snapshots, after.free_bytes), (vec![], vec![], before.free_bytes));
}
