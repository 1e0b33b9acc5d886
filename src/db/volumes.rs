//! Volumes.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use diesel::dsl::{AsSelect, SqlTypeOf};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;

use super::gather::Batch;
use super::schema::volumes;
use super::statement::Statement;
use super::{Conn, Result, tags};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::VolumeState;

/// A volume.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = volumes, check_for_backend(diesel::pg::Pg))]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Whose it is.
    pub account_id: String,
    /// The zone it is in.
    pub zone: String,
    /// The storage node that has it.
    pub node: String,
    /// Its size in GiB.
    pub size_gib: i32,
    /// `gp2`, `gp3`, …
    pub volume_type: String,
    /// I/O operations a second, where the type has them.
    pub iops: Option<i32>,
    /// MiB a second, where the type has it.
    pub throughput: Option<i32>,
    /// MiB a second asked for the first reading of the snapshot.
    pub initialization_rate: Option<i32>,
    /// Always false for now.
    pub encrypted: bool,
    /// Whether several instances may attach it.
    pub multi_attach: bool,
    /// The snapshot it was made from.
    pub snapshot_id: Option<SnapshotId>,
    /// Its state.
    pub state: VolumeState,
    /// Why it is in `error`.
    pub state_reason: Option<String>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// The volume, whatever its state. For workers: no account is asked for.
pub async fn find(conn: &mut Conn, id: &VolumeId) -> Result<Option<Volume>> {
    Ok(volumes::table.find(id).select(Volume::as_select()).first(conn).await.optional()?)
}

/// A volume that is being asked for.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are those of Volume")]
pub struct NewVolume {
    pub id: VolumeId,
    pub account_id: String,
    pub zone: String,
    pub node: String,
    pub size_gib: i32,
    pub volume_type: &'static str,
    pub iops: Option<i32>,
    pub throughput: Option<i32>,
    pub initialization_rate: Option<i32>,
    pub multi_attach: bool,
    pub snapshot_id: Option<SnapshotId>,
    pub client_token: Option<String>,
    /// In hexadecimal.
    pub request_digest: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// The workflow that makes it, and its parameters.
    pub workflow: (&'static str, serde_json::Value),
}

/// Stores volumes as `creating`, with their tags, and enqueues their workflows, all in one statement: a transaction of several
/// would spend most of its time on the way. `None`, and nothing done, for one whose client token is there already; a
/// try that is under way at the same moment is waited for.
pub struct Accept;

impl Batch for Accept {
    type Asked = NewVolume;
    type Answer = Option<Volume>;
    const AS_LARGE: bool = true;

