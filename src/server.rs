//! The HTTP server under every role: what the network may do to us is bounded here, once.
//!
//! Handlers get whole requests of at most [`MAX_BODY`] bytes and give whole answers; they never see a connection. Around
//! them stand the limits: so many connections (for more, some that wait for their clients have to go), so many large bodies at once,
//! so long for a request's headers, its body, for the client to take its answer, and for silence between requests. Each request has an id, which is in its answer, in its
//! log line and in the span of everything its handler logs. Queries and bodies are never logged: they carry signatures.
//!
//! Every answer comes from the [`Handler`], also to a request that never reached it ([`Handler::refuse`]), because EC2's
//! clients want their error XML for a body that is too large too, and for what is not HTTP at all.

mod connection;
mod crowd;
mod exchange;
#[cfg(test)]
mod tests;
mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode, Uri};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, unconstrained};
use tokio_rustls::TlsAcceptor;

use crate::config;
use crowd::{Crowd, Place};

/// The largest body that is read, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// Connections that the kernel keeps for us until they are accepted, unless the system says less. Who comes when it keeps as many
/// tries again only after a second, then after two more.
const BACKLOG: u32 = 4096;

/// What a role opens besides its connections: to the database, to nodes, and to itself.
const OTHER_FILES: u64 = 1024;

/// How long to wait when a connection cannot be accepted, so that running out of file descriptors is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A request, whole.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The target as it was sent: nothing decoded, nothing normalised.
    pub uri: Uri,
    /// The headers; names are lower-case.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Who sent it.
    pub peer: SocketAddr,
    /// The id of the request: a random UUID. The answer's header `X-Amzn-Requestid` has it too.
    pub id: String,
}

impl Request {
    /// The path, still percent-encoded.
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The query without its question mark, still percent-encoded; empty when there is none.
    pub fn query(&self) -> &str {
        self.uri.query().unwrap_or_default()
    }
}

/// An answer, whole.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers; the server adds the request id, the date and the length.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// An answer of one content type.
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { status, headers, body: body.into() }
    }
}

/// Why a request did not reach its handler, or was not answered by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The body is larger than [`MAX_BODY`].
    #[error("the request's body is larger than {MAX_BODY} bytes")]
    TooLarge,
    /// The body did not come in time.
    #[error("the request's body did not come in time")]
    Timeout,
    /// The body broke off, or its framing is wrong.
    #[error("the request's body is not complete")]
    BadRequest,
    /// Too many clients send large bodies just now.
    #[error("too many large requests at once; please try again shortly")]
    Busy,
    /// The head is not that of a request.
    #[error("the request's head cannot be read")]
    Unreadable,
    /// The target has more bytes than a target may have here, 65,534.
    #[error("the request's target is too long")]
    TargetTooLong,
    /// The head has more than 128 KiB or more than 100 headers.
    #[error("the request's head is too large")]
    HeadTooLarge,
    /// The handler panicked.
    #[error("an internal error has occurred")]
    Internal,
}

impl Refusal {
    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadRequest | Self::Unreadable => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What a role does with requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. When the client hangs up, or the time to finish at the end is over, the future is dropped where it
    /// stands: what must run to its end belongs into a task of its own.
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;

    /// Says in the role's own format why the request with this id is not served.
    fn refuse(&self, id: &str, refusal: Refusal) -> Response;
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The certificate or the key cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
}

/// How far the server is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not on it.
    Serving,
    /// Every answer is the last one of its connection.
    Draining,
    /// No further request is read.
    Stopped,
}

/// The times a connection is held to.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// For a request's headers, for its body, for the answer to be taken, for the TLS handshake.
    read: Duration,
    /// Between an answer and the next request.
    idle: Duration,
}

