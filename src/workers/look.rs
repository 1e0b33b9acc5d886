//! A look at all nodes and at the rows they must match.
//!
//! The nodes are asked first and the rows looked at afterwards, so that what was being changed meanwhile shows as a workflow
//! that is live, or has ended since, and is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::warn;

use super::differences::{self, Difference, Remedy, Rows};
use super::{Context, Nodes, engine};
use crate::db::{self, Conn, attachments, compare, gone, volumes, workflows};
use crate::delegate::{StorageObservation, VmmObservation};

/// The longest a node may take to report.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// What is attached.
    Attached,
    /// Every volume and snapshot too.
    Everything,
}

/// What the nodes reported, and why those that did not are missing.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// The storage nodes.
    pub(super) storage: BTreeMap<String, StorageObservation>,
    /// The hypervisor nodes.
    pub(super) hypervisors: BTreeMap<String, VmmObservation>,
    /// The errors of the others.
    pub(super) silent: BTreeMap<String, String>,
}

/// Looks at everything and changes nothing.
pub(super) async fn look(context: &Context) -> db::Result<Vec<Difference>> {
    let since = now(context).await?;
    let observed = observe(&context.nodes).await;
    between(&mut *context.pool.get().await?, &observed, Scope::Everything, since).await
}

/// The database's clock, to be read before the nodes are asked.
pub(super) async fn now(context: &Context) -> db::Result<DateTime<Utc>> {
    compare::now(&mut *context.pool.get().await?).await
}

/// Asks every node at once; one that is away holds up nobody for longer than the time-out.
pub(super) async fn observe(nodes: &Nodes) -> Observed {
    let storage = nodes
        .volume
        .iter()
        .map(async |(name, node)| (name, tokio::time::timeout(OBSERVE_TIMEOUT, node.delegate.observe()).await));
    let hypervisors = nodes
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

/// How what was observed differs from the rows. `since`: from before the nodes were asked.
pub(super) async fn between(
    conn: &mut Conn,
    observed: &Observed,
    scope: Scope,
    since: DateTime<Utc>,
) -> db::Result<Vec<Difference>> {
    let rows = rows(conn, observed, scope, since).await?;
    let mut found = differences::between(observed, &rows);
    let repaired: BTreeSet<&str> = found
        .iter()
        .filter_map(|difference| match &difference.remedy {
            Remedy::Repair(volume, _) => Some(volume.as_str()),
            Remedy::Nothing(_) => None,
        })
        .collect();
    if !repaired.is_empty() {
        let repaired: Vec<&str> = repaired.into_iter().collect();
        let changing = workflows::changing_among(conn, &repaired, since).await?;
        found.retain(|difference| match &difference.remedy {
            Remedy::Repair(volume, _) => !changing.contains(volume.as_str()),
            Remedy::Nothing(_) => true,
        });
    }
    Ok(found)
}

async fn rows(conn: &mut Conn, observed: &Observed, scope: Scope, since: DateTime<Utc>) -> db::Result<Rows> {
    // Of nodes that say nothing there is nothing to compare.
    let storage: Vec<&str> = observed.storage.keys().map(String::as_str).collect();
    let hypervisors: Vec<&str> = observed.hypervisors.keys().map(String::as_str).collect();
    let mut rows = Rows { attached: attachments::attached_on(conn, &storage, &hypervisors).await?, ..Rows::default() };

    let exports = || observed.storage.values().flat_map(|report| &report.exports);
    let iqns = exports().map(|export| export.iqn.as_str());
    let iqns: Vec<&str> = iqns.chain(differences::held(observed).map(|(_, _, iqn, _)| iqn.as_str())).collect();
    rows.live = attachments::live_among(conn, &iqns).await?;
    let unwanted = exports().filter(|export| !rows.live.contains(&export.iqn));
    let unwanted: BTreeSet<&str> = unwanted.map(|export| export.volume.as_str()).collect();
    if !unwanted.is_empty() {
        let unwanted: Vec<&str> = unwanted.into_iter().collect();
        rows.served = volumes::known_among(conn, &unwanted).await?.into_iter().collect();
    }

    let extra = differences::held(observed).filter(|(_, _, iqn, _)| !rows.live.contains(*iqn));
    let mut extra: BTreeSet<(&str, &str)> = extra.map(|(node, _, iqn, _)| (node.as_str(), iqn.as_str())).collect();
    if !extra.is_empty() {
        let iqns: Vec<&str> = extra.iter().map(|(_, iqn)| *iqn).collect();
        rows.over.extend(attachments::ended(conn, &iqns).await?);
        let ended: BTreeSet<&str> = rows.over.iter().map(|(iqn, _)| iqn.as_str()).collect();
        extra.retain(|(_, iqn)| !ended.contains(iqn));
    }
    for node in &hypervisors {
        let unknown: Vec<&str> = extra.iter().filter(|(at, _)| at == node).map(|(_, iqn)| *iqn).collect();
        if !unknown.is_empty() {
            rows.over.extend(gone::among(conn, node, &unknown).await?);
        }
    }

    if scope == Scope::Everything {
        for (node, report) in &observed.storage {
            let differing = compare::volumes(conn, node, &report.volumes, since).await?;
            rows.volumes.insert(node.clone(), differing);
            let differing = compare::snapshots(conn, node, &report.snapshots, since).await?;
            rows.snapshots.insert(node.clone(), differing);
        }
    }
    Ok(rows)
}
