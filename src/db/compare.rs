//! What a storage node reports beside what the rows say of it, compared in the database: only what differs comes back.
//!
//! A node may have a hundred thousand volumes. They are compared in batches in the order of their ids, each with the rows between
//! its first and its last.
//!
//! What a workflow is changing, or has changed since the node was asked, is left out: the report may be from before.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::schema::volumes;
use super::{Conn, Result};
use crate::ids::{SnapshotId, VolumeId};

/// How many are compared at once.
const BATCH: usize = 5_000;

/// What comes after every id of either kind.
const AFTER_ALL: &str = "z";

/// A volume or a snapshot of which row and node say different things.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Compared {
    /// Its id.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// The node that its row names; none when there is no row, or one that is only kept because it was deleted.
    #[diesel(sql_type = Nullable<Text>)]
    pub row_node: Option<String>,
    /// Whether the node that was asked shall have it, whole.
    #[diesel(sql_type = Bool)]
    pub wanted: bool,
    /// Its size by its row, in GiB.
    #[diesel(sql_type = Nullable<Integer>)]
    pub size_gib: Option<i32>,
    /// Its size on the node, in bytes; of a snapshot 0. None when the node does not have it.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub bytes: Option<i64>,
    /// The volume it was or is of, when it was ours on this node and is over.
    #[diesel(sql_type = Nullable<Text>)]
    pub was_of: Option<String>,
}

const VOLUMES: &str = "WITH seen AS (SELECT * FROM unnest($1, $2) AS seen (id, bytes)), \
     here AS (SELECT id, size_gib FROM volumes \
        WHERE node = $3 AND state IN ('available', 'in-use') AND id > $4 AND id <= $5), \
     differing AS (SELECT id, here.id IS NOT NULL AS wanted, seen.bytes FROM here FULL JOIN seen USING (id) \
        WHERE here.id IS NULL OR seen.id IS NULL OR here.size_gib * 1073741824::bigint <> seen.bytes) \
     SELECT d.id, v.node AS row_node, d.wanted, v.size_gib, d.bytes, \
        g.volume_id AS was_of \
     FROM differing d \
     LEFT JOIN volumes v ON v.id = d.id AND v.state <> 'deleted' \
     LEFT JOIN gone g ON g.name = d.id AND g.node = $3 \
     WHERE d.id NOT IN (SELECT volume_id FROM workflows WHERE finished_at IS NULL AND lane >= '' \
        UNION ALL SELECT volume_id FROM workflows WHERE finished_at >= $6)";

/// A snapshot is changed by a workflow whose lock is its id; one in between, which a volume is copied by, has no row at all.
const SNAPSHOTS: &str = "WITH seen AS (SELECT * FROM unnest($1, $2) AS seen (id, bytes)), \
     here AS (SELECT id FROM snapshots WHERE node = $3 AND state = 'completed' AND id > $4 AND id <= $5), \
     differing AS (SELECT id, here.id IS NOT NULL AS wanted, seen.bytes FROM here FULL JOIN seen USING (id) \
        WHERE here.id IS NULL OR seen.id IS NULL) \
     SELECT d.id, s.node AS row_node, d.wanted, NULL::integer AS size_gib, d.bytes, g.volume_id AS was_of \
     FROM differing d LEFT JOIN snapshots s ON s.id = d.id \
     LEFT JOIN gone g ON g.name = d.id AND g.node = $3 \
     WHERE d.id NOT IN (SELECT coalesce(params ->> 'snapshot', lock_key) FROM workflows WHERE finished_at IS NULL AND lane >= '' \
        UNION ALL SELECT coalesce(params ->> 'snapshot', lock_key) FROM workflows WHERE finished_at >= $6)";

/// The database's clock, to be read before a node is asked.
pub async fn now(conn: &mut Conn) -> Result<DateTime<Utc>> {
    Ok(diesel::select(diesel::dsl::now.into_sql::<Timestamptz>()).get_result(conn).await?)
}

/// The volumes of which this node and the rows say different things. `since`: from before the node was asked.
pub async fn volumes(
    conn: &mut Conn,
    node: &str,
    seen: &[(VolumeId, u64)],
    since: DateTime<Utc>,
) -> Result<Vec<Compared>> {
    let seen = seen.iter().map(|(id, bytes)| (id.as_str(), i64::try_from(*bytes).unwrap_or(i64::MAX)));
    compare(conn, VOLUMES, node, seen.collect(), since).await
}

/// The same of snapshots.
pub async fn snapshots(
    conn: &mut Conn,
    node: &str,
    seen: &[SnapshotId],
    since: DateTime<Utc>,
) -> Result<Vec<Compared>> {
    compare(conn, SNAPSHOTS, node, seen.iter().map(|id| (id.as_str(), 0)).collect(), since).await
}

async fn compare(
    conn: &mut Conn,
    statement: &str,
    node: &str,
    mut seen: Vec<(&str, i64)>,
    since: DateTime<Utc>,
) -> Result<Vec<Compared>> {
    seen.sort_unstable();
    let mut batches: Vec<&[(&str, i64)]> = seen.chunks(BATCH).collect();
    if batches.is_empty() {
        batches.push(&[]);
    }
    let (mut after, last) = ("", batches.len() - 1);
    let mut differing = Vec::new();
    for (index, batch) in batches.into_iter().enumerate() {
        let (ids, bytes): (Vec<&str>, Vec<i64>) = batch.iter().copied().unzip();
        let upto = if index == last { AFTER_ALL } else { ids.last().copied().unwrap_or(AFTER_ALL) };
        let found: Vec<Compared> = diesel::sql_query(statement)
            .bind::<Array<Text>, _>(&ids)
            .bind::<Array<BigInt>, _>(&bytes)
            .bind::<Text, _>(node)
            .bind::<Text, _>(after)
            .bind::<Text, _>(upto)
            .bind::<Timestamptz, _>(since)
            .load(conn)
            .await?;
        differing.extend(found);
        after = upto;
    }
    Ok(differing)
}

/// Writes down which volumes a node that answers does not have, from when on, and that it has again what it had not.
pub async fn record_missing(conn: &mut Conn, node: &str, missing: &[&str], seen: &[(VolumeId, u64)]) -> Result<()> {
    if !missing.is_empty() {
        diesel::update(volumes::table.filter(volumes::id.eq_any(missing).and(volumes::missing_since.is_null())))
            .set(volumes::missing_since.eq(diesel::dsl::now))
            .execute(conn)
            .await?;
    }
    let known = volumes::table.filter(volumes::node.eq(node).and(volumes::missing_since.is_not_null()));
    let known: Vec<VolumeId> = known.select(volumes::id).load(conn).await?;
    if known.is_empty() {
        return Ok(());
    }
    let seen: HashSet<&VolumeId> = seen.iter().map(|(id, _)| id).collect();
    let back: Vec<&str> = known.iter().filter(|id| seen.contains(id)).map(VolumeId::as_str).collect();
    diesel::update(volumes::table.filter(volumes::id.eq_any(back)))
        .set(volumes::missing_since.eq(None::<DateTime<Utc>>))
        .execute(conn)
        .await?;
    Ok(())
}
