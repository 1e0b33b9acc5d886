//! The history checker: clients by the hundred against three gateways on one Postgres, while gateways are killed and paused, their
//! connections cut and stalled, and nodes fail; then a look at all that was asked and answered.
//!
//! `VBS_HISTORY_OPERATIONS` says how many calls there are at least (10,000 when not said), `VBS_HISTORY_SEED` which workload and
//! which disturbances; the seed is random when not said, and always printed. It does not decide how the calls interleave.

#[path = "history/checker.rs"]
mod checker;
#[path = "history/client.rs"]
mod client;
#[path = "history/clients.rs"]
mod clients;
#[path = "history/finale.rs"]
mod finale;
#[path = "history/gateway.rs"]
mod gateway;
#[path = "history/nemesis.rs"]
mod nemesis;
#[path = "history/nodes.rs"]
mod nodes;
#[allow(dead_code, reason = "a server of one test's own is for others")]
#[path = "it/support/postgres.rs"]
mod postgres;
#[path = "history/properties/mod.rs"]
mod properties;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "history/record.rs"]
mod record;
#[path = "history/report.rs"]
mod report;
#[path = "history/watched.rs"]
mod watched;
#[path = "history/workload.rs"]
mod workload;
#[path = "history/world.rs"]
mod world;

use std::sync::Arc;

use record::What;
use tokio_util::sync::CancellationToken;
use world::World;

/// How many calls there are at least.
const OPERATIONS: u64 = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_random_clients_see_is_what_is_promised() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("VBS_HISTORY_SEED").unwrap_or_else(rand::random);
    let operations = number("VBS_HISTORY_OPERATIONS").unwrap_or(OPERATIONS);
    println!("VBS_HISTORY_SEED={seed} VBS_HISTORY_OPERATIONS={operations}");
    let world = Arc::new(World::start().await);
    let stop = CancellationToken::new();
    let disturbing = tokio::spawn(nemesis::disturb(world.clone(), seed, stop.clone()));
    let things = clients::work(&world, seed, operations).await;
    stop.cancel();
    disturbing.await.expect("the nemesis does not panic");
    finale::look(&world, &things).await;
    let events = world.record.events();
    let left = finale::delete_all(&world).await;
    let calls = events.iter().filter(|event| matches!(event.what, What::Called(..))).count();
    println!("{}", report::summary(&events));
    let wrong = [report::of(&events, seed), left, world.said_what_none_may()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("\n");
    if !wrong.is_empty() {
        let logs = Arc::into_inner(world).map(World::keep_logs);
        panic!("{wrong}\nthe gateways' logs: {logs:?}");
    }
    assert!(calls as u64 >= operations, "{calls} calls");
    // A run in which hardly anything came about would show nothing.
    let acknowledged = report::acknowledged(&events);
    for action in ["CreateVolume", "AttachVolume", "DetachVolume", "CreateSnapshot", "DeleteVolume"] {
        let count = acknowledged.get(action).copied().unwrap_or(0);
        assert!(count >= operations / 400, "{action} was acknowledged {count} times");
    }
    let looks = events.iter().filter(|event| matches!(event.what, What::Held { .. })).count();
    assert!(looks as u64 >= operations / 20, "{looks} looks at bytes");
    let disturbances = events.iter().filter(|event| matches!(event.what, What::Disturbed(_))).count();
    assert!(disturbances > 10, "{disturbances} disturbances");
}
