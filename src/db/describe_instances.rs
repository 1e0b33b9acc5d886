//! Instances as a describe shows them: with the volumes they have and their tags, in one statement.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Int4, Int8, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::statement::{Condition, Rows, Statement};
use super::{Conn, Result};
use crate::ids::InstanceId;
use crate::state::InstanceState;

/// An instance with what hangs on it.
#[derive(Debug, Clone, Queryable)]
pub struct DescribedInstance {
    /// Its id.
    pub id: InstanceId,
    /// The zone it is in.
    pub zone: String,
    /// The name that its node uses.
    pub machine: String,
    /// Its state.
    pub state: InstanceState,
    /// Virtual processors.
    pub vcpus: i32,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// When the machine was started.
    pub launched_at: DateTime<Utc>,
    /// Its live attachments by device, one field in each of the five lists.
    pub volume_ids: Option<Vec<String>>,
    /// The device names.
    pub devices: Option<Vec<String>>,
    /// The attachments' states.
    pub attachment_states: Option<Vec<String>>,
    /// When they were asked for.
    pub attached_at: Option<Vec<DateTime<Utc>>>,
    /// Whether the volumes go with the instance.
    pub delete_on_termination: Option<Vec<bool>>,
    /// The keys of its tags, sorted.
    pub tag_keys: Vec<String>,
    /// Their values, in the order of the keys.
    pub tag_values: Vec<String>,
}

type Row = (
    Text,
    Text,
    Text,
    Text,
    Int4,
    Int8,
    Timestamptz,
    Nullable<Array<Text>>,
    Nullable<Array<Text>>,
    Nullable<Array<Text>>,
    Nullable<Array<Timestamptz>>,
    Nullable<Array<diesel::sql_types::Bool>>,
    Array<Text>,
    Array<Text>,
);

/// What tells that a tag is an instance's; conditions may also use the alias `i` (instances).
const TAGS: &str = "t.account_id = i.account_id AND t.resource_id = i.id";

const SELECT: &str = "SELECT i.id, i.zone, i.machine, i.state, i.vcpus, i.memory_mib, i.launched_at, \
    d.volume_ids, d.devices, d.states, d.attached_at, d.delete_on_termination, \
    ARRAY(SELECT key FROM tags WHERE resource_id = i.id ORDER BY key), \
    ARRAY(SELECT value FROM tags WHERE resource_id = i.id ORDER BY key) \
    FROM instances i \
    LEFT JOIN LATERAL (SELECT array_agg(volume_id ORDER BY device_key) AS volume_ids, \
        array_agg(device ORDER BY device_key) AS devices, array_agg(state ORDER BY device_key) AS states, \
        array_agg(attached_at ORDER BY device_key) AS attached_at, \
        array_agg(delete_on_termination ORDER BY device_key) AS delete_on_termination \
        FROM attachments WHERE instance_id = i.id AND state <> 'detached') d ON true \
    WHERE i.account_id = ";

/// The instances of these ids that the account has. Who is missing is not there.
pub async fn by_ids(
    conn: &mut Conn,
    account_id: &str,
    ids: &[InstanceId],
    conditions: &[Condition],
) -> Result<Vec<DescribedInstance>> {
    let query: Statement<Row> = Statement::new(SELECT)
        .text(account_id)
        .sql(" AND i.id")
        .one_of(ids)
        .conditions(conditions, TAGS)
        .sql(" ORDER BY i.id");
    Ok(query.load(conn).await?)
}

/// Instances of the account behind `after`, at most `limit`.
pub async fn page<'a>(
    conn: &'a mut Conn,
    account_id: &str,
    after: Option<&str>,
    limit: i64,
    conditions: &[Condition],
) -> Result<Rows<'a, DescribedInstance>> {
    let query: Statement<Row> = Statement::new(SELECT)
        .text(account_id)
        .sql(" AND i.id > ")
        .text(after.unwrap_or_default())
        .conditions(conditions, TAGS)
        .sql(" ORDER BY i.id LIMIT ")
        .number(limit);
    query.rows(conn).await
}

/// Which of these ids the account has.
pub async fn existing(conn: &mut Conn, account_id: &str, ids: &[InstanceId]) -> Result<Vec<InstanceId>> {
    use super::schema::instances;
    Ok(instances::table
        .filter(instances::account_id.eq(account_id))
        .filter(instances::id.eq_any(ids))
        .select(instances::id)
        .load(conn)
        .await?)
}
