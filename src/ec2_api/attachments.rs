//! AttachVolume and DetachVolume.
//!
//! Every name and secret that an attachment will ever need is made here and committed before the first side effect, so that
//! whoever carries the workflow on after a crash has them all.

use diesel_async::AsyncConnection;
use rand::RngCore;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::db::attachments::{self as rows, Attachment, NewAttachment};
use crate::db::instances::{self, Instance};
use crate::db::{Conn, modifications, volumes as volume_rows};
use crate::ids::{InstanceId, VolumeId};
use crate::state::{AttachmentState, InstanceState, ModificationState, VolumeState};
use crate::workers::{attach_volume, detach_volume};

use super::device::{self, Device};
use super::error::{ApiError, ApiResult};
use super::faults::{incorrect_state, missing, no_instance, no_volume, unsupported};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::xml::Xml;
use super::{Api, Call, volumes};

/// The unit of every target; tgt keeps 0 for itself.
const LUN: i32 = 1;

/// The most instances that may have a volume at once, as on EC2.
const MOST_INSTANCES: usize = 16;

/// AttachVolume. Not idempotent, as on EC2: the same request again finds the volume in use.
pub async fn attach(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let (volume, instance, device) = (params.text("VolumeId"), params.text("InstanceId"), params.text("Device"));
    let card = params.integer("EbsCardIndex")?;
    params.finish()?;
    let volume: VolumeId = resource_id::required(volume.as_deref(), Dialect::Volume)?;
    let instance: InstanceId = resource_id::required(instance.as_deref(), Dialect::Instance)?;
    let device = Device::parse(device)?;
    if card.is_some_and(|card| card != 0) {
        return Err(unsupported("Instances here have one EBS card, of index 0."));
    }
    let mut conn = api.pool.get().await?;
    let account = &*call.caller.account_id;
    let volume = volumes::find(&mut conn, account, &volume).await?;
    let instance = find_instance(&mut conn, account, &instance).await?;
    call.stop_if_dry_run()?;
    if volume.zone != instance.zone {
        let text =
            format!("The volume '{}' is not in the same availability zone as instance '{}'", volume.id, instance.id);
        return Err(ApiError::new("InvalidVolume.ZoneMismatch", text));
    }
    check_running(&instance)?;
    api.placement.ready().await?;
    if api.placement.is_drained(&instance.node) {
        let text = format!("Instance '{}' is on a host that takes no new volumes at present.", instance.id);
        return Err(incorrect_state(text));
    }
    let row = conn
        .transaction(async |conn| {
            let Some(volume) = volume_rows::take(conn, &volume.id).await? else {
                return Err(not_available(conn, account, &volume.id).await);
            };
            if volume.multi_attach {
                check_others(conn, &volume.id, &instance.id).await?;
            }
            // Asked again, of a row that nobody else can change now: the operator may have given the instance away, and another
            // attach may be at the limit too.
            let held = instances::hold(conn, &instance.id).await?;
            let instance = owned(held, account).ok_or_else(|| no_instance(&instance.id))?;
            check_running(&instance)?;
            insert(api, conn, account, (&volume, &instance), &device).await
        })
        .await?;
    api.wake.wake();
    let mut xml = ends(call, &row);
    xml.time("attachTime", row.attached_at);
    Ok(xml.finish())
}

/// The instance, if the account may know of it.
pub async fn find_instance(conn: &mut Conn, account: &str, id: &InstanceId) -> ApiResult<Instance> {
    owned(instances::find(conn, id).await?, account).ok_or_else(|| no_instance(id))
}

/// The same of a row.
pub fn owned(row: Option<Instance>, account: &str) -> Option<Instance> {
    row.filter(|row| row.account_id.as_deref() == Some(account) && row.state != InstanceState::Terminated)
}

/// Refuses an instance that the account does not know. One that is over it knows for a while: whoever cleans up after it is to
/// hear how its volumes are.
async fn check_known(conn: &mut Conn, account: &str, id: &InstanceId) -> ApiResult<()> {
    let row = instances::find(conn, id).await?.filter(|row| row.account_id.as_deref() == Some(account));
    row.map(|_| ()).ok_or_else(|| no_instance(id))
}

fn check_running(instance: &Instance) -> ApiResult<()> {
    match instance.state {
        InstanceState::Running => Ok(()),
        _ => Err(incorrect_state(format!("Instance '{}' is not 'running'.", instance.id))),
    }
}

/// Why a volume could not be taken.
async fn not_available(conn: &mut Conn, account: &str, id: &VolumeId) -> ApiError {
    match volumes::find(conn, account, id).await {
        Ok(row) if row.state == VolumeState::InUse => in_use(id),
        Ok(_) => incorrect_state(format!("{id} is not 'available'.")),
        Err(error) => error,
    }
}

fn in_use(id: &VolumeId) -> ApiError {
    ApiError::new("VolumeInUse", format!("{id} is already attached to an instance"))
}

/// Refuses one more instance to a volume that this one has already, that has as many as it may, or that is about to lose
/// Multi-Attach.
async fn check_others(conn: &mut Conn, id: &VolumeId, instance: &InstanceId) -> ApiResult<()> {
    let others = rows::live_of_volume(conn, id).await?;
    if others.iter().any(|(row, _)| row.instance_id == *instance) {
        return Err(in_use(id));
    }
    if others.len() >= MOST_INSTANCES {
        let text = format!("{id} is already attached to {MOST_INSTANCES} instances, the most that a volume may have");
        return Err(ApiError::new("VolumeInUse", text));
    }
    let modification = modifications::of_volume(conn, id).await?;
    let ends = modification.is_some_and(|row| row.state == ModificationState::Modifying && !row.target_multi_attach);
    if ends && !others.is_empty() { Err(in_use(id)) } else { Ok(()) }
}

