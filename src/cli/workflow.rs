//! `vbs workflow`

use clap::Subcommand;

use super::ConfigFile;
use crate::db::workflows;

/// Workflows: what the workers do and did.
#[derive(Subcommand)]
pub enum Workflow {
    /// List the workflows that are not finished
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
}

impl Workflow {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        match self {
            Self::List { all, limit, file } => {
                for row in workflows::list(&mut *file.connect().await?, all, limit.into()).await? {
                    println!("{}", summary(&row));
                }
            }
            Self::Show { id, file } => {
                let found = workflows::show(&mut *file.connect().await?, id).await?;
                let (row, events) = found.ok_or_else(|| format!("there is no workflow {id}"))?;
                println!("{}", summary(&row));
                println!("enqueued\t{}", row.created_at.to_rfc3339());
                println!("parameters\t{}", row.params);
                if let (Some(owner), Some(until)) = (&row.lease_owner, row.lease_until) {
                    println!("lease\t{owner} until {}, generation {}", until.to_rfc3339(), row.lease_generation);
                }
                for event in events {
                    let at = event.at.to_rfc3339();
                    println!("{at}\t{}\t{}\t{}\t{}", event.direction, event.step, event.event, event.detail);
                }
            }
        }
        Ok(())
    }
}

fn summary(row: &workflows::Workflow) -> String {
    let how = row.outcome.as_deref().unwrap_or(&row.direction);
    let error = row.error.as_deref().unwrap_or_default();
    let workflows::Workflow { id, kind, lock_key, step, attempts, .. } = row;
    format!("{id}\t{kind}\t{lock_key}\t{how}\tstep {step}\ttries {attempts}\t{error}")
}
