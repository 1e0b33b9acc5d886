//! Makes the nodes match the rows again for one volume, after something changed behind our back: a tgtd that died and forgot
//! its targets, a machine that was restarted and lost its disks, an export that nobody has a use for, a disk or a log-in that is
//! left of an attachment which is over, what is left of the volume or of a snapshot of it that was deleted.
//!
//! The sweeper enqueues it. It looks at the rows itself when it runs, in the volume's own order of workflows, so that what
//! the sweeper saw may be out of date without harm. It does not insist: what it cannot mend now the sweeper sees again.

use serde::{Deserialize, Serialize};

use super::attach_volume::Way;
use super::create_volume::GIB;
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use crate::db::attachments::{self, Attachment, Ends, Located};
use crate::db::{self, Conn, gone, snapshots, volumes, workflows};
use crate::delegate::{Detach, DiskSpec, Limits, MachineRef, SnapshotSpec, VolumeSpec};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::{AttachmentState, InstanceState, VolumeState};

const KIND: &str = "repair_volume";

#[derive(Serialize, Deserialize)]
pub(super) struct RepairVolume {
    volume: VolumeId,
    #[serde(flatten)]
    what: Repair,
}

/// What there is to repair beside what the rows say of the volume's attachments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Repair {
    /// What hypervisor nodes have of attachments that are over.
    pub(super) leftovers: Vec<Leftover>,
    /// What storage nodes have of what was deleted.
    pub(super) remains: Vec<Remains>,
    /// Whether its node has less of the volume than its row says.
    pub(super) smaller: bool,
}

impl Repair {
    /// Takes over what another says.
    pub(super) fn join(&mut self, other: &Self) {
        self.leftovers.extend_from_slice(&other.leftovers);
        self.remains.extend_from_slice(&other.remains);
        self.smaller |= other.smaller;
    }
}

/// What a storage node has of a volume or a snapshot that was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remains {
    /// The node.
    pub(super) node: String,
    /// The volume's or the snapshot's id.
    pub(super) name: String,
}

/// What a hypervisor node has of an attachment that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leftover {
    /// The node.
    pub(super) node: String,
    /// The target's name.
    pub(super) iqn: String,
    /// The machine that has it as a disk; none when only the node is logged in.
    pub(super) machine: Option<MachineRef>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Mend,
}

/// Enqueues a repair, unless one is waiting already.
pub(super) async fn enqueue(conn: &mut Conn, volume: &VolumeId, what: Repair) -> db::Result<bool> {
    let params = serde_json::json!(RepairVolume { volume: volume.clone(), what });
    workflows::enqueue_if_idle(conn, KIND, &format!("repair {volume}"), volume, &params).await
}

impl Workflow for RepairVolume {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Mend];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        match step {
            Step::Mend => {
                let mut done = Ok(());
                // What is left over may be in the way of what shall be; what cannot be taken back must not keep the rest broken.
                for leftover in &self.what.leftovers {
                    done = done.and(take_back(run, &self.volume, leftover).await);
                }
                for remains in &self.what.remains {
                    done = done.and(remove(run, &self.volume, remains).await);
                }
                mend(run, &self.volume, self.what.smaller).await.and(done).map_err(|error| match error {
                    StepError::Retry(reason) | StepError::Wait(reason) => StepError::Fail(reason),
                    other => other,
                })
            }
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

    async fn record_given_up(&self, _: &mut Conn, _: &GivenUp<'_>) -> db::Result<Given> {
        Ok(Given::Up)
    }
}

async fn mend(run: &Run<'_>, volume: &VolumeId, smaller: bool) -> Result<(), StepError> {
    let Some(row) = volumes::find(&mut *run.conn().await?, volume).await? else { return Ok(()) };
    let live = attachments::live_of_volume(&mut *run.conn().await?, volume).await?;
    let mut done = Ok(());
    let size_bytes = u64::try_from(row.size_gib).unwrap_or(0) * GIB;
    if smaller && matches!(row.state, VolumeState::Available | VolumeState::InUse) {
        let spec = VolumeSpec { volume: row.id.clone(), size_bytes, snapshot: row.snapshot_id.clone() };
        done = grow(run, &row.node, &spec, &live).await;
    }
    for (attachment, ends) in live.iter().filter(|(row, _)| row.state == AttachmentState::Attached) {
        // One that cannot be mended must not keep the others broken.
        done = done.and(mend_one(run, attachment, ends).await);
    }
    done?;
    if !live.is_empty() || matches!(row.state, VolumeState::Available | VolumeState::Error) {
        let wanted: Vec<String> = live.into_iter().map(|(attachment, _)| attachment.iqn).collect();
        run.context.nodes.storage(&row.node)?.ensure_not_exported(run.generation, volume, &wanted).await?;
    }
    Ok(())
}

