//! A look at all nodes and at the rows they must match.
//!
//! The nodes are asked first and the rows looked at afterwards, so that what was being changed meanwhile shows as a workflow
//! that is live, or has ended since, and is left alone.
//!
//! A node that does not answer holds up nothing of the others: what it says late is compared in the look after.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use super::differences::{self, Difference, Remedy, Rows};
use super::{Context, Nodes, engine};
use crate::db::{self, Conn, attachments, compare, gone, volumes, workflows};
use crate::delegate::{DelegateError, StorageObservation, VmmObservation};

/// The longest a node may take to report.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longer than any node is waited for.
pub(super) const ALL: Duration = Duration::from_secs(60);

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// What is attached.
    Attached,
    /// Every volume and snapshot too.
    Everything,
}

/// What the nodes are asked, over one look and the next: each node once at a time.
#[derive(Default)]
pub(super) struct Asked {
    storage: Asking<StorageObservation>,
    hypervisors: Asking<VmmObservation>,
}

/// Nodes of one kind that are being asked.
struct Asking<T> {
    nodes: BTreeSet<String>,
    running: JoinSet<Answer<T>>,
}

/// A node, the database's clock from before it was asked, and what it said.
type Answer<T> = (String, DateTime<Utc>, Report<T>);
type Report<T> = Result<crate::delegate::Result<T>, tokio::time::error::Elapsed>;

impl<T> Default for Asking<T> {
    fn default() -> Self {
        Self { nodes: BTreeSet::new(), running: JoinSet::new() }
    }
}

impl<T: Send + 'static> Asking<T> {
    /// Asks a node, unless it is being asked.
    fn ask(
        &mut self,
        node: &str,
        since: DateTime<Utc>,
        observe: impl Future<Output = crate::delegate::Result<T>> + Send + 'static,
    ) {
        if self.nodes.insert(node.to_owned()) {
            let node = node.to_owned();
            self.running.spawn(async move {
                let report = AssertUnwindSafe(tokio::time::timeout(OBSERVE_TIMEOUT, observe)).catch_unwind().await;
                let broken = |_| Ok(Err(DelegateError::retry("the delegate stopped in its work")));
                (node, since, report.unwrap_or_else(broken))
            });
        }
    }

    /// What is reported until then.
    async fn reports(&mut self, until: Instant) -> Vec<Answer<T>> {
        let mut reports = Vec::new();
        while let Ok(Some(Ok(answer))) = tokio::time::timeout_at(until, self.running.join_next()).await {
            self.nodes.remove(&answer.0);
            reports.push(answer);
        }
        reports
    }
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
    let (observed, since) = observe(&context.nodes, &mut Asked::default(), since, ALL).await;
    between(&mut *context.pool.get().await?, &observed, Scope::Everything, since).await
}

/// The database's clock, to be read before the nodes are asked.
pub(super) async fn now(context: &Context) -> db::Result<DateTime<Utc>> {
    compare::now(&mut *context.pool.get().await?).await
}

/// Asks every node at once, and waits so long at most for what they report. Tells since when changes may be missing in it: the
/// clock `since`, from before, or an earlier one with which a report was asked for that came late.
pub(super) async fn observe(
    nodes: &Nodes,
    asked: &mut Asked,
    since: DateTime<Utc>,
    patience: Duration,
) -> (Observed, DateTime<Utc>) {
    // First what came late: such a node is asked anew now.
    let now = Instant::now();
    let (mut storage, mut hypervisors) = tokio::join!(asked.storage.reports(now), asked.hypervisors.reports(now));
    for (name, node) in &nodes.volume {
        let delegate = Arc::clone(&node.delegate);
        asked.storage.ask(name, since, async move { delegate.observe().await });
    }
    for (name, node) in &nodes.vmm {
        let delegate = Arc::clone(&node.delegate);
        asked.hypervisors.ask(name, since, async move { delegate.observe().await });
    }
    let until = now + patience;
    let (more_storage, more_hypervisors) = tokio::join!(asked.storage.reports(until), asked.hypervisors.reports(until));
    storage.extend(more_storage);
    hypervisors.extend(more_hypervisors);
    let asked_at = storage.iter().map(|(_, at, _)| *at).chain(hypervisors.iter().map(|(_, at, _)| *at));
    let since = asked_at.min().unwrap_or(since);
    let mut observed = Observed::default();
    observed.storage = sort_out(storage, &mut observed.silent);
    observed.hypervisors = sort_out(hypervisors, &mut observed.silent);
    (observed, since)
}

/// Those that reported; why the others did not goes to `silent`. Of two reports of a node the later counts.
fn sort_out<T>(reports: Vec<Answer<T>>, silent: &mut BTreeMap<String, String>) -> BTreeMap<String, T> {
    let mut reported = BTreeMap::new();
    for (name, _, report) in reports {
        let error = match report {
            Ok(Ok(report)) => {
                silent.remove(&name);
                reported.insert(name, report);
                continue;
            }
            Ok(Err(error)) => engine::legible(&error.message),
            Err(_) => format!("no answer within {} s", OBSERVE_TIMEOUT.as_secs()),
        };
        warn!(node = name, error, "does not report");
        reported.remove(&name);
        silent.insert(name, error);
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
    let unwanted = exports().filter(|export| !rows.live.contains_key(&export.iqn));
    let unwanted: BTreeSet<&str> = unwanted.map(|export| export.volume.as_str()).collect();
    if !unwanted.is_empty() {
        let unwanted: Vec<&str> = unwanted.into_iter().collect();
        rows.served = volumes::known_among(conn, &unwanted).await?.into_iter().collect();
        rows.served.extend(gone::volumes_among(conn, &unwanted).await?);
    }

    let extra = differences::held(observed).filter(|(_, _, iqn, _)| !rows.live.contains_key(*iqn));
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
