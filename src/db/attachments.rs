//! Attachments.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::schema::{attachments, instances, volumes};
use super::{Conn, Result};
use crate::ids::{InstanceId, VolumeId};
use crate::state::{AttachmentState, InstanceState};

/// An attachment.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = attachments, check_for_backend(diesel::pg::Pg))]
pub struct Attachment {
    /// Names the row; no caller ever sees it.
    pub id: Uuid,
    /// Whose the volume is.
    pub account_id: String,
    /// The volume.
    pub volume_id: VolumeId,
    /// The instance.
    pub instance_id: InstanceId,
    /// The device name, as the caller wrote it.
    pub device: String,
    /// Its state.
    pub state: AttachmentState,
    /// Whether the volume goes with the instance.
    pub delete_on_termination: bool,
    /// Whether the caller asked to take the disk away from a guest that holds on to it.
    pub force: bool,
    /// The target's name.
    pub iqn: String,
    /// The logical unit.
    pub lun: i32,
    /// The CHAP user.
    pub chap_user: String,
    /// See [`crate::seal`]; the row id is this row's `id`.
    pub sealed_chap_secret: Vec<u8>,
    /// The initiator that may log in.
    pub initiator_iqn: String,
    /// When it was asked for.
    pub attached_at: DateTime<Utc>,
    /// Whether the volume may have others beside it.
    pub multi_attach: bool,
}

/// Where the two ends of an attachment are, and what goes between them.
#[derive(Debug, Clone, Queryable)]
pub struct Ends {
    /// The storage node.
    pub volume_node: String,
    /// The hypervisor node.
    pub vmm_node: String,
    /// The machine, by the name that the node itself uses.
    pub machine: String,
    /// Tells it from another machine of that name.
    pub machine_uuid: String,
    /// The machine's state.
    pub instance_state: InstanceState,
    /// The initiator that logs in for the machine now.
    pub initiator_iqn: String,
    /// The volume's type.
    pub volume_type: String,
    /// The volume's IOPS.
    pub iops: Option<i32>,
    /// The volume's throughput in MiB/s.
    pub throughput: Option<i32>,
}

/// An attachment with its two ends.
pub type Located = (Attachment, Ends);

type EndsColumns = (
    volumes::node,
    instances::node,
    instances::machine,
    instances::machine_uuid,
    instances::state,
    instances::initiator_iqn,
    volumes::volume_type,
    volumes::iops,
    volumes::throughput,
);

const ENDS: EndsColumns = (
    volumes::node,
    instances::node,
    instances::machine,
    instances::machine_uuid,
    instances::state,
    instances::initiator_iqn,
    volumes::volume_type,
    volumes::iops,
    volumes::throughput,
);

/// The attachment, whatever its state, with its two ends.
pub async fn find(conn: &mut Conn, id: Uuid) -> Result<Option<Located>> {
    Ok(attachments::table
        .inner_join(volumes::table)
        .inner_join(instances::table)
        .filter(attachments::id.eq(id))
        .select((Attachment::as_select(), ENDS))
        .first(conn)
        .await
        .optional()?)
}

/// The names of the targets of a volume's live attachments.
pub async fn live_iqns(conn: &mut Conn, volume: &VolumeId) -> Result<Vec<String>> {
    let live = attachments::volume_id.eq(volume).and(attachments::state.ne(AttachmentState::Detached));
    Ok(attachments::table.filter(live).order(attachments::iqn).select(attachments::iqn).load(conn).await?)
}

/// The live attachments of a volume, in the order they were asked for, with their two ends.
pub async fn live_of_volume(conn: &mut Conn, volume: &VolumeId) -> Result<Vec<Located>> {
    Ok(attachments::table
        .inner_join(volumes::table)
        .inner_join(instances::table)
        .filter(attachments::volume_id.eq(volume).and(attachments::state.ne(AttachmentState::Detached)))
        .order((attachments::attached_at, attachments::id))
        .select((Attachment::as_select(), ENDS))
        .load(conn)
        .await?)
}

/// The live attachments of an instance, by device.
pub async fn live_of_instance(conn: &mut Conn, instance: &InstanceId) -> Result<Vec<Attachment>> {
    Ok(attachments::table
        .filter(attachments::instance_id.eq(instance).and(attachments::state.ne(AttachmentState::Detached)))
        .order(attachments::device_key)
        .select(Attachment::as_select())
        .load(conn)
        .await?)
}

