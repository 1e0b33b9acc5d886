//! Makes the nodes match the rows again for one volume, after something changed behind our back: a tgtd that died and forgot
//! its targets, a machine that was restarted and lost its disks, an export that nobody has a use for.
//!
//! The sweeper enqueues it. It looks at the rows itself when it runs, in the volume's own order of workflows, so that what
//! the sweeper saw may be out of date without harm. It does not insist: what it cannot mend now the sweeper sees again.

use serde::{Deserialize, Serialize};

use super::attach_volume::Way;
use super::create_volume;
use super::engine::{OnFailure, Run, StepError, Workflow};
use crate::db::{self, Conn, attachments, workflows};
use crate::ids::VolumeId;
use crate::state::{AttachmentState, InstanceState, VolumeState};

const KIND: &str = "repair_volume";

#[derive(Serialize, Deserialize)]
pub(super) struct RepairVolume {
    volume: VolumeId,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Mend,
}

/// Enqueues a repair, unless one is waiting already.
pub(super) async fn enqueue(conn: &mut Conn, volume: &VolumeId) -> db::Result<bool> {
    let params = serde_json::json!({ "volume": volume });
    workflows::enqueue_if_idle(conn, KIND, &format!("repair {volume}"), volume, &params).await
}

impl Workflow for RepairVolume {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Mend];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        match step {
            Step::Mend => mend(run, &self.volume).await.map_err(|error| match error {
                StepError::Retry(reason) | StepError::Wait(reason) => StepError::Fail(reason),
                other => other,
            }),
        }
    }

    /// Nothing to undo: what a repair made is what the rows ask for.
    async fn undo(&self, _: &Run<'_>, _: Step) -> Result<(), StepError> {
        Ok(())
    }

    async fn record(&self, _: &mut Conn) -> db::Result<()> {
        Ok(())
    }

    async fn record_undone(&self, _: &mut Conn, _: &str) -> db::Result<()> {
        Ok(())
    }
}

async fn mend(run: &Run<'_>, volume: &VolumeId) -> Result<(), StepError> {
    let row = create_volume::row(run, volume).await?;
    let live = attachments::live_of_volume(&mut *run.conn().await?, volume).await?;
    if live.is_empty() {
        let settled = matches!(row.state, VolumeState::Available | VolumeState::Error);
        if settled {
            run.context.nodes.storage(&row.node)?.ensure_not_exported(run.generation, volume).await?;
        }
        return Ok(());
    }
    for (attachment, ends) in live {
        if attachment.state != AttachmentState::Attached {
            continue;
        }
        let way = Way::find(run, attachment.id).await?;
        let portal = way.export(run).await?;
        if ends.instance_state == InstanceState::Running {
            way.connect(run, portal).await?;
            way.attach(run).await?;
        }
    }
    Ok(())
}
