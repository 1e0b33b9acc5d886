//! The simulated storage node.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Content, Copying, SimCloud, State, StorageNode};
use crate::delegate::source::{CHUNK, Digest, Grant, Piece, RestoreSpec, SnapshotSource, Summary};
use crate::delegate::target;
use crate::delegate::{
    CopySpec, DelegateError, ExportSpec, Generation, Growth, ObservedExport, Portal, Result, SnapshotMethod,
    SnapshotReport, SnapshotSpec, StorageObservation, VolumeDelegate, VolumeSpec,
};
use crate::ids::{SnapshotId, VolumeId};

/// What a volume with anything in it is said to hold.
const SOME_DATA: u64 = 1 << 20;

/// A storage node of a [`SimCloud`].
#[derive(Clone)]
pub struct SimStorage {
    pub(super) cloud: SimCloud,
    pub(super) node: String,
}

impl SimStorage {
    async fn on_node<T>(
        &self,
        verb: &'static str,
        effect: impl FnOnce(&mut StorageNode) -> Result<T> + Send,
    ) -> Result<T> {
        self.cloud.call(verb, |state| effect(node(state, &self.node)?)).await
    }

    /// Where this node's exports are served; no address that anybody can connect to.
    fn portal(&self) -> Portal {
        Portal { address: format!("{}.sim:3260", self.node) }
    }
}

fn node<'a>(state: &'a mut State, name: &str) -> Result<&'a mut StorageNode> {
    state.storages.get_mut(name).ok_or_else(|| DelegateError::retry(format!("there is no node {name}")))
}

fn missing(what: impl std::fmt::Display) -> DelegateError {
    DelegateError::fatal(format!("{what} is not on this node"))
}

impl StorageNode {
    fn free_bytes(&self) -> u64 {
        let used: u64 = self.volumes.values().map(|content| content.size_bytes).sum();
        self.capacity_bytes.saturating_sub(used)
    }

    fn ensure_volume(&mut self, spec: &VolumeSpec) -> Result<()> {
        let there = self.volumes.get(&spec.volume).copied();
        let content = match (there, &spec.snapshot) {
            (Some(content), _) => content,
            (None, None) => Content { size_bytes: 0, token: 0, torn: false },
            (None, Some(snapshot)) => {
                let of = self.snapshots.get(snapshot).ok_or_else(|| missing(snapshot))?;
                if of.size_bytes > spec.size_bytes {
                    return Err(DelegateError::fatal(format!("{snapshot} is larger than the volume shall be")));
                }
                Content { size_bytes: 0, ..*of }
            }
        };
        let more = spec.size_bytes.saturating_sub(content.size_bytes);
        // Counting takes its time with many volumes.
        if self.capacity_bytes != u64::MAX && more > self.free_bytes() {
            return Err(DelegateError::no_room(format!("{more} bytes are needed, {} are free", self.free_bytes())));
        }
        self.volumes.insert(spec.volume.clone(), Content { size_bytes: content.size_bytes + more, ..content });
        Ok(())
    }

    /// Fills a volume from elsewhere, so many per cent more.
    fn restore(&mut self, volume: &VolumeId, content: Content, copied: u8) -> Result<u8> {
        if self.capacity_bytes != u64::MAX && content.size_bytes > self.free_bytes() {
            return Err(DelegateError::no_room(format!("{} bytes are needed", content.size_bytes)));
        }
        let done = self.restores.entry(volume.clone()).or_default();
        *done = done.saturating_add(copied).min(100);
        let done = *done;
        if done == 100 {
            self.restores.remove(volume);
            self.volumes.insert(volume.clone(), content);
        }
        Ok(done)
    }

    fn ensure_snapshot(&mut self, spec: &SnapshotSpec, torn: bool, copied: Option<u8>) -> Result<SnapshotReport> {
        let id = &spec.snapshot;
        if let Some(content) = self.snapshots.get(id) {
            return Ok(report(content, 100));
        }
        if let Some(copy) = self.copies.get_mut(id) {
            if copy.overflowed {
                return Err(DelegateError::fatal(format!("what keeps {id} has overflowed")));
            }
            copy.progress = copy.progress.saturating_add(copied.unwrap_or(100)).min(100);
            let (content, progress) = (copy.content, copy.progress);
            if progress == 100 {
                self.copies.remove(id);
                self.snapshots.insert(id.clone(), content);
            }
            return Ok(report(&content, progress));
        }
        spec.may_cut()?;
        let of = *self.volumes.get(&spec.volume).ok_or_else(|| missing(&spec.volume))?;
        let content = Content { torn: of.torn || torn, ..of };
        if copied.is_some() {
            let copy = Copying { of: spec.volume.clone(), content, progress: 0, overflowed: false };
            self.copies.insert(id.clone(), copy);
            return Ok(report(&content, 0));
        }
        self.snapshots.insert(id.clone(), content);
        Ok(report(&content, 100))
    }
}

