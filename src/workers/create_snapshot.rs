//! Takes a snapshot: the volume's bytes of one instant, kept apart from the volume.
//!
//! A driver that cuts at one instant does all of it. One that must copy needs the guest's I/O to rest meanwhile: the machine
//! is paused for the copy, and what was copied counts only if the pause held from before the first byte until after the
//! last. A copy of which nobody can say so, because the worker died, is thrown away and made anew.
//!
//! A third kind cuts at once and copies afterwards, by itself (thick logical volumes). Then the workflow waits in its second
//! step, for hours perhaps, and asks from time to time how far it is. Meanwhile the volume is used as ever; only its deletion
//! waits, for it would take along what is not copied yet. (See [`crate::db::workflows::claim`].)

use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::attach_volume;
use super::engine::{OnFailure, Run, StepError, Workflow};
use crate::db::attachments::{self, Located};
use crate::db::{self, Conn, snapshots, workflows};
use crate::delegate::{
    DiskSpec, Limits, Pause, PauseSpec, Result as DelegateResult, SnapshotMethod, SnapshotReport, SnapshotSpec,
};
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
    Copy,
}

/// Enqueues the taking of a snapshot whose row is `pending`.
pub async fn enqueue(conn: &mut Conn, snapshot: &SnapshotId, volume: &VolumeId) -> db::Result<()> {
    let params = serde_json::json!({ "snapshot": snapshot });
    workflows::enqueue(conn, KIND, snapshot.as_str(), volume, &params).await
}

/// Whether what is written to the volume from now on is in the snapshot for sure no more: it is cut, or there will be none.
pub async fn is_cut(conn: &mut Conn, snapshot: &SnapshotId) -> db::Result<bool> {
    Ok(!workflows::is_at_first_step(conn, snapshot.as_str()).await?)
}

impl CreateSnapshot {
    fn report(&self) -> std::sync::MutexGuard<'_, Option<SnapshotReport>> {
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Workflow for CreateSnapshot {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Cut, Step::Copy];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = row(run, &self.snapshot).await?;
        // The second step is begun once the node has said that it is cut.
        let spec = SnapshotSpec { snapshot: row.id, volume: row.volume_id, cut: run.reached > 0 };
        match step {
            Step::Cut => {
                let report = if run.reached == 0 {
                    cut(run, &row.node, &spec).await?
                } else {
                    ask_again(run, &row.node, &spec).await?
                };
                *self.report() = Some(report);
                Ok(())
            }
            Step::Copy => {
                let progress = self.report().as_ref().map_or(0, |report| report.progress);
                if progress >= 100 {
                    return Ok(());
                }
                snapshots::set_progress(&mut *run.conn().await?, &spec.snapshot, progress).await?;
                Err(StepError::Wait(format!("{progress} % are copied")))
            }
        }
    }

    async fn undo(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = row(run, &self.snapshot).await?;
        let spec = SnapshotSpec { snapshot: row.id, volume: row.volume_id, cut: false };
        match step {
            Step::Cut => {
                resume_all(run, &spec).await?;
                Ok(run.context.nodes.storage(&row.node)?.ensure_no_snapshot(run.generation, &spec).await?)
            }
            Step::Copy => Ok(()),
        }
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        let report = self.report().clone();
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

/// Asks for a snapshot that an earlier lease has cut. It has its one point in time, so a node that is away is waited for; only
/// when the node says that it is lost is it given up.
async fn ask_again(run: &Run<'_>, node: &str, spec: &SnapshotSpec) -> Result<SnapshotReport, StepError> {
    let asked = async { Ok(run.context.nodes.storage(node)?.ensure_snapshot(run.generation, spec).await?) };
    asked.await.map_err(|error| match error {
        StepError::Retry(reason) => StepError::Wait(reason),
        other => other,
    })
}

async fn cut(run: &Run<'_>, node: &str, spec: &SnapshotSpec) -> Result<SnapshotReport, StepError> {
    let storage = run.context.nodes.storage(node)?;
    if storage.snapshot_method().await? == SnapshotMethod::Atomic {
        return Ok(storage.ensure_snapshot(run.generation, spec).await?);
    }
    // Of what an earlier try left nobody knows whether the guest rested.
    storage.ensure_no_snapshot(run.generation, spec).await?;
    let mut paused = Vec::new();
    for disk in disks(run, spec).await? {
        let hypervisor = run.context.nodes.hypervisor(&disk.0)?;
        hypervisor.ensure_paused(run.generation, &disk.1).await?;
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
    paused: &[(String, PauseSpec)],
    copy: impl Future<Output = DelegateResult<SnapshotReport>>,
) -> DelegateResult<SnapshotReport> {
    let lengthen = async {
        loop {
            tokio::time::sleep(Duration::from_secs(u64::from(PAUSE_S) / 3)).await;
            for (node, disk) in paused {
                let hypervisor = run.context.nodes.hypervisor(node)?;
                hypervisor.ensure_paused(run.generation, disk).await?;
            }
        }
    };
    tokio::select! {
        copied = copy => copied,
        stopped = lengthen => stopped,
    }
}

/// Ends the pauses that earlier tries have left.
async fn resume_all(run: &Run<'_>, spec: &SnapshotSpec) -> Result<(), StepError> {
    for (node, disk) in disks(run, spec).await? {
        run.context.nodes.hypervisor(&node)?.ensure_resumed(run.generation, &disk).await?;
    }
    Ok(())
}

/// The disks that the volume is right now, each with the hypervisor node that has it and as it is to be paused.
async fn disks(run: &Run<'_>, spec: &SnapshotSpec) -> Result<Vec<(String, PauseSpec)>, StepError> {
    let live = attachments::live_of_volume(&mut *run.conn().await?, &spec.volume).await?;
    Ok(live.into_iter().map(|located| pause(located, &spec.snapshot)).collect())
}

fn pause((row, ends): Located, snapshot: &SnapshotId) -> (String, PauseSpec) {
    let machine = attach_volume::machine(&ends);
    let (limits, device) = (Limits::default(), row.device);
    let disk = DiskSpec { volume: row.volume_id, iqn: row.iqn, machine, device, limits };
    (ends.vmm_node, PauseSpec { disk, snapshot: snapshot.clone(), seconds: PAUSE_S })
}
