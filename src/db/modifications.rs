//! Modifications of volumes: the latest of each, from the request on.
//!
//! A volume has one row at most, and a modification takes the place of the one before it only when that is over: of two
//! requests at once one is refused.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use uuid::Uuid;

use super::schema::volume_modifications;
use super::statement::Statement;
use super::{Conn, Result};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::ModificationState;

/// A modification.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = volume_modifications, check_for_backend(diesel::pg::Pg))]
pub struct Modification {
    /// The volume.
    pub volume_id: VolumeId,
    /// Whose it is.
    pub account_id: String,
    /// Tells it from those that the volume had before.
    pub id: Uuid,
    /// How it stands.
    pub state: ModificationState,
    /// In per cent.
    pub progress: i32,
    /// The size before, in GiB.
    pub original_size_gib: i32,
    /// The type before.
    pub original_type: String,
    /// The IOPS before, where the type has them.
    pub original_iops: Option<i32>,
    /// The throughput before in MiB/s, where the type has it.
    pub original_throughput: Option<i32>,
    /// Whether several instances could attach it before.
    pub original_multi_attach: bool,
    /// The size that was asked for, in GiB.
    pub target_size_gib: i32,
    /// The type that was asked for.
    pub target_type: String,
    /// The IOPS that were asked for, where the type has them.
    pub target_iops: Option<i32>,
    /// The throughput that was asked for in MiB/s, where the type has it.
    pub target_throughput: Option<i32>,
    /// Whether several instances shall be able to attach it.
    pub target_multi_attach: bool,
    /// Whether an instance that has the volume sees the new size only when it is attached again.
    pub at_next_attach: bool,
    /// Why it failed, for the operator.
    pub reason: Option<String>,
    /// When it was asked for.
    pub started_at: DateTime<Utc>,
    /// When it was over.
    pub ended_at: Option<DateTime<Utc>>,
    /// When it and those before it began, as far as they count for the limit.
    pub recent: Vec<DateTime<Utc>>,
}

/// A modification that is being asked for.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields are those of Modification")]
pub struct NewModification {
    pub volume_id: VolumeId,
    pub account_id: String,
    pub id: Uuid,
    pub original_size_gib: i32,
    pub original_type: String,
    pub original_iops: Option<i32>,
    pub original_throughput: Option<i32>,
    pub original_multi_attach: bool,
    pub target_size_gib: i32,
    pub target_type: &'static str,
    pub target_iops: Option<i32>,
    pub target_throughput: Option<i32>,
    pub target_multi_attach: bool,
}

/// Stores a modification as `modifying`, in the place of the one before it. `None`, and nothing done, when that is not over.
pub async fn begin(conn: &mut Conn, new: &NewModification) -> Result<Option<Modification>> {
    let row = serde_json::to_string(new).map_err(|e| diesel::result::Error::SerializationError(e.into()))?;
    let statement: Statement<volume_modifications::SqlType> =
        Statement::new("INSERT INTO volume_modifications AS m SELECT * FROM jsonb_populate_record(NULL::volume_modifications, ")
            .text(row)
            .sql(
                "::jsonb || jsonb_build_object('state', 'modifying', 'progress', 0, 'at_next_attach', false, \
                    'started_at', date_trunc('milliseconds', now()), \
                    'recent', jsonb_build_array(date_trunc('milliseconds', now())))) \
                 ON CONFLICT (volume_id) DO UPDATE SET (account_id, id, state, progress, original_size_gib, original_type, \
                    original_iops, original_throughput, original_multi_attach, target_size_gib, target_type, target_iops, \
                    target_throughput, target_multi_attach, at_next_attach, reason, started_at, ended_at, recent) = \
                    (excluded.account_id, excluded.id, excluded.state, excluded.progress, excluded.original_size_gib, \
                    excluded.original_type, excluded.original_iops, excluded.original_throughput, \
                    excluded.original_multi_attach, excluded.target_size_gib, excluded.target_type, \
                    excluded.target_iops, excluded.target_throughput, excluded.target_multi_attach, \
                    excluded.at_next_attach, excluded.reason, excluded.started_at, excluded.ended_at, \
                    ARRAY(SELECT began FROM unnest(m.recent) began WHERE began > now() - interval '1 day' ORDER BY began) \
                    || excluded.recent) \
                 WHERE m.state IN ('completed', 'failed') RETURNING *",
            );
    Ok(statement.get_result(conn).await.optional()?)
}

