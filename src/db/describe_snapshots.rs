//! Snapshots as a describe shows them: with their tags, in one statement.
//!
//! A describe shows what an account owns and what others share with it, by name or with everybody. Each of the three is looked
//! up by an index of its own that ends when the page is full, so that neither the snapshots of strangers nor what is shared
//! with others costs anything.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::snapshot_permissions::EVERYBODY;
use super::statement::{Condition, Rows, Statement};
use super::{Conn, Result};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::SnapshotState;

/// A snapshot with its tags.
#[derive(Debug, Clone, Queryable)]
pub struct DescribedSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub account_id: String,
    /// The volume it is of, which may be gone.
    pub volume_id: VolumeId,
    /// The size of that volume in GiB; 0 for a copy that is not whole.
    pub volume_size_gib: i32,
    /// What the caller said of it.
    pub description: String,
    /// Always false for now.
    pub encrypted: bool,
    /// Its state.
    pub state: SnapshotState,
    /// Why it is in `error`, for the operator.
    pub state_reason: Option<String>,
    /// What its owner is told of that.
    pub status_message: Option<String>,
    /// Percent; under 100 until it is completed.
    pub progress: i32,
    /// When it was asked for.
    pub started_at: DateTime<Utc>,
    /// When it was whole.
    pub completed_at: Option<DateTime<Utc>>,
    /// The bytes of it that hold data.
    pub data_bytes: Option<i64>,
    /// The time in which a copy was to be done.
    pub completion_minutes: Option<i32>,
    /// The keys of its tags, sorted; none when it is another account's.
    pub tag_keys: Vec<String>,
    /// Their values, in the order of the keys.
    pub tag_values: Vec<String>,
}

type Row = (
    Text,
    Text,
    Text,
    Int4,
    Text,
    Bool,
    Text,
    Nullable<Text>,
    Nullable<Text>,
    Int4,
    Timestamptz,
    Nullable<Timestamptz>,
    Nullable<Int8>,
    Nullable<Int4>,
    Array<Text>,
    Array<Text>,
);

/// The expression of the size that is shown of a snapshot, alias `s`.
pub const SIZE: &str = "CASE WHEN s.source_id IS NULL OR s.completed_at IS NOT NULL THEN s.volume_size_gib ELSE 0 END";

/// Whose snapshots a describe is about, of those that the account may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Who asks.
    pub account_id: &'a str,
    /// Which of its own.
    pub own: Own,
    /// Whether those of others that are shared with it by name.
    pub granted: bool,
    /// Whether those of others that are shared with everybody.
    pub public: bool,
    /// Of others', those of these accounts only.
    pub owners: Option<Vec<String>>,
}

/// Which of an account's own snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// None.
    None,
    /// All.
    All,
    /// Those that are shared with one of these.
    SharedWith(Vec<String>),
}

/// Which ids.
#[derive(Clone, Copy)]
enum Range<'a> {
    These(&'a [SnapshotId]),
    Page { after: &'a str, limit: i64 },
}

impl Scope<'_> {
    /// Whether nothing can be in it.
    pub fn is_empty(&self) -> bool {
        self.own == Own::None && !self.granted && !self.public
    }

    /// The statement that shows what is in it, of this range and under these conditions. Not to be run when it is empty.
    fn statement(&self, range: Range<'_>, conditions: &[Condition]) -> Statement<Row> {
        let mut query = Statement::new("SELECT s.id, s.account_id, s.volume_id, ")
            .sql(SIZE)
            .sql(
                ", s.description, s.encrypted, s.state, s.state_reason, \
                 CASE WHEN s.source_id IS NOT NULL AND s.state = 'pending' THEN 'Metadata not updated' \
                    ELSE s.status_message END, \
                 CASE s.state WHEN 'pending' THEN least(s.progress, 99) ELSE s.progress END, s.started_at, s.completed_at, s.data_bytes, s.completion_minutes, \
                 ARRAY(SELECT key FROM tags WHERE resource_id = s.id AND account_id = ",
            )
            .text(self.account_id)
            .sql(" ORDER BY key), ARRAY(SELECT value FROM tags WHERE resource_id = s.id AND account_id = ")
            .text(self.account_id)
            // An array, since the planner may want to merge a join, and then reads the whole table up to the page.
            .sql(" ORDER BY key) FROM snapshots s WHERE s.id = ANY (ARRAY(SELECT v.id FROM (");
        let mut between = "";
        if self.own != Own::None {
            query = self.owned(query, range, conditions);
            between = " UNION ";
        }
        for grantee in [self.granted.then_some(self.account_id), self.public.then_some(EVERYBODY)].into_iter().flatten()
        {
            query = self.others(query.sql(between), grantee, range, conditions);
            between = " UNION ";
        }
        let query = query.sql(") v ORDER BY v.id");
        let query = match range {
            Range::These(_) => query,
            Range::Page { limit, .. } => query.sql(" LIMIT ").number(limit),
        };
        query.sql(")) ORDER BY s.id")
    }

    /// The ids of its own.
    fn owned(&self, query: Statement<Row>, range: Range<'_>, conditions: &[Condition]) -> Statement<Row> {
        let query = query
            .sql("(SELECT s.id FROM snapshots s WHERE s.account_id = ")
            .text(self.account_id)
            .sql(" AND s.state <> 'deleting'");
        let query = match &self.own {
            Own::SharedWith(grantees) => query
                .sql(" AND EXISTS (SELECT FROM snapshot_permissions p WHERE p.snapshot_id = s.id AND p.grantee = ANY(")
                .texts(grantees)
                .sql("))"),
            Own::All | Own::None => query,
        };
        range.of(query, "s.id", conditions, "t.account_id = s.account_id AND t.resource_id = s.id")
    }

    /// The ids of others' that this grantee may use. Their tags are nobody's but the owner's, so no condition on tags is met.
    fn others(
        &self,
        query: Statement<Row>,
        grantee: &str,
        range: Range<'_>,
        conditions: &[Condition],
    ) -> Statement<Row> {
        let query = query
            .sql("(SELECT s.id FROM snapshot_permissions p JOIN snapshots s ON s.id = p.snapshot_id WHERE p.grantee = ")
            .text(grantee)
            .sql(" AND s.state <> 'deleting' AND s.account_id <> ")
            .text(self.account_id);
        let query = match &self.owners {
            Some(owners) => query.sql(" AND s.account_id = ANY(").texts(owners).sql(")"),
            None => query,
        };
        range.of(query, "p.snapshot_id", conditions, "false")
    }
}

