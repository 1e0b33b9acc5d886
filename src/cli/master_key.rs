//! `vbs master-key`

use clap::Subcommand;

use super::ConfigFile;
use crate::master_key;
use crate::seal::Sealer;

/// The master keys: what the secrets in the database are encrypted under.
#[derive(Subcommand)]
pub enum MasterKey {
    /// List the keys of the configuration and those that secrets are encrypted under, with how many there are
    List(ConfigFile),
    /// Encrypt under the configuration's `master_key` whatever is still encrypted under one of `further_master_keys`
    Rotate(ConfigFile),
}

impl MasterKey {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        match self {
            Self::List(file) => list(&file).await,
            Self::Rotate(file) => rotate(&file).await,
        }
    }
}

async fn list(file: &ConfigFile) -> super::Result {
    let sealer = Sealer::of(&file.load()?)?;
    let mut counts = master_key::count(&mut *file.connect().await?).await?;
    let mut role = "encrypts";
    for name in sealer.key_names() {
        println!("{name}\t{role}\t{}", counts.remove(&name).unwrap_or(0));
        role = "opens";
    }
    for (name, count) in counts {
        println!("{name}\tunknown\t{count}");
    }
    Ok(())
}

async fn rotate(file: &ConfigFile) -> super::Result {
    let sealer = Sealer::of(&file.load()?)?;
    let done = master_key::rotate(&mut *file.connect().await?, &sealer).await?;
    println!("{} encrypted anew", done.renewed);
    if done.unopened.is_empty() {
        return Ok(());
    }
    let lines = done.unopened.iter().map(|(owner, error)| format!("\n{}: {error}", owner.row_id()));
    Err(format!("not opened:{}", lines.collect::<String>()).into())
}
