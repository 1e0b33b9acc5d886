//! Makes a volume on its storage node: of zeros, or of a snapshot's bytes.
//!
//! When another node has the snapshot, the volume's own copies it from there, in the background, for hours perhaps. The workflow asks
//! from time to time how far it is, and each time gives leave to read for a while longer; that is made anew each time, and
//! never stored. The snapshot stays until then: its deletion waits, see [`super::delete_snapshot`].

use serde::{Deserialize, Serialize};

use super::create_snapshot;
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use crate::db::{self, Conn, volumes};
use crate::delegate::VolumeSpec;
use crate::delegate::source::RestoreSpec;
use crate::ids::{SnapshotId, VolumeId};
use crate::state::VolumeState;

pub(super) const KIND: &str = "create_volume";

/// Bytes in a GiB.
pub(super) const GIB: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
pub(super) struct CreateVolume {
    volume: VolumeId,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Make,
}

/// What makes a volume whose row is `creating`, as [`crate::db::volumes::NewVolume`] takes it.
pub fn workflow(volume: &VolumeId) -> (&'static str, serde_json::Value) {
    (KIND, serde_json::json!({ "volume": volume }))
}

impl Workflow for CreateVolume {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Make];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = row(run, &self.volume).await?;
        let storage = run.context.nodes.storage(&row.node)?;
        match step {
            Step::Make => {
                let size_bytes = u64::try_from(row.size_gib).unwrap_or(0) * GIB;
                if let Some(snapshot) = &row.snapshot_id {
                    let has_it = create_snapshot::row(run, snapshot).await?.node;
                    if has_it != row.node {
                        return restore(run, &row, size_bytes, snapshot, &has_it).await;
                    }
                }
                let spec = VolumeSpec { volume: row.id, size_bytes, snapshot: row.snapshot_id };
                Ok(storage.ensure_volume(run.generation, &spec).await?)
            }
        }
    }

    async fn undo(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = row(run, &self.volume).await?;
        let storage = run.context.nodes.storage(&row.node)?;
        match step {
            Step::Make => Ok(storage.ensure_no_volume(run.generation, &row.id).await?),
        }
    }

    /// Volumes are made by the hundred, and each end is a commit on disk: those that come together share one.
    async fn succeed(&self, run: &Run<'_>, workflow: i64) -> db::Result<bool> {
        run.context.made_volume.ask((workflow, run.generation.0)).await
    }

    /// The volume could not be made, or its owner did not wait for it.
    async fn record_undone(&self, conn: &mut Conn, reason: &str) -> db::Result<()> {
        match volumes::hold(conn, &self.volume).await? {
            Some(row) if row.state == VolumeState::Deleting => volumes::set_deleted(conn, &self.volume).await,
            _ => volumes::set_error(conn, &self.volume, reason).await,
        }
    }

    /// What is left of it goes when the volume is deleted.
    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        volumes::set_error(conn, &self.volume, how.reason).await?;
        Ok(Given::Up)
    }
}

/// Copies a snapshot from the node that has it to the volume's own, or asks how far that is.
async fn restore(
    run: &Run<'_>,
    row: &volumes::Volume,
    size_bytes: u64,
    snapshot: &SnapshotId,
    from: &str,
) -> Result<(), StepError> {
    let source = run.context.nodes.source(from)?;
    let spec = RestoreSpec { volume: row.id.clone(), size_bytes, snapshot: snapshot.clone() };
    match run.context.nodes.storage(&row.node)?.ensure_restored(run.generation, &spec, source).await? {
        100.. => Ok(()),
        progress => Err(StepError::Wait(format!("{progress} % are copied from {from}"))),
    }
}

/// The volume's row. It outlives every workflow of the volume, so its absence is a fault of ours.
pub(super) async fn row(run: &Run<'_>, volume: &VolumeId) -> Result<volumes::Volume, StepError> {
    let found = run.context.find_volume.ask(volume.clone()).await?;
    found.ok_or_else(|| StepError::Retry(format!("the row of {volume} is missing")))
}
