//! Instances: the machines that VMM delegates report, each with an id that stays.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl};

use super::schema::{attachments, instances};
use super::{Conn, Result, tags};
use crate::ids::InstanceId;
use crate::state::{AttachmentState, InstanceState};

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = instances, check_for_backend(diesel::pg::Pg))]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The hypervisor node that has it.
    pub node: String,
    /// The zone it is in.
    pub zone: String,
    /// The name that the node itself uses.
    pub machine: String,
    /// Tells the machine from an earlier one of the same name.
    pub machine_uuid: String,
    /// Whose it is, if anybody's.
    pub account_id: Option<String>,
    /// As last reported.
    pub state: InstanceState,
    /// The initiator that logs in for it.
    pub initiator_iqn: String,
    /// Virtual processors.
    pub vcpus: i32,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// When the machine was started.
    pub launched_at: DateTime<Utc>,
}

/// What a machine is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Queryable)]
pub struct Shape {
    /// Virtual processors.
    pub vcpus: i32,
    /// Memory in MiB.
    pub memory_mib: i64,
}

impl Instance {
    /// What it is made of.
    pub fn shape(&self) -> Shape {
        Shape { vcpus: self.vcpus, memory_mib: self.memory_mib }
    }
}

/// The shapes of an account's machines, each once.
pub async fn shapes(conn: &mut Conn, account_id: &str) -> Result<Vec<Shape>> {
    Ok(instances::table
        .filter(instances::account_id.eq(account_id).and(instances::state.ne(InstanceState::Terminated)))
        .select((instances::vcpus, instances::memory_mib))
        .distinct()
        .load(conn)
        .await?)
}

/// The instance, whatever its state.
pub async fn find(conn: &mut Conn, id: &InstanceId) -> Result<Option<Instance>> {
    Ok(instances::table.find(id).select(Instance::as_select()).first(conn).await.optional()?)
}

/// The instances of a node that are not terminated.
pub async fn of_node(conn: &mut Conn, node: &str) -> Result<Vec<Instance>> {
    Ok(instances::table
        .filter(instances::node.eq(node).and(instances::state.ne(InstanceState::Terminated)))
        .select(Instance::as_select())
        .load(conn)
        .await?)
}

/// Stores a machine seen for the first time. Does nothing when another gateway was first.
pub async fn create(conn: &mut Conn, instance: &Instance) -> Result<()> {
    diesel::insert_into(instances::table).values(instance).on_conflict_do_nothing().execute(conn).await?;
    Ok(())
}

/// Stores what is new about a machine known already.
pub async fn update_seen(conn: &mut Conn, instance: &Instance) -> Result<()> {
    // The operator may just have said that it is gone for good.
    let living = instances::state.ne(InstanceState::Terminated);
    diesel::update(instances::table.find(&instance.id).filter(living))
        .set((
            instances::state.eq(instance.state),
            instances::machine.eq(&instance.machine),
            instances::initiator_iqn.eq(&instance.initiator_iqn),
            instances::vcpus.eq(instance.vcpus),
            instances::memory_mib.eq(instance.memory_mib),
            instances::launched_at.eq(instance.launched_at),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// The instance, held so that its owner and its state stay until the transaction ends. Who holds a volume too takes
/// that first.
pub async fn hold(conn: &mut Conn, id: &InstanceId) -> Result<Option<Instance>> {
    let row = instances::table.find(id).select(Instance::as_select()).for_no_key_update().first(conn).await;
    Ok(row.optional()?)
}

/// How a [`terminate`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminated {
    /// It is over, now or since before.
    Done,
    /// There is no such instance.
    NotFound,
    /// The machine runs.
    Running,
}

/// Records that a machine is gone for good. What that means for its volumes the sweeper sees to. Should a machine of the same
/// uuid be seen again, it is another instance. With `force` also one that ran when its node last answered, which may be gone
/// too.
pub async fn terminate(conn: &mut Conn, id: &InstanceId, force: bool) -> Result<Terminated> {
    conn.transaction(async |conn| {
        let Some(row) = hold(conn, id).await? else { return Ok(Terminated::NotFound) };
        match row.state {
            InstanceState::Terminated => return Ok(Terminated::Done),
            InstanceState::Running if !force => return Ok(Terminated::Running),
            InstanceState::Running | InstanceState::Stopped => {}
        }
        diesel::update(instances::table.find(id))
            .set((instances::state.eq(InstanceState::Terminated), instances::terminated_at.eq(diesel::dsl::now)))
            .execute(conn)
            .await?;
        Ok(Terminated::Done)
    })
    .await
}

/// Forgets instances that ended more than a day ago and have no attachment left, not even one that is over. Their tags go
/// too.
pub async fn purge_terminated(conn: &mut Conn) -> Result<()> {
    diesel::sql_query(
        "WITH gone AS (DELETE FROM instances i WHERE state = 'terminated' AND terminated_at < now() - interval '1 day' \
            AND NOT EXISTS (SELECT FROM attachments WHERE instance_id = i.id) RETURNING id) \
         DELETE FROM tags WHERE resource_id IN (SELECT id FROM gone)",
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// How an [`assign`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    /// The instance is the account's.
    Done,
    /// There is no such instance.
    NotFound,
    /// A volume of another account is attached to it.
    Occupied,
}

/// Gives an instance to an account. What another account knows of it must not pass to the new owner: its tags go, and while
/// a volume of another account is attached, nothing is done.
pub async fn assign(conn: &mut Conn, id: &InstanceId, account_id: &str) -> Result<Assigned> {
    conn.transaction(async |conn| {
        let Some(row) = hold(conn, id).await? else { return Ok(Assigned::NotFound) };
        if row.account_id.as_deref() == Some(account_id) {
            return Ok(Assigned::Done);
        }
        let others = attachments::table.filter(
            attachments::instance_id
                .eq(id)
                .and(attachments::state.ne(AttachmentState::Detached))
                .and(attachments::account_id.ne(account_id)),
        );
        if diesel::select(diesel::dsl::exists(others)).get_result(conn).await? {
            return Ok(Assigned::Occupied);
        }
        tags::delete_of_resource(conn, id.as_str()).await?;
        diesel::update(instances::table.find(id)).set(instances::account_id.eq(account_id)).execute(conn).await?;
        Ok(Assigned::Done)
    })
    .await
}

/// All instances, for the operator.
pub async fn list(conn: &mut Conn) -> Result<Vec<Instance>> {
    Ok(instances::table.select(Instance::as_select()).order(instances::id).load(conn).await?)
}
