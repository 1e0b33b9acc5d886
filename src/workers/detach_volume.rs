//! Detaches a volume: the guest lets go of the disk, the hypervisor logs out, the export ends. In this order, always.
//!
//! A detach that has been asked for cannot be taken back and is never given up: it waits for the guest for as long as it
//! takes, or until its owner asks for force.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::attach_volume::{self, Way, give_up_attachment, record_detached};
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use crate::db::{self, Conn, attachments, workflows};
use crate::ids::VolumeId;
use crate::state::AttachmentState;

const KIND: &str = "detach_volume";

#[derive(Serialize, Deserialize)]
pub(super) struct DetachVolume {
    attachment: Uuid,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Detach,
    Disconnect,
    Unexport,
}

/// Marks an attachment `detaching` and sees to its end: by turning back the workflow that is making it, if one is, else by
/// one of its own. With `force`, an end that is under way already becomes a forced one. `false`, and nothing done, when the
/// attachment is in no state to be detached.
///
/// Locks the workflow's row before the attachment's, as the engine does.
pub async fn start(conn: &mut Conn, attachment: Uuid, volume: &VolumeId, force: bool) -> db::Result<bool> {
    let key = &attachment.to_string();
    let live = workflows::lock_live(conn, key).await?;
    workflows::cancel(conn, key, attach_volume::KIND, "detached before it was attached").await?;
    let from = [AttachmentState::Attaching, AttachmentState::Attached];
    let begun = attachments::swap_state(conn, attachment, &from, AttachmentState::Detaching).await?;
    let forced = force && attachments::set_force(conn, attachment).await?;
    if begun && live.is_none() {
        let params = serde_json::json!({ "attachment": attachment });
        workflows::enqueue(conn, KIND, key, volume, &params).await?;
    } else if forced && live.is_some() {
        // One that another call has begun meanwhile is left as it is: it is due anyway, and to lock it after the attachment is
        // to wait for an end of it that waits for us.
        workflows::poke(conn, key).await?;
    }
    Ok(begun || forced)
}

impl Workflow for DetachVolume {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Detach, Step::Disconnect, Step::Unexport];
    const ON_FAILURE: OnFailure = OnFailure::KeepTrying;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let way = Way::find(run, self.attachment).await?;
        match step {
            Step::Detach => {
                // A target that was lost would leave the guest's last writes, and the log-out, hanging for ever. When it cannot
                // be put back the guest is asked all the same.
                let exported = way.export(run).await;
                if exported == Err(StepError::Ghost) {
                    return Err(StepError::Ghost);
                }
                way.detach(run).await?;
                match exported {
                    // It may still be on its way, and must not come after the end of the export: all is done again, under a
                    // newer generation.
                    Err(StepError::Retry(reason)) => Err(StepError::Retry(reason)),
                    _ => Ok(()),
                }
            }
            Step::Disconnect => way.disconnect(run).await,
            Step::Unexport => way.unexport(run).await,
        }
    }

    /// Never called: a detach does not turn back.
    async fn undo(&self, _: &Run<'_>, _: Step) -> Result<(), StepError> {
        Ok(())
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        record_detached(conn, self.attachment, None).await
    }

    /// Never called: a detach does not turn back.
    async fn record_undone(&self, _: &mut Conn, _: &str) -> db::Result<()> {
        Ok(())
    }

    /// As long as the guest has not let go, the attachment lives on; after that only one whose machine is off can be ended.
    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        if how.step == 0 && !how.fenced {
            attachments::call_off_detach(conn, self.attachment).await?;
            return Ok(Given::Up);
        }
        give_up_attachment(conn, self.attachment, how).await
    }
}
