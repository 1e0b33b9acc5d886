//! The `lio` driver: exports by the target in the Linux kernel, over configfs.
//!
//! - The kernel forgets everything when the node restarts, and `targetcli`, which could save it, takes seconds a call, needs a
//!   system bus, and is not safe to run twice at once. So this writes configfs itself, under one lock for the host, keeps
//!   nothing, and looks layer by layer at what is there in each call.
//! - The kernel lets everything be taken away under a session: the target, the link to a unit, the backstore of a target
//!   that was disabled. Who is logged in is therefore looked at first, and nothing of a target in use is touched that is not
//!   missing, but a way in for somebody else, which is closed.
//! - A target is enabled last and disabled first: at no moment is one open without CHAP and an access rule.
//! - The device behind a unit is held by the kernel, so that its logical volume cannot be removed while it is exported.
//! - Both a device and, once told, a file show a new size at once.
//! - What a guest's write is answered with is true after a power cut, too ([`super::lio_store`] says why and at what cost).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::lio_layers::{self as layers, Plan, Seen};
use super::lio_store::{self as stores, Wanted};
use super::lio_tree::{Configfs, Tree};
use super::{PathOf, TargetDriver, check, volume_of};
use crate::config;
use crate::delegate::{DelegateError, ExportSpec, Growth, ObservedExport, Portal, Result};
use crate::ids::VolumeId;

/// How long an un-export waits for a session to end: a log-out returns before the target has noticed.
const SESSION_END: Duration = Duration::from_secs(2);

/// How long a call waits for its turn, and then for the kernel. A write to configfs cannot be called back: one that hangs
/// keeps the turn, and the calls after it are told so.
const LIMIT: Duration = Duration::from_secs(30);

/// The kernel's target.
pub struct Lio {
    tree: Arc<dyn Tree>,
    portal: String,
    alone: Arc<Mutex<()>>,
}

impl Lio {
    /// The target of this host. Whether it is there is found out call by call: its modules may be loaded later.
    pub fn new(config: &config::Lio) -> Self {
        Self::over(Arc::new(Configfs::new(config.configfs.clone())), config.portal)
    }

    /// A target behind a tree of another kind.
    pub fn over(tree: Arc<dyn Tree>, portal: SocketAddr) -> Self {
        Self { tree, portal: portal.to_string(), alone: Arc::default() }
    }

    /// Works on the tree, alone, where it may block.
    async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Tree, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let late = |_| DelegateError::busy("an earlier call is still at work on the kernel's target");
        let turn = timeout(LIMIT, Arc::clone(&self.alone).lock_owned()).await.map_err(late)?;
        let (tree, portal) = (Arc::clone(&self.tree), self.portal.clone());
        let job = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let _lock = tree.lock().map_err(|e| {
                DelegateError::retry(format!("the kernel's target is not there; is target_core_mod loaded? {e}"))
            })?;
            work(&*tree, &portal)
        });
        let done = timeout(LIMIT, job).await.map_err(late)?;
        done.unwrap_or_else(|e| Err(DelegateError::retry(format!("the LIO driver stopped: {e}"))))
    }
}

