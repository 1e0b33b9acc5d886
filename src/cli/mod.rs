//! The subcommands of `vbs`: the roles here, the operator's nouns a file each.
//!
//! The operator's commands talk to the database, not to a gateway, so they work while no gateway runs; gateways that run
//! see the change at once.

use std::path::PathBuf;

use clap::Args;
use diesel_async::pooled_connection::deadpool::Object;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, DelegateConfig};
use crate::db::{self, Conn, Pool};
use crate::dev::postgres;
use crate::{delegates, gateway};

pub mod access_key;
pub mod account;
pub mod audit;
pub mod dev;
pub mod guest_run;
pub mod instance;
pub mod master_key;
pub mod node;
pub mod workflow;

/// What a subcommand answers: an error is a sentence for the person at the terminal.
pub type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// The gateway's configuration file.
#[derive(Args)]
pub struct ConfigFile {
    /// The configuration file
    #[arg(long, env = "VBS_CONFIG", default_value = "/etc/vbs/vbs.toml")]
    config: PathBuf,
}

/// A delegate's configuration file.
#[derive(Args)]
pub struct DelegateFile {
    /// The configuration file
    #[arg(long)]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> std::result::Result<Config, config::ConfigError> {
        Config::load(&self.config)
    }

    /// A connection to the database that the file names.
    async fn connect(&self) -> std::result::Result<Object<Conn>, Box<dyn std::error::Error>> {
        Ok(Pool::new(&self.load()?.database.url()?, 1)?.get().await?)
    }
}

/// Sends the log to standard error; `VBS_LOG` says how much of it, in `tracing_subscriber`'s filter syntax.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VBS_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// `vbs gateway`
pub async fn gateway(file: ConfigFile) -> Result {
    Ok(gateway::run(file.load()?, stop_signal()?).await?)
}

/// `vbs volume-delegate`
pub async fn volume_delegate(file: DelegateFile) -> Result {
    let config: DelegateConfig<config::Storage> = config::read(&file.config)?;
    Ok(delegates::serve_storage(config, stop_signal()?).await?)
}

/// `vbs vmm-delegate`
pub async fn vmm_delegate(file: DelegateFile) -> Result {
    let config: DelegateConfig<config::Vmm> = config::read(&file.config)?;
    Ok(delegates::serve_vmm(config, stop_signal()?).await?)
}

/// `vbs migrate`
pub async fn migrate(file: ConfigFile) -> Result {
    Ok(db::migrate(&file.load()?.database.url()?).await?)
}

/// `vbs postgres`, which only tests use.
pub async fn postgres() -> Result {
    Ok(postgres::serve_until_stdin_closes().await?)
}

/// A token that is cancelled at the first SIGTERM, SIGINT or, when the terminal is closed, SIGHUP.
fn stop_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
        }
        tracing::info!("stopping");
        stopper.cancel();
    });
    Ok(stop)
}
