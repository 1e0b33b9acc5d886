//! Attaches a volume: export it, connect the hypervisor to the export, give the disk to the machine.
//!
//! The way in; [`super::detach_volume`] is the way out, and the undo of the steps here. The order on the way out is never
//! the other way round: device, connection, export.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::delete_volume;
use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use crate::db::attachments::{self, Attachment, Ends};
use crate::db::{self, Conn, gone, volumes, workflows};
use crate::delegate::{
    ConnectSpec, Detach, DiskSpec, ExportSpec, Growth, Limits, MachineRef, Portal, Secret, VmmDelegate, VolumeDelegate,
};
use crate::ids::VolumeId;
use crate::state::{AttachmentState, InstanceState, VolumeState};

pub(super) const KIND: &str = "attach_volume";

#[derive(Serialize, Deserialize)]
pub(super) struct AttachVolume {
    attachment: Uuid,
    /// Where the export is served. Known once `Export` has run, which every run of the workflow begins with.
    #[serde(skip)]
    portal: Mutex<Option<Portal>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Export,
    Connect,
    Attach,
}

/// Enqueues the making of an attachment whose row is `attaching`.
pub async fn enqueue(conn: &mut Conn, attachment: Uuid, volume: &VolumeId) -> db::Result<()> {
    let params = serde_json::json!({ "attachment": attachment });
    workflows::enqueue(conn, KIND, &attachment.to_string(), volume, &params).await
}

impl Workflow for AttachVolume {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Export, Step::Connect, Step::Attach];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let way = Way::find(run, self.attachment).await?;
        match step {
            Step::Export => {
                let portal = way.export(run).await?;
                *self.portal.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(portal);
                Ok(())
            }
            Step::Connect => {
                let portal = self.portal.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
                way.connect(run, portal.ok_or_else(|| StepError::Retry("not exported yet".into()))?).await
            }
            Step::Attach => way.attach(run).await,
        }
    }

    async fn undo(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        let way = Way::find(run, self.attachment).await?;
        match step {
            Step::Attach => way.detach(run).await,
            Step::Connect => way.disconnect(run).await,
            Step::Export => way.unexport(run).await,
        }
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        let from = [AttachmentState::Attaching];
        attachments::swap_state(conn, self.attachment, &from, AttachmentState::Attached).await?;
        Ok(())
    }

    async fn record_undone(&self, conn: &mut Conn, reason: &str) -> db::Result<()> {
        record_detached(conn, self.attachment, Some(reason)).await
    }

    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        give_up_attachment(conn, self.attachment, how).await
    }
}

/// Records that an attachment is over. The last one gives the volume back; or, if its owner wants the volume to go with the
/// instance and that is gone for good, deletes it.
pub(super) async fn record_detached(conn: &mut Conn, attachment: Uuid, reason: Option<&str>) -> db::Result<()> {
    let Some((row, ends)) = attachments::find(conn, attachment).await? else { return Ok(()) };
    // Of two that end at once one is the last.
    volumes::hold(conn, &row.volume_id).await?;
    attachments::set_detached(conn, attachment, reason).await?;
    if row.multi_attach && !attachments::live_iqns(conn, &row.volume_id).await?.is_empty() {
        return Ok(());
    }
    let free = volumes::swap_state(conn, &row.volume_id, &[VolumeState::InUse], VolumeState::Available).await?;
    if free && row.delete_on_termination && ends.instance_state == InstanceState::Terminated {
        delete_volume::start(conn, &row.volume_id).await?;
    }
    Ok(())
}

/// Ends an attachment whose end could not be seen to. Only when nobody can use the volume through it any more: else another
/// machine would be given a volume that this one may still write to. What the nodes still have of it when they are back, the
/// sweeper takes back, however late that is.
pub(super) async fn give_up_attachment(conn: &mut Conn, attachment: Uuid, how: &GivenUp<'_>) -> db::Result<Given> {
    if !how.fenced {
        return Ok(Given::Refused(
            "the machine may still write to the volume: only when it is off for good, or its node is, say so with --fenced",
        ));
    }
    if let Some((row, ends)) = attachments::find(conn, attachment).await? {
        gone::remember(conn, &row.iqn, &row.volume_id, &ends.vmm_node).await?;
    }
    record_detached(conn, attachment, Some(how.reason)).await?;
    Ok(Given::Up)
}

/// The machine at the one end.
pub(super) fn machine(ends: &Ends) -> MachineRef {
    MachineRef { name: ends.machine.clone(), uuid: ends.machine_uuid.clone() }
}

/// What the disk is held to. The types whose IOPS their owner chooses get what was chosen; the others have bursts, and are as
/// fast as their storage.
fn limits(ends: &Ends) -> Limits {
    if !matches!(ends.volume_type.as_str(), "gp3" | "io1" | "io2") {
        return Limits::default();
    }
    let mib = u64::try_from(ends.throughput.unwrap_or(0)).unwrap_or(0);
    Limits { iops: u32::try_from(ends.iops.unwrap_or(0)).unwrap_or(0), bytes_per_second: mib << 20 }
}

/// An attachment's way through its two nodes, both directions of it.
pub(super) struct Way {
    row: Attachment,
    ends: Ends,
    /// The names of the targets of the volume's other attachments. One that is added later cannot be ended by mistake: its
    /// workflow has a newer generation, and the node refuses this one from then on.
    beside: Vec<String>,
}