/// The attachments of instances that are gone for good which nobody has begun to end.
pub async fn of_the_terminated(conn: &mut Conn) -> Result<Vec<(Uuid, VolumeId)>> {
    let begun = [AttachmentState::Attaching, AttachmentState::Attached];
    Ok(attachments::table
        .inner_join(instances::table)
        .filter(instances::state.eq(InstanceState::Terminated).and(attachments::state.eq_any(begun)))
        .select((attachments::id, attachments::volume_id))
        .load(conn)
        .await?)
}

/// Sets whether the volume goes with the instance.
pub async fn set_delete_on_termination(conn: &mut Conn, id: Uuid, delete: bool) -> Result<()> {
    diesel::update(attachments::table.find(id))
        .set(attachments::delete_on_termination.eq(delete))
        .execute(conn)
        .await?;
    Ok(())
}

/// Every attachment that is `attached` with an end on one of these nodes, with its two ends: what the nodes must hold up.
pub async fn attached_on(conn: &mut Conn, storage: &[&str], hypervisors: &[&str]) -> Result<Vec<Located>> {
    Ok(attachments::table
        .inner_join(volumes::table)
        .inner_join(instances::table)
        .filter(attachments::state.eq(AttachmentState::Attached))
        .filter(volumes::node.eq_any(storage).or(instances::node.eq_any(hypervisors)))
        .select((Attachment::as_select(), ENDS))
        .load(conn)
        .await?)
}

/// Of these names of targets, those that were made for attachments which are over, with their volumes. One that is not known,
/// or not any more, is not among them.
pub async fn ended(conn: &mut Conn, iqns: &[&str]) -> Result<Vec<(String, VolumeId)>> {
    let over = attachments::iqn.eq_any(iqns).and(attachments::state.eq(AttachmentState::Detached));
    Ok(attachments::table.filter(over).select((attachments::iqn, attachments::volume_id)).load(conn).await?)
}

/// The attachment of a volume that was made with this name of a target, whatever its state, with its two ends.
pub async fn find_by_iqn(conn: &mut Conn, volume: &VolumeId, iqn: &str) -> Result<Option<Located>> {
    Ok(attachments::table
        .inner_join(volumes::table)
        .inner_join(instances::table)
        .filter(attachments::iqn.eq(iqn).and(attachments::volume_id.eq(volume)))
        .select((Attachment::as_select(), ENDS))
        .first(conn)
        .await
        .optional()?)
}

/// Lets another initiator log in to an attachment that is `attached`.
pub async fn set_initiator(conn: &mut Conn, id: Uuid, initiator_iqn: &str) -> Result<()> {
    diesel::update(attachments::table.find(id).filter(attachments::state.eq(AttachmentState::Attached)))
        .set(attachments::initiator_iqn.eq(initiator_iqn))
        .execute(conn)
        .await?;
    Ok(())
}

/// Where a target belongs.
#[derive(Debug, Clone, Queryable)]
pub struct Place {
    /// The volume behind it.
    pub volume: VolumeId,
    /// The storage node that serves it.
    pub volume_node: String,
    /// The hypervisor node that is logged in to it.
    pub vmm_node: String,
    /// The machine that has it as a disk.
    pub machine_uuid: String,
}

/// Of these names of targets, those of live attachments, and where they belong.
pub async fn live_among(conn: &mut Conn, iqns: &[&str]) -> Result<HashMap<String, Place>> {
    let found: Vec<(String, Place)> = attachments::table
        .inner_join(volumes::table)
        .inner_join(instances::table)
        .filter(attachments::iqn.eq_any(iqns).and(attachments::state.ne(AttachmentState::Detached)))
        .select((attachments::iqn, (volumes::id, volumes::node, instances::node, instances::machine_uuid)))
        .load(conn)
        .await?;
    Ok(found.into_iter().collect())
}

