//! The servers that vbs is compared with, each a process of its own: this program with other arguments.
//!
//! - `bare FILE`: hyper that reads the request and answers the bytes of the file, whatever was asked. Nothing in Rust that
//!   speaks HTTP answers faster by much.
//! - `least URL`: the least that a correct server does. It verifies the signature, with the signing key at hand, reads the
//!   id from the form, asks Postgres for the row by a prepared statement over one of eight connections, and writes the
//!   XML. It knows one account, one action, one parameter, no tags and no attachments.
//!
//! Each prints its address and serves until its standard input closes.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio_postgres::{NoTls, Row, Statement};
use vbs::sigv4::{self, SigningKey};

use crate::Result;
use crate::client::Client;
use crate::world::ACCOUNT;

/// The argument that makes this program a baseline.
pub const ROLE: &str = "serve";
/// The connections of the least server, as in the pool that most servers have.
const CONNECTIONS: usize = 8;
/// The environment variable with the secret that the least server knows.
const SECRET: &str = "BENCH_SECRET";

/// A baseline that runs; ends when dropped.
pub struct Baseline {
    /// Where it serves.
    pub address: SocketAddr,
    _child: Child,
}

impl Baseline {
    /// Starts the server that answers the bytes of a file.
    pub async fn bare(answer: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ROLE, "bare"]).arg(answer);
        Self::start(command).await
    }

    /// Starts the least server that is correct.
    pub async fn least(url: &str, client: &Client) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ROLE, "least", url]).env(SECRET, &client.secret);
        Self::start(command).await
    }

    async fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("no standard output")?;
        BufReader::new(stdout).read_line(&mut line).await?;
        Ok(Self { address: line.trim().parse()?, _child: child })
    }
}

/// Runs a baseline.
pub async fn run(arguments: &[String]) -> Result<()> {
    // Whoever started us may be killed outright.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    match arguments {
        [kind, file] if kind == "bare" => {
            let answer = Bytes::from(std::fs::read(file)?);
            serve(move |_, _| std::future::ready(Ok(answer.clone()))).await
        }
        [kind, url] if kind == "least" => {
            let least = Arc::new(Least::open(url, std::env::var(SECRET)?).await?);
            serve(move |headers, body| {
                let least = least.clone();
                async move { least.answer(&headers, &body).await }
            })
            .await
        }
        _ => Err("not a baseline".into()),
    }
}

async fn serve<H, F>(handler: H) -> Result<()>
where
    H: Fn(HeaderMap, Bytes) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Bytes>> + Send,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let handler = handler.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move {
                let (head, body) = request.into_parts();
                let answered = async { handler(head.headers, body.collect().await?.to_bytes()).await };
                let mut response = Response::new(Full::default());
                match answered.await {
                    Ok(body) => *response.body_mut() = Full::new(body),
                    Err(error) => {
                        *response.status_mut() = StatusCode::BAD_REQUEST;
                        *response.body_mut() = Full::new(error.to_string().into());
                    }
                }
                Ok::<_, Infallible>(response)
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// The least correct server.
struct Least {
    secret: String,
    key: OnceLock<SigningKey>,
    free: Mutex<Vec<Connection>>,
    places: Semaphore,
}

struct Connection {
    client: tokio_postgres::Client,
    by_id: Statement,
}

impl Least {
    async fn open(url: &str, secret: String) -> Result<Self> {
        let mut free = Vec::new();
        for _ in 0..CONNECTIONS {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            let by_id = client
                .prepare(
                    "SELECT id, size_gib, snapshot_id, zone, state, created_at, volume_type, iops, encrypted, \
                     multi_attach, throughput FROM volumes WHERE id = $1 AND account_id = $2 AND state <> 'deleted'",
                )
                .await?;
            free.push(Connection { client, by_id });
        }
        Ok(Self { secret, key: OnceLock::new(), free: Mutex::new(free), places: Semaphore::new(CONNECTIONS) })
    }

    async fn answer(&self, headers: &HeaderMap, body: &[u8]) -> Result<Bytes> {
        let request = sigv4::Request { method: "POST", path: "/", query: "", headers, body };
        let presented = sigv4::parse(&request)?;
        // One client and one day: one key.
        let key = self.key.get_or_init(|| presented.signing_key(&self.secret));
        sigv4::verify_with_key(&request, &presented, key, Utc::now())?;
        let mut parameters = body.split(|b| *b == b'&');
        let id = parameters.find_map(|pair| pair.strip_prefix(b"VolumeId.1=")).ok_or("no id")?;
        // In the form the dash may be written as an escape.
        let id = percent_encoding::percent_decode(id).decode_utf8()?;
        let row = self.look_up(&id).await?.ok_or("no such volume")?;
        Ok(render(&row)?.into())
    }

    async fn look_up(&self, id: &str) -> Result<Option<Row>> {
        let _place = self.places.acquire().await?;
        let connection = Taken { free: &self.free, connection: self.free().pop() };
        let Connection { client, by_id } = connection.connection.as_ref().ok_or("no connection")?;
        Ok(client.query_opt(by_id, &[&id, &ACCOUNT]).await?)
    }

    fn free(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that goes back when its user is done, or has hung up.
struct Taken<'a> {
    free: &'a Mutex<Vec<Connection>>,
    connection: Option<Connection>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).extend(self.connection.take());
    }
}

fn render(row: &Row) -> Result<String> {
    let id: &str = row.try_get(0)?;
    let created: DateTime<Utc> = row.try_get::<_, SystemTime>(5)?.into();
    let mut xml = String::with_capacity(1024);
    write!(
        xml,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DescribeVolumesResponse \
         xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>{}</requestId><volumeSet><item>\
         <volumeId>{id}</volumeId><size>{}</size><snapshotId>{}</snapshotId><availabilityZone>{}</availabilityZone>\
         <status>{}</status><createTime>{}</createTime><attachmentSet/><volumeType>{}</volumeType><iops>{}</iops>\
         <encrypted>{}</encrypted><multiAttachEnabled>{}</multiAttachEnabled><throughput>{}</throughput>\
         <ownerId>{ACCOUNT}</ownerId><volumeArn>arn:aws:ec2:us-east-1:{ACCOUNT}:volume/{id}</volumeArn>\
         </item></volumeSet></DescribeVolumesResponse>",
        uuid::Uuid::new_v4(),
        row.try_get::<_, i32>(1)?,
        row.try_get::<_, Option<&str>>(2)?.unwrap_or_default(),
        row.try_get::<_, &str>(3)?,
        row.try_get::<_, &str>(4)?,
        created.to_rfc3339_opts(SecondsFormat::Millis, true),
        row.try_get::<_, &str>(6)?,
        row.try_get::<_, i32>(7)?,
        row.try_get::<_, bool>(8)?,
        row.try_get::<_, bool>(9)?,
        row.try_get::<_, i32>(10)?,
    )?;
    Ok(xml)
}
