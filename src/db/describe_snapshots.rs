//! Snapshots as a describe shows them: with their tags, in one statement.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::statement::{Condition, Statement};
use super::{Conn, Result};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::SnapshotState;

/// A snapshot with its tags.
#[derive(Debug, Clone, Queryable)]
pub struct DescribedSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The volume it is of, which may be gone.
    pub volume_id: VolumeId,
    /// The size of that volume in GiB.
    pub volume_size_gib: i32,
    /// What the caller said of it.
    pub description: String,
    /// Always false for now.
    pub encrypted: bool,
    /// Its state.
    pub state: SnapshotState,
    /// Why it is in `error`.
    pub state_reason: Option<String>,
    /// Percent.
    pub progress: i32,
    /// When it was asked for.
    pub started_at: DateTime<Utc>,
    /// When it was whole.
    pub completed_at: Option<DateTime<Utc>>,
    /// The bytes of it that hold data.
    pub data_bytes: Option<i64>,
    /// The keys of its tags, sorted.
    pub tag_keys: Vec<String>,
    /// Their values, in the order of the keys.
    pub tag_values: Vec<String>,
}

type Row = (
    Text,
    Text,
    Int4,
    Text,
    Bool,
    Text,
    Nullable<Text>,
    Int4,
    Timestamptz,
    Nullable<Timestamptz>,
    Nullable<Int8>,
    Array<Text>,
    Array<Text>,
);

/// The expression of a snapshot's id, for tags; conditions may also use the alias `s` (snapshots).
const ID: &str = "s.id";

const SELECT: &str = "SELECT s.id, s.volume_id, s.volume_size_gib, s.description, s.encrypted, s.state, s.state_reason, \
    s.progress, s.started_at, s.completed_at, s.data_bytes, \
    ARRAY(SELECT key FROM tags WHERE resource_id = s.id ORDER BY key), \
    ARRAY(SELECT value FROM tags WHERE resource_id = s.id ORDER BY key) \
    FROM snapshots s \
    WHERE s.account_id = ";

/// The snapshots of these ids that the account has. Who is missing is not there.
pub async fn by_ids(
    conn: &mut Conn,
    account_id: &str,
    ids: &[SnapshotId],
    conditions: &[Condition],
) -> Result<Vec<DescribedSnapshot>> {
    let query: Statement<Row> = Statement::new(SELECT)
        .text(account_id)
        .sql(" AND s.state <> 'deleting' AND s.id")
        .one_of(ids)
        .conditions(conditions, ID)
        .sql(" ORDER BY s.id");
    Ok(query.load(conn).await?)
}

/// Snapshots of the account behind `after`, at most `limit`.
pub async fn page(
    conn: &mut Conn,
    account_id: &str,
    after: Option<&str>,
    limit: i64,
    conditions: &[Condition],
) -> Result<Vec<DescribedSnapshot>> {
    let query: Statement<Row> = Statement::new(SELECT)
        .text(account_id)
        .sql(" AND s.state <> 'deleting' AND s.id > ")
        .text(after.unwrap_or_default())
        .conditions(conditions, ID)
        .sql(" ORDER BY s.id LIMIT ")
        .number(limit);
    Ok(query.load(conn).await?)
}

/// Which of these ids the account has.
pub async fn existing(conn: &mut Conn, account_id: &str, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
    use super::schema::snapshots;
    Ok(snapshots::table
        .filter(snapshots::account_id.eq(account_id).and(snapshots::state.ne(SnapshotState::Deleting)))
        .filter(snapshots::id.eq_any(ids))
        .select(snapshots::id)
        .load(conn)
        .await?)
}
