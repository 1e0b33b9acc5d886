//! Calls a node's delegate over the network, which may lose the question, the answer, or the node.
//!
//! Every call has a time-out, and whatever goes wrong on the way is an error worth another try: the verbs are idempotent.
//! Connections are kept and used again. One that the other side has closed meanwhile is replaced and the call sent once
//! more, at once.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::wire::{self, Call, DetachSpec, EndExports, GrowSpec};
use super::{
    ConnectSpec, CopySpec, DelegateError, Detach, DiskSpec, ExportSpec, Generation, Growth, Pause, PauseSpec, Portal,
    Result, SnapshotMethod, SnapshotReport, SnapshotSpec, StorageObservation, VmmDelegate, VmmObservation,
    VolumeDelegate, VolumeSpec,
};
use crate::config::{ConfigError, Remote};
use crate::ids::VolumeId;
use crate::sigv4;

/// For the TCP connection and the TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// For verbs that copy whole volumes, which takes hours for the biggest.
const LONG: Duration = Duration::from_secs(5 * 3600);
/// For verbs that only change things; they may wait for an earlier call, a guest or a session.
const SHORT: Duration = Duration::from_secs(60);
/// For a look.
const LOOK: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes. An observation has about a hundred a volume.
const MOST_ANSWER: usize = 64 << 20;
/// The longest error that is read as one, in bytes.
const MOST_ERROR: usize = 64 << 10;
/// Connections kept for the next calls.
const MOST_IDLE: usize = 8;

type Connection = SendRequest<Full<Bytes>>;

/// A node's delegate, somewhere else.
pub struct Client {
    node: String,
    key: String,
    /// `HOST:PORT`, as the signature covers it.
    authority: String,
    address: (String, u16),
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Mutex<Vec<Connection>>,
}

impl Client {
    /// The node of this name, at the configured URL. Whether it is there is found out call by call.
    pub fn new(node: &str, remote: &Remote) -> Result<Self, ConfigError> {
        let invalid = |why: &str| ConfigError::Invalid(format!("node {node}: the URL {:?} {why}", remote.url));
        let url: Uri = remote.url.parse().map_err(|_| invalid("is not one"))?;
        let host = url.host().filter(|host| !host.is_empty()).ok_or_else(|| invalid("has no host"))?;
        // Without the brackets that a URL has around an address of IPv6.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(invalid("ends after the port"));
        }
        let tls = match (url.scheme_str(), &remote.ca) {
            (Some("http"), None) => None,
            (Some("https"), Some(ca)) => {
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| invalid("has a host no certificate is for"))?;
                Some((trust(ca)?, name))
            }
            (Some("http"), Some(_)) => return Err(invalid("needs no ca: it is not https")),
            (Some("https"), None) => return Err(invalid("needs a ca: which certificates may it show?")),
            _ => return Err(invalid("starts with neither http nor https")),
        };
        let port = url.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let key = wire::key(&remote.key)?;
        Ok(Self { node: node.into(), key, authority, address: (host, port), tls, idle: Mutex::default() })
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

    async fn exchange(&self, verb: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        if let Some(mut kept) = self.take_idle()
            && let Ok(answer) = self.send(&mut kept, verb, body.clone()).await
        {
            self.keep(kept);
            return Ok(answer);
        }
        let mut fresh = self.connect().await.map_err(|e| self.lost(verb, e))?;
        let answer = self.send(&mut fresh, verb, body).await.map_err(|e| self.lost(verb, e))?;
        self.keep(fresh);
        Ok(answer)
    }

    async fn send(&self, over: &mut Connection, verb: &str, body: Bytes) -> Result<(StatusCode, Bytes), Problem> {
        let path = format!("{}{verb}", wire::PATH);
        let signed = sigv4::Outgoing {
            method: "POST",
            path: &path,
            query: "",
            host: &self.authority,
            body: &body,
            access_key_id: &self.node,
            secret: &self.key,
            region: &self.node,
            service: wire::SERVICE,
        };
        let headers = sigv4::sign(&signed, Utc::now());
        let request = Request::builder().method(Method::POST).uri(&path).header(HOST, &self.authority);
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        over.ready().await?;
        let response = over.send_request(request.body(Full::new(body))?).await?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MOST_ANSWER).collect().await?.to_bytes();
        Ok((status, answer))
    }

    async fn connect(&self) -> Result<Connection, Problem> {
        let (host, port) = &self.address;
        let connect = async {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            match &self.tls {
                None => handshake(stream).await,
                Some((connector, name)) => handshake(connector.connect(name.clone(), stream).await?).await,
            }
        };
        tokio::time::timeout(CONNECT, connect).await?
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE && !connection.is_closed() {
            idle.push(connection);
        }
    }

    fn lost(&self, verb: &str, why: impl std::fmt::Display) -> DelegateError {
        DelegateError::retry(format!("{verb} on {} ({}): {why}", self.node, self.authority))
    }
}

