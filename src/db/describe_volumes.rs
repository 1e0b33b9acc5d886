//! Volumes as a describe shows them: with their attachments and their tags, in one statement.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Int4, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::gather::Batch;
use super::statement::{Condition, Statement};
use super::{Conn, Result};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::VolumeState;

/// A volume with what hangs on it.
#[derive(Debug, Clone, Queryable)]
pub struct DescribedVolume {
    /// Whose it is.
    pub account_id: String,
    /// Its id.
    pub id: VolumeId,
    /// Its size in GiB.
    pub size_gib: i32,
    /// The snapshot it was made from.
    pub snapshot_id: Option<SnapshotId>,
    /// The zone it is in.
    pub zone: String,
    /// Its state.
    pub state: VolumeState,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// `gp2`, `gp3`, …
    pub volume_type: String,
    /// I/O operations a second.
    pub iops: Option<i32>,
    /// MiB a second.
    pub throughput: Option<i32>,
    /// MiB a second asked for the first reading of the snapshot.
    pub initialization_rate: Option<i32>,
    /// Always false for now.
    pub encrypted: bool,
    /// Whether several instances may attach it.
    pub multi_attach: bool,
    /// The volume it is a copy of.
    pub source_volume_id: Option<VolumeId>,
    /// The instances of its live attachments, oldest first, one field in each of the five lists.
    pub instance_ids: Option<Vec<String>>,
    /// The device names, as the callers wrote them.
    pub devices: Option<Vec<String>>,
    /// How the attachments stand.
    pub attachment_states: Option<Vec<String>>,
    /// When they were asked for.
    pub attached_at: Option<Vec<DateTime<Utc>>>,
    /// Whether the volume goes with the instances.
    pub delete_on_termination: Option<Vec<bool>>,
    /// The keys of its tags, sorted.
    pub tag_keys: Vec<String>,
    /// Their values, in the order of the keys.
    pub tag_values: Vec<String>,
}

type Row = (
    Text,
    Text,
    Int4,
    Nullable<Text>,
    Text,
    Text,
    Timestamptz,
    Text,
    Nullable<Int4>,
    Nullable<Int4>,
    Nullable<Int4>,
    Bool,
    Bool,
    Nullable<Text>,
    Nullable<Array<Text>>,
    Nullable<Array<Text>>,
    Nullable<Array<Text>>,
    Nullable<Array<Timestamptz>>,
    Nullable<Array<Bool>>,
    Array<Text>,
    Array<Text>,
);

/// The expression of a volume's id, for tags; conditions may also use the alias `v` (volumes).
const ID: &str = "v.id";

const SELECT: &str = "SELECT v.account_id, v.id, v.size_gib, v.snapshot_id, v.zone, v.state, v.created_at, \
    v.volume_type, v.iops, \
    v.throughput, v.initialization_rate, v.encrypted, v.multi_attach, v.source_volume_id, \
    a.instance_ids, a.devices, a.states, a.attached_at, a.delete_on_termination, \
    ARRAY(SELECT key FROM tags WHERE resource_id = v.id ORDER BY key), \
    ARRAY(SELECT value FROM tags WHERE resource_id = v.id ORDER BY key) \
    FROM volumes v \
    LEFT JOIN LATERAL (SELECT array_agg(instance_id) AS instance_ids, array_agg(device) AS devices, \
        array_agg(state) AS states, array_agg(attached_at) AS attached_at, \
        array_agg(delete_on_termination) AS delete_on_termination \
        FROM (SELECT * FROM attachments WHERE volume_id = v.id AND state <> 'detached' ORDER BY attached_at, id) \
            AS sorted) a ON true";

/// The volumes of these ids that the account has. Who is missing is not there.
pub async fn by_ids(
    conn: &mut Conn,
    account_id: &str,
    ids: &[VolumeId],
    conditions: &[Condition],
) -> Result<Vec<DescribedVolume>> {
    let query: Statement<Row> = Statement::new(SELECT)
        .sql(" WHERE v.account_id = ")
        .text(account_id)
        .sql(" AND v.state <> 'deleted' AND v.id")
        .one_of(ids)
        .conditions(conditions, ID)
        .sql(" ORDER BY v.id");
    Ok(query.load(conn).await?)
}

/// A describe of one volume without filters, which is what clients poll with: an account asks for an id.
pub struct One;

impl Batch for One {
    type Asked = (Arc<str>, VolumeId);
    type Answer = Option<DescribedVolume>;

    async fn run(conn: &mut Conn, asked: &[Self::Asked]) -> Result<Vec<Self::Answer>> {
        let ids: Vec<&str> = asked.iter().map(|(_, id)| id.as_str()).collect();
        let query: Statement<Row> =
            Statement::new(SELECT).sql(" WHERE v.state <> 'deleted' AND v.id = ANY(").texts(ids).sql(")");
        let rows: Vec<DescribedVolume> = query.load(conn).await?;
        let rows: HashMap<&VolumeId, &DescribedVolume> = rows.iter().map(|row| (&row.id, row)).collect();
        let own = |(account_id, id): &Self::Asked| {
            rows.get(id).filter(|row| *row.account_id == **account_id).map(|row| (*row).clone())
        };
        Ok(asked.iter().map(own).collect())
    }
}

/// Volumes of the account behind `after`, at most `limit`.
pub async fn page(
    conn: &mut Conn,
    account_id: &str,
    after: Option<&str>,
    limit: i64,
    conditions: &[Condition],
) -> Result<Vec<DescribedVolume>> {
    let query: Statement<Row> = Statement::new(SELECT)
        .sql(" WHERE v.account_id = ")
        .text(account_id)
        .sql(" AND v.state <> 'deleted' AND v.id > ")
        .text(after.unwrap_or_default())
        .conditions(conditions, ID)
        .sql(" ORDER BY v.id LIMIT ")
        .number(limit);
    Ok(query.load(conn).await?)
}

/// Which of these ids the account has: tells an id that a filter hides from one that is not there.
pub async fn existing(conn: &mut Conn, account_id: &str, ids: &[VolumeId]) -> Result<Vec<VolumeId>> {
    use super::schema::volumes;
    Ok(volumes::table
        .filter(volumes::account_id.eq(account_id).and(volumes::state.ne(VolumeState::Deleted)))
        .filter(volumes::id.eq_any(ids))
        .select(volumes::id)
        .load(conn)
        .await?)
}
