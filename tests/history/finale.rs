//! The end of a run: everything is well again, everything is looked at once more, and everything is deleted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use rand::SeedableRng;
use rand::rngs::StdRng;
use vbs::db::{self, schema};

use crate::client::Client;
use crate::clients::{Things, describe_snapshot, describe_volume};
use crate::record::{Action, What};
use crate::world::World;

/// How long everything together may take until it is gone.
const PATIENCE: Duration = Duration::from_secs(180);

/// Heals, waits until nothing is being worked on, and looks at what there is.
pub async fn look(world: &Arc<World>, groups: &[Things]) {
    world.heal().await;
    world.settle().await;
    world.record.add(world.record.now(), "the database", What::Settled);
    let mut client = Client::new("the last client".into(), world, StdRng::seed_from_u64(0));
    for things in groups {
        for volume in &things.volumes {
            describe_volume(&mut client, &volume.id).await;
        }
        for snapshot in &things.snapshots {
            describe_snapshot(&mut client, snapshot).await;
        }
    }
    client.list_volumes().await;
    let mut conn = world.pool.get().await.unwrap();
    let failed = schema::volumes::table.filter(schema::volumes::state_reason.is_not_null());
    let failed: Vec<String> = failed.select(schema::volumes::id).load(&mut conn).await.unwrap();
    for volume in failed {
        world.record.add(world.record.now(), "the database", What::CouldNotBeMade { volume });
    }
    let turned_back = schema::workflows::kind.eq("modify_volume").and(schema::workflows::outcome.ne("succeeded"));
    let turned_back = schema::workflows::table.filter(turned_back).select(schema::workflows::volume_id);
    let turned_back: Vec<String> = turned_back.distinct().load(&mut conn).await.unwrap();
    for volume in turned_back {
        world.record.add(world.record.now(), "the database", What::CouldNotGrow { volume });
    }
}

/// Deletes all volumes and snapshots, those included that nobody knows of because an answer was lost. Says what cannot be
/// deleted, and what is left on the nodes.
pub async fn delete_all(world: &Arc<World>) -> Option<String> {
    let mut client = Client::new("the last client".into(), world, StdRng::seed_from_u64(0));
    let begun = Instant::now();
    loop {
        let volumes = live_volumes(world).await;
        let snapshots = live_snapshots(world).await;
        if volumes.is_empty() && snapshots.is_empty() {
            break;
        }
        if begun.elapsed() > PATIENCE {
            let live = db::workflows::list(&mut world.pool.get().await.unwrap(), false, 20).await.unwrap();
            return Some(format!("still there: {volumes:?} {snapshots:?}; the workflows are {live:#?}"));
        }
        for (volume, instance) in live_attachments(world).await {
            let action = Action::DetachVolume { volume: volume.clone(), instance: instance.clone() };
            client.call(&action, &[("VolumeId", &volume), ("InstanceId", &instance)]).await;
        }
        for volume in volumes {
            let action = Action::DeleteVolume { volume: volume.clone() };
            client.call(&action, &[("VolumeId", &volume)]).await;
        }
        for snapshot in snapshots {
            let action = Action::DeleteSnapshot { snapshot: snapshot.clone() };
            client.call(&action, &[("SnapshotId", &snapshot)]).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.settle().await;
    let mut left = world.nodes.left_over().await;
    // What a node did late for a gateway that was gone the sweeper takes back.
    while left.is_some() && begun.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(500)).await;
        left = world.nodes.left_over().await;
    }
    left.map(|left| format!("left on the nodes: {left}"))
}

async fn live_volumes(world: &World) -> Vec<String> {
    let live = schema::volumes::table.filter(schema::volumes::state.ne("deleted"));
    live.select(schema::volumes::id).load(&mut world.pool.get().await.unwrap()).await.unwrap()
}

async fn live_snapshots(world: &World) -> Vec<String> {
    schema::snapshots::table.select(schema::snapshots::id).load(&mut world.pool.get().await.unwrap()).await.unwrap()
}

async fn live_attachments(world: &World) -> Vec<(String, String)> {
    let live = schema::attachments::table.filter(schema::attachments::state.ne("detached"));
    let columns = (schema::attachments::volume_id, schema::attachments::instance_id);
    live.select(columns).load(&mut world.pool.get().await.unwrap()).await.unwrap()
}
