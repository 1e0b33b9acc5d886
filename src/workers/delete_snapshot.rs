//! Removes a snapshot from its storage node, once no volume and no copy is being made from it any more.

use serde::{Deserialize, Serialize};

use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use super::{copy_snapshot, create_snapshot};
use crate::db::{self, Conn, snapshots, volumes, workflows};
use crate::delegate::SnapshotSpec;
use crate::ids::{SnapshotId, VolumeId};

const KIND: &str = "delete_snapshot";

#[derive(Serialize, Deserialize)]
pub(super) struct DeleteSnapshot {
    snapshot: SnapshotId,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Remove,
}

/// Marks a snapshot `deleting` and sees to its removal: by turning back the workflow that is taking it, if one is, else by
/// one of its own. `false`, and nothing done, when it is being deleted already.
///
/// Locks the workflow's row before the snapshot's, as the engine does.
pub async fn start(conn: &mut Conn, snapshot: &SnapshotId, volume: &VolumeId) -> db::Result<bool> {
    let key = snapshot.as_str();
    let live = workflows::lock_live(conn, key).await?;
    for kind in [create_snapshot::KIND, copy_snapshot::KIND] {
        workflows::cancel(conn, key, kind, "deleted before it was taken").await?;
    }
    if !snapshots::set_deleting(conn, snapshot).await? {
        return Ok(false);
    }
    if live.is_none() {
        let params = serde_json::json!({ "snapshot": snapshot });
        workflows::enqueue(conn, KIND, key, volume, &params).await?;
    }
    Ok(true)
}

impl Workflow for DeleteSnapshot {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Remove];
    const ON_FAILURE: OnFailure = OnFailure::KeepTrying;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let row = create_snapshot::row(run, &self.snapshot).await?;
        let storage = run.context.nodes.storage(&row.node)?;
        match step {
            Step::Remove => {
                if volumes::any_creating_from(&mut *run.conn().await?, &self.snapshot).await? {
                    return Err(StepError::Wait("a volume is being made from it".into()));
                }
                if snapshots::any_copying_from(&mut *run.conn().await?, &self.snapshot).await? {
                    return Err(StepError::Wait("a copy of it is being made".into()));
                }
                let spec = SnapshotSpec { snapshot: row.id, volume: row.volume_id, cut: false };
                Ok(storage.ensure_no_snapshot(run.generation, &spec).await?)
            }
        }
    }

    /// Never called: a deletion does not turn back.
    async fn undo(&self, _: &Run<'_>, _: Step) -> Result<(), StepError> {
        Ok(())
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        snapshots::delete(conn, &self.snapshot).await
    }

    /// Never called: a deletion does not turn back.
    async fn record_undone(&self, _: &mut Conn, _: &str) -> db::Result<()> {
        Ok(())
    }

    /// It may be half gone, so nobody can use it any more, but it can be deleted again.
    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        snapshots::set_not_deleted(conn, &self.snapshot, how.reason).await?;
        Ok(Given::Up)
    }
}
