//! Calls a node's delegate over the network, which may lose the question, the answer, or the node.
//!
//! Every call has a time-out, and whatever goes wrong on the way is an error worth another try: the verbs are idempotent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::peer::{Peer, Problem};
use super::reading;
use super::replay;
use super::source::{Grant, Piece, RestoreSpec, SnapshotSource, Summary};
use super::trust::Trust;
use super::wire::{self, AnotherLife, Call, DetachSpec, EndExports, GrowSpec, RestoreCall};
use super::{
    ConnectSpec, CopySpec, DelegateError, Detach, DiskSpec, ExportSpec, Generation, Growth, Pause, PauseSpec, Portal,
    Result, Secret, SnapshotMethod, SnapshotReport, SnapshotSpec, StorageObservation, VmmDelegate, VmmObservation,
    VolumeDelegate, VolumeSpec,
};
use crate::config::{ConfigError, Remote};
use crate::ids::{SnapshotId, VolumeId};
use crate::sigv4;

/// For a look, at most.
const LOOK: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes. An observation has about a hundred a volume.
const MOST_ANSWER: usize = 64 << 20;
/// The longest error that is read as one, in bytes.
const MOST_ERROR: usize = 64 << 10;

/// A node's delegate, somewhere else.
pub struct Client {
    node: String,
    key: String,
    url: String,
    trust: Trust,
    peer: Peer,
    /// For verbs that copy whole volumes, which takes hours for the biggest.
    long: Duration,
    /// For verbs that only change things; they may wait for an earlier call, a guest or a session.
    short: Duration,
    /// The life of the delegate that calls are for, as it said itself; empty before it was asked.
    life: Mutex<String>,
}

impl Client {
    /// The node of this name, at the configured URL. Whether it is there is found out call by call.
    pub fn new(node: &str, remote: &Remote) -> Result<Self, ConfigError> {
        let read = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })
        };
        let trust = Trust { ca: remote.ca.as_ref().map(read).transpose()?, pins: remote.pins.clone() };
        let invalid = |why| ConfigError::Invalid(format!("node {node}: {why}"));
        let peer = Peer::new(&remote.url, &trust).map_err(invalid)?;
        let key = wire::key(&remote.key)?;
        let (long, short) = (Duration::from_secs(remote.copy_timeout_s), Duration::from_secs(remote.timeout_s));
        Ok(Self { node: node.into(), key, url: remote.url.clone(), trust, peer, long, short, life: Mutex::default() })
    }

    async fn ensure<S: Serialize, T: DeserializeOwned>(
        &self,
        verb: &str,
        limit: Duration,
        generation: Generation,
        spec: S,
    ) -> Result<T> {
        self.call(verb, limit, &Call { generation, spec }).await
    }

    async fn call<T: DeserializeOwned>(&self, verb: &str, limit: Duration, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|e| DelegateError::fatal(format!("{verb}: {e}")))?;
        let exchange = self.exchange(verb, body.into());
        let (status, answer) = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| self.lost(verb, format!("no answer after {limit:?}")))??;
        if status == StatusCode::OK {
            return serde_json::from_slice(&answer)
                .map_err(|e| self.lost(verb, format!("an answer that is none: {e}")));
        }
        let answer = &answer[..answer.len().min(MOST_ERROR)];
        Err(serde_json::from_slice(answer).unwrap_or_else(|_| {
            let start: String = String::from_utf8_lossy(answer).escape_debug().take(200).collect();
            self.lost(verb, format!("{status}: {start}"))
        }))
    }

    /// Sends a call, and once more when the delegate was started since the last one: the first did nothing then.
    async fn exchange(&self, verb: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let answer = self.send(verb, &body).await?;
        if answer.0 != StatusCode::MISDIRECTED_REQUEST {
            return Ok(answer);
        }
        let life = serde_json::from_slice::<AnotherLife>(&answer.1).ok().filter(AnotherLife::is_name);
        let Some(AnotherLife { life, .. }) = life else { return Ok(answer) };
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = life;
        self.send(verb, &body).await
    }

    async fn send(&self, verb: &str, body: &Bytes) -> Result<(StatusCode, Bytes)> {
        let path = format!("{}{verb}", wire::PATH);
        let make = || -> Result<_, Problem> {
            let query = {
                let life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
                wire::query(&life, &replay::random_name())
            };
            let signed = sigv4::Outgoing {
                method: "POST",
                path: &path,
                query: &query,
                host: self.peer.authority(),
                body,
                access_key_id: &self.node,
                secret: &self.key,
                region: &self.node,
                service: wire::SERVICE,
            };
            let headers = sigv4::sign(&signed, Utc::now());
            let target = format!("{path}?{query}");
            let request = Request::builder().method(Method::POST).uri(target).header(CONTENT_TYPE, "application/json");
            let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
            Ok(request.body(Full::new(body.clone()))?)
        };
        self.peer.exchange(make, MOST_ANSWER).await.map_err(|e| self.lost(verb, e))
    }

    fn lost(&self, verb: &str, why: impl std::fmt::Display) -> DelegateError {
        DelegateError::retry(format!("{verb} on {} ({}): {why}", self.node, self.peer.authority()))
    }

    fn query(&self, snapshot: &SnapshotId) -> Secret {
        reading::query(&self.node, &self.key, self.peer.authority(), snapshot)
    }
}

