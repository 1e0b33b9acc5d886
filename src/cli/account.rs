//! `vbs account`

use clap::Subcommand;
use rand::Rng;

use super::ConfigFile;
use crate::db::{Conn, accounts};

/// Accounts: whose resources are.
#[derive(Subcommand)]
pub enum Account {
    /// Make an account, and print its id
    Create {
        /// What to call it
        name: String,
        /// Its id, 12 digits; by default a random one
        #[arg(long)]
        id: Option<String>,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// List all accounts
    List {
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Accept the account's keys no more
    Disable(Named),
    /// Accept the account's keys again
    Enable(Named),
    /// Delete an account that has no keys and no resources
    Delete(Named),
}

/// One account.
#[derive(clap::Args)]
pub struct Named {
    /// Its id or its name
    account: String,
    #[command(flatten)]
    file: ConfigFile,
}

impl Account {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        match self {
            Self::Create { name, id, file } => {
                let id =
                    id.unwrap_or_else(|| rand::rng().random_range(100_000_000_000..1_000_000_000_000u64).to_string());
                if !is_id(&id) {
                    return Err("an account id has 12 digits".into());
                }
                if is_id(&name) {
                    return Err("a name of 12 digits could be taken for an account id".into());
                }
                let account = accounts::create(&mut *file.connect().await?, &id, &name).await?;
                println!("{}", account.id);
            }
            Self::List { file } => {
                for account in accounts::list(&mut *file.connect().await?).await? {
                    let state = if account.enabled { "enabled" } else { "disabled" };
                    println!("{}\t{}\t{state}\t{}", account.id, account.name, account.created_at.to_rfc3339());
                }
            }
            Self::Disable(named) => set_enabled(&named, false).await?,
            Self::Enable(named) => set_enabled(&named, true).await?,
            Self::Delete(named) => {
                let mut conn = named.file.connect().await?;
                let account = find(&mut conn, &named.account).await?;
                accounts::delete(&mut conn, &account.id)
                    .await
                    .map_err(|e| format!("{} cannot be deleted while it has keys or resources: {e}", account.name))?;
            }
        }
        Ok(())
    }
}

/// Whether a text has the form of an account's id.
fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

async fn set_enabled(named: &Named, enabled: bool) -> super::Result {
    let mut conn = named.file.connect().await?;
    let account = find(&mut conn, &named.account).await?;
    accounts::set_enabled(&mut conn, &account.id, enabled).await?;
    Ok(())
}

/// The account of this id or name.
pub(super) async fn find(conn: &mut Conn, id_or_name: &str) -> Result<accounts::Account, Box<dyn std::error::Error>> {
    Ok(accounts::find(conn, id_or_name).await?.ok_or_else(|| format!("there is no account {id_or_name}"))?)
}
