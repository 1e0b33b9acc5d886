//! The step loop: runs a claimed workflow forward or backward, as far as it goes.
//!
//! Rules that everything here follows:
//! - Steps are level-triggered, so a takeover starts again at the first one; the stored step says how far undo must reach.
//! - A step is recorded before it begins. The end of a workflow and its effect on the rows commit together.
//! - Every write is fenced by the lease generation. A write that touches nothing means that another worker has taken over:
//!   this one is a ghost, and stops at once.
//! - No connection and no transaction is held while a step runs.
//! - Undo never skips and never gives up: it is tried again for ever, with its reason on show, unless an operator ends it
//!   ([`super::operator`]).

use std::future::Future;
use std::time::Duration;

use diesel_async::AsyncConnection;
use tracing::{Instrument, info, info_span, warn};

use super::{
    Context, attach_volume, audit, copy_snapshot, copy_volume, create_snapshot, create_snapshots, create_volume,
    delete_snapshot, delete_volume, detach_volume, modify_volume, repair_volume,
};
use crate::db::workflows::{self, Workflow as Row};
use crate::db::{self, Conn};
use crate::delegate::{DelegateError, ErrorKind, Generation};

/// The last resort against a step that hangs: every command and network call in it has a shorter time-out of its own. A
/// copy of a big volume takes hours.
const STEP_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// The longest pause between two tries.
const MAX_BACKOFF_MS: i32 = 15_000;
/// The first pause between two tries; each further one is twice as long.
const FIRST_BACKOFF_MS: i32 = 100;
/// The longest pause between two looks at something that takes its time, such as a guest that holds on to a disk.
const MAX_WAIT_MS: i32 = 2_000;

/// The longest reason that is stored, in characters.
const LONGEST_REASON: usize = 2_000;

/// What a workflow is: one file a kind implements it.
pub(super) trait Workflow: Send + Sync {
    /// The steps, in order.
    type Step: Copy + std::fmt::Debug + Send + Sync + 'static;
    /// See [`Self::Step`].
    const STEPS: &'static [Self::Step];
    /// What happens when a step fails for good, or for too long.
    const ON_FAILURE: OnFailure;

    /// Does a step, or finds it done.
    fn run(&self, run: &Run<'_>, step: Self::Step) -> impl Future<Output = Result<(), StepError>> + Send;
    /// Undoes a step, or finds it undone.
    fn undo(&self, run: &Run<'_>, step: Self::Step) -> impl Future<Output = Result<(), StepError>> + Send;
    /// Ends the workflow after its last step; `false`, and nothing done, when the lease has passed on. What the end means for
    /// the rows is written by [`Self::record`], and commits together with it. A kind that comes in crowds does both itself.
    fn succeed(&self, run: &Run<'_>, workflow: i64) -> impl Future<Output = db::Result<bool>> + Send {
        async move {
            let mut conn = run.context.pool.get().await?;
            conn.transaction(async |conn| {
                let held = workflows::finish(conn, workflow, run.generation.0, "succeeded", "").await?;
                if held {
                    self.record(conn).await?;
                }
                Ok(held)
            })
            .await
        }
    }
    /// Writes the rows after the last step.
    fn record(&self, _: &mut Conn) -> impl Future<Output = db::Result<()>> + Send {
        async { Ok(()) }
    }
    /// Writes the rows after the last undo. Commits together with the workflow's end.
    fn record_undone(&self, conn: &mut Conn, reason: &str) -> impl Future<Output = db::Result<()>> + Send;
    /// Writes the rows when an operator ends the workflow though not all is done that it had left to do: an undo, or what never
    /// turns back. Nothing may be lost by that, nor be left where nobody finds it; where it would be, says why not
    /// ([`Given::Refused`]), and nothing is written.
    fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> impl Future<Output = db::Result<Given>> + Send;
}

/// What happens when a step fails for good, or for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// The steps are undone, and the caller gets their resource back, or an error on it.
    TurnBack,
    /// It is tried again for ever: what a caller has deleted or detached cannot come back.
    KeepTrying,
}

/// How an operator gives a workflow up.
pub(super) struct GivenUp<'a> {
    /// Why.
    pub(super) reason: &'a str,
    /// The step it stands at; see [`Row::step`].
    pub(super) step: i32,
    /// Whether the operator says that what cannot be reached is off, and reaches no storage node any more.
    pub(super) fenced: bool,
}

/// Whether a workflow can be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// Yes: the rows are written.
    Up,
    /// No, and why not.
    Refused(&'static str),
}