impl Way {
    pub(super) async fn find(run: &Run<'_>, attachment: Uuid) -> Result<Self, StepError> {
        let mut conn = run.conn().await?;
        let (row, ends) = attachments::find(&mut conn, attachment)
            .await?
            .ok_or_else(|| StepError::Retry(format!("the row of attachment {attachment} is missing")))?;
        let mut beside = Vec::new();
        if row.multi_attach {
            beside = attachments::live_iqns(&mut conn, &row.volume_id).await?;
            beside.retain(|iqn| *iqn != row.iqn);
        }
        Ok(Self { row, ends, beside })
    }

    fn storage<'a>(&self, run: &Run<'a>) -> Result<&'a dyn VolumeDelegate, StepError> {
        Ok(run.context.nodes.storage(&self.ends.volume_node)?)
    }

    fn hypervisor<'a>(&self, run: &Run<'a>) -> Result<&'a dyn VmmDelegate, StepError> {
        Ok(run.context.nodes.hypervisor(&self.ends.vmm_node)?)
    }

    /// Whether the machine is gone for good, and its node with it: nobody is left to ask. Should its initiator live on after
    /// all, the storage node does not end the export under it.
    fn nobody_is_left(&self, run: &Run<'_>) -> bool {
        self.ends.instance_state == InstanceState::Terminated && self.hypervisor(run).is_err()
    }

    fn disk(&self) -> DiskSpec {
        DiskSpec {
            volume: self.row.volume_id.clone(),
            iqn: self.row.iqn.clone(),
            machine: machine(&self.ends),
            device: self.row.device.clone(),
            limits: limits(&self.ends),
        }
    }

    fn export_spec(&self, run: &Run<'_>) -> Result<ExportSpec, StepError> {
        let secret = run
            .context
            .sealer
            .open(&self.row.sealed_chap_secret, &self.row.id.to_string())
            .map_err(|e| StepError::Fail(format!("the CHAP secret: {e}")))?;
        Ok(ExportSpec {
            volume: self.row.volume_id.clone(),
            iqn: self.row.iqn.clone(),
            lun: u32::try_from(self.row.lun).unwrap_or_default(),
            chap_user: self.row.chap_user.clone(),
            chap_secret: Secret(secret.to_string()),
            initiator_iqn: self.row.initiator_iqn.clone(),
            beside: self.beside.clone(),
        })
    }

    pub(super) async fn export(&self, run: &Run<'_>) -> Result<Portal, StepError> {
        Ok(self.storage(run)?.ensure_exported(run.generation, &self.export_spec(run)?).await?)
    }

    /// When the machine's initiator has another name than at the time of the attach, because the machine or its node was renamed:
    /// ends the export for the old name, if the machine has lost the disk and nobody is logged in, and writes down the new one.
    pub(super) async fn follow_initiator(&mut self, run: &Run<'_>) -> Result<(), StepError> {
        if self.row.initiator_iqn == self.ends.initiator_iqn {
            return Ok(());
        }
        let seen = self.hypervisor(run)?.observe().await?.machines;
        let mut disks = seen.iter().filter(|seen| seen.uuid == self.ends.machine_uuid).flat_map(|seen| &seen.disks);
        if disks.any(|disk| disk.iqn == self.row.iqn) {
            return Ok(());
        }
        self.unexport(run).await?;
        attachments::set_initiator(&mut *run.conn().await?, self.row.id, &self.ends.initiator_iqn).await?;
        self.row.initiator_iqn.clone_from(&self.ends.initiator_iqn);
        Ok(())
    }

    pub(super) async fn connect(&self, run: &Run<'_>, portal: Portal) -> Result<(), StepError> {
        let spec = ConnectSpec { export: self.export_spec(run)?, portal, machine: machine(&self.ends) };
        Ok(self.hypervisor(run)?.ensure_connected(run.generation, &spec).await?)
    }

    pub(super) async fn attach(&self, run: &Run<'_>) -> Result<(), StepError> {
        Ok(self.hypervisor(run)?.ensure_attached(run.generation, &self.disk()).await?)
    }

    /// Makes the hypervisor and the machine see that the volume has grown, where they can, and holds the disk to what the volume
    /// may do now.
    pub(super) async fn grow(&self, run: &Run<'_>, size_bytes: u64) -> Result<Growth, StepError> {
        Ok(self.hypervisor(run)?.ensure_grown(run.generation, &self.disk(), size_bytes).await?)
    }

    /// Asks the guest to let go. While it does not, the attachment says `busy` if its owner asked for the detach.
    pub(super) async fn detach(&self, run: &Run<'_>) -> Result<(), StepError> {
        if self.nobody_is_left(run) {
            return Ok(());
        }
        let answer = self.hypervisor(run)?.ensure_detached(run.generation, &self.disk(), self.row.force).await?;
        match answer {
            Detach::Gone => Ok(()),
            Detach::Busy => {
                let mut conn = run.conn().await?;
                let from = [AttachmentState::Detaching];
                attachments::swap_state(&mut conn, self.row.id, &from, AttachmentState::Busy).await?;
                Err(StepError::Wait("the guest holds on to the disk".into()))
            }
        }
    }

    pub(super) async fn disconnect(&self, run: &Run<'_>) -> Result<(), StepError> {
        if self.nobody_is_left(run) {
            return Ok(());
        }
        Ok(self.hypervisor(run)?.ensure_disconnected(run.generation, &self.disk()).await?)
    }

    pub(super) async fn unexport(&self, run: &Run<'_>) -> Result<(), StepError> {
        Ok(self.storage(run)?.ensure_not_exported(run.generation, &self.row.volume_id, &self.beside).await?)
    }
}
