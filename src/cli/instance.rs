//! `vbs instance`

use clap::Subcommand;

use super::{ConfigFile, account};
use crate::db::instances::{self, Assigned, Terminated};
use crate::ids::InstanceId;

/// Instances: the machines that hypervisor nodes report.
#[derive(Subcommand)]
pub enum Instance {
    /// List all instances, with the machines they are and whose they are
    List {
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Give an instance to an account; its tags go, and a volume of another account must not be attached
    Assign {
        /// The instance, `i-…`
        instance: String,
        /// The account, by its id or its name
        account: String,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Say that an instance's machine is gone for good: its volumes are detached, and those that go with it deleted
    Terminate {
        /// The instance, `i-…`
        instance: String,
        /// Also if the machine ran when its node last answered
        #[arg(long)]
        force: bool,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
}

impl Instance {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        match self {
            Self::List { file } => {
                for instance in instances::list(&mut *file.connect().await?).await? {
                    let owner = instance.account_id.as_deref().unwrap_or("-");
                    let instances::Instance { id, node, machine, zone, state, .. } = &instance;
                    println!("{id}\t{state}\t{zone}\t{node}\t{machine}\t{owner}");
                }
            }
            Self::Terminate { instance, force, file } => {
                let id = InstanceId::parse(&instance).map_err(|e| format!("{instance}: {e}"))?;
                match instances::terminate(&mut *file.connect().await?, &id, force).await? {
                    Terminated::Done => {}
                    Terminated::NotFound => return Err(format!("{instance} does not exist").into()),
                    Terminated::Running => {
                        return Err(format!(
                            "the machine of {instance} ran when its node last answered: stop it, or give --force"
                        )
                        .into());
                    }
                }
            }
            Self::Assign { instance, account, file } => {
                let id = InstanceId::parse(&instance).map_err(|e| format!("{instance}: {e}"))?;
                let mut conn = file.connect().await?;
                let account = account::find(&mut conn, &account).await?;
                match instances::assign(&mut conn, &id, &account.id).await? {
                    Assigned::Done => {}
                    Assigned::NotFound => return Err(format!("{instance} does not exist").into()),
                    Assigned::Occupied => {
                        return Err(format!("a volume of another account is attached to {instance}").into());
                    }
                }
            }
        }
        Ok(())
    }
}
