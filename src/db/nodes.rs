//! Nodes: what each last reported, and whether its operator wants anything new on it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::schema::{attachments, instances, nodes, snapshots, volumes};
use super::{Conn, Result};
use crate::state::{AttachmentState, VolumeState};

/// The kind of a storage node.
pub const STORAGE: &str = "storage";
/// The kind of a hypervisor node.
pub const HYPERVISOR: &str = "hypervisor";

/// A node as it last reported.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = nodes, check_for_backend(diesel::pg::Pg))]
pub struct Node {
    /// Its name, as the configuration has it or had it.
    pub name: String,
    /// [`STORAGE`] or [`HYPERVISOR`].
    pub kind: String,
    /// The zone it is in.
    pub zone: String,
    /// The names of its drivers, separated by commas.
    pub drivers: String,
    /// The bytes there are for volumes and snapshots; the largest number where there is no limit.
    pub capacity_bytes: Option<i64>,
    /// The bytes that can still be given to volumes.
    pub free_bytes: Option<i64>,
    /// Whether a new volume takes room only as it is written.
    pub sparse: bool,
    /// When it was asked for what it last answered.
    pub answered_at: Option<DateTime<Utc>>,
    /// Why it did not answer when it was last asked.
    pub error: Option<String>,
    /// Whether it gets nothing new.
    pub drained: bool,
}

/// What a node has just reported, or why it did not.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields are those of Node")]
pub struct Seen {
    pub name: String,
    pub kind: &'static str,
    pub zone: String,
    pub drivers: String,
    pub capacity_bytes: Option<i64>,
    pub free_bytes: Option<i64>,
    pub sparse: bool,
    pub error: Option<String>,
}

/// Records what was seen. When only time has passed nothing is written, unless the row is older than `every_s` seconds: each of
/// many gateways looks at every node. What a node that does not answer said before stays. `asked_at` is from before the nodes were
/// asked: what was made since may be missing in what they say.
pub async fn record(conn: &mut Conn, seen: &[Seen], asked_at: DateTime<Utc>, every_s: i32) -> Result<()> {
    let rows = serde_json::to_value(seen).map_err(|e| diesel::result::Error::SerializationError(e.into()))?;
    // Ordered, so that two gateways do not wait for each other.
    diesel::sql_query(
        "INSERT INTO nodes AS n (name, kind, zone, drivers, capacity_bytes, free_bytes, sparse, error, answered_at) \
         SELECT name, kind, zone, drivers, capacity_bytes, free_bytes, sparse, error, \
            CASE WHEN error IS NULL THEN $3 END \
         FROM jsonb_to_recordset($1) AS seen (name text, kind text, zone text, drivers text, capacity_bytes bigint, \
            free_bytes bigint, sparse boolean, error text) \
         ORDER BY name \
         ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, zone = excluded.zone, error = excluded.error, \
            drivers = CASE WHEN excluded.error IS NULL THEN excluded.drivers ELSE n.drivers END, \
            capacity_bytes = CASE WHEN excluded.error IS NULL THEN excluded.capacity_bytes ELSE n.capacity_bytes END, \
            free_bytes = CASE WHEN excluded.error IS NULL THEN excluded.free_bytes ELSE n.free_bytes END, \
            sparse = CASE WHEN excluded.error IS NULL THEN excluded.sparse ELSE n.sparse END, \
            answered_at = greatest(excluded.answered_at, n.answered_at) \
         WHERE (n.kind, n.zone, n.error) IS DISTINCT FROM (excluded.kind, excluded.zone, excluded.error) \
            OR excluded.error IS NULL AND (n.answered_at IS NULL OR n.answered_at < now() - make_interval(secs => $2) \
                OR (n.drivers, n.capacity_bytes, n.free_bytes, n.sparse) IS DISTINCT FROM \
                   (excluded.drivers, excluded.capacity_bytes, excluded.free_bytes, excluded.sparse))",
    )
    .bind::<diesel::sql_types::Jsonb, _>(rows)
    .bind::<Double, _>(f64::from(every_s))
    .bind::<Timestamptz, _>(asked_at)
    .execute(conn)
    .await?;
    Ok(())
}

