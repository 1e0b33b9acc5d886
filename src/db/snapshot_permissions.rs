//! Who besides its owner may make volumes and copies of a snapshot.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::snapshot_permissions as table;
use super::{Conn, Result};
use crate::ids::SnapshotId;

/// The grantee that stands for every account.
pub const EVERYBODY: &str = "all";

/// Who may, sorted: accounts, and perhaps [`EVERYBODY`].
pub async fn of(conn: &mut Conn, snapshot: &SnapshotId) -> Result<Vec<String>> {
    let granted = table::table.filter(table::snapshot_id.eq(snapshot));
    Ok(granted.select(table::grantee).order(table::grantee).load(conn).await?)
}

/// Whether the snapshot is shared with the account, by name or with everybody.
pub async fn is_granted(conn: &mut Conn, snapshot: &SnapshotId, account_id: &str) -> Result<bool> {
    let named = table::grantee.eq_any([account_id, EVERYBODY]);
    let granted = table::table.filter(table::snapshot_id.eq(snapshot).and(named));
    Ok(diesel::select(diesel::dsl::exists(granted)).get_result(conn).await?)
}

/// Lets these use the snapshot; who may already still may.
pub async fn grant(conn: &mut Conn, snapshot: &SnapshotId, grantees: &[String]) -> Result<()> {
    let rows: Vec<_> =
        grantees.iter().map(|grantee| (table::snapshot_id.eq(snapshot), table::grantee.eq(grantee))).collect();
    diesel::insert_into(table::table).values(rows).on_conflict_do_nothing().execute(conn).await?;
    Ok(())
}

/// Takes that from these.
pub async fn revoke(conn: &mut Conn, snapshot: &SnapshotId, grantees: &[String]) -> Result<()> {
    let theirs = table::table.filter(table::snapshot_id.eq(snapshot).and(table::grantee.eq_any(grantees)));
    diesel::delete(theirs).execute(conn).await?;
    Ok(())
}

/// Takes it from all.
pub async fn revoke_all(conn: &mut Conn, snapshot: &SnapshotId) -> Result<()> {
    diesel::delete(table::table.filter(table::snapshot_id.eq(snapshot))).execute(conn).await?;
    Ok(())
}

/// How many may.
pub async fn count(conn: &mut Conn, snapshot: &SnapshotId) -> Result<i64> {
    Ok(table::table.filter(table::snapshot_id.eq(snapshot)).count().get_result(conn).await?)
}