/// Listens on an address, also when connections of a predecessor linger there. Needs a tokio runtime.
///
/// # Errors
/// Those of bind(2) and listen(2).
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves connections until `shutdown` is ready, and then for `drain_s` seconds more, in which each answer asks its client to
/// connect anew the next time; then accepts no more, lets the requests in flight finish for at most `grace_s` seconds, and
/// returns. Dropped, it ends all its connections at once.
///
/// # Errors
/// When the certificate or key cannot be used; nothing that happens later ends the server.
pub async fn serve<H: Handler>(
    config: &config::Server,
    listener: TcpListener,
    handler: Arc<H>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let tls = tls::acceptor(config).await?;
    let limits =
        Limits { read: Duration::from_secs(config.read_timeout_s), idle: Duration::from_secs(config.idle_timeout_s) };
    allow_files(config.max_connections);
    let crowd = Crowd::new(config.max_connections, limits);
    let (tell, stage) = watch::channel(Stage::Serving);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(async {
        shutdown.await;
        tell.send_replace(Stage::Draining);
        tokio::time::sleep(Duration::from_secs(config.drain_s)).await;
    });
    let mut accepted = None;
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => note_panic(ended),
            // Not only so many before others have their turn: those who are turned away would fill the queue.
            ((stream, peer), place) = unconstrained(next(&listener, &crowd, &mut accepted)) => {
                let Some(place) = place else {
                    tracing::debug!(%peer, "its address has enough of the places");
                    continue;
                };
                let (handler, stage, tls) = (handler.clone(), stage.clone(), tls.clone());
                let crowd = crowd.clone();
                connections.spawn(async move { start(stream, peer, tls, &*handler, &crowd, &place, stage).await });
            }
        }
    }
    drop(listener);
    tell.send_replace(Stage::Stopped);
    let finish = async {
        while let Some(ended) = connections.join_next().await {
            note_panic(ended);
        }
    };
    if tokio::time::timeout(Duration::from_secs(config.grace_s), finish).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests did not finish in time and are broken off");
        connections.shutdown().await;
    }
    Ok(())
}

type Accepted = (TcpStream, SocketAddr);

/// Takes as many files as the connections need, as far as the system lets us: services start with 1,024. Not more, since some of
/// the commands that inherit the limit close every file that there might be.
fn allow_files(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = (connections.saturating_add(crowd::reserve(connections)) as u64).saturating_add(OTHER_FILES);
    let current = limit.maximum.map_or(wanted, |most| wanted.min(most));
    if limit.current.is_some_and(|now| now < current)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum })
    {
        tracing::warn!(%error, "cannot open more files than the system lets us at the start");
    }
    if current < wanted {
        tracing::warn!(current, wanted, "the system lets us open fewer files than max_connections needs");
    }
}

/// Waits for a connection, and finds a place for it, or that it shall have none. Until then the connection is kept in `accepted`:
/// this future may be dropped at any time.
async fn next(
    listener: &TcpListener,
    crowd: &Arc<Crowd>,
    accepted: &mut Option<Accepted>,
) -> (Accepted, Option<Place>) {
    let peer = match accepted {
        Some((_, peer)) => *peer,
        None => accepted.insert(accept(listener).await).1,
    };
    let place = crowd.admit(peer.ip()).await;
    (accepted.take().expect("it is there since then"), place)
}

async fn accept(listener: &TcpListener) -> Accepted {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The peer gave up while it waited in the queue.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn start<H: Handler>(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    handler: &H,
    crowd: &Crowd,
    place: &Place,
    stage: watch::Receiver<Stage>,
) {
    let member = &*place.member;
    // Answers are written whole: waiting for more to send along would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let Some(tls) = tls else {
        return connection::run(stream, peer, handler, crowd, member, stage).await;
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(crowd.limits().read, tls.accept(stream)) => shaken,
        () = member.leave.notified() => return tracing::debug!(%peer, "the place of a TLS handshake is needed"),
    };
    match shaken {
        Ok(Ok(stream)) => connection::run(stream, peer, handler, crowd, member, stage).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "the TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection ended in a panic");
    }
}
