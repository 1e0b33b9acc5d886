//! `vbs gateway`: puts the parts together (database, delegates, workers, EC2 front) and takes them apart in order.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use diesel_async::pooled_connection::deadpool::Object;
use futures_util::StreamExt;
use hyper::StatusCode;
use hyper::header::{ALLOW, HeaderValue};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::config::{Config, ConfigError};
use crate::db::gather::Gather;
use crate::db::{self, Pool};
use crate::delegate::sim::SimCloud;
use crate::delegates::{self, OpenError};
use crate::ec2_api::error::ApiError;
use crate::ec2_api::{self, Api};
use crate::seal::{SealError, Sealer};
use crate::server::{self, Handler, Refusal, Request, Response, ServerError};
use crate::sigv4;
use crate::workers::{self, Nodes, Placement, Wake};

/// How soon the connection that listens for changed access keys is made again when it is lost.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// How long `/readyz` waits for the database: balancers do not wait longer for their answer.
const READY_LIMIT: Duration = Duration::from_secs(2);

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration, or a file it names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The master key.
    #[error(transparent)]
    MasterKey(#[from] SealError),
    /// The database.
    #[error(transparent)]
    Database(#[from] db::Error),
    /// A delegate.
    #[error(transparent)]
    Delegate(#[from] OpenError),
    /// The address.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Runs a gateway until `stop`: requests in flight are finished, steps in progress too, and the leases are given back.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), GatewayError> {
    let nodes = delegates::open(&config, &SimCloud::new(), &stop).await?;
    let listener = server::listen(config.gateway.server.listen)?;
    let gateway = Gateway::prepare(config, nodes).await?;
    gateway.run(listener, stop).await
}

/// A gateway that is ready to run.
pub struct Gateway {
    config: Config,
    context: Arc<workers::Context>,
    front: Arc<Front>,
}

impl Gateway {
    /// Opens the database, applies missing migrations when the configuration says so, and makes the EC2 front.
    pub async fn prepare(config: Config, nodes: Nodes) -> Result<Self, GatewayError> {
        if let Some(name) = config.gateway.throttle.actions.keys().find(|name| ec2_api::actions::find(name).is_none()) {
            return Err(ConfigError::Invalid(format!("gateway.throttle.actions: there is no action {name}")).into());
        }
        let sealer = Sealer::of(&config)?;
        let database_url = config.database.url()?;
        if config.database.migrate {
            db::migrate(&database_url).await?;
        }
        let pool = Pool::new(&database_url, config.database.pool)?;
        let wake = Wake::default();
        let placement = Placement::new(pool.clone(), nodes.clone());
        let api = Api::new(&config, pool.clone(), sealer.clone(), wake.clone(), placement.clone());
        let context = workers::Context {
            find_volume: Gather::new(pool.clone()),
            made_volume: Gather::new(pool.clone()),
            pool: pool.clone(),
            database_url,
            nodes,
            placement,
            sealer,
            settings: config.workers.clone(),
            owner: format!("gateway-{}", uuid::Uuid::new_v4()),
            wake,
        };
        let front = Front { api, pool, stopping: CancellationToken::new() };
        Ok(Self { config, context: Arc::new(context), front: Arc::new(front) })
    }

    /// What the workers of this gateway work with.
    pub fn context(&self) -> &Arc<workers::Context> {
        &self.context
    }

    /// Serves until `stop`. Dropped, it ends where it stands, as a crash would end it.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) -> Result<(), GatewayError> {
        info!(address = %listener.local_addr()?, "serving");
        // The workers go on while the last requests are finished, which may still enqueue work.
        let served = CancellationToken::new();
        let workers = AbortOnDropHandle::new(tokio::spawn(workers::run(self.context.clone(), served.clone())));
        let watch = forget_changed_keys(self.context.database_url.clone(), self.front.clone());
        let _keys = AbortOnDropHandle::new(tokio::spawn(watch));
        let stopping = self.front.stopping.clone();
        let shutdown = async {
            stop.cancelled().await;
            stopping.cancel();
        };
        let done = server::serve(&self.config.gateway.server, listener, self.front, shutdown).await;
        served.cancel();
        if workers.await.is_err() {
            warn!("the workers ended by a panic");
        }
        Ok(done?)
    }
}

/// What answers requests: health checks here, everything else by the EC2 API.
struct Front {
    api: Api,
    pool: Pool,
    /// Cancelled when this gateway shall get no new clients.
    stopping: CancellationToken,
}

impl Handler for Front {
    async fn handle(&self, request: Request) -> Response {
        match request.path() {
            "/healthz" => plain(StatusCode::OK, "ok"),
            "/readyz" => self.ready().await,
            _ => {
                let signed = sigv4::Request {
                    method: request.method.as_str(),
                    path: request.path(),
                    query: request.query(),
                    headers: &request.headers,
                    body: &request.body,
                };
                let reply = self.api.serve(signed, &request.id).await;
                answer(reply.status, reply.content_type, reply.body)
            }
        }
    }

    /// Clients parse even these, so they are EC2's error document as well.
    fn refuse(&self, id: &str, refusal: Refusal) -> Response {
        let code = match refusal {
            Refusal::TooLarge => "RequestEntityTooLarge",
            Refusal::Timeout => "RequestTimeout",
            Refusal::BadRequest => "IncompleteBody",
            Refusal::Busy => "Unavailable",
            Refusal::Unreadable => "InvalidRequest",
            Refusal::TargetTooLong => "RequestUriTooLong",
            Refusal::HeadTooLarge => "RequestHeaderSectionTooLarge",
            Refusal::Internal => "InternalError",
        };
        let error = ApiError { status: refusal.status().as_u16(), ..ApiError::new(code, refusal.to_string()) };
        answer(error.status, ec2_api::XML, error.render(id))
    }
}

impl Front {
    /// Ready: the database answers, has every migration this program knows, and the gateway is not about to stop.
    async fn ready(&self) -> Response {
        if self.stopping.is_cancelled() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "stopping");
        }
        let deadline = Instant::now() + READY_LIMIT;
        let current = async {
            let mut conn = self.pool.get_within(READY_LIMIT).await?;
            if let Ok(current) = timeout_at(deadline, db::is_current(&mut conn)).await {
                return current;
            }
            // Nobody else shall wait for it.
            drop(Object::take(conn));
            Err(db::Error::Connection("no answer in time".into()))
        };
        let why = match current.await {
            Ok(true) => return plain(StatusCode::OK, "ready"),
            Ok(false) => "migrations are missing: run vbs migrate",
            Err(error) => {
                warn!(%error, "not ready");
                if matches!(error, db::Error::Busy) { "the database is busy" } else { "the database does not answer" }
            }
        };
        plain(StatusCode::SERVICE_UNAVAILABLE, why)
    }
}

fn answer(status: u16, content_type: &'static str, body: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::new(status, content_type, body);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        // RFC 9110, section 15.5.6: it must be told.
        response.headers.insert(ALLOW, HeaderValue::from_static("GET, POST"));
    }
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    Response::new(status, "text/plain", format!("{text}\n"))
}

/// Makes the front forget what it remembers of access keys whenever one is changed, and whenever it may have missed that. While
/// this connection is lost, a key that was disabled is accepted for as long as the front remembers it, a second.
async fn forget_changed_keys(database_url: String, front: Arc<Front>) {
    loop {
        let listen = async {
            let mut conn = db::connect(&database_url).await?;
            db::access_keys::listen(&mut conn).await?;
            // What was changed before it listened it cannot have heard of.
            front.api.forget_keys();
            let mut changes = std::pin::pin!(conn.notifications_stream());
            while let Some(change) = changes.next().await {
                change?;
                front.api.forget_keys();
            }
            db::Result::Ok(())
        };
        if let Err(error) = listen.await {
            warn!(%error, "the connection that watches access keys is lost");
        }
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}