async fn insert(
    api: &Api,
    conn: &mut Conn,
    account: &str,
    (volume, instance): (&volume_rows::Volume, &Instance),
    device: &Device,
) -> ApiResult<Attachment> {
    if device.is_root() {
        return Err(device.taken());
    }
    let most = api.quotas.attachments;
    if rows::count_live_of_instance(conn, &instance.id).await? >= i64::from(most) {
        let text = format!(
            "You may attach up to {most} devices for this instance type. Please use a larger instance size to attach more \
             volumes."
        );
        return Err(ApiError::new("AttachmentLimitExceeded", text));
    }
    let id = Uuid::new_v4();
    let secret = Zeroizing::new(random_hex());
    let new = NewAttachment {
        id,
        account_id: account,
        volume_id: &volume.id,
        instance_id: &instance.id,
        device: &device.name,
        device_key: &device.key,
        state: AttachmentState::Attaching,
        iqn: &format!("{}:{}.{}", api.iqn_prefix, volume.id, random_hex()),
        lun: LUN,
        chap_user: &format!("vbs-{}", id.simple()),
        sealed_chap_secret: &api.sealer.seal(&secret, &id.to_string()),
        initiator_iqn: &instance.initiator_iqn,
        multi_attach: volume.multi_attach,
    };
    let row = rows::insert(conn, &new).await?.ok_or_else(|| device.taken())?;
    attach_volume::enqueue(conn, id, &volume.id).await?;
    Ok(row)
}

/// 128 random bits.
fn random_hex() -> String {
    let mut bytes = Zeroizing::new([0; 16]);
    rand::rng().fill_bytes(bytes.as_mut_slice());
    hex::encode(bytes.as_slice())
}

/// DetachVolume. Instance and device, when given, must be those of the attachment; of a volume with Multi-Attach the instance
/// must be given. `Force` takes the disk away from a guest
/// that holds on to it, also when a patient detach is under way.
pub async fn detach(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let (volume, instance) = (params.text("VolumeId"), params.filled("InstanceId"));
    let device = params.filled("Device");
    let force = params.boolean("Force")?.unwrap_or(false);
    params.finish()?;
    let id: VolumeId = resource_id::required(volume.as_deref(), Dialect::Volume)?;
    let instance: Option<InstanceId> = instance.map(|text| resource_id::read(&text, Dialect::Instance)).transpose()?;
    let mut conn = api.pool.get().await?;
    let account = &*call.caller.account_id;
    let volume = volumes::find(&mut conn, account, &id).await?;
    if let Some(instance) = &instance {
        check_known(&mut conn, account, instance).await?;
    }
    if volume.multi_attach && instance.is_none() {
        return Err(missing("instanceId"));
    }
    call.stop_if_dry_run()?;
    if volume.state != VolumeState::InUse {
        return Err(in_state(&id, volume.state));
    }
    let row = conn
        .transaction(async |conn| {
            let mut live = rows::live_of_volume(conn, &id).await?;
            let asked = live.iter().position(|(row, _)| Some(&row.instance_id) == instance.as_ref());
            if live.is_empty() {
                return Err(in_state(&id, VolumeState::Available));
            }
            let (row, _) = live.swap_remove(asked.unwrap_or(0));
            check_ends(&row, instance.as_ref(), device.as_deref())?;
            if !detach_volume::start(conn, row.id, &id, force).await? {
                return Err(in_state(&id, row.state));
            }
            if row.delete_on_termination {
                // Whoever takes a volume from an instance keeps it, should the instance end meanwhile.
                rows::set_delete_on_termination(conn, row.id, false).await?;
            }
            rows::find(conn, row.id).await?.map(|(row, _)| row).ok_or_else(|| no_volume(&id))
        })
        .await?;
    api.wake.wake();
    let mut xml = ends(call, &row);
    xml.second("attachTime", row.attached_at);
    Ok(xml.finish())
}

fn check_ends(row: &Attachment, instance: Option<&InstanceId>, device: Option<&str>) -> ApiResult<()> {
    let same_instance = instance.is_none_or(|instance| *instance == row.instance_id);
    let same_device = device.is_none_or(|name| {
        name == row.device || device::key(name).is_some_and(|key| device::key(&row.device) == Some(key))
    });
    if same_instance && same_device {
        return Ok(());
    }
    let instance = instance.unwrap_or(&row.instance_id);
    let device = device.unwrap_or(&row.device);
    Err(ApiError::new(
        "InvalidAttachment.NotFound",
        format!("The volume '{}' is not attached to instance '{instance}' as device '{device}'.", row.volume_id),
    ))
}

fn in_state(id: &VolumeId, state: impl std::fmt::Display) -> ApiError {
    incorrect_state(format!("Volume '{id}' is in the '{state}' state."))
}

/// What the answers of both actions start with. EC2 tells the time of the attachment to the millisecond only when it is made.
fn ends(call: &Call, row: &Attachment) -> Xml {
    let mut xml = call.answer();
    xml.plain("volumeId", &row.volume_id)
        .plain("instanceId", &row.instance_id)
        .text("device", &row.device)
        .plain("status", row.state);
    xml
}
