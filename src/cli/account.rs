//! `vbs account`

use clap::Subcommand;
use rand::Rng;

use super::ConfigFile;
use crate::db::{Conn, accounts, quotas};

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
    /// Set quotas of an account's own: a number, `none` for no end, or `default` for what the configuration says of all; and
    /// print what it has and what it may have
    Quota {
        /// Which account.
        #[command(flatten)]
        named: Named,
        /// The most volumes
        #[arg(long)]
        volumes: Option<Quota>,
        /// The most GiB of its volumes together
        #[arg(long)]
        gib: Option<Quota>,
        /// The most IOPS of its io1 and io2 volumes together
        #[arg(long)]
        iops: Option<Quota>,
        /// The most snapshots
        #[arg(long)]
        snapshots: Option<Quota>,
    },
    /// Delete an account that has no keys and no resources
    Delete(Named),
}

/// A quota as it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota(Option<i64>);

/// What stands for no end: more than there can ever be.
const NO_END: i64 = i64::MAX;

impl std::str::FromStr for Quota {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" => Ok(Self(None)),
            "none" => Ok(Self(Some(NO_END))),
            number => match number.parse::<u32>() {
                Ok(most) => Ok(Self(Some(most.into()))),
                Err(_) => Err("neither a number nor `none` nor `default`"),
            },
        }
    }
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
            Self::Quota { named, volumes, gib, iops, snapshots } => {
                let mut conn = named.file.connect().await?;
                let account = find(&mut conn, &named.account).await?;
                let before = quotas::own(&mut conn, &account.id).await?;
                let set = |asked: Option<Quota>, before| asked.map_or(before, |Quota(most)| most);
                let own = quotas::Most {
                    volumes: set(volumes, before.volumes),
                    gib: set(gib, before.gib),
                    iops: set(iops, before.iops),
                    snapshots: set(snapshots, before.snapshots),
                };
                if own != before {
                    quotas::set_own(&mut conn, &account.id, own).await?;
                }
                let used = quotas::used(&mut conn, &account.id).await?;
                for (name, used, most) in [
                    ("volumes", used.volumes, own.volumes),
                    ("gib", used.gib, own.gib),
                    ("iops", used.iops, own.iops),
                    ("snapshots", used.snapshots, own.snapshots),
                ] {
                    let most = match most {
                        None => "default".to_owned(),
                        Some(NO_END) => "none".to_owned(),
                        Some(most) => most.to_string(),
                    };
                    println!("{name}\t{used}\t{most}");
                }
            }
            Self::Disable(named) => set_enabled(&named, false).await?,
            Self::Enable(named) => set_enabled(&named, true).await?,
            Self::Delete(named) => {
                let mut conn = named.file.connect().await?;
                let account = find(&mut conn, &named.account).await?;
                accounts::delete(&mut conn, &account.id).await.map_err(|e| {
                    let why = "while it has keys or resources, or deleted ones of the last day";
                    format!("{} cannot be deleted {why}: {e}", account.name)
                })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_number_none_or_default() {
        for (text, most) in [("0", Some(0)), ("5000", Some(5000)), ("none", Some(NO_END)), ("default", None)] {
            assert_eq!(text.parse(), Ok(Quota(most)), "{text}");
        }
        for text in ["", "-1", "many", "4294967296"] {
            assert!(text.parse::<Quota>().is_err(), "{text}");
        }
    }
}