/// What can go wrong on the way.
type Problem = Box<dyn std::error::Error + Send + Sync>;

async fn handshake(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Connection, Problem> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or with the stream; its error comes out of the sender too.
    tokio::spawn(connection);
    Ok(sender)
}

/// Trusts the certificates of one authority and of no other.
fn trust(ca: &Path) -> Result<TlsConnector, ConfigError> {
    let cannot = |e: &dyn std::fmt::Display| ConfigError::Invalid(format!("cannot use {}: {e}", ca.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| cannot(&e))? {
        roots.add(certificate.map_err(|e| cannot(&e))?).map_err(|e| cannot(&e))?;
    }
    if roots.is_empty() {
        return Err(cannot(&"it holds no certificate"));
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| cannot(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[async_trait]
impl VolumeDelegate for Client {
    async fn snapshot_method(&self) -> Result<SnapshotMethod> {
        self.call("snapshot_method", LOOK, &()).await
    }

    async fn ensure_volume(&self, generation: Generation, spec: &VolumeSpec) -> Result<()> {
        self.ensure("ensure_volume", LONG, generation, spec).await
    }

    async fn ensure_no_volume(&self, generation: Generation, volume: &VolumeId) -> Result<()> {
        self.ensure("ensure_no_volume", SHORT, generation, volume).await
    }

    async fn ensure_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<SnapshotReport> {
        self.ensure("ensure_snapshot", LONG, generation, spec).await
    }

    async fn ensure_snapshot_copy(&self, generation: Generation, spec: &CopySpec) -> Result<SnapshotReport> {
        self.ensure("ensure_snapshot_copy", LONG, generation, spec).await
    }

    async fn ensure_grown(&self, generation: Generation, spec: &VolumeSpec) -> Result<Growth> {
        // Thick volumes are zeroed before they grow.
        self.ensure("ensure_grown", LONG, generation, spec).await
    }

    async fn ensure_no_snapshot(&self, generation: Generation, spec: &SnapshotSpec) -> Result<()> {
        self.ensure("ensure_no_snapshot", SHORT, generation, spec).await
    }

    async fn ensure_exported(&self, generation: Generation, spec: &ExportSpec) -> Result<Portal> {
        self.ensure("ensure_exported", SHORT, generation, spec).await
    }

    async fn ensure_not_exported(&self, generation: Generation, volume: &VolumeId, but: &[String]) -> Result<()> {
        let body = EndExports { generation, volume: volume.clone(), but: but.to_vec() };
        self.call("ensure_not_exported", SHORT, &body).await
    }

    async fn observe(&self) -> Result<StorageObservation> {
        self.call("observe", LOOK, &()).await
    }
}

#[async_trait]
impl VmmDelegate for Client {
    async fn initiator_iqn(&self, machine: &str) -> Result<String> {
        self.call("initiator_iqn", LOOK, &machine).await
    }

    async fn ensure_connected(&self, generation: Generation, spec: &ConnectSpec) -> Result<()> {
        self.ensure("ensure_connected", SHORT, generation, spec).await
    }

    async fn ensure_disconnected(&self, generation: Generation, spec: &DiskSpec) -> Result<()> {
        self.ensure("ensure_disconnected", SHORT, generation, spec).await
    }

    async fn ensure_attached(&self, generation: Generation, spec: &DiskSpec) -> Result<()> {
        self.ensure("ensure_attached", SHORT, generation, spec).await
    }

    async fn ensure_detached(&self, generation: Generation, spec: &DiskSpec, force: bool) -> Result<Detach> {
        self.ensure("ensure_detached", SHORT, generation, DetachSpec { disk: spec.clone(), force }).await
    }

    async fn ensure_grown(&self, generation: Generation, spec: &DiskSpec, size_bytes: u64) -> Result<Growth> {
        self.ensure("ensure_grown", SHORT, generation, GrowSpec { disk: spec.clone(), size_bytes }).await
    }

    async fn ensure_paused(&self, generation: Generation, spec: &PauseSpec) -> Result<()> {
        self.ensure("ensure_paused", SHORT, generation, spec).await
    }

    async fn ensure_resumed(&self, generation: Generation, spec: &PauseSpec) -> Result<Pause> {
        self.ensure("ensure_resumed", SHORT, generation, spec).await
    }

    async fn observe(&self) -> Result<VmmObservation> {
        self.call("observe", LOOK, &()).await
    }
}
