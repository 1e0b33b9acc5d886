//! `vbs dev`

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::dev;

/// All of vbs on this machine.
#[derive(clap::Args)]
pub struct Dev {
    /// The directory that everything is kept in; given again, it continues with what was there
    #[arg(long, default_value = "vbs-dev")]
    data: PathBuf,
    /// The address to serve the EC2 API on
    #[arg(long, default_value = "127.0.0.1:8773")]
    listen: SocketAddr,
    /// Simulate storage and machines in memory: an API with nothing behind it
    #[arg(long)]
    sim: bool,
    /// How many machines to run
    #[arg(long, default_value_t = 1)]
    instances: usize,
}

impl Dev {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        let Self { data, listen, sim, instances } = self;
        Ok(dev::run(&dev::Options { data, listen, sim, instances }, super::stop_signal()?).await?)
    }
}
