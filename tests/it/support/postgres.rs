//! One Postgres for the whole run, one database a test.
//!
//! A test binary has no place to clean up at its end, so the server belongs to `vbs postgres`, which lives as long as the
//! pipe to its standard input: when this process ends, in whatever way, the server and its files go with it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

/// The migrated database that each test's own is a copy of.
const TEMPLATE: &str = "template_vbs";

struct Server {
    /// The URL of the database that `CREATE DATABASE` is sent to.
    url: String,
    /// Never read: it holds the pipe open.
    _process: Child,
}

static SERVER: OnceCell<Server> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The URL of a fresh database with all migrations applied.
pub async fn database() -> String {
    database_in(SERVER.get_or_init(start).await).await
}

/// The URL of a fresh database that has never been migrated.
pub async fn empty_database() -> String {
    database_like(SERVER.get_or_init(start).await, "template0").await
}

async fn database_in(server: &Server) -> String {
    database_like(server, TEMPLATE).await
}

async fn database_like(server: &Server, template: &str) -> String {
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let admin = connect(&server.url).await;
    admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await.unwrap();
    in_database(&server.url, &name)
}

/// A Postgres that may be harmed: nobody else uses it.
pub struct Own(Server);

impl Own {
    /// Starts one. It ends when dropped.
    pub async fn start() -> Self {
        Self(start().await)
    }

    /// The URL of a fresh database in it, which loses nothing that was committed when its server crashes.
    pub async fn database(&self) -> String {
        let url = database_in(&self.0).await;
        let name = url.trim_start_matches("postgres:///").split_once('?').unwrap().0;
        let durable = format!("ALTER DATABASE {name} SET synchronous_commit = on");
        connect(&self.0.url).await.batch_execute(&durable).await.unwrap();
        url
    }
}

async fn start() -> Server {
    let (url, process) = tokio::task::spawn_blocking(spawn).await.unwrap();
    connect(&url).await.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.unwrap();
    vbs::db::migrate(&in_database(&url, TEMPLATE)).await.unwrap();
    Server { url, _process: process }
}

fn spawn() -> (String, Child) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
    let mut process = command.arg("postgres").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
    assert!(!url.is_empty(), "vbs postgres did not start; its words are above");
    (url.trim_end().to_owned(), process)
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The same server's database of another name: `postgres:///NAME?…`.
fn in_database(url: &str, name: &str) -> String {
    let (_, options) = url.split_once('?').unwrap();
    format!("postgres:///{name}?{options}")
}