#[async_trait]
impl TargetDriver for Lio {
    fn name(&self) -> &'static str {
        "lio"
    }

    async fn ensure_exported(&self, spec: &ExportSpec, path: &Path) -> Result<Portal> {
        check(spec)?;
        // This word takes a secret away, in the kernel's files.
        if spec.chap_secret.0.starts_with("NULL") {
            return Err(DelegateError::fatal("the kernel's target cannot be given this CHAP secret"));
        }
        let (spec, path) = (spec.clone(), path.to_owned());
        self.alone(move |tree, portal| export(tree, portal, &spec, &path)).await?;
        Ok(Portal { address: self.portal.clone() })
    }

    async fn ensure_not_exported(&self, volume: &VolumeId, but: &[String]) -> Result<()> {
        let patience = Instant::now() + SESSION_END;
        loop {
            let (volume, but) = (volume.clone(), but.to_vec());
            let refused = self.alone(move |tree, _| end_exports(tree, &volume, &but)).await?;
            match refused {
                None => return Ok(()),
                Some(refusal) if Instant::now() >= patience => return Err(refusal),
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn ensure_grown(&self, volume: &VolumeId, path: &Path, size_bytes: u64) -> Result<Growth> {
        let (volume, path) = (volume.clone(), path.to_owned());
        self.alone(move |tree, _| {
            if stores::of(tree, &volume)?.is_none() {
                return Ok(Growth::Online);
            }
            let wanted = Wanted::new(&volume, &path)?;
            wanted.follow_size(tree)?;
            let shown = wanted.size(tree)?;
            Ok(if shown.is_some_and(|shown| shown >= size_bytes) { Growth::Online } else { Growth::AtNextAttach })
        })
        .await
    }

    async fn exports(&self, path: &PathOf<'_>) -> Result<Vec<ObservedExport>> {
        let found = self.alone(|tree, _| of_any_volume(tree)).await?;
        let found: Vec<_> = found.into_iter().map(|volume| (path(&volume), volume)).collect();
        let look = move |tree: &dyn Tree, portal: &str| {
            let mut exports = Vec::new();
            for (path, volume) in found {
                exports.extend(exports_of(tree, portal, &volume, &path)?);
            }
            Ok(exports)
        };
        self.alone(look).await
    }
}

/// Makes the export be as it shall.
fn export(tree: &dyn Tree, portal: &str, spec: &ExportSpec, path: &Path) -> Result<()> {
    let wanted = Wanted::new(&spec.volume, path)?;
    let store = wanted.dir();
    let plan = Plan { portal, store: &store };
    let mut seen = targets(tree, &spec.volume)?;
    let right_store = wanted.is(tree)?;
    // Those beside it stand on the same backstore. When that is the wrong one they must go too, and are made anew by who wants
    // them.
    for other in seen.iter().filter(|other| other.iqn != spec.iqn && !(right_store && spec.is_beside(&other.iqn))) {
        other.refuse_while_in_use()?;
        layers::end(tree, &other.iqn)?;
    }
    seen.retain(|target| target.iqn == spec.iqn);
    for target in &seen {
        if !target.sessions.is_empty() {
            if !right_store {
                return target.refuse_while_in_use();
            }
            target.refuse_strange(spec, &plan)?;
            layers::end_others(tree, target, spec)?;
        } else if !right_store || !target.is(spec, &plan) {
            layers::end(tree, &target.iqn)?;
        }
    }
    if right_store {
        wanted.follow_size(tree)?;
    } else {
        stores::end(tree, &spec.volume)?;
        wanted.make(tree)?;
    }
    layers::add(tree, spec, &plan)?;
    // No layer is believed to be there because the kernel took it.
    if wanted.is(tree)? && layers::look(tree, &spec.iqn)?.is(spec, &plan) {
        Ok(())
    } else {
        Err(DelegateError::retry(format!("{} is not as it was made", spec.iqn)))
    }
}

/// Ends the exports of a volume but these, and with the last one its backstore; when somebody is logged in, does nothing and
/// says who.
fn end_exports(tree: &dyn Tree, volume: &VolumeId, but: &[String]) -> Result<Option<DelegateError>> {
    let (stay, targets): (Vec<_>, Vec<_>) =
        targets(tree, volume)?.into_iter().partition(|target| but.contains(&target.iqn));
    if let Some(refusal) = targets.iter().find_map(|target| target.refuse_while_in_use().err()) {
        return Ok(Some(refusal));
    }
    for target in targets {
        layers::end(tree, &target.iqn)?;
    }
    if stay.is_empty() {
        stores::end(tree, volume)?;
    }
    Ok(None)
}

/// The targets of a volume.
fn targets(tree: &dyn Tree, volume: &VolumeId) -> Result<Vec<Seen>> {
    let names = layers::names(tree)?;
    names.iter().filter(|name| volume_of(name).as_ref() == Some(volume)).map(|name| layers::look(tree, name)).collect()
}

/// The volumes that have a target or a backstore.
fn of_any_volume(tree: &dyn Tree) -> Result<Vec<VolumeId>> {
    let mut volumes = stores::volumes(tree)?;
    volumes.extend(layers::names(tree)?.iter().filter_map(|name| volume_of(name)));
    volumes.sort_unstable();
    volumes.dedup();
    Ok(volumes)
}

/// What there is of a volume. A backstore alone is an export, too: it holds the volume's device.
fn exports_of(tree: &dyn Tree, portal: &str, volume: &VolumeId, path: &Path) -> Result<Vec<ObservedExport>> {
    // A volume that is away has no sound export.
    let wanted = Wanted::new(volume, path).ok();
    let store = match &wanted {
        Some(wanted) if wanted.is(tree)? => Some(wanted.dir()),
        _ => None,
    };
    let targets = targets(tree, volume)?;
    if targets.is_empty() {
        let alone = |store| ObservedExport { iqn: store, volume: volume.clone(), sessions: vec![], whole: false };
        return Ok(stores::of(tree, volume)?.into_iter().map(alone).collect());
    }
    let export = |target: Seen| {
        let whole = store.as_ref().is_some_and(|store| target.whole(&Plan { portal, store }));
        ObservedExport { iqn: target.iqn, volume: volume.clone(), sessions: target.sessions, whole }
    };
    Ok(targets.into_iter().map(export).collect())
}
