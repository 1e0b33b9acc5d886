//! `vbs access-key`

use clap::Subcommand;

use super::{ConfigFile, account};
use crate::credentials;
use crate::db::access_keys;
use crate::seal::Sealer;

/// Access keys: who signs requests.
#[derive(Subcommand)]
pub enum AccessKey {
    /// Make a key, and print its id and its secret; the secret is never shown again
    Create {
        /// The account, by its id or its name
        account: String,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// List the keys of an account, or all keys
    List {
        /// The account, by its id or its name
        account: Option<String>,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Accept a key no more
    Disable(Named),
    /// Accept a key again
    Enable(Named),
    /// Delete a key
    Delete(Named),
}

/// One key.
#[derive(clap::Args)]
pub struct Named {
    /// Its access key id
    id: String,
    #[command(flatten)]
    file: ConfigFile,
}

impl AccessKey {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        match self {
            Self::Create { account, file } => {
                let sealer = Sealer::of(&file.load()?)?;
                let mut conn = file.connect().await?;
                let account = account::find(&mut conn, &account).await?;
                let key = credentials::create(&mut conn, &sealer, &account.id).await?;
                println!("{}\t{}", key.id, *key.secret);
            }
            Self::List { account, file } => {
                let mut conn = file.connect().await?;
                let account = match account {
                    Some(account) => Some(account::find(&mut conn, &account).await?.id),
                    None => None,
                };
                for key in access_keys::list(&mut conn, account.as_deref()).await? {
                    let state = if key.enabled { "enabled" } else { "disabled" };
                    println!("{}\t{}\t{state}\t{}", key.id, key.account_id, key.created_at.to_rfc3339());
                }
            }
            Self::Disable(named) => set_enabled(named, false).await?,
            Self::Enable(named) => set_enabled(named, true).await?,
            Self::Delete(named) => {
                let deleted = access_keys::delete(&mut *named.file.connect().await?, &named.id).await?;
                there_is(deleted, &named.id)?;
            }
        }
        Ok(())
    }
}

async fn set_enabled(named: Named, enabled: bool) -> super::Result {
    let changed = access_keys::set_enabled(&mut *named.file.connect().await?, &named.id, enabled).await?;
    there_is(changed, &named.id)
}

fn there_is(found: bool, id: &str) -> super::Result {
    if found { Ok(()) } else { Err(format!("there is no access key {id}").into()) }
}