/// Something that is done with a workflow of whichever kind.
pub(super) trait OfKind {
    /// What comes of it.
    type Done;
    /// Does it with a workflow of this kind.
    fn of<W: Workflow + serde::de::DeserializeOwned>(self) -> impl Future<Output = Self::Done> + Send;
}

/// The kinds of workflow that this program runs, by the names of their files. One that is not here is not run.
const KINDS: [&str; 12] = [
    "create_volume",
    "delete_volume",
    "modify_volume",
    "attach_volume",
    "detach_volume",
    "create_snapshot",
    "copy_snapshot",
    "copy_volume",
    "create_snapshots",
    "delete_snapshot",
    "repair_volume",
    "audit",
];

/// Every kind of workflow, by its name. `None`: this program knows no such kind.
pub(super) async fn of_kind<T: OfKind>(kind: &str, what: T) -> Option<T::Done> {
    let kind = KINDS.into_iter().find(|known| *known == kind)?;
    Some(match kind {
        "create_volume" => what.of::<create_volume::CreateVolume>().await,
        "delete_volume" => what.of::<delete_volume::DeleteVolume>().await,
        "modify_volume" => what.of::<modify_volume::ModifyVolume>().await,
        "attach_volume" => what.of::<attach_volume::AttachVolume>().await,
        "detach_volume" => what.of::<detach_volume::DetachVolume>().await,
        "create_snapshot" => what.of::<create_snapshot::CreateSnapshot>().await,
        "copy_snapshot" => what.of::<copy_snapshot::CopySnapshot>().await,
        "copy_volume" => what.of::<copy_volume::CopyVolume>().await,
        "create_snapshots" => what.of::<create_snapshots::CreateSnapshots>().await,
        "delete_snapshot" => what.of::<delete_snapshot::DeleteSnapshot>().await,
        "audit" => what.of::<audit::Audit>().await,
        "repair_volume" => what.of::<repair_volume::RepairVolume>().await,
        _ => return None,
    })
}

/// A kind of workflow, as tests enumerate them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its name, as its rows have it.
    pub kind: &'static str,
    /// The names of its steps, in order.
    pub steps: Vec<String>,
    /// Whether its steps are undone when one fails for good; else it is tried for ever.
    pub turns_back: bool,
}

/// Every kind of workflow that the workers run: what a test of all of them must go through.
pub async fn catalogue() -> Vec<Described> {
    let mut all = Vec::new();
    for kind in KINDS {
        all.extend(of_kind(kind, Describe(kind)).await);
    }
    all
}

struct Describe(&'static str);

impl OfKind for Describe {
    type Done = Described;

    async fn of<W: Workflow + serde::de::DeserializeOwned>(self) -> Described {
        Described {
            kind: self.0,
            steps: W::STEPS.iter().map(|step| format!("{step:?}")).collect(),
            turns_back: W::ON_FAILURE == OnFailure::TurnBack,
        }
    }
}

/// What a step sees.
pub(super) struct Run<'a> {
    pub(super) context: &'a Context,
    pub(super) generation: Generation,
    /// The furthest step begun before this lease, from 0: each step before it was done once.
    pub(super) reached: usize,
}

impl Run<'_> {
    /// A connection, for a step's own look at the rows.
    pub(super) async fn conn(&self) -> Result<impl std::ops::DerefMut<Target = Conn> + Send + use<'_>, StepError> {
        Ok(self.context.pool.get().await?)
    }
}

/// Why a step is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StepError {
    /// It may go better later; for how long it is tried is the engine's to say.
    Retry(String),
    /// Nothing is wrong, it just takes its time.
    Wait(String),
    /// It will not go better.
    Fail(String),
    /// A node has seen a newer generation.
    Stale(String),
    /// Another worker has taken over.
    Ghost,
}

impl From<DelegateError> for StepError {
    fn from(error: DelegateError) -> Self {
        match error.kind {
            ErrorKind::Retry => Self::Retry(error.message),
            ErrorKind::Busy => Self::Wait(error.message),
            ErrorKind::Fatal => Self::Fail(error.message),
            ErrorKind::NoRoom => Self::Fail(format!("InsufficientVolumeCapacity: {}", error.message)),
            ErrorKind::Stale => Self::Stale(error.message),
        }
    }
}

impl From<db::Error> for StepError {
    fn from(error: db::Error) -> Self {
        Self::Retry(error.to_string())
    }
}

