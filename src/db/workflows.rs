//! Workflows: the jobs that make the nodes match the rows, their leases and their history.
//!
//! Every write of a worker names the lease generation it holds and touches nothing when another has been given out since:
//! such a write answers `false`, and the worker is a ghost that must stop.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;
use serde_json::Value;

use super::schema::{workflow_events, workflows};
use super::statement::Statement;
use super::{Conn, Result};
use crate::ids::VolumeId;

/// A workflow's row.
#[derive(Debug, Clone, Queryable, Selectable, QueryableByName)]
#[diesel(table_name = workflows, check_for_backend(diesel::pg::Pg))]
pub struct Workflow {
    /// Names the row; rises in the order of enqueueing.
    pub id: i64,
    /// Which workflow: the name of its file in `workers/`.
    pub kind: String,
    /// The resource it changes.
    pub lock_key: String,
    /// The volume whose workflows run one after another.
    pub volume_id: String,
    /// What it is about, as its own file defines it.
    pub params: Value,
    /// `forward` or `backward`.
    pub direction: String,
    /// Forward: the highest step begun. Backward: the step to undo next.
    pub step: i32,
    /// Tries of this step that failed.
    pub attempts: i32,
    /// Since when they fail.
    pub failing_since: Option<DateTime<Utc>>,
    /// When it is due.
    pub not_before: DateTime<Utc>,
    /// Who works on it.
    pub lease_owner: Option<String>,
    /// Until when, without a sign of life.
    pub lease_until: Option<DateTime<Utc>>,
    /// The fencing token.
    pub lease_generation: i64,
    /// What went wrong last.
    pub error: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
    /// When it was enqueued.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Why it turned back, or was given up.
    pub reason: Option<String>,
    /// The nodes that it needs, as they were when it was enqueued: workflows of one lane share a gateway's places.
    pub lane: String,
}

/// Something that happened to a workflow.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = workflow_events, check_for_backend(diesel::pg::Pg))]
pub struct Event {
    /// When.
    pub at: DateTime<Utc>,
    /// Under which lease.
    pub generation: i64,
    /// Which way the workflow ran.
    pub direction: String,
    /// The step's name.
    pub step: String,
    /// A step `begun`, `failed`, `waits` or is `undone`; the workflow `turned`, `succeeded`, is `undone`, was `retried` or
    /// `given-up` by an operator.
    pub event: String,
    /// The error in full.
    pub detail: String,
}

#[diesel::declare_sql_function]
extern "SQL" {
    /// The nodes that a workflow with this lock key needs which is about this volume.
    fn lane_of(key: Text, volume: Text) -> Text;
}

/// That a workflow is live, for a query about all of them: the lane says nothing but which index to go by.
#[diesel::dsl::auto_type]
fn is_live() -> _ {
    workflows::finished_at.is_null().and(workflows::lane.ge(""))
}

