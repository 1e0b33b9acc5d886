//! Tags as DescribeTags lists them, and what CreateTags and DeleteTags do to them.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::statement::{Condition, Rows, Statement};
use super::{Conn, Result};
use crate::ids::{InstanceId, SnapshotId, VolumeId};

/// A tag with the resource it is on.
#[derive(Debug, Clone, PartialEq, Eq, Queryable)]
pub struct DescribedTag {
    /// The resource's id.
    pub resource_id: String,
    /// `volume`, `snapshot` or `instance`.
    pub resource_type: String,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Tags of the account behind the pair `after` of resource and key, at most `limit`.
pub async fn page<'a>(
    conn: &'a mut Conn,
    account_id: &str,
    after: Option<(&str, &str)>,
    limit: i64,
    conditions: &[Condition],
) -> Result<Rows<'a, DescribedTag>> {
    let (resource_id, key) = after.unwrap_or_default();
    let query: Statement<(Text, Text, Text, Text)> =
        Statement::new("SELECT g.resource_id, g.resource_type, g.key, g.value FROM tags g WHERE g.account_id = ")
            .text(account_id)
            .sql(" AND (g.resource_id, g.key) > (")
            .text(resource_id)
            .sql(", ")
            .text(key)
            .sql(")")
            .conditions(conditions, "false")
            .sql(" ORDER BY g.resource_id, g.key LIMIT ")
            .number(limit);
    query.rows(conn).await
}

/// Puts tags on a resource that is being made.
pub async fn insert(
    conn: &mut Conn,
    account_id: &str,
    resource_type: &str,
    resource_id: &str,
    new: &BTreeMap<String, String>,
) -> Result<()> {
    if new.is_empty() {
        return Ok(());
    }
    put(conn, account_id, resource_type, &[resource_id], new).await
}

/// Puts tags on resources; a tag that is there gets the new value.
pub async fn put(
    conn: &mut Conn,
    account_id: &str,
    resource_type: &str,
    resource_ids: &[&str],
    new: &BTreeMap<String, String>,
) -> Result<()> {
    let (keys, values): (Vec<&str>, Vec<&str>) = new.iter().map(|(key, value)| (key.as_str(), value.as_str())).unzip();
    diesel::sql_query(
        "INSERT INTO tags (resource_id, key, value, account_id, resource_type) \
         SELECT r.id, t.key, t.value, $1, $2 FROM unnest($3) AS r (id), unnest($4, $5) AS t (key, value) \
         ON CONFLICT (resource_id, key) DO UPDATE SET value = excluded.value",
    )
    .bind::<Text, _>(account_id)
    .bind::<Text, _>(resource_type)
    .bind::<Array<Text>, _>(resource_ids)
    .bind::<Array<Text>, _>(keys)
    .bind::<Array<Text>, _>(values)
    .execute(conn)
    .await?;
    Ok(())
}

/// Holds resources of the account until the transaction ends, in one order for all callers.
pub async fn hold(
    conn: &mut Conn,
    account_id: &str,
    volume_ids: &[VolumeId],
    snapshot_ids: &[SnapshotId],
    instance_ids: &[InstanceId],
) -> Result<()> {
    use super::schema::{instances, snapshots, volumes};
    if !volume_ids.is_empty() {
        let these = volumes::table.filter(volumes::account_id.eq(account_id).and(volumes::id.eq_any(volume_ids)));
        these.select(volumes::id).order(volumes::id).for_no_key_update().load::<VolumeId>(conn).await?;
    }
    if !snapshot_ids.is_empty() {
        let these =
            snapshots::table.filter(snapshots::account_id.eq(account_id).and(snapshots::id.eq_any(snapshot_ids)));
        these.select(snapshots::id).order(snapshots::id).for_no_key_update().load::<SnapshotId>(conn).await?;
    }
    if !instance_ids.is_empty() {
        let these =
            instances::table.filter(instances::account_id.eq(account_id).and(instances::id.eq_any(instance_ids)));
        these.select(instances::id).order(instances::id).for_no_key_update().load::<InstanceId>(conn).await?;
    }
    Ok(())
}

/// The most tags that any of these resources has.
pub async fn most(conn: &mut Conn, resource_ids: &[&str]) -> Result<i64> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        most: i64,
    }
    let row: Row = diesel::sql_query(
        "SELECT coalesce(max(n), 0) AS most FROM \
         (SELECT count(*) AS n FROM tags WHERE resource_id = ANY($1) GROUP BY resource_id) c",
    )
    .bind::<Array<Text>, _>(resource_ids)
    .get_result(conn)
    .await?;
    Ok(row.most)
}

/// Takes tags off resources: by key, and with a value only where it is that.
pub async fn remove(conn: &mut Conn, resource_ids: &[&str], tags: &BTreeSet<(String, Option<String>)>) -> Result<()> {
    let (keys, values): (Vec<&str>, Vec<Option<&str>>) =
        tags.iter().map(|(key, value)| (key.as_str(), value.as_deref())).unzip();
    diesel::sql_query(
        "DELETE FROM tags g USING unnest($2, $3) AS t (key, value) \
         WHERE g.resource_id = ANY($1) AND g.key = t.key AND (t.value IS NULL OR g.value = t.value)",
    )
    .bind::<Array<Text>, _>(resource_ids)
    .bind::<Array<Text>, _>(keys)
    .bind::<Array<Nullable<Text>>, _>(values)
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes all tags off resources.
pub async fn remove_all(conn: &mut Conn, resource_ids: &[&str]) -> Result<()> {
    use super::schema::tags as table;
    diesel::delete(table::table.filter(table::resource_id.eq_any(resource_ids))).execute(conn).await?;
    Ok(())
}
