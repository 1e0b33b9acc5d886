//! Removes a volume from its storage node.

use serde::{Deserialize, Serialize};

use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use super::{copy_volume, create_volume};
use crate::db::{self, Conn, volumes, workflows};
use crate::ids::VolumeId;
use crate::state::VolumeState;

const KIND: &str = "delete_volume";

#[derive(Serialize, Deserialize)]
pub(super) struct DeleteVolume {
    volume: VolumeId,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Remove,
}

/// Marks a volume `deleting` and sees to its removal: by turning back the workflow that is making it, if one is, else by one
/// of its own. `false`, and nothing done, when the volume is in no state to be deleted.
///
/// Locks the workflow's row before the volume's, as the engine does.
pub async fn start(conn: &mut Conn, volume: &VolumeId) -> db::Result<bool> {
    let live = workflows::lock_live(conn, volume.as_str()).await?;
    for kind in [create_volume::KIND, copy_volume::KIND] {
        workflows::cancel(conn, volume.as_str(), kind, "deleted before it was made").await?;
    }
    let from = [VolumeState::Creating, VolumeState::Available, VolumeState::Error];
    if !volumes::swap_state(conn, volume, &from, VolumeState::Deleting).await? {
        return Ok(false);
    }
    if live.is_none() {
        let params = serde_json::json!({ "volume": volume });
        workflows::enqueue(conn, KIND, volume.as_str(), volume, &params).await?;
    }
    Ok(true)
}

impl Workflow for DeleteVolume {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Remove];
    const ON_FAILURE: OnFailure = OnFailure::KeepTrying;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = create_volume::row(run, &self.volume).await?;
        let storage = run.context.nodes.storage(&row.node)?;
        match step {
            Step::Remove => {
                storage.ensure_not_exported(run.generation, &self.volume, &[]).await?;
                Ok(storage.ensure_no_volume(run.generation, &self.volume).await?)
            }
        }
    }

    /// Never called: a deletion does not turn back.
    async fn undo(&self, _: &Run<'_>, _: Step) -> Result<(), StepError> {
        Ok(())
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        volumes::set_deleted(conn, &self.volume).await
    }

    /// Never called: a deletion does not turn back.
    async fn record_undone(&self, _: &mut Conn, _: &str) -> db::Result<()> {
        Ok(())
    }

    /// It may be half gone, so nobody can use it any more, but it can be deleted again.
    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        volumes::set_error(conn, &self.volume, how.reason).await?;
        Ok(Given::Up)
    }
}