/// Enqueues a workflow. Fails on the unique index when one is live for the same lock key.
pub async fn enqueue(conn: &mut Conn, kind: &str, lock_key: &str, volume: &VolumeId, params: &Value) -> Result<()> {
    diesel::insert_into(workflows::table)
        .values((
            workflows::kind.eq(kind),
            workflows::lock_key.eq(lock_key),
            workflows::volume_id.eq(volume),
            workflows::lane.eq(lane_of(lock_key, volume)),
            workflows::params.eq(params),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Enqueues a workflow that has nothing to do with any volume: it runs beside all others.
pub async fn enqueue_apart(conn: &mut Conn, kind: &str, lock_key: &str, params: &Value) -> Result<()> {
    diesel::insert_into(workflows::table)
        .values((
            workflows::kind.eq(kind),
            workflows::lock_key.eq(lock_key),
            // A volume of its own, as it were.
            workflows::volume_id.eq(lock_key),
            workflows::lane.eq(lane_of(lock_key, lock_key)),
            workflows::params.eq(params),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Gives the live workflow of a lock key a place among those of another volume.
pub async fn set_volume(conn: &mut Conn, lock_key: &str, volume: &VolumeId) -> Result<()> {
    diesel::update(workflows::table.filter(workflows::lock_key.eq(lock_key).and(workflows::finished_at.is_null())))
        .set((workflows::volume_id.eq(volume), workflows::lane.eq(lane_of(lock_key, volume))))
        .execute(conn)
        .await?;
    Ok(())
}

/// Enqueues a workflow unless one is live for the same lock key; tells whether it did.
pub async fn enqueue_if_idle(
    conn: &mut Conn,
    kind: &str,
    lock_key: &str,
    volume: &VolumeId,
    params: &Value,
) -> Result<bool> {
    let rows = diesel::insert_into(workflows::table)
        .values((
            workflows::kind.eq(kind),
            workflows::lock_key.eq(lock_key),
            workflows::volume_id.eq(volume),
            workflows::lane.eq(lane_of(lock_key, volume)),
            workflows::params.eq(params),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    Ok(rows == 1)
}

/// The lanes that have a live workflow: one look into the index for each, which must be told that it is about lanes.
const LANES: &str = "WITH RECURSIVE lanes (lane) AS (\
    (SELECT lane FROM workflows WHERE finished_at IS NULL AND lane >= '' ORDER BY lane LIMIT 1) \
    UNION ALL SELECT (SELECT w.lane FROM workflows w WHERE w.finished_at IS NULL AND w.lane > lanes.lane \
        ORDER BY w.lane LIMIT 1) FROM lanes WHERE lanes.lane IS NOT NULL)";

/// Claims workflows that are due and that no older one of the same volume holds up: of each lane up to `most`, or what `room`
/// says of it. Each gets a new generation.
///
/// Snapshots, and copies of a volume, run beside each other and beside a detach: a guest that holds on to its disk for hours must
/// not hold up the snapshots of it. A snapshot that is cut, and only being copied or undone, holds up nothing but the deletion of the volume.
/// The deletion of a snapshot has nothing to do with the volume any more. A modification that had to wait once, for its node or
/// for a snapshot that is being copied, is overtaken by attaches and detaches, and does not wait for a detach whose guest
/// holds on: whoever comes first, the volume's next user sees what it has become. An attach or a detach that had to wait holds up
/// neither those of the volume's other attachments nor a repair of them. Everything else on one volume runs in the order it
/// was asked for.
///
/// The older one is looked for in a subquery with a LIMIT, which Postgres asks once for each candidate, through the index of the
/// volumes' live workflows. A NOT EXISTS it would make a join of all live workflows, for every claim of a few; and `older.id` as it is
/// would let it go through the primary key, for all that are older.
pub async fn claim(
    conn: &mut Conn,
    owner: &str,
    lease_s: i64,
    most: usize,
    room: &[(&str, usize)],
) -> Result<Vec<Workflow>> {
    let statement: Statement<workflows::SqlType> = Statement::new(LANES)
        .sql(", room AS (SELECT lane, coalesce(room, ")
        .number(i64::try_from(most).unwrap_or(i64::MAX))
        .sql(") AS room FROM lanes LEFT JOIN unnest(")
        .texts(room.iter().map(|(lane, _)| *lane))
        .sql(", ")
        .texts(room.iter().map(|(_, room)| room.to_string()))
        .sql("::bigint[]) AS known (lane, room) USING (lane) WHERE lane IS NOT NULL) UPDATE workflows SET lease_owner = ")
        .text(owner)
        .sql(", lease_until = now() + make_interval(secs => ")
        .fraction(seconds(lease_s))
        .sql(
            "), lease_generation = nextval('lease_generations') \
             WHERE id = ANY (ARRAY(SELECT due.id FROM room, LATERAL (SELECT id FROM workflows w \
                WHERE w.lane = room.lane \
                AND finished_at IS NULL AND not_before <= now() AND (lease_until IS NULL OR lease_until < now()) \
                AND (SELECT true FROM workflows older \
                    WHERE older.volume_id = w.volume_id AND older.finished_at IS NULL AND older.id + 0 < w.id \
                    AND 'delete_snapshot' NOT IN (w.kind, older.kind) \
                    AND NOT (older.kind IN ('create_snapshot', 'copy_volume') \
                        AND (older.step > 0 OR older.direction = 'backward') AND w.kind <> 'delete_volume') \
                    AND NOT (w.kind IN ('create_snapshot', 'create_snapshots', 'copy_volume', 'detach_volume') \
                        AND older.kind IN ('create_snapshot', 'create_snapshots', 'copy_volume', 'detach_volume') \
                        AND (w.kind, older.kind) <> ('detach_volume', 'detach_volume')) \
                    AND NOT (older.attempts > 0 AND ((older.kind IN ('modify_volume', 'attach_volume', 'detach_volume') \
                        AND w.kind IN ('attach_volume', 'detach_volume')) \
                        OR (older.kind IN ('attach_volume', 'detach_volume') AND w.kind = 'repair_volume') \
                        OR (older.kind = 'detach_volume' AND w.kind = 'modify_volume'))) LIMIT 1) IS NULL \
                ORDER BY not_before LIMIT room.room FOR UPDATE SKIP LOCKED) due)) RETURNING *",
        );
    Ok(statement.load(conn).await?)
}

/// Milliseconds until the next workflow that nobody holds is due, if there is one.
pub async fn next_due_ms(conn: &mut Conn) -> Result<Option<i64>> {
    let statement: Statement<Nullable<BigInt>> = Statement::new(LANES).sql(
        " SELECT ceil(1000 * extract(epoch FROM min(due.not_before) - now()))::bigint FROM lanes, LATERAL ( \
            SELECT not_before FROM workflows w WHERE w.lane = lanes.lane AND finished_at IS NULL AND lease_until IS NULL \
            AND not_before > now() ORDER BY not_before LIMIT 1) due",
    );
    Ok(statement.get_result(conn).await?)
}

/// Lengthens a lease.
pub async fn renew(conn: &mut Conn, id: i64, generation: i64, lease_s: i64) -> Result<bool> {
    let rows = diesel::sql_query(
        "UPDATE workflows SET lease_until = now() + make_interval(secs => $3) \
         WHERE id = $1 AND lease_generation = $2 AND finished_at IS NULL",
    )
    .bind::<BigInt, _>(id)
    .bind::<BigInt, _>(generation)
    .bind::<Double, _>(seconds(lease_s))
    .execute(conn)
    .await?;
    Ok(rows == 1)
}

/// Records, before it begins, which step is next, and adds to the history what has happened to which step.
pub async fn begin_step(conn: &mut Conn, id: i64, generation: i64, step: i32, happened: (&str, &str)) -> Result<bool> {
    let (name, event) = happened;
    let statement: Statement<BigInt> = Statement::new("WITH begun AS (UPDATE workflows SET step = ")
        .number(step.into())
        .sql("::integer, attempts = 0, failing_since = NULL WHERE finished_at IS NULL AND id = ")
        .number(id)
        .sql(" AND lease_generation = ")
        .number(generation)
        .sql(
            " RETURNING *), noted AS (INSERT INTO workflow_events (workflow_id, generation, direction, step, event) \
                 SELECT id, lease_generation, direction, ",
        )
        .text(name)
        .sql(", ")
        .text(event)
        .sql(" FROM begun) SELECT count(*) FROM begun");
    Ok(statement.get_result::<i64>(conn).await? == 1)
}

/// Gives a workflow back, to be tried again after `delay_ms`. With a `deadline_s` above 0 this was a failure, and the answer
/// tells whether the step has been failing for longer than that; with 0 it is a wait, which is never overdue. `None`: the
/// lease has passed on.
pub async fn release(
    conn: &mut Conn,
    id: i64,
    generation: i64,
    delay_ms: i32,
    deadline_s: i64,
    error: Option<&str>,
) -> Result<Option<bool>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        overdue: bool,
    }
    let row: Option<Row> = diesel::sql_query(
        "UPDATE workflows SET lease_owner = NULL, lease_until = NULL, attempts = attempts + 1, \
         failing_since = CASE WHEN $4 > 0 THEN coalesce(failing_since, now()) END, \
         error = coalesce($5, error), not_before = now() + make_interval(secs => $3 / 1000.0) \
         WHERE id = $1 AND lease_generation = $2 AND finished_at IS NULL \
         RETURNING coalesce(failing_since < now() - make_interval(secs => $4), false) AS overdue",
    )
    .bind::<BigInt, _>(id)
    .bind::<BigInt, _>(generation)
    .bind::<Integer, _>(delay_ms)
    .bind::<Double, _>(seconds(deadline_s))
    .bind::<Nullable<Text>, _>(error)
    .get_result(conn)
    .await
    .optional()?;
    Ok(row.map(|row| row.overdue))
}

/// Seconds as `make_interval` takes them.
fn seconds(s: i64) -> f64 {
    f64::from(i32::try_from(s).unwrap_or(i32::MAX))
}

/// Gives back, at a graceful stop, whatever this owner holds.
pub async fn release_all(conn: &mut Conn, owner: &str) -> Result<usize> {
    Ok(diesel::update(workflows::table.filter(workflows::lease_owner.eq(owner)))
        .set((workflows::lease_owner.eq(None::<String>), workflows::lease_until.eq(None::<DateTime<Utc>>)))
        .execute(conn)
        .await?)
}

/// Turns a workflow back, for the reason given, and makes it due.
pub async fn turn(conn: &mut Conn, id: i64, generation: i64, reason: &str) -> Result<bool> {
    let rows = diesel::sql_query(
        "WITH turned AS (UPDATE workflows SET direction = 'backward', reason = $3, attempts = 0, failing_since = NULL, \
            not_before = now() WHERE id = $1 AND lease_generation = $2 AND finished_at IS NULL RETURNING *) \
         INSERT INTO workflow_events (workflow_id, generation, direction, step, event, detail) \
         SELECT id, lease_generation, direction, '', 'turned', reason FROM turned",
    )
    .bind::<BigInt, _>(id)
    .bind::<BigInt, _>(generation)
    .bind::<Text, _>(reason)
    .execute(conn)
    .await?;
    Ok(rows == 1)
}

/// The kind of the workflow that is live for a lock key, its row locked: whoever changes the resource and its workflow
/// locks the workflow first, as the engine does when it ends one.
pub async fn lock_live(conn: &mut Conn, lock_key: &str) -> Result<Option<String>> {
    Ok(workflows::table
        .filter(workflows::lock_key.eq(lock_key).and(workflows::finished_at.is_null()))
        .select(workflows::kind)
        .for_no_key_update()
        .first(conn)
        .await
        .optional()?)
}

/// Turns back the live workflow of a lock key, if it is of this kind and still runs forward, because its caller has changed
/// their mind. Whoever works on it becomes a ghost. Tells whether there was one.
pub async fn cancel(conn: &mut Conn, lock_key: &str, kind: &str, reason: &str) -> Result<bool> {
    let rows = diesel::sql_query(
        "WITH turned AS (UPDATE workflows SET direction = 'backward', reason = $3, attempts = 0, failing_since = NULL, \
            not_before = now(), lease_owner = NULL, lease_until = NULL, lease_generation = nextval('lease_generations') \
            WHERE lock_key = $1 AND kind = $2 AND finished_at IS NULL AND direction = 'forward' RETURNING *) \
         INSERT INTO workflow_events (workflow_id, generation, direction, step, event, detail) \
         SELECT id, lease_generation, direction, '', 'turned', reason FROM turned",
    )
    .bind::<Text, _>(lock_key)
    .bind::<Text, _>(kind)
    .bind::<Text, _>(reason)
    .execute(conn)
    .await?;
    Ok(rows == 1)
}

/// The workflow, its row locked until the transaction ends.
pub async fn hold(conn: &mut Conn, id: i64) -> Result<Option<Workflow>> {
    let row = workflows::table.find(id).select(Workflow::as_select()).for_no_key_update().first(conn).await;
    Ok(row.optional()?)
}

/// Takes a live workflow away from whoever works on it, and makes it due at once, as if it had never failed. Gives it as it is
/// then.
pub async fn retry(conn: &mut Conn, id: i64) -> Result<Option<Workflow>> {
    let statement: Statement<workflows::SqlType> = Statement::new(
        "UPDATE workflows SET attempts = 0, failing_since = NULL, not_before = now(), lease_owner = NULL, \
         lease_until = NULL, lease_generation = nextval('lease_generations') WHERE finished_at IS NULL AND id = ",
    )
    .number(id)
    .sql(" RETURNING *");
    Ok(statement.get_result(conn).await.optional()?)
}

/// Ends a live workflow as it stands, because an operator has given it up; whoever works on it becomes a ghost. What that
/// means for the resource is written in the same transaction.
pub async fn end_given_up(conn: &mut Conn, id: i64, reason: &str) -> Result<()> {
    diesel::sql_query(
        "UPDATE workflows SET finished_at = now(), outcome = 'given-up', reason = $2, lease_owner = NULL, \
         lease_until = NULL, lease_generation = nextval('lease_generations') WHERE id = $1 AND finished_at IS NULL",
    )
    .bind::<BigInt, _>(id)
    .bind::<Text, _>(reason)
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes the live workflow of a lock key due now, if it waits.
pub async fn poke(conn: &mut Conn, lock_key: &str) -> Result<()> {
    diesel::update(workflows::table.filter(workflows::lock_key.eq(lock_key).and(workflows::finished_at.is_null())))
        .set(workflows::not_before.eq(diesel::dsl::now))
        .execute(conn)
        .await?;
    Ok(())
}

/// Ends a workflow and adds that to its history; `false`, and nothing done, when the lease has passed on. Its row stays locked
/// until the transaction is over, in which what the end means for the resource is written.
pub async fn finish(conn: &mut Conn, id: i64, generation: i64, outcome: &str, reason: &str) -> Result<bool> {
    let statement: Statement<BigInt> = Statement::new(
        "WITH ended AS (UPDATE workflows SET finished_at = now(), lease_owner = NULL, lease_until = NULL, outcome = ",
    )
    .text(outcome)
    .sql(" WHERE finished_at IS NULL AND id = ")
    .number(id)
    .sql(" AND lease_generation = ")
    .number(generation)
    .sql(
        " RETURNING *), noted AS (INSERT INTO workflow_events \
                 (workflow_id, generation, direction, step, event, detail) \
                 SELECT id, lease_generation, direction, '', outcome, ",
    )
    .text(reason)
    .sql(" FROM ended) SELECT count(*) FROM ended");
    Ok(statement.get_result::<i64>(conn).await? == 1)
}

/// Adds to the history.
pub async fn add_event(conn: &mut Conn, workflow: &Workflow, step: &str, event: &str, detail: &str) -> Result<()> {
    diesel::insert_into(workflow_events::table)
        .values((
            workflow_events::workflow_id.eq(workflow.id),
            workflow_events::generation.eq(workflow.lease_generation),
            workflow_events::direction.eq(&workflow.direction),
            workflow_events::step.eq(step),
            workflow_events::event.eq(event),
            workflow_events::detail.eq(detail),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// The event of an audit that has found a difference.
pub const DIFFERENCE: &str = "difference";

/// Adds what an audit has found to its history.
pub async fn add_differences(conn: &mut Conn, id: i64, generation: i64, lines: &[String]) -> Result<()> {
    let row = |line| {
        (
            workflow_events::workflow_id.eq(id),
            workflow_events::generation.eq(generation),
            workflow_events::direction.eq("forward"),
            workflow_events::step.eq("Look"),
            workflow_events::event.eq(DIFFERENCE),
            workflow_events::detail.eq(line),
        )
    };
    // A statement takes 65,535 values at most.
    for some in lines.chunks(5_000) {
        let rows: Vec<_> = some.iter().map(row).collect();
        diesel::insert_into(workflow_events::table).values(rows).execute(conn).await?;
    }
    Ok(())
}

/// Workflows for the operator, newest first: the live ones, or with `all` the finished ones too.
pub async fn list(conn: &mut Conn, all: bool, limit: i64) -> Result<Vec<Workflow>> {
    let mut query =
        workflows::table.select(Workflow::as_select()).order(workflows::id.desc()).limit(limit).into_boxed();
    if !all {
        query = query.filter(is_live());
    }
    Ok(query.load(conn).await?)
}

/// One workflow with its history, oldest event first.
pub async fn show(conn: &mut Conn, id: i64) -> Result<Option<(Workflow, Vec<Event>)>> {
    let Some(workflow) = workflows::table.find(id).select(Workflow::as_select()).first(conn).await.optional()? else {
        return Ok(None);
    };
    let events = workflow_events::table
        .filter(workflow_events::workflow_id.eq(id))
        .order(workflow_events::id)
        .select(Event::as_select())
        .load(conn)
        .await?;
    Ok(Some((workflow, events)))
}

/// Of these volumes, those whose nodes a workflow may be changing, or has changed since. A live one may, but for the deletion of a
/// snapshot, a snapshot that is cut, which may be copied for hours, and an attach or detach that waits, which is of one attachment
/// of perhaps several.
pub async fn changing_among(conn: &mut Conn, volumes: &[&str], since: DateTime<Utc>) -> Result<HashSet<String>> {
    let cut = workflows::kind
        .eq_any(["create_snapshot", "copy_volume"])
        .and(workflows::step.gt(0).or(workflows::direction.eq("backward")));
    let waiting = workflows::kind.eq_any(["attach_volume", "detach_volume"]).and(workflows::attempts.gt(0));
    let changing = diesel::dsl::not(cut.or(waiting).or(workflows::kind.eq("delete_snapshot")));
    let live = workflows::volume_id.eq_any(volumes).and(workflows::finished_at.is_null());
    let live: Vec<String> = workflows::table.filter(live.and(changing)).select(workflows::volume_id).load(conn).await?;
    let ended = workflows::finished_at.ge(since).and(workflows::kind.ne("delete_snapshot"));
    let ended: Vec<String> = workflows::table
        .filter(ended.and(workflows::volume_id.eq_any(volumes)))
        .select(workflows::volume_id)
        .load(conn)
        .await?;
    Ok(live.into_iter().chain(ended).collect())
}

/// Whether a repair is under way.
pub async fn any_repair(conn: &mut Conn) -> Result<bool> {
    let live = workflows::kind.eq("repair_volume").and(is_live());
    Ok(diesel::select(diesel::dsl::exists(workflows::table.filter(live))).get_result(conn).await?)
}

/// The newest workflow of a lock key.
pub async fn find_by_lock_key(conn: &mut Conn, lock_key: &str) -> Result<Option<Workflow>> {
    let of_key = workflows::table.filter(workflows::lock_key.eq(lock_key)).order(workflows::id.desc());
    Ok(of_key.select(Workflow::as_select()).first(conn).await.optional()?)
}

/// Removes a workflow that nobody has ever taken up; tells whether it was one.
pub async fn withdraw(conn: &mut Conn, id: i64) -> Result<bool> {
    let untouched = workflows::lease_generation.eq(0).and(workflows::finished_at.is_null());
    Ok(diesel::delete(workflows::table.find(id).filter(untouched)).execute(conn).await? == 1)
}

/// Whether a workflow of one of these volumes is live that is older than the live one of this lock key, and for which a
/// snapshot waits.
pub async fn any_older_changing(conn: &mut Conn, lock_key: &str, volumes: &[VolumeId]) -> Result<bool> {
    let own = workflows::table.filter(workflows::lock_key.eq(lock_key).and(workflows::finished_at.is_null()));
    let Some(own) = own.select(workflows::id).first::<i64>(conn).await.optional()? else { return Ok(false) };
    let beside = ["create_snapshot", "create_snapshots", "copy_volume", "delete_snapshot", "detach_volume"];
    let older = workflows::volume_id
        .eq_any(volumes)
        .and(workflows::finished_at.is_null())
        .and(workflows::id.lt(own))
        .and(workflows::kind.ne_all(beside));
    Ok(diesel::select(diesel::dsl::exists(workflows::table.filter(older))).get_result(conn).await?)
}

/// Whether the live workflow of a lock key still runs forward and has not begun its second step.
pub async fn is_at_first_step(conn: &mut Conn, lock_key: &str) -> Result<bool> {
    let live = workflows::lock_key.eq(lock_key).and(workflows::finished_at.is_null());
    let first = workflows::step.eq(0).and(workflows::direction.eq("forward"));
    Ok(diesel::select(diesel::dsl::exists(workflows::table.filter(live.and(first)))).get_result(conn).await?)
}

/// Whether another workflow of the volume was claimed after this generation was given out. One that waited may be overtaken so,
/// and is then an older one to the nodes.
pub async fn is_overtaken(conn: &mut Conn, volume: &str, generation: i64) -> Result<bool> {
    let newer = workflows::volume_id.eq(volume).and(workflows::lease_generation.gt(generation));
    Ok(diesel::select(diesel::dsl::exists(workflows::table.filter(newer))).get_result(conn).await?)
}

/// How many workflows are live.
pub async fn count_live(conn: &mut Conn) -> Result<i64> {
    Ok(workflows::table.filter(is_live()).count().get_result(conn).await?)
}

/// Forgets workflows that ended more than a week ago.
pub async fn purge_finished(conn: &mut Conn) -> Result<usize> {
    Ok(diesel::sql_query("DELETE FROM workflows WHERE finished_at < now() - interval '7 days'").execute(conn).await?)
}

/// Tells every gateway that there is work.
pub async fn notify(conn: &mut Conn) -> Result<()> {
    diesel::sql_query("NOTIFY vbs_workflows").execute(conn).await?;
    Ok(())
}

/// Asks to be told of work, on a connection kept for that.
pub async fn listen(conn: &mut Conn) -> Result<()> {
    diesel::sql_query("LISTEN vbs_workflows").execute(conn).await?;
    Ok(())
}