/// Gives a volume the size that its row says, and lets the machines that have it see that.
async fn grow(run: &Run<'_>, node: &str, spec: &VolumeSpec, live: &[Located]) -> Result<(), StepError> {
    run.context.nodes.storage(node)?.ensure_grown(run.generation, spec).await?;
    for (attachment, _) in live.iter().filter(|(row, _)| row.state == AttachmentState::Attached) {
        Way::find(run, attachment.id).await?.grow(run, spec.size_bytes).await?;
    }
    Ok(())
}

/// Removes what a node has of a volume or a snapshot that was on it and is deleted. Names are never used again: what is known
/// for gone cannot come back.
async fn remove(run: &Run<'_>, volume: &VolumeId, remains: &Remains) -> Result<(), StepError> {
    let Remains { node, name } = remains;
    let mut conn = run.conn().await?;
    if !gone::is_known(&mut conn, name, volume, node).await? {
        return Ok(());
    }
    let storage = run.context.nodes.storage(node)?;
    if let Ok(snapshot) = SnapshotId::parse(name) {
        if snapshots::find(&mut conn, &snapshot).await?.is_some() {
            return Ok(());
        }
        drop(conn);
        let spec = SnapshotSpec { snapshot, volume: volume.clone(), cut: false };
        return Ok(storage.ensure_no_snapshot(run.generation, &spec).await?);
    }
    let row = volumes::find(&mut conn, volume).await?;
    if name != volume.as_str() || row.is_some_and(|row| row.state != VolumeState::Deleted) {
        return Ok(());
    }
    drop(conn);
    storage.ensure_not_exported(run.generation, volume, &[]).await?;
    Ok(storage.ensure_no_volume(run.generation, volume).await?)
}

async fn mend_one(run: &Run<'_>, attachment: &Attachment, ends: &Ends) -> Result<(), StepError> {
    let mut way = Way::find(run, attachment.id).await?;
    let running = ends.instance_state == InstanceState::Running;
    if running {
        way.follow_initiator(run).await?;
    }
    let portal = way.export(run).await?;
    if running {
        way.connect(run, portal).await?;
        way.attach(run).await?;
    }
    Ok(())
}

/// Takes back what a node has of an attachment that is over. Its owner was told that it is, and may have given the volume to
/// another machine: a guest that does not let go is not waited for. An attachment that is not over keeps what it has.
async fn take_back(run: &Run<'_>, volume: &VolumeId, leftover: &Leftover) -> Result<(), StepError> {
    let row = attachments::find_by_iqn(&mut *run.conn().await?, volume, &leftover.iqn).await?;
    let over = match row {
        Some(row) => row.state == AttachmentState::Detached,
        None => gone::is_known(&mut *run.conn().await?, &leftover.iqn, volume, &leftover.node).await?,
    };
    if !over {
        return Ok(());
    }
    let hypervisor = run.context.nodes.hypervisor(&leftover.node)?;
    let machine = leftover.machine.clone().unwrap_or_else(MachineRef::nobody);
    // What is taken away is found by its target's name.
    let (device, limits) = (String::new(), Limits::default());
    let disk = DiskSpec { volume: volume.clone(), iqn: leftover.iqn.clone(), machine, device, limits };
    if leftover.machine.is_some()
        && hypervisor.ensure_detached(run.generation, &disk, false).await? == Detach::Busy
        && hypervisor.ensure_detached(run.generation, &disk, true).await? == Detach::Busy
    {
        return Err(StepError::Wait("the guest holds on to a disk that is its no more".into()));
    }
    Ok(hypervisor.ensure_disconnected(run.generation, &disk).await?)
}
