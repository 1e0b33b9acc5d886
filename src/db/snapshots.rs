//! Snapshots.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::schema::snapshots;
use super::statement::Statement;
use super::{Conn, Result, snapshot_permissions, tags};
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
    /// Those it is taken together with, of all volumes of an instance at one instant.
    pub set_id: Option<Uuid>,
    /// The lease under which all of them were cut; `None` until then.
    pub cut_generation: Option<i64>,
    /// What it is a copy of.
    pub source_id: Option<SnapshotId>,
}

/// The snapshot, whatever its state. For workers: no account is asked for.
pub async fn find(conn: &mut Conn, id: &SnapshotId) -> Result<Option<Snapshot>> {
    Ok(snapshots::table.find(id).select(Snapshot::as_select()).first(conn).await.optional()?)
}

/// The snapshots of a node.
pub async fn of_node(conn: &mut Conn, node: &str) -> Result<Vec<Snapshot>> {
    Ok(snapshots::table.filter(snapshots::node.eq(node)).select(Snapshot::as_select()).load(conn).await?)
}

/// The snapshot, if the account owns it or it is shared with it, held so that nobody deletes it before the transaction ends.
pub async fn find_usable(conn: &mut Conn, id: &SnapshotId, account_id: &str) -> Result<Option<Snapshot>> {
    let row = snapshots::table.find(id).select(Snapshot::as_select()).for_share().first(conn).await.optional()?;
    let Some(row) = row.filter(|row| row.state != SnapshotState::Deleting) else { return Ok(None) };
    let usable = row.account_id == account_id || snapshot_permissions::is_granted(conn, id, account_id).await?;
    Ok(usable.then_some(row))
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
    pub set_id: Option<Uuid>,
}

/// Stores a new snapshot.
pub async fn insert(conn: &mut Conn, new: &NewSnapshot<'_>) -> Result<Snapshot> {
    Ok(diesel::insert_into(snapshots::table).values(new).returning(Snapshot::as_returning()).get_result(conn).await?)
}

/// What a copy says it is of, as on EC2: no volume.
pub const NO_VOLUME: &str = "vol-ffffffff";

/// A copy that is being asked for.
#[derive(Debug, Clone, Copy, Insertable)]
#[diesel(table_name = snapshots, check_for_backend(diesel::pg::Pg))]
#[allow(missing_docs, reason = "the fields are those of Snapshot and of describe_snapshots::DescribedSnapshot")]
pub struct NewCopy<'a> {
    pub id: &'a SnapshotId,
    pub account_id: &'a str,
    pub volume_id: &'a str,
    pub volume_size_gib: i32,
    pub node: &'a str,
    pub description: &'a str,
    pub state: SnapshotState,
    pub status_message: Option<&'a str>,
    pub source_id: &'a SnapshotId,
    pub completion_minutes: Option<i32>,
}

/// Stores a new copy.
pub async fn insert_copy(conn: &mut Conn, new: &NewCopy<'_>) -> Result<()> {
    diesel::insert_into(snapshots::table).values(new).execute(conn).await?;
    Ok(())
}

/// How many copies of the account are being made.
pub async fn count_copying(conn: &mut Conn, account_id: &str) -> Result<i64> {
    let copying = snapshots::source_id.is_not_null().and(snapshots::state.eq(SnapshotState::Pending));
    Ok(snapshots::table.filter(snapshots::account_id.eq(account_id).and(copying)).count().get_result(conn).await?)
}

/// Whether a copy of this snapshot is being made.
pub async fn any_copying_from(conn: &mut Conn, source: &SnapshotId) -> Result<bool> {
    let copying = snapshots::source_id.eq(source).and(snapshots::state.eq(SnapshotState::Pending));
    Ok(diesel::select(diesel::dsl::exists(snapshots::table.filter(copying))).get_result(conn).await?)
}

/// How many snapshots of the volume are being taken.
pub async fn count_pending(conn: &mut Conn, volume: &VolumeId) -> Result<i64> {
    Ok(snapshots::table
        .filter(snapshots::volume_id.eq(volume).and(snapshots::state.eq(SnapshotState::Pending)))
        .count()
        .get_result(conn)
        .await?)
}

/// The snapshots of a set that are being taken, in the order of their ids.
pub async fn pending_of_set(conn: &mut Conn, set: Uuid) -> Result<Vec<Snapshot>> {
    let pending = snapshots::set_id.eq(set).and(snapshots::state.eq(SnapshotState::Pending));
    Ok(snapshots::table.filter(pending).order(snapshots::id).select(Snapshot::as_select()).load(conn).await?)
}

/// Whether any snapshot of a set does not stand apart from its volume yet.
pub async fn is_set_being_copied(conn: &mut Conn, set: Uuid) -> Result<bool> {
    let behind =
        snapshots::set_id.eq(set).and(snapshots::state.eq(SnapshotState::Pending)).and(snapshots::progress.lt(100));
    Ok(diesel::select(diesel::dsl::exists(snapshots::table.filter(behind))).get_result(conn).await?)
}

/// Records that what is being taken of a set is cut, all of it at one instant, under this lease.
pub async fn set_cut(conn: &mut Conn, set: Uuid, generation: i64) -> Result<()> {
    let pending = snapshots::set_id.eq(set).and(snapshots::state.eq(SnapshotState::Pending));
    diesel::update(snapshots::table.filter(pending))
        .set(snapshots::cut_generation.eq(generation))
        .execute(conn)
        .await?;
    Ok(())
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

/// Records that the deletion of a snapshot was given up. What is left of it nobody may read any more, but it can be deleted again.
pub async fn set_not_deleted(conn: &mut Conn, id: &SnapshotId, reason: &str) -> Result<()> {
    diesel::update(snapshots::table.find(id))
        .set((
            snapshots::state.eq(SnapshotState::Error),
            snapshots::state_reason.eq(reason),
            snapshots::status_message.eq("The snapshot could not be deleted."),
        ))
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

/// Forgets a snapshot that is gone from its node, but for its name ([`super::gone`]).
pub async fn delete(conn: &mut Conn, id: &SnapshotId) -> Result<()> {
    let statement: Statement<BigInt> =
        Statement::new("WITH ended AS (DELETE FROM snapshots WHERE id = ").text(id.as_str()).sql(
            " RETURNING id, volume_id, node), kept AS (INSERT INTO gone (name, volume_id, node) \
             SELECT id, volume_id, node FROM ended ON CONFLICT (name) DO UPDATE SET gone_at = now()) \
             SELECT count(*) FROM ended",
        );
    statement.get_result::<i64>(conn).await?;
    tags::delete_of_resource(conn, id.as_str()).await
}