impl Range<'_> {
    /// Ends the statement of a part: `id` is what its index goes by, `tags` tells which are the tags of one.
    fn of(
        self,
        query: Statement<Row>,
        id: &'static str,
        conditions: &[Condition],
        tags: &'static str,
    ) -> Statement<Row> {
        let query = query.sql(" AND ").sql(id);
        let query = match self {
            Self::These(ids) => query.one_of(ids),
            Self::Page { after, .. } => query.sql(" > ").text(after),
        };
        let query = query.conditions(conditions, tags);
        match self {
            Self::These(_) => query.sql(")"),
            Self::Page { limit, .. } => query.sql(" ORDER BY ").sql(id).sql(" LIMIT ").number(limit).sql(")"),
        }
    }
}

/// The snapshots of these ids that are in scope. Who is missing is not there.
pub async fn by_ids(
    conn: &mut Conn,
    scope: &Scope<'_>,
    ids: &[SnapshotId],
    conditions: &[Condition],
) -> Result<Vec<DescribedSnapshot>> {
    Ok(scope.statement(Range::These(ids), conditions).load(conn).await?)
}

/// Snapshots in scope behind `after`, at most `limit`.
pub async fn page<'a>(
    conn: &'a mut Conn,
    scope: &Scope<'_>,
    after: Option<&str>,
    limit: i64,
    conditions: &[Condition],
) -> Result<Rows<'a, DescribedSnapshot>> {
    let range = Range::Page { after: after.unwrap_or_default(), limit };
    scope.statement(range, conditions).rows(conn).await
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

/// Which of these ids the account may see: its own, and what is shared with it.
pub async fn visible(conn: &mut Conn, account_id: &str, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
    let query: Statement<Text> = Statement::new("SELECT s.id FROM snapshots s WHERE s.id")
        .one_of(ids)
        .sql(" AND s.state <> 'deleting' AND (s.account_id = ")
        .text(account_id)
        .sql(" OR EXISTS (SELECT FROM snapshot_permissions p WHERE p.snapshot_id = s.id AND p.grantee IN (")
        .text(account_id)
        .sql(", 'all')))");
    Ok(query.load(conn).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::statement::{Subject, Values};
    use diesel::pg::Pg;

    #[test]
    fn a_filter_on_tags_looks_at_the_tags_of_the_callers_own_snapshots_only() {
        let scope = Scope { account_id: "1", own: Own::All, granted: true, public: false, owners: None };
        let values = Values { exact: vec!["v".into()], like: vec![] };
        let conditions = [Condition { subject: Subject::Tag("k".into()), values }];
        let query = scope.statement(Range::Page { after: "", limit: 5 }, &conditions);
        let text = diesel::debug_query::<Pg, _>(&query).to_string();
        let (own, others) = text.split_once(" UNION ").unwrap();
        assert!(own.contains("t.resource_id = s.id AND t.key"), "{own}");
        assert!(others.contains("tags t WHERE false AND t.key"), "{others}");
    }
}
