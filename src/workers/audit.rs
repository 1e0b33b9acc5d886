//! An audit: a look at all nodes that changes nothing, asked for by an operator (`vbs audit`).
//!
//! The operator's program cannot look itself. A node may be served in a gateway's own process, and the keys of the others are
//! the gateways'. So it enqueues this, any gateway does it, and what was found is in the workflow's history.

use std::sync::Mutex;

use diesel_async::AsyncConnection;
use serde::{Deserialize, Serialize};

use super::differences::Difference;
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use super::{look, sweeper};
use crate::db::{self, Conn, workflows};

const KIND: &str = "audit";

/// The most differences that are kept: after a fire there are as many as volumes.
const MOST: usize = 10_000;

#[derive(Serialize, Deserialize)]
pub(super) struct Audit {
    /// Whether repairs are enqueued for what was found.
    repair: bool,
    #[serde(skip)]
    found: Mutex<Vec<Difference>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Look,
}

/// Enqueues an audit, and gives its lock key. Its lines are the events [`workflows::DIFFERENCE`] of its history.
pub async fn enqueue(conn: &mut Conn, repair: bool) -> db::Result<String> {
    let key = format!("audit {}", uuid::Uuid::new_v4());
    workflows::enqueue_apart(conn, KIND, &key, &serde_json::json!({ "repair": repair })).await?;
    Ok(key)
}

impl Workflow for Audit {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Look];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        match step {
            Step::Look => {
                let found = look::look(run.context).await?;
                *self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
                Ok(())
            }
        }
    }

    async fn undo(&self, _: &Run<'_>, _: Step) -> Result<(), StepError> {
        Ok(())
    }

    async fn succeed(&self, run: &Run<'_>, workflow: i64) -> db::Result<bool> {
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let mut lines: Vec<String> = found.iter().take(MOST).map(ToString::to_string).collect();
        if found.len() > MOST {
            lines.push(format!("and {} more", found.len() - MOST));
        }
        let mut conn = run.context.pool.get().await?;
        conn.transaction(async |conn| {
            let count = format!("{} differences", found.len());
            let held = workflows::finish(conn, workflow, run.generation.0, "succeeded", &count).await?;
            if held {
                workflows::add_differences(conn, workflow, run.generation.0, &lines).await?;
                if self.repair {
                    sweeper::mend(conn, &found).await?;
                }
            }
            Ok(held)
        })
        .await
    }

    async fn record_undone(&self, _: &mut Conn, _: &str) -> db::Result<()> {
        Ok(())
    }

    async fn record_given_up(&self, _: &mut Conn, _: &GivenUp<'_>) -> db::Result<Given> {
        Ok(Given::Up)
    }
}
