//! Instances: the machines that VMM delegates report, each with an id that stays.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::instances;
use super::{Conn, Result};
use crate::ids::InstanceId;
use crate::state::InstanceState;

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
    diesel::update(instances::table.find(&instance.id))
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

/// Gives an instance to an account. Tells whether there is such an instance.
pub async fn assign(conn: &mut Conn, id: &InstanceId, account_id: &str) -> Result<bool> {
    let rows =
        diesel::update(instances::table.find(id)).set(instances::account_id.eq(account_id)).execute(conn).await?;
    Ok(rows == 1)
}

/// All instances, for the operator.
pub async fn list(conn: &mut Conn) -> Result<Vec<Instance>> {
    Ok(instances::table.select(Instance::as_select()).order(instances::id).load(conn).await?)
}
