//! What makes it hard: gateways that are killed and stand still, connections that break, nodes that fail. The seed decides it all.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vbs::delegate::sim::{Fault, FaultKind};
use vbs::delegate::{ErrorKind, SnapshotMethod};

use crate::nodes::ZONES;
use crate::record::What;
use crate::world::{GATEWAYS, World};

/// How many disturbances last at once, so that some gateway serves at most times.
const AT_ONCE: usize = 2;

/// The verbs that faults strike.
const VERBS: [&str; 15] = [
    "ensure_volume",
    "ensure_no_volume",
    "ensure_restored",
    "ensure_snapshot",
    "ensure_snapshot_copy",
    "ensure_no_snapshot",
    "ensure_grown",
    "ensure_grown_disk",
    "ensure_exported",
    "ensure_not_exported",
    "ensure_connected",
    "ensure_disconnected",
    "ensure_attached",
    "ensure_detached",
    "ensure_paused",
];

/// A disturbance, with its times.
#[derive(Debug, Clone)]
pub enum Disturbance {
    /// SIGKILL, and a start after a while, at the same address or another.
    Kill { gateway: usize, away: Duration, elsewhere: bool },
    /// SIGSTOP and SIGCONT: some longer than a lease.
    Pause { gateway: usize, time: Duration },
    /// A gateway's connections to Postgres break, and new ones too for a while.
    Cut { gateway: usize, time: Duration },
    /// They stand still.
    Stall { gateway: usize, time: Duration },
    /// Every gateway's connections break at once.
    CutAll { time: Duration },
    /// Verbs of the nodes fail.
    Fail(Vec<Fault>),
    /// A guest holds on to its disks.
    HoldOn { machine: usize, time: Duration },
    /// A storage node's target daemon forgets everything.
    Forget { zone: usize },
    /// How storage nodes take snapshots from now on.
    Method(Option<SnapshotMethod>),
}

/// The disturbances, without end, each with how many calls are made before it. Counted in calls, they are as many on a slow
/// machine as on a fast one.
pub fn schedule(seed: u64) -> impl Iterator<Item = (u64, Disturbance)> {
    let mut rng = StdRng::seed_from_u64(seed);
    std::iter::repeat_with(move || (rng.random_range(20..250), disturbance(&mut rng)))
}

fn millis(rng: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.random_range(from..to))
}

fn disturbance(rng: &mut StdRng) -> Disturbance {
    let gateway = rng.random_range(0..GATEWAYS);
    match rng.random_range(0..20) {
        0..4 => Disturbance::Kill { gateway, away: millis(rng, 0, 3000), elsewhere: rng.random() },
        4..7 => Disturbance::Pause { gateway, time: millis(rng, 500, 9000) },
        7..10 => Disturbance::Cut { gateway, time: millis(rng, 0, 2000) },
        10..12 => Disturbance::Stall { gateway, time: millis(rng, 500, 4000) },
        12 => Disturbance::CutAll { time: millis(rng, 0, 1000) },
        13..17 => Disturbance::Fail((0..rng.random_range(1..12)).map(|_| fault(rng)).collect()),
        17 => Disturbance::HoldOn { machine: rng.random_range(0..usize::MAX), time: millis(rng, 1000, 5000) },
        18 => Disturbance::Forget { zone: rng.random_range(0..ZONES.len()) },
        _ => {
            Disturbance::Method(*[None, Some(SnapshotMethod::Copy), Some(SnapshotMethod::Atomic)].choose(rng).unwrap())
        }
    }
}

fn fault(rng: &mut StdRng) -> Fault {
    let kind = match rng.random_range(0..8) {
        0 | 1 => FaultKind::FailBefore(ErrorKind::Retry),
        2 => FaultKind::FailBefore(ErrorKind::Fatal),
        3 | 4 => FaultKind::EffectThenLost,
        5 => FaultKind::Hang(millis(rng, 100, 3000)),
        6 => FaultKind::EffectThenHang(millis(rng, 100, 3000)),
        _ => FaultKind::Garbage,
    };
    Fault { after: rng.random_range(0..5), ..Fault::once(VERBS.choose(rng).unwrap(), kind) }
}

/// Disturbs until it shall stop, and then waits until what it has begun is over.
pub async fn disturb(world: Arc<World>, seed: u64, stop: CancellationToken) {
    let mut running = JoinSet::new();
    for (calls, disturbance) in schedule(seed) {
        while running.len() >= AT_ONCE {
            running.join_next().await;
        }
        tokio::select! {
            () = world.after_calls(calls) => {}
            () = stop.cancelled() => break,
        }
        let world = world.clone();
        running.spawn(async move {
            let begun = world.record.now();
            apply(&world, &disturbance).await;
            world.record.add(begun, "nemesis", What::Disturbed(format!("{disturbance:?}")));
        });
    }
    while running.join_next().await.is_some() {}
}

async fn apply(world: &World, disturbance: &Disturbance) {
    let sim = &world.nodes.sim;
    match disturbance {
        Disturbance::Kill { gateway, away, elsewhere } => {
            world.kill(*gateway).await;
            tokio::time::sleep(*away).await;
            world.revive(*gateway, *elsewhere).await;
        }
        Disturbance::Pause { gateway, time } => world.pause(*gateway, *time).await,
        Disturbance::Cut { gateway, time } => {
            world.proxy(*gateway).cut();
            tokio::time::sleep(*time).await;
            world.proxy(*gateway).restore();
        }
        Disturbance::Stall { gateway, time } => {
            world.proxy(*gateway).stall();
            tokio::time::sleep(*time).await;
            world.proxy(*gateway).restore();
        }
        Disturbance::CutAll { time } => {
            (0..GATEWAYS).for_each(|gateway| world.proxy(gateway).cut());
            tokio::time::sleep(*time).await;
            (0..GATEWAYS).for_each(|gateway| world.proxy(gateway).restore());
        }
        Disturbance::Fail(faults) => faults.iter().for_each(|fault| sim.push_fault(fault.clone())),
        Disturbance::HoldOn { machine, time } => {
            let machine = &world.instances[machine % world.instances.len()].machine;
            sim.hold_on(machine, true);
            tokio::time::sleep(*time).await;
            sim.hold_on(machine, false);
        }
        Disturbance::Forget { zone } => {
            let letter = &ZONES[*zone][ZONES[*zone].len() - 1..];
            sim.forget_exports(&format!("storage-{letter}"));
        }
        Disturbance::Method(None) => sim.copy_in_background(30),
        Disturbance::Method(Some(method)) => sim.set_snapshot_method(*method),
    }
}
