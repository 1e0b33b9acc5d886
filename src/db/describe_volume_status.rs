//! Volumes as DescribeVolumeStatus shows them: with what is known of their health, in one statement.
//!
//! What is known is whether the storage node answered when a gateway last asked it (table `nodes`), and had the volume then. A node
//! that is silent leaves open how its volumes are, and one that does not have a volume may have mounted a disk late; when either has
//! lasted for long, the volume is taken for impaired.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Int4, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::statement::{Condition, Rows, Statement};
use super::{Conn, Result};
use crate::ids::VolumeId;
use crate::state::VolumeState;

/// A volume's health.
#[derive(Debug, Clone, Queryable)]
pub struct DescribedStatus {
    /// The volume.
    pub id: VolumeId,
    /// Its zone.
    pub zone: String,
    /// Its size in GiB.
    pub size_gib: i32,
    /// MiB a second asked for the first reading of the snapshot.
    pub initialization_rate: Option<i32>,
    /// The instances that have it.
    pub instance_ids: Vec<String>,
    /// `ok`, `insufficient-data` or `impaired`.
    pub status: String,
    /// Whether it can be read and written: `passed`, or `insufficient-data`.
    pub io_enabled: String,
    /// How fast: `stalled`, or `not-applicable`, since nobody measures it.
    pub io_performance: String,
    /// How far it is read from its snapshot, if it was made from one: `initializing` or `completed`.
    pub initialization: Option<String>,
    /// The event that impairs it, if one does; the next fields go with it.
    pub event_id: Option<String>,
    /// What kind of event that is.
    pub event_type: Option<String>,
    /// In a word.
    pub event_description: Option<String>,
    /// Since when.
    pub event_not_before: Option<DateTime<Utc>>,
}

type Row = (
    Text,
    Text,
    Int4,
    Nullable<Int4>,
    Array<Text>,
    Text,
    Text,
    Text,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Timestamptz>,
);

/// Nothing looks at tags here; conditions use the columns of [`SELECT`]'s `s`.
const TAGS: &str = "false";

/// The five minutes are the time for which a silence may be a restart. The instances are looked for row by row: a join would be
/// merged, and walk through all attachments for a page at the end.
const SELECT: &str = "SELECT s.id, s.zone, s.size_gib, s.initialization_rate, s.instance_ids, s.status, s.io_enabled, \
    s.io_performance, s.initialization, s.event_id, s.event_type, s.event_description, s.event_not_before FROM ( \
        SELECT v.id, v.account_id, v.zone, v.size_gib, v.initialization_rate, h.status, \
        ARRAY(SELECT instance_id FROM attachments WHERE volume_id = v.id AND attachments.state <> 'detached' \
            ORDER BY attached_at, attachments.id) AS instance_ids, \
        CASE h.status WHEN 'ok' THEN 'passed' ELSE 'insufficient-data' END AS io_enabled, \
        CASE h.status WHEN 'impaired' THEN 'stalled' ELSE 'not-applicable' END AS io_performance, \
        CASE WHEN v.snapshot_id IS NULL THEN NULL WHEN v.state = 'creating' THEN 'initializing' ELSE 'completed' END \
            AS initialization, \
        CASE h.status WHEN 'impaired' THEN 'evol-' || left(md5(v.id || h.since::text), 17) END AS event_id, \
        CASE h.status WHEN 'impaired' THEN 'io-performance:stalled' END AS event_type, \
        CASE h.status WHEN 'impaired' THEN 'Stalled' END AS event_description, \
        CASE h.status WHEN 'impaired' THEN h.since END AS event_not_before \
        FROM volumes v \
        LEFT JOIN nodes n ON n.name = v.node \
        CROSS JOIN LATERAL (SELECT CASE WHEN n.error IS NULL THEN v.missing_since \
            ELSE least(n.answered_at, v.missing_since) END AS since) t \
        CROSS JOIN LATERAL (SELECT t.since, CASE WHEN n.answered_at IS NULL THEN 'insufficient-data' \
            WHEN t.since IS NULL THEN 'ok' WHEN t.since < now() - interval '5 minutes' THEN 'impaired' \
            ELSE 'insufficient-data' END AS status) h \
        WHERE v.state NOT IN ('deleting', 'deleted') \
    ) s WHERE s.account_id = ";

/// The health of those of these volumes that the account has.
pub async fn by_ids(
    conn: &mut Conn,
    account_id: &str,
    ids: &[VolumeId],
    conditions: &[Condition],
) -> Result<Vec<DescribedStatus>> {
    let query: Statement<Row> = Statement::new(SELECT)
        .text(account_id)
        .sql(" AND s.id")
        .one_of(ids)
        .conditions(conditions, TAGS)
        .sql(" ORDER BY s.id");
    Ok(query.load(conn).await?)
}

/// The health of the account's volumes behind `after`, at most `limit`.
pub async fn page<'a>(
    conn: &'a mut Conn,
    account_id: &str,
    after: Option<&str>,
    limit: i64,
    conditions: &[Condition],
) -> Result<Rows<'a, DescribedStatus>> {
    let query: Statement<Row> = Statement::new(SELECT)
        .text(account_id)
        .sql(" AND s.id > ")
        .text(after.unwrap_or_default())
        .conditions(conditions, TAGS)
        .sql(" ORDER BY s.id LIMIT ")
        .number(limit);
    query.rows(conn).await
}

/// Which of these volumes the account has, those that are being deleted left out.
pub async fn existing(conn: &mut Conn, account_id: &str, ids: &[VolumeId]) -> Result<Vec<VolumeId>> {
    use super::schema::volumes;
    let gone = [VolumeState::Deleting, VolumeState::Deleted];
    Ok(volumes::table
        .filter(volumes::account_id.eq(account_id).and(volumes::id.eq_any(ids)))
        .filter(volumes::state.ne_all(gone))
        .select(volumes::id)
        .load(conn)
        .await?)
}