#[async_trait]
impl SnapshotSource for Client {
    async fn read_snapshot(&self, snapshot: &SnapshotId, at: u64) -> Result<Piece> {
        reading::read(&self.peer, &self.query(snapshot), snapshot, at).await
    }

    async fn sum_snapshot(&self, snapshot: &SnapshotId, from: u64) -> Result<Summary> {
        reading::sum(&self.peer, &self.query(snapshot), snapshot, from).await
    }

    fn grant(&self, snapshot: &SnapshotId) -> Result<Grant> {
        Ok(Grant { url: self.url.clone(), trust: self.trust.clone(), query: self.query(snapshot) })
    }
}

#[async_trait]
impl VolumeDelegate for Client {
    async fn snapshot_method(&self) -> Result<SnapshotMethod> {
        self.call("snapshot_method", self.short.min(LOOK), &()).await
    }

    async fn ensure_volume(&self, generation: Generation, spec: &VolumeSpec) -> Result<()> {
        self.ensure("ensure_volume", self.long, generation, spec).await
    }

    async fn ensure_restored(
        &self,
        generation: Generation,
        spec: &RestoreSpec,
        source: Arc<dyn SnapshotSource>,
    ) -> Result<u8> {
        let restore = RestoreCall { restore: spec.clone(), from: source.grant(&spec.snapshot)? };
        self.ensure("ensure_restored", self.short, generation, restore).await
    }

    async fn ensure_no_volume(&self, generation: Generation, volume: &VolumeId) -> Result<()> {
        self.ensure("ensure_no_volume", self.short, generation, volume).await
    }

    async fn ensure_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        self.ensure("ensure_snapshot", self.long, generation, spec).await
    }

    async fn ensure_snapshot_copy(&self, generation: Generation, spec: &CopySpec) -> Result<SnapshotReport> {
        self.ensure("ensure_snapshot_copy", self.long, generation, spec).await
    }

    async fn ensure_grown(&self, generation: Generation, spec: &VolumeSpec) -> Result<Growth> {
        // Thick volumes are zeroed before they grow.
        self.ensure("ensure_grown", self.long, generation, spec).await
    }

    async fn ensure_no_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<()> {
        self.ensure("ensure_no_snapshot", self.short, generation, spec).await
    }

    async fn ensure_exported(&self, generation: Generation, spec: &ExportSpec) -> Result<Portal> {
        self.ensure("ensure_exported", self.short, generation, spec).await
    }

    async fn ensure_not_exported(&self, generation: Generation, volume: &VolumeId, but: &[String]) -> Result<()> {
        let body = EndExports { generation, volume: volume.clone(), but: but.to_vec() };
        self.call("ensure_not_exported", self.short, &body).await
    }

    async fn observe(&self) -> Result<StorageObservation> {
        self.call("observe", self.short.min(LOOK), &()).await
    }
}

#[async_trait]
impl VmmDelegate for Client {
    async fn initiator_iqn(&self, machine: &str) -> Result<String> {
        self.call("initiator_iqn", self.short.min(LOOK), &machine).await
    }

    async fn ensure_connected(&self, generation: Generation, spec: &ConnectSpec) -> Result<()> {
        self.ensure("ensure_connected", self.short, generation, spec).await
    }

    async fn ensure_disconnected(&self, generation: Generation, spec: &DiskSpec) -> Result<()> {
        self.ensure("ensure_disconnected", self.short, generation, spec).await
    }

    async fn ensure_attached(&self, generation: Generation, spec: &DiskSpec) -> Result<()> {
        self.ensure("ensure_attached", self.short, generation, spec).await
    }

    async fn ensure_detached(&self, generation: Generation, spec: &DiskSpec, force: bool) -> Result<Detach> {
        self.ensure("ensure_detached", self.short, generation, DetachSpec { disk: spec.clone(), force }).await
    }

    async fn ensure_grown(&self, generation: Generation, spec: &DiskSpec, size_bytes: u64) -> Result<Growth> {
        self.ensure("ensure_grown", self.short, generation, GrowSpec { disk: spec.clone(), size_bytes }).await
    }

    async fn ensure_paused(&self, generation: Generation, spec: &PauseSpec) -> Result<()> {
        self.ensure("ensure_paused", self.short, generation, spec).await
    }

    async fn ensure_resumed(&self, generation: Generation, spec: &PauseSpec) -> Result<Pause> {
        self.ensure("ensure_resumed", self.short, generation, spec).await
    }

    async fn observe(&self) -> Result<VmmObservation> {
        self.call("observe", self.short.min(LOOK), &()).await
    }
}