/// All nodes that ever reported or were drained, by name.
pub async fn list(conn: &mut Conn) -> Result<Vec<Node>> {
    Ok(nodes::table.select(Node::as_select()).order(nodes::name).load(conn).await?)
}

/// What a gateway must know of a node to place something on it.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
#[allow(missing_docs, reason = "the fields are those of Node")]
pub struct Facts {
    #[diesel(sql_type = Text)]
    pub name: String,
    #[diesel(sql_type = Bool)]
    pub drained: bool,
    /// Whether it answered when it was last asked.
    #[diesel(sql_type = Bool)]
    pub answers: bool,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub free_bytes: Option<i64>,
    #[diesel(sql_type = Bool)]
    pub sparse: bool,
    /// How many seconds ago it was asked for that.
    #[diesel(sql_type = Nullable<Double>)]
    pub age_s: Option<f64>,
}

/// The facts of all nodes.
pub async fn facts(conn: &mut Conn) -> Result<Vec<Facts>> {
    let rows = diesel::sql_query(
        "SELECT name, drained, error IS NULL AS answers, free_bytes, sparse, \
         greatest(extract(epoch FROM now() - answered_at), 0)::double precision AS age_s FROM nodes",
    );
    Ok(rows.load(conn).await?)
}

/// The names of a node's drivers, separated by commas; none when it has never told.
pub async fn drivers(conn: &mut Conn, name: &str) -> Result<String> {
    let told = nodes::table.find(name).select(nodes::drivers).first(conn).await.optional()?;
    Ok(told.unwrap_or_default())
}

/// Drains a node, or takes that back, and tells every gateway.
pub async fn set_drained(conn: &mut Conn, name: &str, kind: &str, zone: &str, drained: bool) -> Result<()> {
    diesel::insert_into(nodes::table)
        .values((nodes::name.eq(name), nodes::kind.eq(kind), nodes::zone.eq(zone), nodes::drained.eq(drained)))
        .on_conflict(nodes::name)
        .do_update()
        .set(nodes::drained.eq(drained))
        .execute(conn)
        .await?;
    diesel::sql_query(format!("NOTIFY {CHANNEL}")).execute(conn).await?;
    Ok(())
}

/// Forgets a node; tells whether it was known.
pub async fn forget(conn: &mut Conn, name: &str) -> Result<bool> {
    Ok(diesel::delete(nodes::table.find(name)).execute(conn).await? == 1)
}

/// What gateways are told on when a node is drained or no longer.
pub const CHANNEL: &str = "vbs_nodes";

/// Asks to be told, on a connection kept for that.
pub async fn listen(conn: &mut Conn) -> Result<()> {
    diesel::sql_query(format!("LISTEN {CHANNEL}")).execute(conn).await?;
    Ok(())
}

/// How much of ours is on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Volumes that are not gone yet.
    pub volumes: i64,
    /// Snapshots.
    pub snapshots: i64,
    /// Live attachments to its machines.
    pub attachments: i64,
}

/// What is on each node that has anything.
pub async fn holdings(conn: &mut Conn) -> Result<BTreeMap<String, Holdings>> {
    use diesel::dsl::count_star;
    let mut held: BTreeMap<String, Holdings> = BTreeMap::new();
    let on_nodes: Vec<(String, i64)> = volumes::table
        .filter(volumes::state.ne(VolumeState::Deleted))
        .group_by(volumes::node)
        .select((volumes::node, count_star()))
        .load(conn)
        .await?;
    for (node, count) in on_nodes {
        held.entry(node).or_default().volumes = count;
    }
    let on_nodes: Vec<(String, i64)> =
        snapshots::table.group_by(snapshots::node).select((snapshots::node, count_star())).load(conn).await?;
    for (node, count) in on_nodes {
        held.entry(node).or_default().snapshots = count;
    }
    let on_nodes: Vec<(String, i64)> = attachments::table
        .inner_join(instances::table)
        .filter(attachments::state.ne(AttachmentState::Detached))
        .group_by(instances::node)
        .select((instances::node, count_star()))
        .load(conn)
        .await?;
    for (node, count) in on_nodes {
        held.entry(node).or_default().attachments = count;
    }
    Ok(held)
}