/// Runs a claimed workflow as far as it goes. Never fails: what goes wrong is written to the workflow's row, and what cannot
/// be written is left to the lease to run out.
pub(super) async fn drive(context: &Context, row: Row) {
    let span =
        info_span!("workflow", id = row.id, kind = %row.kind, key = %row.lock_key, generation = row.lease_generation);
    async {
        let driven = match of_kind(&row.kind, Drive { context, row: &row }).await {
            Some(driven) => driven,
            None => give_up_for_now(context, &row, &format!("this program knows no workflow {}", row.kind)).await,
        };
        match driven {
            Ok(Held::Mine) => {}
            Ok(Held::Lost) => info!("another worker has taken over"),
            Err(error) => warn!(%error, "left to the lease to run out"),
        }
    }
    .instrument(span)
    .await;
}

/// Whether the lease is still this worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Mine,
    Lost,
}

impl From<bool> for Held {
    fn from(touched: bool) -> Self {
        if touched { Self::Mine } else { Self::Lost }
    }
}

struct Drive<'a> {
    context: &'a Context,
    row: &'a Row,
}

impl OfKind for Drive<'_> {
    type Done = db::Result<Held>;

    async fn of<W: Workflow + serde::de::DeserializeOwned>(self) -> db::Result<Held> {
        let Self { context, row } = self;
        match serde_json::from_value::<W>(row.params.clone()) {
            Ok(job) if row.direction == "forward" => forward(context, row, &job).await,
            Ok(job) => backward(context, row, &job).await,
            Err(error) => give_up_for_now(context, row, &format!("its parameters cannot be read: {error}")).await,
        }
    }
}

/// A workflow that this program cannot even begin is left for one that can: a newer gateway may be beside this one.
async fn give_up_for_now(context: &Context, row: &Row, reason: &str) -> db::Result<Held> {
    warn!(reason, "cannot run");
    let mut conn = context.pool.get().await?;
    let released = workflows::release(&mut conn, row.id, row.lease_generation, MAX_BACKOFF_MS, 0, Some(reason)).await?;
    Ok(released.is_some().into())
}

async fn forward<W: Workflow>(context: &Context, row: &Row, job: &W) -> db::Result<Held> {
    let mut furthest = usize::try_from(row.step).unwrap_or(0);
    let run = Run { context, generation: Generation(row.lease_generation), reached: furthest };
    for (index, step) in W::STEPS.iter().enumerate() {
        if index > furthest {
            furthest = index;
            if !begin_step(context, row, index, (&format!("{step:?}"), "begun")).await? {
                return Ok(Held::Lost);
            }
        }
        if let Err(error) = with_lease(context, row, job.run(&run, *step)).await {
            // A step that was begun just now has not failed before, however often the one before it did.
            let attempts = if furthest > run.reached { 0 } else { row.attempts };
            let row = Row { attempts, ..row.clone() };
            return failed(context, &row, &format!("{step:?}"), error, W::ON_FAILURE).await;
        }
    }
    let held = job.succeed(&run, row.id).await?;
    context.wake.here.notify_one();
    Ok(held.into())
}

async fn backward<W: Workflow>(context: &Context, row: &Row, job: &W) -> db::Result<Held> {
    let reached = usize::try_from(row.step).unwrap_or(0);
    let run = Run { context, generation: Generation(row.lease_generation), reached };
    // An undo that fails may be held up by what one before it only said to have undone, so all is undone once more then.
    let from = if row.attempts > 0 { W::STEPS.len() - 1 } else { reached };
    for (index, step) in W::STEPS.iter().enumerate().take(from + 1).rev() {
        if let Err(error) = with_lease(context, row, job.undo(&run, *step)).await {
            return failed(context, row, &format!("{step:?}"), error, OnFailure::KeepTrying).await;
        }
        if (1..=reached).contains(&index)
            && !begin_step(context, row, index - 1, (&format!("{step:?}"), "undone")).await?
        {
            return Ok(Held::Lost);
        }
    }
    finish_undone(context, row, job).await
}

async fn begin_step(context: &Context, row: &Row, index: usize, happened: (&str, &str)) -> db::Result<bool> {
    let mut conn = context.pool.get().await?;
    let step = i32::try_from(index).unwrap_or(i32::MAX);
    workflows::begin_step(&mut conn, row.id, row.lease_generation, step, happened).await
}

/// Runs a step, lengthens the lease meanwhile, and drops the step when the lease is lost or the time is up.
async fn with_lease<F>(context: &Context, row: &Row, step: F) -> Result<(), StepError>
where
    F: Future<Output = Result<(), StepError>> + Send,
{
    let lease_s = context.settings.lease_s.max(1);
    let lost = async {
        let mut beat = tokio::time::interval(Duration::from_millis(lease_s * 1000 / 3));
        beat.tick().await;
        loop {
            beat.tick().await;
            let renewed = async {
                let mut conn = context.pool.get().await?;
                let lease_s = i64::try_from(lease_s).unwrap_or(i64::MAX);
                workflows::renew(&mut conn, row.id, row.lease_generation, lease_s).await
            };
            match renewed.await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(%error, "the lease could not be lengthened"),
            }
        }
    };
    tokio::select! {
        done = tokio::time::timeout(STEP_TIMEOUT, step) => {
            done.unwrap_or_else(|_| Err(StepError::Retry(format!("no end after {} s", STEP_TIMEOUT.as_secs()))))
        }
        () = lost => Err(StepError::Ghost),
    }
}