/// An attachment that is being asked for.
#[derive(Debug, Clone, Copy, Insertable)]
#[diesel(table_name = attachments, check_for_backend(diesel::pg::Pg))]
#[allow(missing_docs, reason = "the fields are those of Attachment")]
pub struct NewAttachment<'a> {
    pub id: Uuid,
    pub account_id: &'a str,
    pub volume_id: &'a VolumeId,
    pub instance_id: &'a InstanceId,
    pub device: &'a str,
    /// The one form that all spellings of the device's name share.
    pub device_key: &'a str,
    pub state: AttachmentState,
    pub iqn: &'a str,
    pub lun: i32,
    pub chap_user: &'a str,
    pub sealed_chap_secret: &'a [u8],
    pub initiator_iqn: &'a str,
    pub multi_attach: bool,
}

/// Stores a new attachment. `None`, and nothing done, when the device has a live one, or the volume has one that may not be
/// beside it.
pub async fn insert(conn: &mut Conn, new: &NewAttachment<'_>) -> Result<Option<Attachment>> {
    Ok(diesel::insert_into(attachments::table)
        .values(new)
        .on_conflict_do_nothing()
        .returning(Attachment::as_returning())
        .get_result(conn)
        .await
        .optional()?)
}

/// The volumes that are attached to an instance, or being attached or detached, in the order of their ids.
pub async fn volumes_of_instance(conn: &mut Conn, instance: &InstanceId) -> Result<Vec<VolumeId>> {
    Ok(attachments::table
        .filter(attachments::instance_id.eq(instance).and(attachments::state.ne(AttachmentState::Detached)))
        .select(attachments::volume_id)
        .order(attachments::volume_id)
        .load(conn)
        .await?)
}

/// The instances that have one of these volumes, with their nodes.
pub async fn hosts_of_volumes(conn: &mut Conn, volumes: &[VolumeId]) -> Result<Vec<(InstanceId, String)>> {
    Ok(attachments::table
        .inner_join(instances::table)
        .filter(attachments::volume_id.eq_any(volumes).and(attachments::state.ne(AttachmentState::Detached)))
        .select((instances::id, instances::node))
        .distinct()
        .load(conn)
        .await?)
}

/// How many live attachments the instance has.
pub async fn count_live_of_instance(conn: &mut Conn, instance: &InstanceId) -> Result<i64> {
    Ok(attachments::table
        .filter(attachments::instance_id.eq(instance).and(attachments::state.ne(AttachmentState::Detached)))
        .count()
        .get_result(conn)
        .await?)
}

/// Moves an attachment from one of the states given; tells whether it was in one of them.
pub async fn swap_state(conn: &mut Conn, id: Uuid, from: &[AttachmentState], to: AttachmentState) -> Result<bool> {
    let rows = diesel::update(attachments::table.find(id).filter(attachments::state.eq_any(from)))
        .set(attachments::state.eq(to))
        .execute(conn)
        .await?;
    Ok(rows == 1)
}

/// Asks for force on a detach that is under way; tells whether it is.
pub async fn set_force(conn: &mut Conn, id: Uuid) -> Result<bool> {
    let under_way = [AttachmentState::Detaching, AttachmentState::Busy];
    let rows = diesel::update(attachments::table.find(id).filter(attachments::state.eq_any(under_way)))
        .set(attachments::force.eq(true))
        .execute(conn)
        .await?;
    Ok(rows == 1)
}

/// Takes the detach of an attachment back, which is `attached` again; tells whether it was being detached.
pub async fn call_off_detach(conn: &mut Conn, id: Uuid) -> Result<bool> {
    let under_way = [AttachmentState::Detaching, AttachmentState::Busy];
    let rows = diesel::update(attachments::table.find(id).filter(attachments::state.eq_any(under_way)))
        .set((attachments::state.eq(AttachmentState::Attached), attachments::force.eq(false)))
        .execute(conn)
        .await?;
    Ok(rows == 1)
}

/// Records that an attachment is over, and why, when it never came about.
pub async fn set_detached(conn: &mut Conn, id: Uuid, reason: Option<&str>) -> Result<()> {
    diesel::update(attachments::table.find(id))
        .set((
            attachments::state.eq(AttachmentState::Detached),
            attachments::detached_at.eq(diesel::dsl::now),
            attachments::reason.eq(reason),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets attachments that ended more than a day ago.
pub async fn purge_detached(conn: &mut Conn) -> Result<usize> {
    Ok(diesel::sql_query("DELETE FROM attachments WHERE state = 'detached' AND detached_at < now() - interval '1 day'")
        .execute(conn)
        .await?)
}
