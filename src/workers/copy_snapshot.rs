//! Copies a snapshot on its storage node. The copy is whole when this ends, and knows nothing of its source any more.
//!
//! The source stays until then: its deletion waits, see [`super::delete_snapshot`].

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::create_snapshot;
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use crate::db::{self, Conn, snapshots, workflows};
use crate::delegate::{CopySpec, SnapshotReport, SnapshotSpec};
use crate::ids::SnapshotId;
use crate::state::SnapshotState;

pub(super) const KIND: &str = "copy_snapshot";

#[derive(Serialize, Deserialize)]
pub(super) struct CopySnapshot {
    snapshot: SnapshotId,
    #[serde(skip)]
    report: Mutex<Option<SnapshotReport>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Copy,
}

/// Enqueues the making of a copy whose row is `pending`. Copies run beside everything else.
pub async fn enqueue(conn: &mut Conn, snapshot: &SnapshotId) -> db::Result<()> {
    let params = serde_json::json!({ "snapshot": snapshot });
    workflows::enqueue_apart(conn, KIND, snapshot.as_str(), &params).await
}

impl Workflow for CopySnapshot {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Copy];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = create_snapshot::row(run, &self.snapshot).await?;
        let storage = run.context.nodes.storage(&row.node)?;
        match step {
            Step::Copy => {
                let source = row.source_id.ok_or_else(|| StepError::Fail(format!("{} is no copy", row.id)))?;
                let spec = CopySpec { snapshot: row.id, source };
                let report = storage.ensure_snapshot_copy(run.generation, &spec).await?;
                *self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(report);
                Ok(())
            }
        }
    }

    async fn undo(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = create_snapshot::row(run, &self.snapshot).await?;
        let storage = run.context.nodes.storage(&row.node)?;
        match step {
            Step::Copy => {
                let spec = SnapshotSpec { snapshot: row.id, volume: row.volume_id, cut: false };
                Ok(storage.ensure_no_snapshot(run.generation, &spec).await?)
            }
        }
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        let report = self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let data_bytes = report.map_or(0, |report| i64::try_from(report.data_bytes).unwrap_or(i64::MAX));
        snapshots::set_completed(conn, &self.snapshot, data_bytes).await
    }

    /// The copy could not be made, or its owner did not wait for it.
    async fn record_undone(&self, conn: &mut Conn, reason: &str) -> db::Result<()> {
        match snapshots::hold(conn, &self.snapshot).await? {
            Some(row) if row.state == SnapshotState::Deleting => snapshots::delete(conn, &self.snapshot).await,
            _ => snapshots::set_error(conn, &self.snapshot, reason).await,
        }
    }

    /// What is left of it goes when it is deleted.
    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        snapshots::set_error(conn, &self.snapshot, how.reason).await?;
        Ok(Given::Up)
    }
}
