//! `GET /readyz`: when a gateway says that it can serve, and how soon and with which words it says that it cannot.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vbs::config::Config;
use vbs::delegate::sim::SimCloud;
use vbs::gateway::Gateway;
use vbs::{delegates, server};

use crate::support::client::send;
use crate::support::cloud::{self, Cloud};
use crate::support::postgres;
use crate::support::proxy::Proxy;

/// A balancer gives up on an answer that takes longer, and does not learn why.
const PROMPT: Duration = Duration::from_secs(4);

async fn ready(address: SocketAddr) -> (u16, String) {
    let request = Request::get("/readyz").header("host", "localhost").body(Full::new(Bytes::new())).unwrap();
    let start = Instant::now();
    let answer = send(address, request).await;
    assert!(start.elapsed() < PROMPT, "{} s until {}", start.elapsed().as_secs_f64(), answer.body);
    (answer.status, answer.body.trim_end().to_owned())
}

const READY: (u16, &str) = (200, "ready");
const MISSING: (u16, &str) = (503, "migrations are missing: run vbs migrate");
const SILENT: (u16, &str) = (503, "the database does not answer");
const BUSY: (u16, &str) = (503, "the database is busy");

async fn assert_says(address: SocketAddr, (status, words): (u16, &str)) {
    assert_eq!(ready(address).await, (status, words.to_owned()));
}

async fn becomes_ready(address: SocketAddr) {
    let deadline = Instant::now() + cloud::PATIENCE;
    while ready(address).await.0 != READY.0 {
        assert!(Instant::now() < deadline, "it does not become ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_ready_when_every_migration_is_there_whatever_else_is() {
    let cloud = Cloud::start().await;
    let address = cloud.client.address;
    let say = async |sql: &str| {
        let mut conn = cloud.context.pool.get().await.unwrap();
        assert_eq!(diesel_async::RunQueryDsl::execute(diesel::sql_query(sql), &mut conn).await.unwrap(), 1);
    };
    assert_says(address, READY).await;
    say("UPDATE __diesel_schema_migrations SET version = 'newer' \
         WHERE version = (SELECT min(version) FROM __diesel_schema_migrations)")
    .await;
    assert_says(address, MISSING).await;
    say("UPDATE __diesel_schema_migrations SET version = '20260101000001' WHERE version = 'newer'").await;
    assert_says(address, READY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_database_hangs_or_is_gone_says_so_before_its_balancer_gives_up() {
    let proxy = Proxy::start(&postgres::database().await);
    let cloud = Cloud::join(&proxy.url, &SimCloud::new(), "").await;
    let address = cloud.client.address;
    assert_says(address, READY).await;
    proxy.stall();
    // Of a connection that was there, then of new ones.
    for _ in 0..2 {
        assert_says(address, SILENT).await;
    }
    proxy.restore();
    becomes_ready(address).await;
    proxy.cut();
    assert_says(address, SILENT).await;
    proxy.restore();
    becomes_ready(address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_connections_are_all_in_use_calls_its_database_busy_and_not_silent() {
    let cloud = Cloud::start().await;
    let pool = &cloud.context.pool;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(pool.get().await.unwrap());
    }
    // Another is first in the line, and comes to its turn while the check waits.
    let mut other = pin!(pool.get());
    assert!(poll_fn(|cx| Poll::Ready(other.as_mut().poll(cx).is_pending())).await);
    let turn = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        held.pop();
        other.await.unwrap()
    };
    let ((), _conn) = tokio::join!(assert_says(cloud.client.address, BUSY), turn);
    // Nobody comes to a turn any more.
    assert_says(cloud.client.address, SILENT).await;
}

/// A gateway on simulated nodes, as its process starts it. It ends when dropped.
struct Starting {
    address: SocketAddr,
    _running: AbortOnDropHandle<()>,
}

async fn start(url: &str, migrate: bool) -> Starting {
    let text = cloud::file(url, "", "").replace("pool = 8", &format!("pool = 8, migrate = {migrate}"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let config = Config::load(file.path()).unwrap();
    let stop = CancellationToken::new();
    let nodes = delegates::open(&config, &SimCloud::new(), &stop).await.unwrap();
    let listener = server::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Gateway::prepare(config, nodes).await.unwrap();
    let running = tokio::spawn(async move { gateway.run(listener, stop).await.unwrap() });
    Starting { address, _running: AbortOnDropHandle::new(running) }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_start_together_on_an_empty_database_migrate_it_once_and_all_serve() {
    let url = postgres::empty_database().await;
    let start = || {
        let url = url.clone();
        tokio::spawn(async move { start(&url, true).await })
    };
    let (first, second) = tokio::join!(start(), start());
    for gateway in [first.unwrap(), second.unwrap()] {
        assert_says(gateway.address, READY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_may_not_migrate_says_what_an_empty_database_needs() {
    let gateway = start(&postgres::empty_database().await, false).await;
    assert_says(gateway.address, MISSING).await;
}
