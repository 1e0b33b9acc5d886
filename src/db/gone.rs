//! What was ours on a node and is over, so that what is left of it there can be told from what is another's.
//!
//! A volume's row is kept for a day after its deletion, a snapshot's not at all; but a node may have been away for weeks, or
//! restored from a backup. The names here are never used again, so a name that a node has and that is here is ours to take back.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::gone;
use super::{Conn, Result};
use crate::ids::VolumeId;

/// Records that a volume, a snapshot or a target of this name is over, of which a node may have something left.
pub async fn remember(conn: &mut Conn, name: &str, volume: &VolumeId, node: &str) -> Result<()> {
    diesel::insert_into(gone::table)
        .values((gone::name.eq(name), gone::volume_id.eq(volume), gone::node.eq(node)))
        .on_conflict(gone::name)
        .do_update()
        .set(gone::gone_at.eq(diesel::dsl::now))
        .execute(conn)
        .await?;
    Ok(())
}

/// Of these names, those of what was on this node and is over, with the volumes.
pub async fn among(conn: &mut Conn, node: &str, names: &[&str]) -> Result<Vec<(String, VolumeId)>> {
    let known = gone::name.eq_any(names).and(gone::node.eq(node));
    Ok(gone::table.filter(known).select((gone::name, gone::volume_id)).load(conn).await?)
}

/// Of these volumes, those that were ours and are deleted.
pub async fn volumes_among(conn: &mut Conn, ids: &[&str]) -> Result<Vec<VolumeId>> {
    let deleted = gone::name.eq_any(ids).and(gone::name.eq(gone::volume_id));
    Ok(gone::table.filter(deleted).select(gone::volume_id).load(conn).await?)
}

/// Whether this was on this node, was this volume's, and is over.
pub async fn is_known(conn: &mut Conn, name: &str, volume: &VolumeId, node: &str) -> Result<bool> {
    let known = gone::table.filter(gone::name.eq(name).and(gone::volume_id.eq(volume)).and(gone::node.eq(node)));
    Ok(diesel::select(diesel::dsl::exists(known)).get_result(conn).await?)
}

/// Forgets what has been over for more than a year.
pub async fn purge(conn: &mut Conn) -> Result<usize> {
    Ok(diesel::sql_query("DELETE FROM gone WHERE gone_at < now() - interval '1 year'").execute(conn).await?)
}
