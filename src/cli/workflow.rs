//! `vbs workflow`

use clap::Subcommand;

use super::ConfigFile;
use crate::db::workflows;
use crate::workers::operator::{self, Done, Reason};

/// Workflows: what the workers do and did.
#[derive(Subcommand)]
pub enum Workflow {
    /// List the workflows that are not finished
    ///
    /// Columns: number, kind, what it works on, direction or outcome, step, tries of it that failed, what went wrong last, why it
    /// turned back or was given up
    List {
        /// List the finished ones too
        #[arg(long)]
        all: bool,
        /// The most to list, newest first
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Show a workflow with its history
    Show {
        /// Its number, as `vbs workflow list` gives it
        id: i64,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Have a workflow tried at once, with all its patience before it
    Retry {
        /// Its number, as `vbs workflow list` gives it
        id: i64,
        /// Why, for its history
        #[arg(long)]
        reason: Option<String>,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Give a workflow up: one that still goes forward turns back, one that undoes, deletes or detaches ends where it stands
    ///
    /// What is left on the nodes is taken back later: by deleting the volume or the snapshot, which is in `error`, once more; or
    /// by the sweeper. A detach whose guest has not let go is called off: the volume is attached as before.
    GiveUp {
        /// Its number, as `vbs workflow list` gives it
        id: i64,
        /// Why, for its history
        #[arg(long)]
        reason: String,
        /// End an attachment though its machine cannot be asked: it is off for good, or its node is, and neither can reach the
        /// storage any more
        #[arg(long)]
        fenced: bool,
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
}

impl Workflow {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        match self {
            Self::List { all, limit, file } => {
                for row in workflows::list(&mut *file.connect().await?, all, limit.into()).await? {
                    println!("{}", summary(&row).await);
                }
            }
            Self::Show { id, file } => {
                let found = workflows::show(&mut *file.connect().await?, id).await?;
                let (row, events) = found.ok_or_else(|| format!("there is no workflow {id}"))?;
                println!("{}", summary(&row).await);
                println!("enqueued\t{}", row.created_at.to_rfc3339());
                println!("parameters\t{}", row.params);
                if let (Some(owner), Some(until)) = (&row.lease_owner, row.lease_until) {
                    println!("lease\t{owner} until {}, generation {}", until.to_rfc3339(), row.lease_generation);
                }
                for event in events {
                    let at = event.at.to_rfc3339();
                    println!("{at}\t{}\t{}\t{}\t{}", event.direction, event.step, event.event, event.detail);
                }
                if let Some(at) = row.finished_at {
                    println!("finished\t{}", at.to_rfc3339());
                }
            }
            Self::Retry { id, reason, file } => {
                let reason = Reason::new(&whoever(), reason.as_deref().unwrap_or("no reason given"))?;
                let mut conn = file.connect().await?;
                operator::retry(&mut conn, id, &reason).await?.map_err(|why| format!("workflow {id}: {why}"))?;
                workflows::notify(&mut conn).await?;
            }
            Self::GiveUp { id, reason, fenced, file } => {
                let reason = Reason::new(&whoever(), &reason)?;
                let mut conn = file.connect().await?;
                let done = operator::give_up(&mut conn, id, &reason, fenced).await?;
                match done.map_err(|why| format!("workflow {id}: {why}"))? {
                    Done::TurnedBack => println!("it has turned back, and undoes what it did"),
                    Done::Ended => println!("it is over"),
                }
                workflows::notify(&mut conn).await?;
            }
        }
        Ok(())
    }
}

/// The person at the terminal, as far as the environment tells.
fn whoever() -> String {
    let name = |variable: &&str| std::env::var(variable).ok().filter(|name| !name.trim().is_empty());
    ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(name).unwrap_or_else(|| "somebody".into())
}

async fn summary(row: &workflows::Workflow) -> String {
    let how = row.outcome.as_deref().unwrap_or(&row.direction);
    let step = operator::step_name(row).await;
    let [error, reason] = [&row.error, &row.reason].map(|text| text.as_deref().unwrap_or_default());
    let workflows::Workflow { id, kind, lock_key, attempts, .. } = row;
    format!("{id}\t{kind}\t{lock_key}\t{how}\tstep {step}\ttries {attempts}\t{error}\t{reason}")
}