fn report(content: &Content, progress: u8) -> SnapshotReport {
    let data_bytes = if content.token == 0 { 0 } else { SOME_DATA.min(content.size_bytes) };
    SnapshotReport { size_bytes: content.size_bytes, data_bytes, progress }
}

/// The bytes that stand for a content, as other nodes read them: its number, whether it is torn, and zeros.
fn first_chunk(content: &Content) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(content.size_bytes.min(CHUNK)).unwrap_or(0)];
    let said = content.token.to_be_bytes();
    for (byte, said) in bytes.iter_mut().zip(said.into_iter().chain([u8::from(content.torn)])) {
        *byte = said;
    }
    bytes
}

fn piece(content: &Content, at: u64) -> Piece {
    let (size, first) = (content.size_bytes, first_chunk(content));
    match at {
        0 if first.iter().any(|byte| *byte != 0) => Piece::new(0, first.len() as u64, size, first.into()),
        _ => Piece::new(at, size, size, Bytes::new()),
    }
}

impl SimStorage {
    async fn on_snapshot<T>(
        &self,
        verb: &'static str,
        snapshot: &SnapshotId,
        at: u64,
        read: impl FnOnce(&Content) -> T + Send,
    ) -> Result<T> {
        let look = |node: &mut StorageNode| {
            let content = node.snapshots.get(snapshot).ok_or_else(|| missing(snapshot))?;
            if at >= content.size_bytes || !at.is_multiple_of(CHUNK) {
                return Err(DelegateError::fatal(format!("{snapshot} has no piece at {at}")));
            }
            Ok(read(content))
        };
        self.on_node(verb, look).await
    }
}

#[async_trait]
impl SnapshotSource for SimStorage {
    async fn read_snapshot(&self, snapshot: &SnapshotId, at: u64) -> Result<Piece> {
        self.on_snapshot("read_snapshot", snapshot, at, |content| piece(content, at)).await
    }

    async fn sum_snapshot(&self, snapshot: &SnapshotId, from: u64) -> Result<Summary> {
        let sum = |content: &Content| {
            let mut hasher = Sha256::new();
            let piece = piece(content, from);
            if !piece.is_zeros() {
                hasher.update(0_u64.to_be_bytes());
                hasher.update(Sha256::digest(&piece.bytes));
            }
            Summary { end: piece.end, digest: Digest(hasher.finalize().into()) }
        };
        self.on_snapshot("sum_snapshot", snapshot, from, sum).await
    }

    /// All simulated nodes are in one process.
    fn grant(&self, snapshot: &SnapshotId) -> Result<Grant> {
        Err(DelegateError::fatal(format!("{snapshot} is on a simulated node: no real one can read it")))
    }
}

#[async_trait]
impl VolumeDelegate for SimStorage {
    async fn snapshot_method(&self) -> Result<SnapshotMethod> {
        self.cloud.call("snapshot_method", |state| Ok(state.snapshot_method)).await
    }

    async fn ensure_volume(&self, _: Generation, spec: &VolumeSpec) -> Result<()> {
        self.on_node("ensure_volume", |node| node.ensure_volume(spec)).await
    }

    async fn ensure_restored(&self, _: Generation, spec: &RestoreSpec, source: Arc<dyn SnapshotSource>) -> Result<u8> {
        let is_there = |node: &mut StorageNode| Ok(node.volumes.contains_key(&spec.volume));
        if self.on_node("ensure_restored", is_there).await? {
            return Ok(100);
        }
        let piece = source.read_snapshot(&spec.snapshot, 0).await?;
        piece.check(0)?;
        if piece.size_bytes > spec.size_bytes {
            return Err(DelegateError::fatal(format!("{} is larger than the volume shall be", spec.snapshot)));
        }
        let byte = |at: usize| piece.bytes.get(at).copied().unwrap_or(0);
        let token = u64::from_be_bytes(std::array::from_fn(byte));
        let content = Content { size_bytes: spec.size_bytes, token, torn: byte(8) != 0 };
        let fill = |state: &mut State| {
            let copied = state.copied_a_call.unwrap_or(100);
            node(state, &self.node)?.restore(&spec.volume, content, copied)
        };
        self.cloud.call("fill_volume", fill).await
    }

    async fn ensure_no_volume(&self, _: Generation, volume: &VolumeId) -> Result<()> {
        let remove = |node: &mut StorageNode| {
            if let Some(export) = node.exports.values().find(|export| export.volume == *volume) {
                return Err(DelegateError::retry(format!("{volume} is still exported as {}", export.iqn)));
            }
            node.volumes.remove(volume);
            node.restores.remove(volume);
            // What is not copied yet goes with its origin, as with LVM.
            node.copies.retain(|_, copy| copy.of != *volume);
            Ok(())
        };
        self.on_node("ensure_no_volume", remove).await
    }