/// Writes down that a step is not done, and what follows from it.
async fn failed(context: &Context, row: &Row, step: &str, error: StepError, on_failure: OnFailure) -> db::Result<Held> {
    let deadline_s = i64::try_from(context.settings.step_deadline_s).unwrap_or(i64::MAX);
    let mut conn = context.pool.get().await?;
    let (reason, turn_now) = match error {
        StepError::Ghost => return Ok(Held::Lost),
        StepError::Stale(reason) => {
            let lease_s = i64::try_from(context.settings.lease_s).unwrap_or(i64::MAX);
            if !workflows::renew(&mut conn, row.id, row.lease_generation, lease_s).await? {
                return Ok(Held::Lost);
            }
            if workflows::is_overtaken(&mut conn, &row.volume_id, row.lease_generation).await? {
                return wait(&mut conn, row, step, "another workflow of the volume has come in between").await;
            }
            (
                format!(
                    "{}; yet the lease is ours. Was the database restored? See docs/operations.md",
                    legible(&reason)
                ),
                false,
            )
        }
        StepError::Wait(reason) => return wait(&mut conn, row, step, &legible(&reason)).await,
        StepError::Retry(reason) => (legible(&reason), false),
        StepError::Fail(reason) => (legible(&reason), on_failure == OnFailure::TurnBack),
    };
    warn!(step, reason, "a step failed");
    note(&mut conn, row, step, "failed", &reason).await?;
    let delay = if turn_now { 0 } else { backoff_ms(row.attempts) };
    let (id, generation) = (row.id, row.lease_generation);
    // In one transaction: in between, another worker could claim what still runs forward.
    let held = conn
        .transaction(async |conn| {
            let failing = workflows::release(conn, id, generation, delay, deadline_s, Some(&reason)).await?;
            let Some(overdue) = failing else { return Ok::<Held, db::Error>(Held::Lost) };
            if turn_now || (overdue && on_failure == OnFailure::TurnBack) {
                workflows::turn(conn, id, generation, &reason).await?;
            }
            Ok(Held::Mine)
        })
        .await?;
    context.wake.here.notify_one();
    Ok(held)
}

/// Gives a workflow back for a while, with which nothing is wrong.
async fn wait(conn: &mut Conn, row: &Row, step: &str, reason: &str) -> db::Result<Held> {
    let delay = backoff_ms(row.attempts).min(MAX_WAIT_MS);
    note(conn, row, step, "waits", reason).await?;
    let released = workflows::release(conn, row.id, row.lease_generation, delay, 0, Some(reason)).await?;
    Ok(released.is_some().into())
}

/// Adds to the history; of a step that is tried for weeks, every hundredth time. The row has the last error anyway.
async fn note(conn: &mut Conn, row: &Row, step: &str, event: &str, reason: &str) -> db::Result<()> {
    if row.attempts < 20 || row.attempts % 100 == 0 {
        workflows::add_event(conn, row, step, event, reason).await?;
    }
    Ok(())
}

/// Ends a workflow that has turned back: the rows and the end commit together, or not at all.
async fn finish_undone<W: Workflow>(context: &Context, row: &Row, job: &W) -> db::Result<Held> {
    let reason = row.reason.as_deref().unwrap_or_default();
    let mut conn = context.pool.get().await?;
    let held = conn
        .transaction(async |conn| {
            if !workflows::finish(conn, row.id, row.lease_generation, "undone", reason).await? {
                return Ok::<Held, db::Error>(Held::Lost);
            }
            job.record_undone(conn, reason).await?;
            Ok(Held::Mine)
        })
        .await?;
    context.wake.here.notify_one();
    Ok(held)
}

/// A reason as it is stored and shown. A tool that broke may have said anything, at any length; Postgres takes no NUL.
pub(super) fn legible(reason: &str) -> String {
    reason.chars().take(LONGEST_REASON).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The pause before the next try, with a little chance in it so that what failed together does not come back together.
fn backoff_ms(attempts: i32) -> i32 {
    let doubled = FIRST_BACKOFF_MS.saturating_mul(1 << attempts.clamp(0, 8)).min(MAX_BACKOFF_MS);
    rand::Rng::random_range(&mut rand::rng(), doubled / 2..=doubled)
}
