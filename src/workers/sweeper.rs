//! The sweeper: compares what the nodes report with what the rows say, learns of machines, and enqueues repairs.
//!
//! [`plan`] is pure. The executor looks at the nodes first and at the rows afterwards, so that what was being changed
//! meanwhile shows as a live workflow, and is left alone. Nothing here touches a node: a repair runs as a workflow of its
//! volume, in order with the others, and looks again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use tracing::{info, warn};

use super::{Context, repair_volume};
use crate::db::attachments::Located;
use crate::db::instances::Instance;
use crate::db::{self, attachments, instances, volumes, workflows};
use crate::delegate::{ObservedMachine, StorageObservation, VmmObservation};
use crate::ids::{InstanceId, VolumeId};
use crate::state::InstanceState;

/// The longest a node may take to report.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often finished things are forgotten, in rounds.
const PURGE_EVERY: u64 = 100;

/// Sweeps for ever.
pub(super) async fn run(context: Arc<Context>) {
    let mut beat = tokio::time::interval(Duration::from_secs(context.settings.sweep_s.max(1)));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for round in 0.. {
        beat.tick().await;
        if let Err(error) = sweep(&context).await {
            warn!(%error, "a sweep failed");
        }
        if round % PURGE_EVERY == 0
            && let Err(error) = purge(&context).await
        {
            warn!(%error, "finished rows could not be forgotten");
        }
    }
}

/// What the nodes reported; a node that did not is missing.
#[derive(Debug, Default)]
struct Observed {
    storage: BTreeMap<String, StorageObservation>,
    hypervisors: BTreeMap<String, VmmObservation>,
}

/// One round.
pub async fn sweep(context: &Context) -> db::Result<()> {
    let observed = observe(context).await;
    let mut conn = context.pool.get().await?;
    for (node, report) in &observed.hypervisors {
        // One node that reports nonsense must not keep the others from being mended.
        if let Err(error) = learn_machines(context, &mut conn, node, report).await {
            warn!(node, %error, "its machines could not be recorded");
        }
    }
    let attached = attachments::all_attached(&mut conn).await?;
    let exported = observed.storage.values().flat_map(|report| &report.exports).map(|export| export.volume.clone());
    let wanted = attachments::live_volumes(&mut conn).await?;
    let unwanted = exported.filter(|volume| !wanted.contains(volume)).collect();
    let mut enqueued = false;
    for volume in plan(&attached, &observed, unwanted) {
        let known = volumes::find(&mut conn, &volume).await?.is_some();
        if known && !workflows::any_changing(&mut conn, &volume).await? {
            enqueued |= repair_volume::enqueue(&mut conn, &volume).await?;
            info!(%volume, "the nodes do not match the rows: repair");
        }
    }
    drop(conn);
    if enqueued {
        context.wake.wake();
    }
    Ok(())
}

/// Asks every node at once; one that is away holds up nobody for longer than the time-out.
async fn observe(context: &Context) -> Observed {
    let storage = context
        .nodes
        .volume
        .iter()
        .map(async |(name, node)| (name, tokio::time::timeout(OBSERVE_TIMEOUT, node.delegate.observe()).await));
    let hypervisors = context
        .nodes
        .vmm
        .iter()
        .map(async |(name, node)| (name, tokio::time::timeout(OBSERVE_TIMEOUT, node.delegate.observe()).await));
    let (storage, hypervisors) =
        tokio::join!(futures_util::future::join_all(storage), futures_util::future::join_all(hypervisors));
    Observed {
        storage: storage.into_iter().filter_map(|(name, report)| reported(name, report)).collect(),
        hypervisors: hypervisors.into_iter().filter_map(|(name, report)| reported(name, report)).collect(),
    }
}

fn reported<T>(
    name: &str,
    report: Result<crate::delegate::Result<T>, tokio::time::error::Elapsed>,
) -> Option<(String, T)> {
    match report {
        Ok(Ok(report)) => return Some((name.to_owned(), report)),
        Ok(Err(error)) => warn!(node = name, %error, "does not report"),
        Err(_) => warn!(node = name, "does not report in time"),
    }
    None
}

/// The volumes to repair: attached ones whose export or disk is missing, and exports without an attachment.
fn plan(attached: &[Located], observed: &Observed, unwanted: BTreeSet<VolumeId>) -> BTreeSet<VolumeId> {
    let mut repairs = unwanted;
    for (attachment, ends) in attached {
        let exported = observed
            .storage
            .get(&ends.volume_node)
            .is_none_or(|report| report.exports.iter().any(|export| export.iqn == attachment.iqn && export.whole));
        let plugged = observed.hypervisors.get(&ends.vmm_node).is_none_or(|report| {
            let machine = report.machines.iter().find(|machine| machine.uuid == ends.machine_uuid);
            machine.is_none_or(|machine| !machine.running || has_disk(machine, attachment))
        });
        if !exported || !plugged {
            repairs.insert(attachment.volume_id.clone());
        }
    }
    repairs
}

fn has_disk(machine: &ObservedMachine, attachment: &attachments::Attachment) -> bool {
    let mut disks = machine.disks.iter();
    disks.any(|disk| disk.attached && disk.volume == attachment.volume_id && disk.iqn == attachment.iqn)
}

/// Gives every machine that a node reports its instance id, and keeps what is known of it up to date. A machine that is no
/// longer reported is stopped; whether it ever comes back only its operator knows.
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
        let initiator_iqn = match before {
            Some(before) if before.machine == machine.name => before.initiator_iqn.clone(),
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
            launched_at: DateTime::from_timestamp(machine.started_at, 0).unwrap_or_default(),
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
    Ok(())
}
