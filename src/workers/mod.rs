//! Background workers: they claim workflows and drive the delegates until the nodes match the rows.
//!
//! A handler of the API writes what shall be and enqueues a workflow in the same transaction; a worker of any gateway does
//! the rest. [`engine`] runs the steps, a file a workflow says what they are, [`sweeper`] notices what changed behind our
//! back. NOTIFY is a hint that saves waiting; the poll is the truth.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config;
use crate::db::gather::Gather;
use crate::db::volumes::{Find, Made};
use crate::db::{self, Pool};
use crate::seal::Sealer;

mod at_rest;
pub mod attach_volume;
pub mod audit;
pub mod copy_snapshot;
pub mod copy_volume;
pub mod create_snapshot;
pub mod create_snapshots;
pub mod create_volume;
pub mod delete_snapshot;
pub mod delete_volume;
pub mod detach_volume;
mod differences;
pub mod engine;
mod lanes;
mod look;
pub mod modify_volume;
pub mod nodes;
pub mod operator;
pub mod placement;
pub mod repair_volume;
pub mod sweeper;

use lanes::Lanes;
pub use nodes::Nodes;
pub use placement::Placement;

/// How long the pause between two notifications to other gateways is at least: NOTIFY takes a lock that all commits which
/// notify share, so it stays out of the API's transactions and is not sent for each of them.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(50);

/// The pause between two claims at least, so that under load one claim takes many workflows. Nothing waits for it when little
/// is to be done.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);
/// The same while a lane is full: what is claimed together costs a fraction of what it costs alone.
const FULL_CLAIM_PAUSE: Duration = Duration::from_millis(50);

/// How long steps in progress may go on after a stop was asked for.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Wakes the workers of this process at once, and those of other gateways soon after.
#[derive(Clone, Default)]
pub struct Wake {
    here: Arc<Notify>,
    elsewhere: Arc<Notify>,
}

impl Wake {
    /// There is work: call after the commit of a transaction that enqueued some.
    pub fn wake(&self) {
        self.here.notify_one();
        self.elsewhere.notify_one();
    }
}

/// What the workers need.
pub struct Context {
    /// The database.
    pub pool: Pool,
    /// Looks for volumes in it, for many workflows at once.
    pub find_volume: Gather<Find>,
    /// Ends the workflows that have made volumes, many at once.
    pub made_volume: Gather<Made>,
    /// Where to open a connection that only listens.
    pub database_url: String,
    /// The nodes' delegates.
    pub nodes: Nodes,
    /// Where new things may go.
    pub placement: Placement,
    /// Opens the CHAP secrets.
    pub sealer: Sealer,
    /// Concurrency and times.
    pub settings: config::Workers,
    /// Names this process in leases.
    pub owner: String,
    /// How the API wakes the workers.
    pub wake: Wake,
}

/// Runs the workers and the sweeper until `stop`, then gives the leases back.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut helpers = JoinSet::new();
    helpers.spawn(listen(context.clone()));
    helpers.spawn(announce(context.clone()));
    helpers.spawn(context.placement.clone().watch());
    if context.settings.concurrency > 0 {
        helpers.spawn(sweeper::run(context.clone()));
    }
    work(&context, &stop).await;
    helpers.shutdown().await;
    if let Err(error) = give_back(&context).await {
        warn!(%error, "leases could not be given back; they will run out");
    }
}

/// Claims and runs workflows.
async fn work(context: &Arc<Context>, stop: &CancellationToken) {
    let mut lanes = Lanes::new(context.settings.concurrency);
    while !stop.is_cancelled() {
        let claimed_at = Instant::now();
        let mut pause = CLAIM_PAUSE;
        let mut wait = Duration::from_secs(context.settings.poll_s.max(1));
        if context.settings.concurrency > 0 {
            lanes.tidy();
            match claim(context, &mut lanes).await {
                Ok(Claimed::AllThatIsDue { next }) => wait = wait.min(next.unwrap_or(wait)),
                Ok(Claimed::AllThatFits) => (pause, wait) = (FULL_CLAIM_PAUSE, FULL_CLAIM_PAUSE),
                Err(error) => warn!(%error, "workflows could not be claimed"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = context.wake.here.notified() => {}
            Some(()) = lanes.ended() => {}
            () = tokio::time::sleep(wait) => {}
        }
        tokio::time::sleep_until(claimed_at + pause).await;
    }
    let finished = async { while lanes.ended().await.is_some() {} };
    if tokio::time::timeout(STOP_GRACE, finished).await.is_err() {
        info!("steps in progress are left to whoever claims their workflows next");
    }
}

/// What there was to claim.
enum Claimed {
    /// Nothing is left that is due and not in a lane that was full before; the next one is due in so long.
    AllThatIsDue { next: Option<Duration> },
    /// A lane is full now, and there may be more for it.
    AllThatFits,
}

/// Claims workflows and begins them.
async fn claim(context: &Arc<Context>, lanes: &mut Lanes) -> db::Result<Claimed> {
    let mut conn = context.pool.get().await?;
    let settings = &context.settings;
    let lease_s = i64::try_from(settings.lease_s).unwrap_or(i64::MAX);
    let claimed = db::workflows::claim(&mut conn, &context.owner, lease_s, settings.concurrency, &lanes.room()).await?;
    let mut full = false;
    for row in claimed {
        let context = context.clone();
        full |= lanes.spawn(row.lane.clone(), async move { engine::drive(&context, row).await });
    }
    if full {
        return Ok(Claimed::AllThatFits);
    }
    let next_ms = db::workflows::next_due_ms(&mut conn).await?;
    Ok(Claimed::AllThatIsDue { next: next_ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))) })
}

async fn give_back(context: &Context) -> db::Result<()> {
    let mut conn = context.pool.get().await?;
    db::workflows::release_all(&mut conn, &context.owner).await?;
    db::workflows::notify(&mut conn).await
}

/// Turns notifications of other gateways, and of the operator, into wake-ups here.
async fn listen(context: Arc<Context>) {
    loop {
        if let Err(error) = listen_once(&context).await {
            warn!(%error, "the connection that listens is lost; the poll goes on");
        }
        tokio::time::sleep(Duration::from_secs(context.settings.poll_s.max(1))).await;
    }
}

async fn listen_once(context: &Context) -> db::Result<()> {
    use futures_util::StreamExt;
    let mut conn = db::connect(&context.database_url).await?;
    db::workflows::listen(&mut conn).await?;
    db::nodes::listen(&mut conn).await?;
    context.placement.changed();
    context.wake.here.notify_one();
    let mut notifications = std::pin::pin!(conn.notifications_stream());
    while let Some(notification) = notifications.next().await {
        match notification?.channel.as_str() {
            db::nodes::CHANNEL => context.placement.changed(),
            _ => context.wake.here.notify_one(),
        }
    }
    Ok(())
}

/// Tells other gateways of work that this one's API has enqueued.
async fn announce(context: Arc<Context>) {
    loop {
        context.wake.elsewhere.notified().await;
        let told = async { db::workflows::notify(&mut *context.pool.get().await?).await };
        if let Err(error) = told.await {
            warn!(%error, "other gateways could not be told of work; their poll will find it");
        }
        tokio::time::sleep(ANNOUNCE_PAUSE).await;
    }
}
