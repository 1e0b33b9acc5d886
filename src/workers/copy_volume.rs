//! Makes a volume of another one's bytes of one instant, on the same storage node: cut, as a snapshot is, and restored.
//!
//! The snapshot in between is the node's and this workflow's alone. It has no row, nobody sees it, and it goes when the volume is
//! there.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::create_volume::{self, GIB};
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use super::{at_rest, create_snapshot};
use crate::db::{self, Conn, gone, volumes};
use crate::delegate::{SnapshotReport, SnapshotSpec, VolumeSpec};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::VolumeState;

pub(super) const KIND: &str = "copy_volume";

#[derive(Serialize, Deserialize)]
pub(super) struct CopyVolume {
    volume: VolumeId,
    source: VolumeId,
    snapshot: SnapshotId,
    #[serde(skip)]
    report: Mutex<Option<SnapshotReport>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Cut,
    Copy,
    Restore,
    Drop,
}

/// The furthest step: once it is begun, the volume is there, and what it was made from may be gone.
const DROP: usize = 3;

/// What makes a copy whose row is `creating`, as [`crate::db::volumes::NewVolume`] takes it.
pub fn workflow(volume: &VolumeId, source: &VolumeId) -> (&'static str, serde_json::Value) {
    let params = serde_json::json!({ "volume": volume, "source": source, "snapshot": SnapshotId::generate() });
    (KIND, params)
}

impl CopyVolume {
    fn spec(&self, run: &Run<'_>) -> SnapshotSpec {
        SnapshotSpec { snapshot: self.snapshot.clone(), volume: self.source.clone(), cut: run.reached > 0 }
    }

    /// The snapshot has no row by which it could be told from another vbs's, should anything be left of it.
    async fn remember_snapshot(&self, conn: &mut Conn) -> db::Result<()> {
        match volumes::find(conn, &self.volume).await? {
            Some(row) => gone::remember(conn, self.snapshot.as_str(), &self.source, &row.node).await,
            None => Ok(()),
        }
    }

    fn report(&self) -> std::sync::MutexGuard<'_, Option<SnapshotReport>> {
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Workflow for CopyVolume {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Cut, Step::Copy, Step::Restore, Step::Drop];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = create_volume::row(run, &self.volume).await?;
        let storage = run.context.nodes.storage(&row.node)?;
        match step {
            Step::Drop => Ok(storage.ensure_no_snapshot(run.generation, &self.spec(run)).await?),
            _ if run.reached >= DROP => Ok(()),
            Step::Cut => {
                let spec = self.spec(run);
                let report = if spec.cut {
                    create_snapshot::ask_again(run, &row.node, &spec).await?
                } else {
                    // The source may have grown since the copy was asked for.
                    volumes::follow_source(&mut *run.conn().await?, &self.volume, &self.source).await?;
                    create_snapshot::cut(run, &row.node, &spec).await?
                };
                *self.report() = Some(report);
                Ok(())
            }
            Step::Copy => match self.report().as_ref().map_or(0, |report| report.progress) {
                100.. => Ok(()),
                progress => Err(StepError::Wait(format!("{progress} % are copied"))),
            },
            Step::Restore => {
                let size_bytes = u64::try_from(row.size_gib).unwrap_or(0) * GIB;
                let spec = VolumeSpec { volume: row.id, size_bytes, snapshot: Some(self.snapshot.clone()) };
                Ok(storage.ensure_volume(run.generation, &spec).await?)
            }
        }
    }

    async fn undo(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = create_volume::row(run, &self.volume).await?;
        let storage = run.context.nodes.storage(&row.node)?;
        match step {
            Step::Drop | Step::Copy => Ok(()),
            Step::Restore => Ok(storage.ensure_no_volume(run.generation, &row.id).await?),
            Step::Cut => {
                let spec = self.spec(run);
                at_rest::resume_all(run, &at_rest::disks(run, &spec).await?).await?;
                Ok(storage.ensure_no_snapshot(run.generation, &spec).await?)
            }
        }
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        self.remember_snapshot(conn).await?;
        volumes::swap_state(conn, &self.volume, &[VolumeState::Creating], VolumeState::Available).await?;
        Ok(())
    }

    /// The copy could not be made, or its owner did not wait for it.
    async fn record_undone(&self, conn: &mut Conn, reason: &str) -> db::Result<()> {
        self.remember_snapshot(conn).await?;
        match volumes::hold(conn, &self.volume).await? {
            Some(row) if row.state == VolumeState::Deleting => volumes::set_deleted(conn, &self.volume).await,
            _ => volumes::set_error(conn, &self.volume, reason).await,
        }
    }

    /// What is left of the volume goes when it is deleted; what is left of the snapshot the sweeper finds.
    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        self.remember_snapshot(conn).await?;
        volumes::set_error(conn, &self.volume, how.reason).await?;
        Ok(Given::Up)
    }
}
