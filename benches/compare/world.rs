//! A private Postgres with all its durability, 100,000 volumes in it, and a gateway on simulated nodes.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::Command;
use tokio_postgres::NoTls;
use vbs::db;
use vbs::dev::children::Children;
use vbs::dev::postgres::{self, Postgres};
use vbs::seal::Sealer;

use crate::Result;
use crate::client::{Client, send};
use crate::process::{Process, free_address};
use crate::report::{Report, Target};

/// Whose volumes they are.
pub const ACCOUNT: &str = "123456789012";
/// Volumes in the table.
pub const VOLUMES: i64 = 100_000;

/// Volumes of which each has three tags and every fifth one is attached. What is attached is on nodes that the gateway does
/// not know, so that nobody mends it.
const FILL: [&str; 4] = [
    "INSERT INTO volumes (id, account_id, zone, node, size_gib, volume_type, iops, throughput, state, created_at) \
        SELECT 'vol-0' || substr(md5(n::text), 1, 16), '123456789012', 'us-east-1a', 'elsewhere', 1 + n % 100, 'gp3', 3000, \
        125, CASE n % 5 WHEN 0 THEN 'in-use' ELSE 'available' END, timestamptz '2026-01-01Z' + n * interval '1 second' \
        FROM generate_series(1, {VOLUMES}) n",
    "INSERT INTO instances (id, node, zone, machine, machine_uuid, account_id, state, initiator_iqn, vcpus, memory_mib, \
        launched_at) \
        SELECT 'i-0' || substr(md5(n::text), 1, 16), 'elsewhere', 'us-east-1a', n::text, n::text, '123456789012', \
        'running', '', 1, 1024, now() FROM generate_series(0, {VOLUMES} / 20) n",
    "INSERT INTO attachments (id, account_id, volume_id, instance_id, device, device_key, state, iqn, lun, chap_user, \
        sealed_chap_secret, initiator_iqn, attached_at) \
        SELECT gen_random_uuid(), '123456789012', 'vol-0' || substr(md5(n::text), 1, 16), \
        'i-0' || substr(md5((n / 20)::text), 1, 16), '/dev/sd' || chr(98 + n / 5 % 10), chr(98 + n / 5 % 10), 'attached', \
        n::text, 1, '', '', '', timestamptz '2026-01-01Z' + n * interval '1 second' \
        FROM generate_series(5, {VOLUMES}, 5) n",
    "INSERT INTO tags (resource_id, key, value, account_id, resource_type) \
        SELECT 'vol-0' || substr(md5(n::text), 1, 16), key, value, '123456789012', 'volume' \
        FROM generate_series(1, {VOLUMES}) n, LATERAL (VALUES ('Name', 'volume ' || n), ('environment', 'production'), \
        ('team', 'team ' || n % 10)) tags (key, value)",
];

/// The data and the database, for as long as the measurements last.
pub struct World {
    dir: TempDir,
    children: Children,
    postgres: Postgres,
}

/// A gateway that serves, and an access key for it.
pub struct Gateway {
    /// How to call it.
    pub client: Client,
    process: Process,
}

impl World {
    /// Starts an empty Postgres. Its fsync and its synchronous commits are on, as they are by default.
    pub async fn start() -> Result<Self> {
        println!("starts a private Postgres");
        let dir = tempfile::tempdir()?;
        // Postgres runs as a user of its own when we are root, and must be able to enter.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let children = Children::open(dir.path())?;
        let postgres = postgres::start(dir.path(), &children, &[]).await?;
        Ok(Self { dir, children, postgres })
    }

    /// What to connect to.
    pub fn url(&self) -> &str {
        &self.postgres.url
    }

    /// A file in the directory of all this.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A connection.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::connect(self.url(), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Starts a gateway on the empty database, notes how soon it serves and how much memory it has, and fills the
    /// table.
    pub async fn gateway(&self, report: &mut Report) -> Result<Gateway> {
        report.heading("Gateway");
        let address = free_address()?;
        let config = self.write_config(address)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.arg("gateway").arg("--config").arg(&config);
        let start = Instant::now();
        let mut process = Process::start("vbs gateway", command, &self.file("gateway.log"))?;
        let ready = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let answers = async || send(address, ready.as_bytes()).await.is_ok_and(|answer| answer.status == 200);
        process.wait_until(Duration::from_secs(30), answers).await?;
        let seconds = start.elapsed().as_secs_f64();
        report.ratio("from its start until it serves, migrations and all", "", seconds, " s", Target::AtMost(1.0));

        let mut conn = db::connect(self.url()).await?;
        db::accounts::create(&mut conn, ACCOUNT, "bench").await?;
        let sealer = Sealer::new(&std::fs::read_to_string(self.file("master.key"))?)?;
        let key = vbs::credentials::create(&mut conn, &sealer, ACCOUNT).await?;
        self.fill().await?;
        report.ratio("resident, idle", "", process.resident_mib()?, " MiB", Target::AtMost(60.0));
        let client = Client { address, access_key_id: key.id, secret: key.secret.to_string() };
        Ok(Gateway { client, process })
    }

    /// Ends the Postgres, whoever is connected.
    pub async fn stop(self) -> Result<()> {
        Ok(postgres::stop(self.dir.path(), &self.children).await?)
    }

    fn write_config(&self, address: SocketAddr) -> Result<PathBuf> {
        let master_key = self.file("master.key");
        std::fs::write(&master_key, Sealer::generate_master_key())?;
        let config = self.file("gateway.toml");
        let text = format!(
            r#"
            region = "us-east-1"
            zones = ["us-east-1a"]
            master_key = {{ file = "{}" }}
            database = {{ url = "{}", migrate = true }}
            [gateway.server]
            listen = "{address}"
            [[volume_node]]
            name = "storage-a"
            zone = "us-east-1a"
            delegate = {{ sim = {{}} }}
            "#,
            path_text(&master_key)?,
            self.url(),
        );
        std::fs::write(&config, text)?;
        Ok(config)
    }

    async fn fill(&self) -> Result<()> {
        println!("fills the table with {VOLUMES} volumes");
        let client = self.connect().await?;
        for statement in FILL {
            client.batch_execute(&statement.replace("{VOLUMES}", &VOLUMES.to_string())).await?;
        }
        // So that neither happens by itself while something is measured.
        client.batch_execute("VACUUM ANALYZE").await?;
        client.batch_execute("CHECKPOINT").await?;
        Ok(())
    }

    /// The id of the volume that was made first.
    pub async fn first_volume(&self) -> Result<String> {
        Ok(self
            .connect()
            .await?
            .query_one("SELECT id FROM volumes ORDER BY created_at LIMIT 1", &[])
            .await?
            .try_get(0)?)
    }

    /// The id of a volume in the middle of the table.
    pub async fn some_volume(&self) -> Result<String> {
        let client = self.connect().await?;
        let row = client.query_one("SELECT id FROM volumes ORDER BY id OFFSET $1 LIMIT 1", &[&(VOLUMES / 2)]).await?;
        Ok(row.try_get(0)?)
    }
}

impl Gateway {
    /// Notes the memory that it has after all that was asked of it.
    pub fn note_memory_after_load(&self, report: &mut Report) -> Result<()> {
        report.heading("Gateway after all this");
        report.ratio("resident", "", self.process.resident_mib()?, " MiB", Target::AtMost(60.0));
        Ok(())
    }
}

/// A path for a text file that must name it.
pub fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| format!("{}: not UTF-8", path.display()).into())
}