    async fn ensure_snapshot(&self, _: Generation, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        let take = |state: &mut State| {
            let torn = state.snapshot_method == SnapshotMethod::Copy && state.is_live(&spec.volume);
            let copied = state.copied_a_call;
            node(state, &self.node)?.ensure_snapshot(spec, torn, copied)
        };
        self.cloud.call("ensure_snapshot", take).await
    }

    async fn ensure_snapshot_copy(&self, _: Generation, spec: &CopySpec) -> Result<SnapshotReport> {
        let copy = |node: &mut StorageNode| {
            let there = node.snapshots.get(&spec.snapshot).or_else(|| node.snapshots.get(&spec.source)).copied();
            let content = there.ok_or_else(|| missing(&spec.source))?;
            node.snapshots.insert(spec.snapshot.clone(), content);
            Ok(report(&content, 100))
        };
        self.on_node("ensure_snapshot_copy", copy).await
    }

    async fn ensure_grown(&self, _: Generation, spec: &VolumeSpec) -> Result<Growth> {
        let grow = |node: &mut StorageNode| {
            if !node.volumes.contains_key(&spec.volume) {
                return Err(missing(&spec.volume));
            }
            node.ensure_volume(spec).map(|()| Growth::Online)
        };
        self.on_node("ensure_grown", grow).await
    }

    async fn ensure_no_snapshot(&self, _: Generation, spec: &SnapshotSpec) -> Result<()> {
        let remove = |node: &mut StorageNode| {
            node.snapshots.remove(&spec.snapshot);
            node.copies.remove(&spec.snapshot);
            Ok(())
        };
        self.on_node("ensure_no_snapshot", remove).await
    }

    async fn ensure_exported(&self, _: Generation, spec: &ExportSpec) -> Result<Portal> {
        target::check(spec)?;
        let export = |state: &mut State| {
            let ends = |other: &ExportSpec| {
                other.volume == spec.volume && other.iqn != spec.iqn && !spec.is_beside(&other.iqn)
            };
            refuse_under_session(state, &self.node, ends)?;
            let node = node(state, &self.node)?;
            if !node.volumes.contains_key(&spec.volume) {
                return Err(missing(&spec.volume));
            }
            node.exports.retain(|_, other| !ends(other));
            node.exports.insert(spec.iqn.clone(), spec.clone());
            node.broken.remove(&spec.iqn);
            Ok(self.portal())
        };
        self.cloud.call("ensure_exported", export).await
    }

    async fn ensure_not_exported(&self, _: Generation, volume: &VolumeId, but: &[String]) -> Result<()> {
        let ends = |export: &ExportSpec| export.volume == *volume && !but.contains(&export.iqn);
        let end = |state: &mut State| {
            refuse_under_session(state, &self.node, ends)?;
            node(state, &self.node)?.exports.retain(|_, export| !ends(export));
            Ok(())
        };
        self.cloud.call("ensure_not_exported", end).await
    }

    async fn observe(&self) -> Result<StorageObservation> {
        let observe = |state: &mut State| {
            let sessions: Vec<_> = node(state, &self.node)?.exports.keys().cloned().collect();
            let sessions: Vec<_> = sessions.iter().map(|iqn| state.sessions(iqn)).collect();
            let node = node(state, &self.node)?;
            let exports = node.exports.values().zip(sessions).map(|(export, sessions)| ObservedExport {
                iqn: export.iqn.clone(),
                volume: export.volume.clone(),
                sessions,
                whole: !node.broken.contains(&export.iqn),
            });
            Ok(StorageObservation {
                volumes: node.volumes.iter().map(|(id, content)| (id.clone(), content.size_bytes)).collect(),
                snapshots: node.snapshots.keys().cloned().collect(),
                exports: exports.collect(),
                capacity_bytes: node.capacity_bytes,
                free_bytes: node.free_bytes(),
                sparse: false,
                drivers: vec!["sim".into()],
            })
        };
        self.cloud.call("observe_storage", observe).await
    }
}

/// Refuses when somebody is logged in to an export of the node that the question fits.
fn refuse_under_session(state: &mut State, name: &str, fits: impl Fn(&ExportSpec) -> bool) -> Result<()> {
    let exports: Vec<_> = node(state, name)?.exports.values().filter(|export| fits(export)).cloned().collect();
    for export in exports {
        if let Some(initiator) = state.sessions(&export.iqn).first() {
            return Err(DelegateError::retry(format!("{initiator} is logged in to {}", export.iqn)));
        }
    }
    Ok(())
}
