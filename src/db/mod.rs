//! Postgres holds all truth: the resources, the workflows, and the invariants as constraints.
//!
//! A file a table. Functions take a connection, so that a caller can put several into one transaction; none opens one of
//! its own. Only the database's clock counts: no time of this process is ever written.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use deadpool::managed::QueueMode;
use diesel_async::pooled_connection::deadpool::{Object, Pool as Deadpool};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::{AsyncConnection, AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

pub mod access_keys;
pub mod accounts;
pub mod attachments;
pub mod compare;
pub mod describe_instances;
pub mod describe_modifications;
pub mod describe_snapshots;
pub mod describe_tags;
pub mod describe_volume_status;
pub mod describe_volumes;
pub mod gather;
pub mod gone;
pub mod instances;
pub mod modifications;
pub mod nodes;
pub mod quotas;
pub mod schema;
pub mod sealed_secrets;
pub mod snapshot_permissions;
pub mod snapshots;
pub mod statement;
pub mod tags;
pub mod volume_attributes;
pub mod volumes;
pub mod workflows;

/// The connection that every function here takes.
pub type Conn = AsyncPgConnection;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// How long a caller waits for a free connection, and for a new one to be made.
const POOL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// How long one statement of a pooled connection may run.
const STATEMENT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// Why the database did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A query failed.
    #[error("database: {0}")]
    Query(#[from] diesel::result::Error),
    /// No connection could be had.
    #[error("database connection: {0}")]
    Connection(String),
    /// The database answers, but more was asked of it than it could do in time.
    #[error("database: no connection was free in time")]
    Busy,
    /// The migrations could not be read or applied.
    #[error("database migrations: {0}")]
    Migration(String),
}

/// What the functions here answer.
pub type Result<T> = std::result::Result<T, Error>;

/// How long a transaction may rest: a caller that hangs up leaves one open, with its locks, until its connection is taken
/// from the pool again.
const IDLE_IN_TRANSACTION: std::time::Duration = std::time::Duration::from_secs(5);

/// A bounded pool of connections.
#[derive(Clone)]
pub struct Pool {
    connections: Deadpool<AsyncPgConnection>,
    /// How many were given out so far.
    given: Arc<AtomicU64>,
}

impl Pool {
    /// Makes a pool of at most `size` connections. Opens none yet.
    pub fn new(url: &str, size: usize) -> Result<Self> {
        let mut config = ManagerConfig::default();
        // The default asks Postgres at every check-out whether the connection lives, which doubles the round trips of a
        // describe. A connection that died is noticed by its first query, and thrown away.
        config.recycling_method = RecyclingMethod::Fast;
        config.custom_setup = Box::new(|url| Box::pin(establish_bounded(url.to_owned())));
        let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new_with_config(url, config);
        // Last in, first out: few connections do nearly all the work, and their servers' caches stay warm.
        let pool = Deadpool::builder(manager)
            .max_size(size)
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|e| Error::Connection(e.to_string()))?;
        Ok(Self { connections: pool, given: Arc::default() })
    }

    /// A connection, back in the pool when dropped.
    pub async fn get(&self) -> Result<Object<AsyncPgConnection>> {
        self.get_within(POOL_TIMEOUT).await
    }

    /// The same for a caller with another patience.
    pub async fn get_within(&self, patience: std::time::Duration) -> Result<Object<AsyncPgConnection>> {
        let given = self.given.load(Relaxed);
        match tokio::time::timeout(patience, self.connections.get()).await {
            Ok(got) => {
                let got = got.map_err(|e| Error::Connection(e.to_string()))?;
                self.given.fetch_add(1, Relaxed);
                Ok(got)
            }
            // Others had their turn meanwhile, and all the connections that there may be are there: none is being made in vain.
            Err(_) if self.given.load(Relaxed) != given && self.is_full() => Err(Error::Busy),
            Err(_) => Err(Error::Connection(format!("none free within {} s", patience.as_secs()))),
        }
    }

    fn is_full(&self) -> bool {
        let status = self.connections.status();
        status.size == status.max_size
    }
}

/// A connection on which no statement runs for ever: filters are the callers' own patterns, over as many rows as they have.
/// Statements are planned once: each finds its rows by an index, whatever the values. Left to itself Postgres plans one with
/// an array anew at each execution, which takes four times as long as running it; and what it plans while a table is empty
/// reads the whole table or sorts all that is due, long after it has filled up. Nothing here runs long enough to be worth
/// compiling, as Postgres would do on account of the costs that these settings pretend. Filters on instants count on the form in
/// which it writes them.
async fn establish_bounded(url: String) -> diesel::ConnectionResult<AsyncPgConnection> {
    let mut conn = AsyncPgConnection::establish(&url).await?;
    let set = format!(
        "SELECT set_config('statement_timeout', '{}', false), \
         set_config('idle_in_transaction_session_timeout', '{}', false), \
         set_config('datestyle', 'ISO, YMD', false), set_config('jit', 'off', false), \
         set_config('plan_cache_mode', 'force_generic_plan', false), \
         set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false)",
        STATEMENT_TIMEOUT.as_millis(),
        IDLE_IN_TRANSACTION.as_millis(),
    );
    diesel_async::RunQueryDsl::execute(diesel::sql_query(set), &mut conn)
        .await
        .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

/// A connection of its own, outside any pool: to listen for notifications, or to migrate.
pub async fn connect(url: &str) -> Result<AsyncPgConnection> {
    AsyncPgConnection::establish(url).await.map_err(|e| Error::Connection(e.to_string()))
}

/// Applies the migrations that are missing. Two gateways that start at once wait for each other.
pub async fn migrate(url: &str) -> Result<()> {
    let mut conn = connect(url).await?;
    diesel_async::RunQueryDsl::execute(
        diesel::sql_query("SELECT pg_advisory_lock(hashtext('vbs migrations'))"),
        &mut conn,
    )
    .await?;
    // The harness is a blocking interface over the async connection; the lock goes with the connection.
    tokio::task::spawn_blocking(move || {
        AsyncMigrationHarness::new(conn)
            .run_pending_migrations(MIGRATIONS)
            .map(|_| ())
            .map_err(|e| Error::Migration(e.to_string()))
    })
    .await
    .map_err(|e| Error::Migration(e.to_string()))?
}

/// Whether every migration this program knows has been applied.
pub async fn is_current(conn: &mut Conn) -> Result<bool> {
    use diesel::migration::MigrationSource;
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Text)]
        version: String,
    }
    // A database that was never migrated has no table of them.
    let there = diesel::dsl::sql::<diesel::sql_types::Bool>("to_regclass('__diesel_schema_migrations') IS NOT NULL");
    let there: bool = diesel_async::RunQueryDsl::get_result(diesel::select(there), conn).await?;
    if !there {
        return Ok(false);
    }
    let applied: Vec<Row> =
        diesel_async::RunQueryDsl::load(diesel::sql_query("SELECT version FROM __diesel_schema_migrations"), conn)
            .await?;
    let known =
        MigrationSource::<diesel::pg::Pg>::migrations(&MIGRATIONS).map_err(|e| Error::Migration(e.to_string()))?;
    let applied: HashSet<String> = applied.into_iter().map(|row| row.version).collect();
    Ok(known.iter().all(|migration| applied.contains(&migration.name().version().to_string())))
}
