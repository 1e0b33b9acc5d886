//! A node's delegate as somebody who may be connected to: its address, whose certificates it may show, and the connections
//! that are kept for the next calls. One that the other side has closed meanwhile is replaced and the request sent once more,
//! at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::trust::Trust;

/// For the TCP connection and the TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// After so long without a word the node's kernel is asked whether it is still there, and then as often as [`PROBES`] says. A
/// node that lost its power ends no connection, and the longest calls last for hours.
const QUIET: Duration = Duration::from_secs(15);
/// The pause between two such questions.
const PROBE_PAUSE: Duration = Duration::from_secs(5);
/// How many may stay unanswered.
const PROBES: u32 = 3;
/// Connections kept for the next calls.
const MOST_IDLE: usize = 8;

type Connection = SendRequest<Full<Bytes>>;

/// What can go wrong on the way.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;

/// A node's delegate, somewhere else.
pub struct Peer {
    /// `HOST:PORT`, as signatures cover it.
    authority: String,
    address: (String, u16),
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Where it may be.
    may_be_at: fn(IpAddr) -> bool,
    idle: Mutex<Vec<Connection>>,
}

impl Peer {
    /// The delegate at `http://HOST:PORT`, or at `https://…` with a certificate that is trusted. The error says what is wrong
    /// with the URL.
    pub fn new(url: &str, trust: &Trust) -> Result<Self, String> {
        let invalid = |why: &str| format!("the URL {url:?} {why}");
        let parsed: Uri = url.parse().map_err(|_| invalid("is not one"))?;
        let host = parsed.host().filter(|host| !host.is_empty()).ok_or_else(|| invalid("has no host"))?;
        // Without the brackets that a URL has around an address of IPv6.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
            return Err(invalid("ends after the port"));
        }
        let tls = match (parsed.scheme_str(), trust.is_none()) {
            (Some("http"), true) => None,
            (Some("https"), false) => {
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| invalid("has a host no certificate is for"))?;
                Some((trust.connector()?, name))
            }
            (Some("http"), false) => return Err(invalid("needs neither ca nor pins: it is not https")),
            (Some("https"), true) => return Err(invalid("needs a ca or pins: which certificates may it show?")),
            _ => return Err(invalid("starts with neither http nor https")),
        };
        let port = parsed.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Self { authority, address: (host, port), tls, may_be_at: |_| true, idle: Mutex::default() })
    }

    /// The same, connected to only where it may be. The address counts that its name stands for at that moment.
    #[must_use]
    pub fn only_at(self, may_be_at: fn(IpAddr) -> bool) -> Self {
        Self { may_be_at, ..self }
    }

    /// `HOST:PORT`, as signatures cover it and the header `Host` has it.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends a request, which is made anew for each try and to which the header `Host` is added, and reads the answer, of so many
    /// bytes at most. How long that may take is the caller's to say.
    pub async fn exchange(
        &self,
        make: impl Fn() -> Result<Request<Full<Bytes>>, Problem>,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Problem> {
        if let Some(mut kept) = self.take_idle()
            && let Ok(answer) = self.send(&mut kept, make()?, most).await
        {
            self.keep(kept);
            return Ok(answer);
        }
        let mut fresh = self.connect().await?;
        let answer = self.send(&mut fresh, make()?, most).await?;
        self.keep(fresh);
        Ok(answer)
    }

    async fn send(
        &self,
        over: &mut Connection,
        mut request: Request<Full<Bytes>>,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Problem> {
        request.headers_mut().insert(HOST, self.authority.parse()?);
        over.ready().await?;
        let response = over.send_request(request).await?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), most).collect().await?.to_bytes();
        Ok((status, answer))
    }

    async fn connect(&self) -> Result<Connection, Problem> {
        let (host, port) = &self.address;
        let connect = async {
            let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
            let may_be: Vec<SocketAddr> = found.filter(|address| (self.may_be_at)(address.ip())).collect();
            if may_be.is_empty() {
                return Err("no storage node is at such an address".into());
            }
            let stream = TcpStream::connect(may_be.as_slice()).await?;
            stream.set_nodelay(true)?;
            notice_death(&stream)?;
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
}

/// Breaks the connection when the other side's kernel is not there any more.
fn notice_death(stream: &TcpStream) -> std::io::Result<()> {
    let unacknowledged = QUIET + PROBE_PAUSE * PROBES;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, QUIET)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_PAUSE)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(unacknowledged.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Connection, Problem> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or with the stream; its error comes out of the sender too.
    tokio::spawn(connection);
    Ok(sender)
}
