//! Volumes as a describe shows them: with their attachments and their tags, in one statement.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Int4, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::gather::Batch;
use super::statement::{Condition, Rows, Statement, Subject};
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

/// What tells that a tag is a volume's; conditions may also use the alias `v` (volumes). With the account in it a tag can be looked
/// up first, and the volume for it.
const TAGS: &str = "t.account_id = v.account_id AND t.resource_id = v.id";

/// The attachments are looked for row by row: a join would be merged, and walk through all attachments for a page at the end.
const SELECT: &str = "SELECT v.account_id, v.id, v.size_gib, v.snapshot_id, v.zone, v.state, v.created_at, \
    v.volume_type, v.iops, \
    v.throughput, v.initialization_rate, v.encrypted, v.multi_attach, v.source_volume_id, \
    a.instance_ids, a.devices, a.states, a.attached_at, a.delete_on_termination, \
    ARRAY(SELECT key FROM tags WHERE account_id = v.account_id AND resource_id = v.id ORDER BY key), \
    ARRAY(SELECT value FROM tags WHERE account_id = v.account_id AND resource_id = v.id ORDER BY key) \
    FROM volumes v \
    LEFT JOIN LATERAL (SELECT array_agg(instance_id) AS instance_ids, array_agg(device) AS devices, \
        array_agg(state) AS states, array_agg(attached_at) AS attached_at, \
        array_agg(delete_on_termination) AS delete_on_termination \
        FROM (SELECT * FROM attachments WHERE account_id = v.account_id AND volume_id = v.id AND state <> 'detached' \
            ORDER BY attached_at, id) AS sorted) a ON true";

/// `k` has the keys of the tags of an account, each found behind the one before.
const KEYS: &str = "WITH RECURSIVE k (key) AS ((SELECT t.key FROM tags t WHERE t.account_id = ";
const KEYS_ON: &str = " ORDER BY t.key LIMIT 1) UNION ALL SELECT (SELECT t.key FROM tags t WHERE t.account_id = ";
const KEYS_END: &str = " AND t.key > k.key ORDER BY t.key LIMIT 1) FROM k WHERE k.key IS NOT NULL) ";

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
        .conditions(conditions, TAGS)
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
///
/// First the ids of the page are found in an index that has all that the conditions look at, then the page is read. What a
/// planner would make of one join depends on how many rows it guesses to fit; and it guesses without the values. So with several
/// conditions, which may need a join, this is to be run where [`merge_joins`] was.
pub async fn page<'a>(
    conn: &'a mut Conn,
    account_id: &str,
    after: Option<&str>,
    limit: i64,
    conditions: &[Condition],
) -> Result<Rows<'a, DescribedVolume>> {
    let query = Statement::new(SELECT).sql(" WHERE v.id = ANY(ARRAY(");
    let page = Page { account_id, after, limit };
    let query: Statement<Row> = match conditions {
        [only] if is_of_attachments(only) => page.of_attachments(query, only),
        [only] if is_of_tags(only) => page.of_tags(query, only),
        _ => page.of_volumes(query, conditions),
    };
    query.sql(")) AND v.state <> 'deleted' ORDER BY v.id").rows(conn).await
}

fn is_of_attachments(condition: &Condition) -> bool {
    matches!(condition.subject, Subject::VolumeAttachment(_) | Subject::VolumeAttachmentInstant(_))
}

fn is_of_tags(condition: &Condition) -> bool {
    matches!(condition.subject, Subject::Tag(_) | Subject::AnyTagKey | Subject::AnyTagValue)
}

/// The ids of a page, each by the index that is walked in the order of the ids until the page is full.
struct Page<'a> {
    account_id: &'a str,
    after: Option<&'a str>,
    limit: i64,
}

impl Page<'_> {
    fn of_volumes(&self, query: Statement<Row>, conditions: &[Condition]) -> Statement<Row> {
        self.start(query, "SELECT v.id FROM volumes v WHERE v.state <> 'deleted' AND v.account_id = ", " AND v.id > ")
            .conditions(conditions, TAGS)
            .sql(" ORDER BY v.id LIMIT ")
            .number(self.limit)
    }

    /// Only what is there can be attached.
    fn of_attachments(&self, query: Statement<Row>, condition: &Condition) -> Statement<Row> {
        const SELECT: &str =
            "SELECT DISTINCT b.volume_id FROM attachments b WHERE b.state <> 'detached' AND b.account_id = ";
        self.start(query, SELECT, " AND b.volume_id > ")
            .sql(" AND ")
            .of_attachment(condition)
            .sql(" ORDER BY b.volume_id LIMIT ")
            .number(self.limit)
    }

    /// The tags of a volume go with it. Each value or key that is asked for has the resources in order in an index, and as many of
    /// them as a page holds are enough. A pattern on keys is tried on each key that the account has, which are few; one on the values
    /// of a key on all that have the key; one on all values on all tags.
    fn of_tags(&self, query: Statement<Row>, condition: &Condition) -> Statement<Row> {
        let Condition { subject, values } = condition;
        match subject {
            Subject::Tag(_) | Subject::AnyTagValue if values.like.is_empty() => {
                let query = query.sql("SELECT DISTINCT u.id FROM unnest(").texts(&values.exact).sql(") AS x (value)");
                let query = self.tags(query.sql(" CROSS JOIN LATERAL ("), " AND t.value = x.value");
                let query = match subject {
                    Subject::Tag(key) => query.sql(" AND t.key = ").text(key),
                    _ => query,
                };
                self.first(self.first(query, " ORDER BY t.resource_id").sql(") u"), " ORDER BY u.id")
            }
            Subject::AnyTagKey => {
                let query = query.sql(KEYS).text(self.account_id).sql(KEYS_ON).text(self.account_id).sql(KEYS_END);
                let query = query.sql("SELECT DISTINCT u.id FROM k CROSS JOIN LATERAL (");
                let query = self.first(self.tags(query, " AND t.key = k.key"), " ORDER BY t.resource_id");
                self.first(query.sql(") u WHERE ").any("k.key", values), " ORDER BY u.id")
            }
            _ => {
                let query = self.tags(query.sql("SELECT DISTINCT u.id FROM ("), " AND ").of_tag(condition);
                self.first(query.sql(") u"), " ORDER BY u.id")
            }
        }
    }

    fn tags(&self, query: Statement<Row>, of: &'static str) -> Statement<Row> {
        const SELECT: &str =
            "SELECT t.resource_id AS id FROM tags t WHERE t.resource_type = 'volume' AND t.account_id = ";
        self.start(query, SELECT, " AND t.resource_id > ").sql(of)
    }

    fn first(&self, query: Statement<Row>, order: &'static str) -> Statement<Row> {
        query.sql(order).sql(" LIMIT ").number(self.limit)
    }

    fn start(&self, query: Statement<Row>, select: &'static str, behind: &'static str) -> Statement<Row> {
        let query = query.sql(select).text(self.account_id);
        match self.after {
            Some(after) => query.sql(behind).text(after),
            // It would be compared with each row.
            None => query,
        }
    }
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
