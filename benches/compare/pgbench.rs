//! `pgbench`: how many one-row commits a second this Postgres takes on this disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::Result;
use crate::world::World;

/// A row as wide as a volume's, with nothing but its primary key to keep.
const TABLE: &str = "CREATE TABLE bench_rows (LIKE volumes INCLUDING DEFAULTS, PRIMARY KEY (id))";
const INSERT: &str = "INSERT INTO bench_rows \
    (id, account_id, zone, node, size_gib, volume_type, iops, throughput, state) \
    VALUES ('vol-0' || substr(md5(random()::text), 1, 16), '123456789012', 'us-east-1a', 'storage-a', 8, 'gp3', 3000, \
    125, 'creating');\n";

/// A table and a script.
pub struct Pgbench {
    program: PathBuf,
    script: PathBuf,
    url: String,
}

impl Pgbench {
    /// Makes the table.
    pub async fn prepare(world: &World) -> Result<Self> {
        world.connect().await?.batch_execute(TABLE).await?;
        let script = world.file("insert.sql");
        std::fs::write(&script, INSERT)?;
        Ok(Self { program: find()?, script, url: world.url().to_owned() })
    }

    /// Inserts over so many connections for so long, and tells the commits a second.
    pub async fn run(&self, connections: usize, time: Duration) -> Result<f64> {
        let mut command = Command::new(&self.program);
        command.args(["--no-vacuum", "--protocol=prepared", "--jobs=1"]);
        command.arg(format!("--client={connections}")).arg(format!("--time={}", time.as_secs()));
        command.arg("--file").arg(&self.script).arg(&self.url).env("LC_ALL", "C").kill_on_drop(true);
        let output = command.output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        rate.ok_or_else(|| format!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// In PATH, or where Debian has it.
fn find() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = versions.map(|version| version.path().join("bin")).chain(std::env::split_paths(&path));
    let mut found = dirs.map(|dir: PathBuf| dir.join("pgbench")).filter(|file: &PathBuf| Path::is_file(file));
    found.next().ok_or_else(|| "no pgbench: Debian's package postgresql has it".into())
}
