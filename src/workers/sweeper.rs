//! The sweeper: compares what the nodes report with what the rows say, learns of nodes and machines, and enqueues repairs.
//!
//! [`plan`] is pure. The executor looks at the nodes first and at the rows afterwards, so that what was being changed
//! meanwhile shows as a live workflow, and is left alone. Nothing here touches a node: a repair runs as a workflow of its
//! volume, in order with the others, and looks again.
//!
//! A disk or a log-in that no attachment has is taken back only if its target's name was made for an attachment of ours that is
//! over. Another name, however much it looks like one of ours, may be that of another vbs with the same nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use diesel_async::AsyncConnection;
use tracing::{debug, info, warn};

use super::repair_volume::{self, Leftover};
use super::{Context, detach_volume, engine};
use crate::db::attachments::Located;
use crate::db::instances::Instance;
use crate::db::{self, attachments, gone, instances, nodes, volumes, workflows};
use crate::delegate::{MachineRef, ObservedExport, ObservedMachine, StorageObservation, VmmObservation};
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

/// What the nodes reported, and why those that did not are missing.
#[derive(Debug, Default)]
struct Observed {
    storage: BTreeMap<String, StorageObservation>,
    hypervisors: BTreeMap<String, VmmObservation>,
    silent: BTreeMap<String, String>,
}

/// One round.
pub async fn sweep(context: &Context) -> db::Result<()> {
    let observed = observe(context).await;
    let mut conn = context.pool.get().await?;
    let every_s = i32::try_from(context.settings.sweep_s).unwrap_or(i32::MAX);
    // As with machines, below: what one node reports must not keep the others from being mended.
    if let Err(error) = nodes::record(&mut conn, &seen(context, &observed), every_s).await {
        warn!(%error, "what the nodes reported could not be recorded");
    }
    for (node, report) in &observed.hypervisors {
        // One node that reports nonsense must not keep the others from being mended.
        if let Err(error) = learn_machines(context, &mut conn, node, report).await {
            warn!(node, %error, "its machines could not be recorded");
        }
    }
    let mut enqueued = end_with_their_instances(&mut conn).await?;
    // Of nodes that say nothing there is nothing to compare.
    let storage: Vec<&str> = observed.storage.keys().map(String::as_str).collect();
    let hypervisors: Vec<&str> = observed.hypervisors.keys().map(String::as_str).collect();
    let attached = attachments::attached_on(&mut conn, &storage, &hypervisors).await?;
    let exports: Vec<&ObservedExport> = observed.storage.values().flat_map(|report| &report.exports).collect();
    let iqns: Vec<&str> = exports.iter().map(|export| export.iqn.as_str()).collect();
    let wanted = attachments::live_among(&mut conn, &iqns).await?;
    let unwanted = exports.iter().filter(|export| !wanted.contains(&export.iqn));
    let unwanted = unwanted.map(|export| export.volume.clone()).collect();
    let leftovers = leftovers(&mut conn, &attached, &observed).await?;
    let mut repairs = plan(&attached, &observed, unwanted);
    repairs.extend(leftovers.keys().cloned());
    for volume in repairs {
        // A volume that is gone may still have left a disk somewhere.
        let known = leftovers.contains_key(&volume) || volumes::find(&mut conn, &volume).await?.is_some();
        if known && !workflows::any_changing(&mut conn, &volume).await? {
            let leftovers = leftovers.get(&volume).map_or(&[][..], Vec::as_slice);
            enqueued |= repair_volume::enqueue(&mut conn, &volume, leftovers).await?;
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
    let mut observed = Observed::default();
    observed.storage = sort_out(storage, &mut observed.silent);
    observed.hypervisors = sort_out(hypervisors, &mut observed.silent);
    observed
}

type Report<T> = Result<crate::delegate::Result<T>, tokio::time::error::Elapsed>;

/// Those that reported; why the others did not goes to `silent`.
fn sort_out<T>(reports: Vec<(&String, Report<T>)>, silent: &mut BTreeMap<String, String>) -> BTreeMap<String, T> {
    let mut reported = BTreeMap::new();
    for (name, report) in reports {
        let error = match report {
            Ok(Ok(report)) => {
                reported.insert(name.clone(), report);
                continue;
            }
            Ok(Err(error)) => engine::legible(&error.message),
            Err(_) => format!("no answer within {} s", OBSERVE_TIMEOUT.as_secs()),
        };
        warn!(node = name, error, "does not report");
        silent.insert(name.clone(), error);
    }
    reported
}

/// What is recorded of the nodes.
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
    storage.chain(hypervisors).collect()
}

/// The disks and log-ins that hypervisor nodes have of attachments which are over, by volume.
async fn leftovers(
    conn: &mut db::Conn,
    attached: &[Located],
    observed: &Observed,
) -> db::Result<BTreeMap<VolumeId, Vec<Leftover>>> {
    let wanted: BTreeSet<&str> = attached.iter().map(|(attachment, _)| attachment.iqn.as_str()).collect();
    let mut found = Vec::new();
    for (node, report) in &observed.hypervisors {
        let mut add = |volume: &VolumeId, iqn: &String, machine: Option<MachineRef>| {
            if !wanted.contains(iqn.as_str()) {
                found.push((volume.clone(), Leftover { node: node.clone(), iqn: iqn.clone(), machine }));
            }
        };
        for session in &report.sessions {
            add(&session.volume, &session.iqn, None);
        }
        for machine in &report.machines {
            let meant = MachineRef { name: machine.name.clone(), uuid: machine.uuid.clone() };
            machine.disks.iter().for_each(|disk| add(&disk.volume, &disk.iqn, Some(meant.clone())));
        }
    }
    let iqns: Vec<&str> = found.iter().map(|(_, leftover)| leftover.iqn.as_str()).collect();
    let ended = if iqns.is_empty() { Vec::new() } else { attachments::ended(conn, &iqns).await? };
    let mut ended: HashSet<(String, VolumeId)> = ended.into_iter().collect();
    for node in observed.hypervisors.keys() {
        let here = found.iter().filter(|(volume, leftover)| {
            leftover.node == *node && !ended.contains(&(leftover.iqn.clone(), volume.clone()))
        });
        let unknown: Vec<&str> = here.map(|(_, leftover)| leftover.iqn.as_str()).collect();
        if !unknown.is_empty() {
            ended.extend(gone::among(conn, node, &unknown).await?);
        }
    }
    let mut over: BTreeMap<VolumeId, Vec<Leftover>> = BTreeMap::new();
    for (volume, leftover) in found {
        if ended.contains(&(leftover.iqn.clone(), volume.clone())) {
            over.entry(volume).or_default().push(leftover);
        } else {
            debug!(%volume, ?leftover, "is no attachment's, and none of ours that is over: it is left alone");
        }
    }
    Ok(over)
}

/// The volumes to repair: attached ones whose export or disk is missing, and exports without an attachment.
fn plan(attached: &[Located], observed: &Observed, unwanted: BTreeSet<VolumeId>) -> BTreeSet<VolumeId> {
    let mut repairs = unwanted;
    let whole: HashMap<&str, HashSet<&str>> = observed
        .storage
        .iter()
        .map(|(node, report)| {
            let whole = report.exports.iter().filter(|export| export.whole);
            (node.as_str(), whole.map(|export| export.iqn.as_str()).collect())
        })
        .collect();
    for (attachment, ends) in attached {
        let exported = whole.get(ends.volume_node.as_str()).is_none_or(|iqns| iqns.contains(attachment.iqn.as_str()));
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