    async fn run(conn: &mut Conn, asked: &[NewVolume]) -> Result<Vec<Option<Volume>>> {
        // An array of texts for each column of `asked`, an empty one for NULL. JSON would have to be parsed on the other side.
        let columns: [fn(&NewVolume) -> String; 16] = [
            |new| new.id.to_string(),
            |new| new.account_id.clone(),
            |new| new.zone.clone(),
            |new| new.node.clone(),
            |new| new.size_gib.to_string(),
            |new| new.volume_type.to_owned(),
            |new| or_empty(new.iops),
            |new| or_empty(new.throughput),
            |new| or_empty(new.initialization_rate),
            |new| new.multi_attach.to_string(),
            |new| or_empty(new.snapshot_id.as_ref()),
            |new| or_empty(new.client_token.as_ref()),
            |new| or_empty(new.request_digest.as_ref()),
            |new| if new.tags.is_empty() { String::new() } else { serde_json::json!(new.tags).to_string() },
            |new| new.workflow.0.to_owned(),
            |new| new.workflow.1.to_string(),
        ];
        let mut statement: Statement<SqlTypeOf<AsSelect<Volume, Pg>>> =
            Statement::new("WITH asked AS (SELECT * FROM unnest(");
        for (index, column) in columns.iter().enumerate() {
            statement = statement.sql(if index > 0 { ", " } else { "" }).texts(asked.iter().map(column));
        }
        // Ordered, so that two that wait for tokens of each other cannot be. Named, what may be there already is looked for in one
        // index and not in all that are unique: ids are new.
        let statement = statement.sql(
            ") AS asked (id, account_id, zone, node, size_gib, volume_type, iops, throughput, initialization_rate, \
                multi_attach, snapshot_id, client_token, request_digest, tags, kind, params)), \
             made AS (INSERT INTO volumes (state, id, account_id, zone, node, size_gib, volume_type, iops, \
                throughput, initialization_rate, multi_attach, snapshot_id, client_token, request_digest) \
                SELECT 'creating', id, account_id, zone, node, size_gib::integer, volume_type, \
                nullif(iops, '')::integer, nullif(throughput, '')::integer, nullif(initialization_rate, '')::integer, \
                multi_attach::boolean, nullif(snapshot_id, ''), nullif(client_token, ''), decode(nullif(request_digest, ''), 'hex') \
                FROM asked ORDER BY account_id, client_token \
                ON CONFLICT (account_id, client_token) WHERE client_token IS NOT NULL DO NOTHING RETURNING *), ",
        );
        // A table that nothing is written to need not be opened for writing.
        let statement = if asked.iter().any(|new| !new.tags.is_empty()) {
            statement.sql(
                "tagged AS (INSERT INTO tags (resource_id, key, value, account_id, resource_type) \
                    SELECT made.id, t.key, t.value, made.account_id, 'volume' \
                    FROM made JOIN asked USING (id), jsonb_each_text(nullif(asked.tags, '')::jsonb) t), ",
            )
        } else {
            statement
        };
        let statement = statement.sql(
            "enqueued AS (INSERT INTO workflows (lock_key, volume_id, lane, kind, params) \
                SELECT made.id, made.id, made.node, asked.kind, asked.params::jsonb FROM made JOIN asked USING (id)) \
             SELECT id, account_id, zone, node, size_gib, volume_type, iops, throughput, initialization_rate, \
             encrypted, multi_attach, snapshot_id, state, state_reason, created_at FROM made",
        );
        let mut made: HashMap<VolumeId, Volume> =
            statement.load::<Volume>(conn).await?.into_iter().map(|row| (row.id.clone(), row)).collect();
        Ok(asked.iter().map(|new| made.remove(&new.id)).collect())
    }
}

fn or_empty(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// A volume by its id, as [`find`] finds it, for workers that look at many at once.
pub struct Find;

impl Batch for Find {
    type Asked = VolumeId;
    type Answer = Option<Volume>;
    const AT_ONCE: usize = 1;

    async fn run(conn: &mut Conn, asked: &[VolumeId]) -> Result<Vec<Option<Volume>>> {
        let statement: Statement<SqlTypeOf<AsSelect<Volume, Pg>>> = Statement::new(
            "SELECT id, account_id, zone, node, size_gib, volume_type, iops, throughput, initialization_rate, encrypted, \
             multi_attach, snapshot_id, state, state_reason, created_at FROM volumes WHERE id",
        )
        .one_of(asked);
        let rows: Vec<Volume> = statement.load(conn).await?;
        // Two may ask for the same one.
        let found: HashMap<&VolumeId, &Volume> = rows.iter().map(|row| (&row.id, row)).collect();
        Ok(asked.iter().map(|id| found.get(id).map(|row| (*row).clone())).collect())
    }
}

/// Ends workflows that have made their volumes, and shows the volumes as available. Asked with a workflow's id and lease
/// generation; `false`, and nothing done, when the lease has passed on.
pub struct Made;

impl Batch for Made {
    type Asked = (i64, i64);
    type Answer = bool;
    const AT_ONCE: usize = 1;

    async fn run(conn: &mut Conn, asked: &[(i64, i64)]) -> Result<Vec<bool>> {
        // In conditions only what the primary keys find, and as an array: to a planner that last saw the table empty anything
        // else looks cheaper, be it a look at all rows.
        let texts = |of: fn(&(i64, i64)) -> i64| asked.iter().map(move |row| of(row).to_string());
        let statement: Statement<BigInt> = Statement::new("WITH asked AS (SELECT * FROM unnest(")
            .texts(texts(|row| row.0))
            .sql("::bigint[], ")
            .texts(texts(|row| row.1))
            .sql(
                "::bigint[]) AS asked (id, generation)), \
                 ended AS (UPDATE workflows SET finished_at = now(), lease_owner = NULL, lease_until = NULL, \
                    outcome = 'succeeded' FROM asked WHERE workflows.id = ANY (ARRAY(SELECT id FROM asked)) \
                    AND workflows.id = asked.id AND lease_generation = generation AND outcome IS NULL RETURNING workflows.id, volume_id), \
                 made AS (UPDATE volumes SET state = CASE state WHEN 'creating' THEN 'available' ELSE state END \
                    WHERE id = ANY (ARRAY(SELECT volume_id FROM ended))) \
                 SELECT id FROM ended",
            );
        let ended: HashSet<i64> = statement.load::<i64>(conn).await?.into_iter().collect();
        Ok(asked.iter().map(|(id, _)| ended.contains(id)).collect())
    }
}

/// The volume that a client token stands for, deleted or not, with the digest of the request that made it.
pub async fn find_by_token(
    conn: &mut Conn,
    account_id: &str,
    token: &str,
) -> Result<Option<(Volume, Option<Vec<u8>>)>> {
    Ok(volumes::table
        .filter(volumes::account_id.eq(account_id).and(volumes::client_token.eq(token)))
        .select((Volume::as_select(), volumes::request_digest))
        .first(conn)
        .await
        .optional()?)
}

/// The volume, held so that its state stays until the transaction ends.
pub async fn hold(conn: &mut Conn, id: &VolumeId) -> Result<Option<Volume>> {
    let row = volumes::table.find(id).select(Volume::as_select()).for_no_key_update().first(conn).await;
    Ok(row.optional()?)
}

/// Records what a volume is a copy of.
pub async fn set_copied_from(conn: &mut Conn, id: &VolumeId, source: &VolumeId) -> Result<()> {
    diesel::update(volumes::table.find(id)).set(volumes::source_volume_id.eq(source)).execute(conn).await?;
    Ok(())
}

/// Makes a copy that is being made as large as what it is made of, at least.
pub async fn follow_source(conn: &mut Conn, id: &VolumeId, source: &VolumeId) -> Result<()> {
    diesel::sql_query(
        "UPDATE volumes v SET size_gib = s.size_gib FROM volumes s \
         WHERE v.id = $1 AND s.id = $2 AND v.size_gib < s.size_gib",
    )
    .bind::<diesel::sql_types::Text, _>(id)
    .bind::<diesel::sql_types::Text, _>(source)
    .execute(conn)
    .await?;
    Ok(())
}

/// Gives a volume to one more instance: makes it `in-use`, and holds its row until the transaction ends. `None`, and nothing
/// done, when it is neither available nor one that several may have.
pub async fn take(conn: &mut Conn, id: &VolumeId) -> Result<Option<Volume>> {
    let shared = volumes::state.eq(VolumeState::InUse).and(volumes::multi_attach.eq(true));
    let free = volumes::state.eq(VolumeState::Available).or(shared);
    let taken = diesel::update(volumes::table.find(id).filter(free)).set(volumes::state.eq(VolumeState::InUse));
    Ok(taken.returning(Volume::as_returning()).get_result(conn).await.optional()?)
}

/// Moves a volume from one of the states given; tells whether it was in one of them.
pub async fn swap_state(conn: &mut Conn, id: &VolumeId, from: &[VolumeState], to: VolumeState) -> Result<bool> {
    let rows = diesel::update(volumes::table.find(id).filter(volumes::state.eq_any(from)))
        .set(volumes::state.eq(to))
        .execute(conn)
        .await?;
    Ok(rows == 1)
}

/// Records that a volume could not be made. Its client token may be used again.
pub async fn set_error(conn: &mut Conn, id: &VolumeId, reason: &str) -> Result<()> {
    diesel::update(volumes::table.find(id))
        .set((
            volumes::state.eq(VolumeState::Error),
            volumes::state_reason.eq(reason),
            volumes::client_token.eq(None::<String>),
            volumes::request_digest.eq(None::<Vec<u8>>),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Records that a volume is gone from its node. The row stays until [`purge_deleted`], for the client token's sake; that its
/// name was ours is known for longer ([`super::gone`]).
pub async fn set_deleted(conn: &mut Conn, id: &VolumeId) -> Result<()> {
    let statement: Statement<BigInt> = Statement::new(
        "WITH ended AS (UPDATE volumes SET state = 'deleted', deleted_at = now() WHERE id = ",
    )
    .text(id.as_str())
    .sql(
        " RETURNING id, node), kept AS (INSERT INTO gone (name, volume_id, node) SELECT id, id, node FROM ended \
                 ON CONFLICT (name) DO UPDATE SET gone_at = now()) SELECT count(*) FROM ended",
    );
    statement.get_result::<i64>(conn).await?;
    tags::delete_of_resource(conn, id.as_str()).await
}

/// Of these volumes, those that have a row, whatever its state.
pub async fn known_among(conn: &mut Conn, ids: &[&str]) -> Result<Vec<VolumeId>> {
    Ok(volumes::table.filter(volumes::id.eq_any(ids)).select(volumes::id).load(conn).await?)
}

/// Whether a volume is still being made from this snapshot.
pub async fn any_creating_from(conn: &mut Conn, snapshot: &SnapshotId) -> Result<bool> {
    Ok(diesel::select(diesel::dsl::exists(
        volumes::table.filter(volumes::snapshot_id.eq(snapshot).and(volumes::state.eq(VolumeState::Creating))),
    ))
    .get_result(conn)
    .await?)
}

/// The volumes of a node that exist, or that a workflow is making or deleting, with their states.
pub async fn of_node(conn: &mut Conn, node: &str) -> Result<Vec<(VolumeId, VolumeState, i32)>> {
    Ok(volumes::table
        .filter(volumes::node.eq(node).and(volumes::state.ne(VolumeState::Deleted)))
        .select((volumes::id, volumes::state, volumes::size_gib))
        .load(conn)
        .await?)
}

/// Forgets volumes that were deleted more than a day ago: the time for which a client token is remembered.
pub async fn purge_deleted(conn: &mut Conn) -> Result<usize> {
    Ok(diesel::sql_query("DELETE FROM volumes WHERE state = 'deleted' AND deleted_at < now() - interval '1 day'")
        .execute(conn)
        .await?)
}
