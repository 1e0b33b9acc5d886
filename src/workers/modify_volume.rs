//! Modifies a volume: its storage grows, the row shows what was asked for, and the machine that has it learns of the new size.
//!
//! Growing is never undone, for a smaller volume has lost bytes. So the way back only finds out how far the way there came:
//! it asks the node once more, and when that refuses looks at what is there. A volume that has grown is shown so; only one that
//! has not is left as it was, with a modification that `failed`.
//!
//! Where a part of the chain learns of sizes only when it is set up, the machine sees the new size at the next attach, and the
//! modification is complete all the same. IOPS and throughput are held by the hypervisor, where it can.

use std::sync::Mutex;

use diesel_async::AsyncConnection;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::attach_volume::Way;
use super::create_volume::{self, GIB};
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use crate::db::modifications::{self, Modification};
use crate::db::{self, Conn, attachments, volumes, workflows};
use crate::delegate::{Growth, VolumeSpec};
use crate::ids::VolumeId;
use crate::state::ModificationState;

const KIND: &str = "modify_volume";

#[derive(Serialize, Deserialize)]
pub(super) struct ModifyVolume {
    volume: VolumeId,
    modification: Uuid,
    /// Who sees the new size. Known once `Grow` has run, which every run of the workflow begins with.
    #[serde(skip)]
    growth: Mutex<Option<Growth>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Grow,
    Show,
}

/// Enqueues the doing of a modification whose row is `modifying`. It has a lock of its own: a volume that is being modified may
/// be attached, detached and deleted.
pub async fn enqueue(conn: &mut Conn, modification: Uuid, volume: &VolumeId) -> db::Result<()> {
    let params = serde_json::json!({ "volume": volume, "modification": modification });
    workflows::enqueue(conn, KIND, &format!("modify {volume}"), volume, &params).await
}

impl ModifyVolume {
    fn growth(&self) -> std::sync::MutexGuard<'_, Option<Growth>> {
        self.growth.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn row(&self, run: &Run<'_>) -> Result<Modification, StepError> {
        modifications::find(&mut *run.conn().await?, self.modification)
            .await?
            .ok_or_else(|| StepError::Retry(format!("the row of modification {} is missing", self.modification)))
    }

    /// Grows the storage, or finds it grown, and shows the volume so.
    async fn grow(&self, run: &Run<'_>) -> Result<(), StepError> {
        let row = self.row(run).await?;
        let growth = if row.target_size_gib > row.original_size_gib {
            let volume = create_volume::row(run, &self.volume).await?;
            let spec = VolumeSpec { volume: volume.id, size_bytes: size_bytes(&row), snapshot: volume.snapshot_id };
            Some(run.context.nodes.storage(&volume.node)?.ensure_grown(run.generation, &spec).await?)
        } else {
            None
        };
        *self.growth() = growth;
        self.show_as_asked(run).await
    }

    /// Shows the volume as it was asked for.
    async fn show_as_asked(&self, run: &Run<'_>) -> Result<(), StepError> {
        let mut conn = run.conn().await?;
        let shown = conn.transaction(async |conn| {
            volumes::hold(conn, &self.volume).await?;
            modifications::set_optimizing(conn, self.modification).await
        });
        Ok(shown.await?)
    }

    /// Lets the machines that have the volume see its size, and holds them to its IOPS and throughput. One that cannot see it does
    /// so at its next attach.
    async fn show(&self, run: &Run<'_>) -> Result<(), StepError> {
        let row = self.row(run).await?;
        let live = attachments::live_of_volume(&mut *run.conn().await?, &self.volume).await?;
        let (mut all_see_it, mut told) = (true, Ok(()));
        for (attachment, _) in &live {
            let shown = Way::find(run, attachment.id).await?.grow(run, size_bytes(&row)).await;
            all_see_it &= shown == Ok(Growth::Online);
            // A node that is away must not keep the others from being told.
            told = told.and(match shown {
                Ok(_) | Err(StepError::Fail(_)) => Ok(()),
                Err(other) => Err(other),
            });
        }
        told?;
        let mut growth = self.growth();
        let seen = |growth| if all_see_it && growth == Growth::Online { Growth::Online } else { Growth::AtNextAttach };
        *growth = growth.map(|growth| if live.is_empty() { Growth::Online } else { seen(growth) });
        Ok(())
    }

    /// Ends a growth that failed or whose answers were lost: the row must say what the node has. A call that is still on its way
    /// must not grow the volume after that, so first the node is asked something of the volume under this newer generation, which
    /// shuts out all older ones: to serve what is attached and no more, as it does anyway.
    async fn settle(&self, run: &Run<'_>) -> Result<(), StepError> {
        let row = self.row(run).await?;
        if row.target_size_gib <= row.original_size_gib {
            return self.show_as_asked(run).await;
        }
        let volume = create_volume::row(run, &self.volume).await?;
        let live = attachments::live_of_volume(&mut *run.conn().await?, &self.volume).await?;
        let served: Vec<String> = live.into_iter().map(|(attachment, _)| attachment.iqn).collect();
        let node = run.context.nodes.storage(&volume.node)?;
        node.ensure_not_exported(run.generation, &self.volume, &served).await?;
        let there = node.observe().await?.volumes;
        if there.iter().any(|(volume, size)| *volume == self.volume && *size >= size_bytes(&row)) {
            self.show_as_asked(run).await?;
        }
        Ok(())
    }
}

fn size_bytes(row: &Modification) -> u64 {
    u64::try_from(row.target_size_gib).unwrap_or(0) * GIB
}

impl Workflow for ModifyVolume {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Grow, Step::Show];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        match step {
            Step::Grow => self.grow(run).await,
            Step::Show => self.show(run).await,
        }
    }

    async fn undo(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        match step {
            Step::Show => Ok(()),
            Step::Grow if self.row(run).await?.state != ModificationState::Modifying => Ok(()),
            Step::Grow => self.settle(run).await,
        }
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        let at_next_attach = *self.growth() == Some(Growth::AtNextAttach);
        modifications::set_completed(conn, self.modification, at_next_attach).await?;
        Ok(())
    }

    /// One whose storage has grown is complete; the machines that could not be told learn it later.
    async fn record_undone(&self, conn: &mut Conn, reason: &str) -> db::Result<()> {
        if modifications::set_completed(conn, self.modification, true).await? {
            return Ok(());
        }
        modifications::set_failed(conn, self.modification, reason).await
    }

    /// Should its node have grown it after all, the sweeper sees that.
    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        self.record_undone(conn, how.reason).await?;
        Ok(Given::Up)
    }
}
