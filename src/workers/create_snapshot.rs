//! Takes a snapshot: the volume's bytes of one instant, kept apart from the volume.
//!
//! A driver that cuts at one instant does all of it. One that must copy needs the guest's I/O to rest meanwhile: the machine
//! is paused for the copy, and what was copied counts only if the pause held from before the first byte until after the
//! last. A copy of which nobody can say so, because the worker died, is thrown away and made anew.
//!
//! A third kind cuts at once and copies afterwards, by itself (thick logical volumes). Then the workflow waits in its second
//! step, for hours perhaps, and asks from time to time how far it is. Meanwhile the volume is used as ever; only its deletion
//! waits, for it would take along what is not copied yet. (See [`crate::db::workflows::claim`].)
//!
//! Of several volumes at one instant another workflow does the cut ([`super::create_snapshots`]); each snapshot of such a set has
//! this one too, which waits for that, and then goes on as ever. They succeed together or not at all.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::at_rest;
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use crate::db::{self, Conn, snapshots, workflows};
use crate::delegate::{SnapshotMethod, SnapshotReport, SnapshotSpec};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::SnapshotState;

pub(super) const KIND: &str = "create_snapshot";

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
        let cut_before = run.reached > 0 || set_is_cut(run, &row)?;
        let spec = SnapshotSpec { snapshot: row.id, volume: row.volume_id, cut: cut_before };
        match step {
            Step::Cut => {
                let report = if cut_before {
                    ask_again(run, &row.node, &spec).await?
                } else {
                    cut(run, &row.node, &spec).await?
                };
                *self.report() = Some(report);
                Ok(())
            }
            Step::Copy => {
                let progress = self.report().as_ref().map_or(0, |report| report.progress);
                if progress >= 100 && row.set_id.is_none() {
                    return Ok(());
                }
                let mut conn = run.conn().await?;
                snapshots::set_progress(&mut conn, &spec.snapshot, progress).await?;
                match row.set_id {
                    _ if progress < 100 => Err(StepError::Wait(format!("{progress} % are copied"))),
                    // All of a set are taken, or none.
                    Some(set) if snapshots::is_set_being_copied(&mut conn, set).await? => {
                        Err(StepError::Wait("others of its set are still being copied".into()))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    async fn undo(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = row(run, &self.snapshot).await?;
        let spec = SnapshotSpec { snapshot: row.id, volume: row.volume_id, cut: false };
        match step {
            Step::Cut => {
                at_rest::resume_all(run, &at_rest::disks(run, &spec).await?).await?;
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
        let row = snapshots::hold(conn, &self.snapshot).await?;
        if row.as_ref().is_some_and(|row| row.state == SnapshotState::Deleting) {
            return snapshots::delete(conn, &self.snapshot).await;
        }
        snapshots::set_error(conn, &self.snapshot, reason).await?;
        match row.and_then(|row| row.set_id) {
            Some(set) => give_up_set(conn, set, "another snapshot of its set could not be taken").await,
            None => Ok(()),
        }
    }

    /// What is left of it goes when it is deleted; a machine that rests for it goes on by itself.
    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        let row = snapshots::hold(conn, &self.snapshot).await?;
        snapshots::set_error(conn, &self.snapshot, how.reason).await?;
        if let Some(set) = row.and_then(|row| row.set_id) {
            give_up_set(conn, set, "another snapshot of its set could not be taken").await?;
        }
        Ok(Given::Up)
    }
}

/// Turns back what is still being taken of a set.
pub(super) async fn give_up_set(conn: &mut Conn, set: Uuid, reason: &str) -> db::Result<()> {
    for other in snapshots::pending_of_set(conn, set).await? {
        workflows::cancel(conn, other.id.as_str(), KIND, reason).await?;
    }
    Ok(())
}

/// Whether the set of a snapshot is cut, and it with it; false for one that is taken by itself. Until then its own workflow
/// waits, and holds its place among those of the volume.
fn set_is_cut(run: &Run<'_>, row: &snapshots::Snapshot) -> Result<bool, StepError> {
    match (row.set_id, row.cut_generation) {
        (None, _) => Ok(false),
        // The node has seen the lease under which the set was cut, and takes no older one.
        (Some(_), Some(cut)) if cut < run.generation.0 => Ok(true),
        (Some(_), _) => Err(StepError::Wait("its set is not cut yet".into())),
    }
}

pub(super) async fn row(run: &Run<'_>, snapshot: &SnapshotId) -> Result<snapshots::Snapshot, StepError> {
    snapshots::find(&mut *run.conn().await?, snapshot)
        .await?
        .ok_or_else(|| StepError::Retry(format!("the row of {snapshot} is missing")))
}

/// Asks for a snapshot that an earlier lease has cut. It has its one point in time, so a node that is away is waited for; only
/// when the node says that it is lost is it given up.
pub(super) async fn ask_again(run: &Run<'_>, node: &str, spec: &SnapshotSpec) -> Result<SnapshotReport, StepError> {
    let asked = async { Ok(run.context.nodes.storage(node)?.ensure_snapshot(run.generation, spec).await?) };
    asked.await.map_err(|error| match error {
        StepError::Retry(reason) => StepError::Wait(reason),
        other => other,
    })
}

/// Cuts a snapshot by itself.
pub(super) async fn cut(run: &Run<'_>, node: &str, spec: &SnapshotSpec) -> Result<SnapshotReport, StepError> {
    let storage = run.context.nodes.storage(node)?;
    if storage.snapshot_method().await? == SnapshotMethod::Atomic {
        return Ok(storage.ensure_snapshot(run.generation, spec).await?);
    }
    // Of what an earlier try left nobody knows whether the guest rested.
    storage.ensure_no_snapshot(run.generation, spec).await?;
    let disks = at_rest::disks(run, spec).await?;
    at_rest::during(run, &disks, storage.ensure_snapshot(run.generation, spec)).await
}
