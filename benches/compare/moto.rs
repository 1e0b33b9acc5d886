//! moto's server, which people test their EC2 programs against today. It keeps everything in memory.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::Command;

use crate::Result;
use crate::client::Client;
use crate::process::{Process, free_address};

/// A moto with volumes in it.
pub struct Moto {
    /// How to call it.
    pub client: Client,
    _process: Process,
}

impl Moto {
    /// Starts it with the first so many volumes of the world in it.
    pub async fn start(volumes: usize, log: &Path) -> Result<Self> {
        println!("starts moto with {volumes} volumes in it");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = root.join("compat-tests/.venv-bench/bin/python");
        if !program.exists() {
            return Err("moto is not installed: run scripts/setup --bench".into());
        }
        let address = free_address()?;
        let mut command = Command::new(program);
        command.arg(root.join("benches/compare/moto_with_volumes.py"));
        command.args([volumes.to_string(), address.port().to_string()]);
        let mut process = Process::start("moto", command, log)?;
        process.wait_until(Duration::from_secs(120), async || TcpStream::connect(address).await.is_ok()).await?;
        let client = Client { address, access_key_id: "AKIAIOSFODNN7EXAMPLE".into(), secret: "secret".into() };
        Ok(Self { client, _process: process })
    }
}
