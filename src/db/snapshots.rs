//! Snapshots.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::snapshots;
use super::{Conn, Result, tags};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::SnapshotState;

/// A snapshot.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = snapshots, check_for_backend(diesel::pg::Pg))]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub account_id: String,
    /// The volume it is of, which may be gone.
    pub volume_id: VolumeId,
    /// The size of that volume in GiB.
    pub volume_size_gib: i32,
    /// The storage node that has it.
    pub node: String,
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
}

/// The snapshot, whatever its state. For workers: no account is asked for.
pub async fn find(conn: &mut Conn, id: &SnapshotId) -> Result<Option<Snapshot>> {
    Ok(snapshots::table.find(id).select(Snapshot::as_select()).first(conn).await.optional()?)
}

/// The snapshots of a node.
pub async fn of_node(conn: &mut Conn, node: &str) -> Result<Vec<Snapshot>> {
    Ok(snapshots::table.filter(snapshots::node.eq(node)).select(Snapshot::as_select()).load(conn).await?)
}

/// The snapshot, held so that nobody deletes it before the transaction ends.
pub async fn find_for_share(conn: &mut Conn, id: &SnapshotId) -> Result<Option<Snapshot>> {
    Ok(snapshots::table.find(id).select(Snapshot::as_select()).for_share().first(conn).await.optional()?)
}

/// A snapshot that is being asked for.
#[derive(Debug, Clone, Copy, Insertable)]
#[diesel(table_name = snapshots, check_for_backend(diesel::pg::Pg))]
#[allow(missing_docs, reason = "the fields are those of Snapshot")]
pub struct NewSnapshot<'a> {
    pub id: &'a SnapshotId,
    pub account_id: &'a str,
    pub volume_id: &'a VolumeId,
    pub volume_size_gib: i32,
    pub node: &'a str,
    pub description: &'a str,
    pub state: SnapshotState,
}

/// Stores a new snapshot.
pub async fn insert(conn: &mut Conn, new: &NewSnapshot<'_>) -> Result<Snapshot> {
    Ok(diesel::insert_into(snapshots::table).values(new).returning(Snapshot::as_returning()).get_result(conn).await?)
}

/// How many snapshots of the volume are being taken.
pub async fn count_pending(conn: &mut Conn, volume: &VolumeId) -> Result<i64> {
    Ok(snapshots::table
        .filter(snapshots::volume_id.eq(volume).and(snapshots::state.eq(SnapshotState::Pending)))
        .count()
        .get_result(conn)
        .await?)
}

/// The snapshot, its row locked until the transaction ends.
pub async fn hold(conn: &mut Conn, id: &SnapshotId) -> Result<Option<Snapshot>> {
    let row = snapshots::table.find(id).select(Snapshot::as_select()).for_no_key_update().first(conn).await;
    Ok(row.optional()?)
}

/// Records how much of a pending snapshot stands apart from its volume, in per cent. It never falls.
pub async fn set_progress(conn: &mut Conn, id: &SnapshotId, progress: u8) -> Result<()> {
    let progress = i32::from(progress);
    let behind = snapshots::state.eq(SnapshotState::Pending).and(snapshots::progress.lt(progress));
    diesel::update(snapshots::table.find(id).filter(behind))
        .set(snapshots::progress.eq(progress))
        .execute(conn)
        .await?;
    Ok(())
}

/// Records that a pending snapshot is whole. One whose deletion was asked for meanwhile stays `deleting`.
pub async fn set_completed(conn: &mut Conn, id: &SnapshotId, data_bytes: i64) -> Result<()> {
    diesel::update(snapshots::table.find(id).filter(snapshots::state.eq(SnapshotState::Pending)))
        .set((
            snapshots::state.eq(SnapshotState::Completed),
            snapshots::progress.eq(100),
            snapshots::completed_at.eq(diesel::dsl::now),
            snapshots::data_bytes.eq(data_bytes),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Records that a snapshot could not be made.
pub async fn set_error(conn: &mut Conn, id: &SnapshotId, reason: &str) -> Result<()> {
    diesel::update(snapshots::table.find(id))
        .set((snapshots::state.eq(SnapshotState::Error), snapshots::state_reason.eq(reason)))
        .execute(conn)
        .await?;
    Ok(())
}

/// Marks a snapshot as being deleted; tells whether it was not yet. From then on nobody sees it any more, nor its tags.
pub async fn set_deleting(conn: &mut Conn, id: &SnapshotId) -> Result<bool> {
    let rows = diesel::update(snapshots::table.find(id).filter(snapshots::state.ne(SnapshotState::Deleting)))
        .set(snapshots::state.eq(SnapshotState::Deleting))
        .execute(conn)
        .await?;
    tags::delete_of_resource(conn, id.as_str()).await?;
    Ok(rows == 1)
}

/// Forgets a snapshot that is gone from its node.
pub async fn delete(conn: &mut Conn, id: &SnapshotId) -> Result<()> {
    diesel::delete(snapshots::table.find(id)).execute(conn).await?;
    tags::delete_of_resource(conn, id.as_str()).await
}
