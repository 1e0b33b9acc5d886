//! The sweeper: compares what the nodes report with what the rows say, learns of nodes and machines, and enqueues repairs.
//!
//! What differs is [`super::differences`]' to say. Nothing here touches a node: a repair runs as a workflow of its volume, in
//! order with the others, and looks again.
//!
//! What is attached is compared at every round. Volumes and snapshots, of which there may be very many, and which seldom go by
//! themselves, are compared now and then.

use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use diesel_async::AsyncConnection;
use tracing::{debug, info, warn};

use super::differences::{self, Difference, Remedy, What};
use super::look::{self, Asked, Observed, Scope};
use super::{Context, detach_volume, engine, repair_volume};
use crate::db::instances::Instance;
use crate::db::{self, attachments, compare, gone, instances, nodes, volumes, workflows};
use crate::delegate::{ObservedMachine, VmmObservation};
use crate::ids::InstanceId;
use crate::state::InstanceState;

/// How often volumes and snapshots are compared, in rounds.
const EVERYTHING_EVERY: u64 = 12;

/// The longest that a round waits for nodes; what they report later is for the next one.
const ROUND_PATIENCE: Duration = Duration::from_secs(2);

/// How often finished things are forgotten, in rounds.
const PURGE_EVERY: u64 = 100;

/// Sweeps for ever.
pub(super) async fn run(context: Arc<Context>) {
    let mut beat = tokio::time::interval(Duration::from_secs(context.settings.sweep_s.max(1)));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut asked = Asked::default();
    for round_number in 0.. {
        beat.tick().await;
        let scope = if round_number % EVERYTHING_EVERY == 0 { Scope::Everything } else { Scope::Attached };
        if let Err(error) = round(&context, scope, &mut asked, ROUND_PATIENCE).await {
            warn!(%error, "a sweep failed");
        }
        if round_number % PURGE_EVERY == 0
            && let Err(error) = purge(&context).await
        {
            warn!(%error, "finished rows could not be forgotten");
        }
    }
}

/// One round, of all there is, in which every node is waited for.
pub async fn sweep(context: &Context) -> db::Result<()> {
    round(context, Scope::Everything, &mut Asked::default(), look::ALL).await
}

async fn round(context: &Context, scope: Scope, asked: &mut Asked, patience: Duration) -> db::Result<()> {
    let since = look::now(context).await?;
    let (observed, since) = look::observe(&context.nodes, asked, since, patience).await;
    let mut conn = context.pool.get().await?;
    let every_s = i32::try_from(context.settings.sweep_s).unwrap_or(i32::MAX);
    // As with machines, below: what one node reports must not keep the others from being mended.
    if let Err(error) = nodes::record(&mut conn, &seen(context, &observed), since, every_s).await {
        warn!(%error, "what the nodes reported could not be recorded");
    }
    for (node, report) in &observed.hypervisors {
        // One node that reports nonsense must not keep the others from being mended.
        if let Err(error) = learn_machines(context, &mut conn, node, report).await {
            warn!(node, %error, "its machines could not be recorded");
        }
    }
    let mut enqueued = end_with_their_instances(&mut conn).await?;
    let found = look::between(&mut conn, &observed, scope, since).await?;
    for difference in &found {
        match &difference.remedy {
            Remedy::Nothing(_) => debug!(%difference, "left alone"),
            Remedy::Repair(..) => info!(%difference, "the nodes do not match the rows"),
        }
    }
    enqueued |= mend(&mut conn, &found).await?;
    if scope == Scope::Everything {
        for (node, report) in &observed.storage {
            let missing = found.iter().filter(|one| one.node == *node && one.what == What::VolumeMissing);
            let missing: Vec<&str> = missing.map(|one| one.name.as_str()).collect();
            if !missing.is_empty() {
                warn!(node, volumes = missing.len(), "does not have all its volumes: vbs audit names them");
            }
            compare::record_missing(&mut conn, node, &missing, &report.volumes).await?;
        }
    }
    drop(conn);
    if enqueued {
        context.wake.wake();
    }
    Ok(())
}

/// Enqueues the repairs of these differences; tells whether there were any that were not under way already.
pub(super) async fn mend(conn: &mut db::Conn, found: &[Difference]) -> db::Result<bool> {
    let mut enqueued = false;
    for (volume, repair) in differences::repairs(found) {
        enqueued |= repair_volume::enqueue(conn, &volume, repair).await?;
    }
    Ok(enqueued)
}

