//! Makes the nodes match the rows again for one volume, after something changed behind our back: a tgtd that died and forgot
//! its targets, a machine that was restarted and lost its disks, an export that nobody has a use for, a disk or a log-in that is
//! left of an attachment which is over, what is left of the volume or of a snapshot of it that was deleted.
//!
//! The sweeper enqueues it. It looks at the rows itself when it runs, in the volume's own order of workflows, so that what
//! the sweeper saw may be out of date without harm. It does not insist: what it cannot mend now the sweeper sees again.

use std::collections::BTreeSet;

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
    /// What hypervisor nodes have of attachments that are over, or that are other machines'.
    pub(super) leftovers: Vec<Leftover>,
    /// What storage nodes have of what was deleted.
    pub(super) remains: Vec<Remains>,
    /// Whether its node has less of the volume than its row says.
    pub(super) smaller: bool,
    /// The storage nodes that serve the volume under a name that no live attachment has there.
    pub(super) serving: BTreeSet<String>,
}

impl Repair {
    /// Takes over what another says.
    pub(super) fn join(&mut self, other: &Self) {
        self.leftovers.extend_from_slice(&other.leftovers);
        self.remains.extend_from_slice(&other.remains);
        self.smaller |= other.smaller;
        self.serving.extend(other.serving.iter().cloned());
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

/// What a hypervisor node has of an attachment that is over, or that is another machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leftover {
    /// The node.
    pub(super) node: String,
    /// The target's name.
    pub(super) iqn: String,
    /// The machine that has it as a disk; none when only the node is logged in.
    pub(super) machine: Option<MachineRef>,
}

impl Leftover {
    /// Whether a live attachment with these ends is of another machine, or of another node that is logged in.
    fn is_elsewhere(&self, ends: &Ends) -> bool {
        self.node != ends.vmm_node || self.machine.as_ref().is_some_and(|machine| machine.uuid != ends.machine_uuid)
    }
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
                done = mend(run, &self.volume, self.what.smaller).await.and(done);
                for node in &self.what.serving {
                    done = done.and(end_targets(run, &self.volume, node).await);
                }
                done.map_err(|error| match error {
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
    done
}

/// Ends the targets of a volume on a node that no live attachment has there, whether it is deleted or not. Names are never used
/// again: what was served under them is nobody else's.
async fn end_targets(run: &Run<'_>, volume: &VolumeId, node: &str) -> Result<(), StepError> {
    let mut conn = run.conn().await?;
    let wanted = match volumes::find(&mut conn, volume).await? {
        Some(row) if row.node == node => attachments::live_iqns(&mut conn, volume).await?,
        None if gone::volumes_among(&mut conn, &[volume.as_str()]).await?.is_empty() => return Ok(()),
        Some(_) | None => Vec::new(),
    };
    drop(conn);
    Ok(run.context.nodes.storage(node)?.ensure_not_exported(run.generation, volume, &wanted).await?)
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

/// Takes back what a node has of an attachment that is over, or that is another machine's. Its owner was told so, and may have
/// given the volume to another machine: a guest that does not let go is not waited for. A machine keeps what it was given.
async fn take_back(run: &Run<'_>, volume: &VolumeId, leftover: &Leftover) -> Result<(), StepError> {
    let row = attachments::find_by_iqn(&mut *run.conn().await?, volume, &leftover.iqn).await?;
    let live = row.as_ref().filter(|(row, _)| row.state != AttachmentState::Detached).map(|(_, ends)| ends);
    let is_not_its = match (&row, live) {
        (_, Some(ends)) => leftover.is_elsewhere(ends),
        (Some(_), None) => true,
        (None, None) => gone::is_known(&mut *run.conn().await?, &leftover.iqn, volume, &leftover.node).await?,
    };
    if !is_not_its {
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
    match hypervisor.ensure_disconnected(run.generation, &disk).await.map_err(StepError::from) {
        // The node's log-in may be that of the machine which shall have the disk.
        Err(StepError::Retry(_)) if live.is_some_and(|ends| ends.vmm_node == leftover.node) => Ok(()),
        ended => ended,
    }
}