/// The latest modification of a volume.
pub async fn of_volume(conn: &mut Conn, volume: &VolumeId) -> Result<Option<Modification>> {
    let row = volume_modifications::table.find(volume).select(Modification::as_select()).first(conn).await;
    Ok(row.optional()?)
}

/// When the next modification of a volume may begin, if that is not now: of a rolling day it may have `most`.
pub async fn next_allowed(conn: &mut Conn, volume: &VolumeId, most: i64) -> Result<Option<DateTime<Utc>>> {
    // The oldest of the last `most`, if there are so many.
    let statement: Statement<Timestamptz> =
        Statement::new("SELECT began + interval '1 day' FROM (SELECT recent[cardinality(recent) + 1 - ")
            .number(most)
            .sql("::int] AS began FROM volume_modifications WHERE volume_id = ")
            .text(volume.as_str())
            .sql(") counted WHERE began > now() - interval '1 day'");
    Ok(statement.get_result(conn).await.optional()?)
}

/// The modification with this id, unless another has taken its place.
pub async fn find(conn: &mut Conn, id: Uuid) -> Result<Option<Modification>> {
    let of = volume_modifications::id.eq(id);
    Ok(volume_modifications::table.filter(of).select(Modification::as_select()).first(conn).await.optional()?)
}

/// Records that the storage has grown, and shows the volume as it was asked for. Does nothing when that was done before.
pub async fn set_optimizing(conn: &mut Conn, id: Uuid) -> Result<()> {
    diesel::sql_query(
        "WITH m AS (UPDATE volume_modifications SET state = 'optimizing', progress = 50 \
            WHERE id = $1 AND state = 'modifying' RETURNING *) \
         UPDATE volumes SET size_gib = m.target_size_gib, volume_type = m.target_type, iops = m.target_iops, \
            throughput = m.target_throughput, multi_attach = m.target_multi_attach FROM m WHERE volumes.id = m.volume_id",
    )
    .bind::<diesel::sql_types::Uuid, _>(id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Records the end of a modification whose volume shows what was asked for, and whether a new size is to be seen at the next
/// attach only. Tells whether there was one: one that is still `modifying` is none.
pub async fn set_completed(conn: &mut Conn, id: Uuid, at_next_attach: bool) -> Result<bool> {
    let rows = diesel::sql_query(
        "UPDATE volume_modifications SET state = 'completed', progress = 100, \
         at_next_attach = $2 AND target_size_gib > original_size_gib, \
         ended_at = date_trunc('milliseconds', now()) WHERE id = $1 AND state = 'optimizing'",
    )
    .bind::<diesel::sql_types::Uuid, _>(id)
    .bind::<Bool, _>(at_next_attach)
    .execute(conn)
    .await?;
    Ok(rows == 1)
}

/// Records that a modification has failed, and why. It does not count for the limit.
pub async fn set_failed(conn: &mut Conn, id: Uuid, reason: &str) -> Result<()> {
    diesel::sql_query(
        "UPDATE volume_modifications SET state = 'failed', reason = $2, \
         ended_at = date_trunc('milliseconds', now()), recent = array_remove(recent, started_at) \
         WHERE id = $1 AND state = 'modifying'",
    )
    .bind::<diesel::sql_types::Uuid, _>(id)
    .bind::<Text, _>(reason)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes down the size that the volume has when its snapshot is about to be cut: it may have grown since that was asked for.
pub async fn follow_size(conn: &mut Conn, snapshot: &SnapshotId) -> Result<()> {
    diesel::sql_query(
        "UPDATE snapshots SET volume_size_gib = volumes.size_gib FROM volumes \
         WHERE snapshots.id = $1 AND volumes.id = snapshots.volume_id AND volume_size_gib <> size_gib",
    )
    .bind::<Text, _>(snapshot)
    .execute(conn)
    .await?;
    Ok(())
}