/// What is recorded of the nodes that have reported, or have not in time.
fn seen(context: &Context, observed: &Observed) -> Vec<nodes::Seen> {
    let drivers = |names: &[String]| engine::legible(&names.join(", "));
    let bytes = |bytes: u64| Some(i64::try_from(bytes).unwrap_or(i64::MAX));
    let nothing = |name: &str, kind, zone: &str| nodes::Seen {
        name: name.to_owned(),
        kind,
        zone: zone.to_owned(),
        drivers: String::new(),
        capacity_bytes: None,
        free_bytes: None,
        sparse: false,
        error: observed.silent.get(name).cloned(),
    };
    let storage = context.nodes.volume.iter().map(|(name, node)| {
        let nothing = nothing(name, nodes::STORAGE, &node.zone);
        observed.storage.get(name).map_or(nothing.clone(), |report| nodes::Seen {
            drivers: drivers(&report.drivers),
            capacity_bytes: bytes(report.capacity_bytes),
            free_bytes: bytes(report.free_bytes),
            sparse: report.sparse,
            ..nothing
        })
    });
    let hypervisors = context.nodes.vmm.iter().map(|(name, node)| {
        let nothing = nothing(name, nodes::HYPERVISOR, &node.zone);
        let drivers = observed.hypervisors.get(name).map(|report| drivers(&report.drivers)).unwrap_or_default();
        nodes::Seen { drivers, ..nothing }
    });
    let heard_of = |name: &String| {
        let known = [observed.storage.contains_key(name), observed.hypervisors.contains_key(name)];
        known.contains(&true) || observed.silent.contains_key(name)
    };
    storage.chain(hypervisors).filter(|seen| heard_of(&seen.name)).collect()
}

/// Gives every machine that a node reports its instance id, and keeps what is known of it up to date. A machine that is no
/// longer reported is stopped; whether it ever comes back only its operator knows (`vbs instance terminate`).
async fn learn_machines(
    context: &Context,
    conn: &mut db::Conn,
    node_name: &str,
    report: &VmmObservation,
) -> db::Result<()> {
    let Some(node) = context.nodes.vmm.get(node_name) else { return Ok(()) };
    let known = instances::of_node(conn, node_name).await?;
    for machine in report.machines.iter().filter(|machine| is_legible(machine)) {
        let before = known.iter().find(|instance| instance.machine_uuid == machine.uuid);
        let launched_at = DateTime::from_timestamp(machine.started_at, 0).unwrap_or_default();
        let initiator_iqn = match before {
            // Neither a machine nor its node is renamed while the machine runs.
            Some(before) if before.machine == machine.name && before.launched_at == launched_at => {
                before.initiator_iqn.clone()
            }
            _ => match node.delegate.initiator_iqn(&machine.name).await {
                Ok(iqn) => iqn,
                Err(error) => {
                    warn!(node = node_name, machine = machine.name, %error, "has no initiator name");
                    continue;
                }
            },
        };
        let now = Instance {
            id: before.map_or_else(InstanceId::generate, |before| before.id.clone()),
            node: node_name.to_owned(),
            zone: node.zone.clone(),
            machine: machine.name.clone(),
            machine_uuid: machine.uuid.clone(),
            account_id: before.map_or_else(|| node.default_owner.clone(), |before| before.account_id.clone()),
            state: if machine.running { InstanceState::Running } else { InstanceState::Stopped },
            initiator_iqn,
            vcpus: i32::try_from(machine.vcpus).unwrap_or(i32::MAX),
            memory_mib: i64::try_from(machine.memory_mib).unwrap_or(i64::MAX),
            launched_at,
        };
        match before {
            None => instances::create(conn, &now).await?,
            Some(before) if *before != now => instances::update_seen(conn, &now).await?,
            Some(_) => {}
        }
    }
    for instance in known {
        let gone = !report.machines.iter().any(|machine| machine.uuid == instance.machine_uuid);
        if gone && instance.state == InstanceState::Running {
            instances::update_seen(conn, &Instance { state: InstanceState::Stopped, ..instance }).await?;
        }
    }
    Ok(())
}

/// Detaches what is attached to instances that are gone for good. Their machines hold on to nothing any more, so nothing is
/// waited for; what becomes of the volumes is written when the detach ends. Tells whether there was any.
async fn end_with_their_instances(conn: &mut db::Conn) -> db::Result<bool> {
    let mut begun = false;
    for (attachment, volume) in attachments::of_the_terminated(conn).await? {
        begun |= conn
            .transaction(async |conn| detach_volume::start(conn, attachment, &volume, true).await)
            .await
            .inspect(|_| info!(%volume, "its instance is gone for good: detach"))?;
    }
    Ok(begun)
}

/// Whether a machine's name and uuid can be stored and shown; a remote node may say anything.
fn is_legible(machine: &ObservedMachine) -> bool {
    let legible = |text: &str| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    legible(&machine.name) && legible(&machine.uuid)
}

async fn purge(context: &Context) -> db::Result<()> {
    let mut conn = context.pool.get().await?;
    attachments::purge_detached(&mut conn).await?;
    volumes::purge_deleted(&mut conn).await?;
    workflows::purge_finished(&mut conn).await?;
    instances::purge_terminated(&mut conn).await?;
    gone::purge(&mut conn).await?;
    Ok(())
}
