//! Takes a snapshot: the volume's bytes of one instant, kept apart from the volume.
//!
//! A driver that cuts at one instant does all of it. One that must copy needs the guest's I/O to rest meanwhile: the machine
//! is paused for the copy, and what was copied counts only if the pause held from before the first byte until after the
//! last. A copy of which nobody can say so, because the worker died, is thrown away and made anew.

use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::engine::{OnFailure, Run, StepError, Workflow};
use crate::db::attachments::{self, Located};
use crate::db::{self, Conn, snapshots, workflows};
use crate::delegate::{DiskSpec, Pause, Result as DelegateResult, SnapshotMethod, SnapshotReport, SnapshotSpec};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::SnapshotState;

pub(super) const KIND: &str = "create_snapshot";

/// How long a pause lasts unless it is lengthened: the longest a guest stands still after a crash of ours.
const PAUSE_S: u32 = 30;

#[derive(Serialize, Deserialize)]
pub(super) struct CreateSnapshot {
    snapshot: SnapshotId,
    #[serde(skip)]
    report: Mutex<Option<SnapshotReport>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Cut,
}

/// Enqueues the taking of a snapshot whose row is `pending`.
pub async fn enqueue(conn: &mut Conn, snapshot: &SnapshotId, volume: &VolumeId) -> db::Result<()> {
    let params = serde_json::json!({ "snapshot": snapshot });
    workflows::enqueue(conn, KIND, snapshot.as_str(), volume, &params).await
}

impl Workflow for CreateSnapshot {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Cut];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = row(run, &self.snapshot).await?;
        let spec = SnapshotSpec { snapshot: row.id, volume: row.volume_id };
        match step {
            Step::Cut => {
                let report = cut(run, &row.node, &spec).await?;
                *self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(report);
                Ok(())
            }
        }
    }

    async fn undo(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = row(run, &self.snapshot).await?;
        let spec = SnapshotSpec { snapshot: row.id, volume: row.volume_id };
        match step {
            Step::Cut => {
                resume_all(run, &spec.volume).await?;
                Ok(run.context.nodes.storage(&row.node)?.ensure_no_snapshot(run.generation, &spec).await?)
            }
        }
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        let report = self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let data_bytes = report.map_or(0, |report| i64::try_from(report.data_bytes).unwrap_or(i64::MAX));
        snapshots::set_completed(conn, &self.snapshot, data_bytes).await
    }

    /// The snapshot could not be taken, or its owner did not wait for it.
    async fn record_undone(&self, conn: &mut Conn, reason: &str) -> db::Result<()> {
        match snapshots::hold(conn, &self.snapshot).await? {
            Some(row) if row.state == SnapshotState::Deleting => snapshots::delete(conn, &self.snapshot).await,
            _ => snapshots::set_error(conn, &self.snapshot, reason).await,
        }
    }
}

pub(super) async fn row(run: &Run<'_>, snapshot: &SnapshotId) -> Result<snapshots::Snapshot, StepError> {
    snapshots::find(&mut *run.conn().await?, snapshot)
        .await?
        .ok_or_else(|| StepError::Retry(format!("the row of {snapshot} is missing")))
}

async fn cut(run: &Run<'_>, node: &str, spec: &SnapshotSpec) -> Result<SnapshotReport, StepError> {
    let storage = run.context.nodes.storage(node)?;
    if storage.snapshot_method().await? == SnapshotMethod::Atomic {
        return Ok(storage.ensure_snapshot(run.generation, spec).await?);
    }
    // Of what an earlier try left nobody knows whether the guest rested.
    storage.ensure_no_snapshot(run.generation, spec).await?;
    let mut paused = Vec::new();
    for disk in disks(run, &spec.volume).await? {
        let hypervisor = run.context.nodes.hypervisor(&disk.0)?;
        hypervisor.ensure_paused(run.generation, &disk.1, PAUSE_S).await?;
        paused.push(disk);
    }
    let copied = while_paused(run, &paused, storage.ensure_snapshot(run.generation, spec)).await;
    let mut held = Ok(());
    for (node, disk) in &paused {
        if run.context.nodes.hypervisor(node)?.ensure_resumed(run.generation, disk).await? == Pause::Broken {
            held = Err(StepError::Retry("the guest's pause ended before the copy did".into()));
        }
    }
    let report = copied?;
    held.map(|()| report)
}

/// Lengthens the pauses for as long as the copy takes.
async fn while_paused(
    run: &Run<'_>,
    paused: &[(String, DiskSpec)],
    copy: impl Future<Output = DelegateResult<SnapshotReport>>,
) -> DelegateResult<SnapshotReport> {
    let lengthen = async {
        loop {
            tokio::time::sleep(Duration::from_secs(u64::from(PAUSE_S) / 3)).await;
            for (node, disk) in paused {
                let hypervisor = run.context.nodes.hypervisor(node)?;
                hypervisor.ensure_paused(run.generation, disk, PAUSE_S).await?;
            }
        }
    };
    tokio::select! {
        copied = copy => copied,
        stopped = lengthen => stopped,
    }
}

async fn resume_all(run: &Run<'_>, volume: &VolumeId) -> Result<(), StepError> {
    for (node, disk) in disks(run, volume).await? {
        run.context.nodes.hypervisor(&node)?.ensure_resumed(run.generation, &disk).await?;
    }
    Ok(())
}

/// The disks that the volume is right now, each with the hypervisor node that has it.
async fn disks(run: &Run<'_>, volume: &VolumeId) -> Result<Vec<(String, DiskSpec)>, StepError> {
    let live = attachments::live_of_volume(&mut *run.conn().await?, volume).await?;
    Ok(live.into_iter().map(disk).collect())
}

fn disk((row, ends): Located) -> (String, DiskSpec) {
    let spec = DiskSpec { volume: row.volume_id, iqn: row.iqn, machine: ends.machine, device: row.device };
    (ends.vmm_node, spec)
}
