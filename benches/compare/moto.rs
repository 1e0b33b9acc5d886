//! moto's server, which people test their EC2 programs against today. It keeps everything in memory.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::Command;

use crate::Result;
use crate::client::{Client, element};
use crate::load::{self, Requests};
use crate::process::{Process, free_address};

/// Volumes in it. It makes some sixty a second, so that 100,000 would take half an hour.
pub const VOLUMES: usize = 500;

/// A moto with volumes in it.
pub struct Moto {
    /// How to call it.
    pub client: Client,
    /// One of its volumes.
    pub volume: String,
    _process: Process,
}

impl Moto {
    /// Starts it and makes the volumes.
    pub async fn start(log: &Path) -> Result<Self> {
        println!("starts moto and makes {VOLUMES} volumes in it");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/.venv-bench/bin/moto_server");
        if !program.exists() {
            return Err("moto is not installed: run scripts/setup --bench".into());
        }
        let address = free_address()?;
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let mut process = Process::start("moto", command, log)?;
        process.wait_until(Duration::from_secs(60), async || TcpStream::connect(address).await.is_ok()).await?;
        let client = Client { address, access_key_id: "AKIAIOSFODNN7EXAMPLE".into(), secret: "secret".into() };
        let create = client.request("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "8")]);
        load::run(address, 4, Duration::from_secs(120), Requests::Each(vec![create; VOLUMES])).await?;
        let answer = client.call("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "8")]).await?;
        let volume = element(&answer, "volumeId")?.to_owned();
        Ok(Self { client, volume, _process: process })
    }
}
