//! Simulated nodes live in memory and the rows do not: at a restart the nodes get back what the rows say they have.
//!
//! Exports and disks are not restored here. The sweeper notices that they are gone, as after any node's reboot.

use std::collections::BTreeSet;

use super::DevError;
use crate::config::{Config, Link, Sim};
use crate::db::{self, Pool, snapshots, volumes};
use crate::delegate::sim::SimCloud;
use crate::delegate::{DelegateError, Generation, SnapshotSpec, VolumeDelegate, VolumeSpec};
use crate::ids::VolumeId;
use crate::state::{SnapshotState, VolumeState};

/// Older than any lease, so that no worker is held up by it.
const BEFORE_ALL: Generation = Generation(0);

/// Gives every simulated storage node its volumes and snapshots.
pub(super) async fn restore(cloud: &SimCloud, config: &Config, pool: &Pool) -> Result<(), DevError> {
    for node in &config.volume_nodes {
        if let Link::Sim(sim) = &node.delegate {
            restore_node(cloud, &node.name, sim, pool).await?;
        }
    }
    Ok(())
}

async fn restore_node(cloud: &SimCloud, name: &str, sim: &Sim, pool: &Pool) -> Result<(), DevError> {
    let unanswered = |e: db::Error| DevError::new(e.to_string());
    let refused = |e: DelegateError| DevError::new(format!("{name}: {e}"));
    let node = cloud.storage(name, sim);
    let mut conn = pool.get().await.map_err(unanswered)?;
    let mut there: BTreeSet<VolumeId> = BTreeSet::new();
    for (volume, state, size_gib) in volumes::of_node(&mut conn, name).await.map_err(unanswered)? {
        // One that was being made is made by its workflow.
        if matches!(state, VolumeState::Available | VolumeState::InUse | VolumeState::Deleting) {
            node.ensure_volume(BEFORE_ALL, &new_volume(&volume, size_gib)).await.map_err(refused)?;
            there.insert(volume);
        }
    }
    for snapshot in snapshots::of_node(&mut conn, name).await.map_err(unanswered)? {
        // One that is being taken may have been cut, and is never cut anew then.
        if !matches!(snapshot.state, SnapshotState::Completed | SnapshotState::Pending) {
            continue;
        }
        // A snapshot outlives its volume, but is made of one.
        let lent = !there.contains(&snapshot.volume_id);
        if lent {
            let volume = new_volume(&snapshot.volume_id, snapshot.volume_size_gib);
            node.ensure_volume(BEFORE_ALL, &volume).await.map_err(refused)?;
        }
        let spec = SnapshotSpec { snapshot: snapshot.id, volume: snapshot.volume_id, cut: false };
        node.ensure_snapshot(BEFORE_ALL, &spec).await.map_err(refused)?;
        if lent {
            node.ensure_no_volume(BEFORE_ALL, &spec.volume).await.map_err(refused)?;
        }
    }
    Ok(())
}

fn new_volume(volume: &VolumeId, size_gib: i32) -> VolumeSpec {
    let size_gib = u64::try_from(size_gib).unwrap_or(0);
    VolumeSpec { volume: volume.clone(), size_bytes: size_gib << 30, snapshot: None }
}
