//! ModifyVolume: checks in the order of EC2, then one transaction for the modification and its workflow.
//!
//! The answer says `modifying`. DescribeVolumes shows the volume as it was until the modification is `optimizing`, and from then
//! on as it was asked for.

use diesel_async::AsyncConnection;
use uuid::Uuid;

use crate::db::Conn;
use crate::db::attachments;
use crate::db::modifications::{self as rows, NewModification};
use crate::db::volumes::{self as volume_rows, Volume};
use crate::ids::VolumeId;
use crate::state::{ModificationState, VolumeState};
use crate::workers::modify_volume;

use super::error::{ApiError, ApiResult};
use super::faults::{incorrect_state, invalid_combination, invalid_value, no_volume};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::volume_types::{self, Existing, Shape};
use super::xml::time_text;
use super::{Api, Call, quotas, volume_modifications};

/// The most modifications of a volume in 24 hours.
const MOST_A_DAY: i64 = 4;

/// What the volume shall become, as it was asked for.
#[derive(Debug)]
struct Asked {
    size_gib: Option<i32>,
    volume_type: Option<String>,
    iops: Option<i32>,
    throughput: Option<i32>,
    multi_attach: Option<bool>,
}

impl Asked {
    fn take(params: &mut Params) -> ApiResult<Self> {
        Ok(Self {
            size_gib: params.integer("Size")?,
            volume_type: params.filled("VolumeType"),
            iops: params.integer("Iops")?,
            throughput: params.integer("Throughput")?,
            multi_attach: params.boolean("MultiAttachEnabled")?,
        })
    }

    fn is_nothing(&self) -> bool {
        let numbers = [self.size_gib, self.iops, self.throughput];
        numbers.iter().all(Option::is_none) && self.volume_type.is_none() && self.multi_attach.is_none()
    }

    fn check(&self, volume: &Volume) -> ApiResult<Shape> {
        if volume.multi_attach && volume.volume_type == "io1" {
            return Err(invalid_value(
                "io1 volumes with Multi-Attach enabled do not support modify-volume actions. Please review the EBS technical \
                 documentation for information on the Multi-Attach limitations and considerations.",
            ));
        }
        let asked = volume_types::Asked {
            volume_type: self.volume_type.as_deref(),
            size_gib: self.size_gib,
            iops: self.iops,
            throughput: self.throughput,
        };
        let existing = Existing {
            volume_type: &volume.volume_type,
            size_gib: volume.size_gib,
            iops: volume.iops,
            throughput: volume.throughput,
        };
        let shape = volume_types::check_change(asked, existing)?;
        volume_types::check_multi_attach(self.multi_attach, shape.volume_type)?;
        if self.multi_attach == Some(true) && shape.volume_type == "io1" {
            return Err(invalid_combination("Multi-Attach can't be enabled for io1 volumes after they were created."));
        }
        if volume.multi_attach && shape.volume_type != volume.volume_type {
            return Err(invalid_combination("The type of a volume with Multi-Attach enabled can't be modified."));
        }
        Ok(shape)
    }
}

/// Refuses to take Multi-Attach from a volume that several instances have.
async fn check_attachments(conn: &mut Conn, volume: &Volume, asked: Option<bool>) -> ApiResult<()> {
    if volume.multi_attach && asked == Some(false) && attachments::live_iqns(conn, &volume.id).await?.len() > 1 {
        let text =
            format!("Multi-Attach can't be disabled: volume '{}' is attached to more than one instance.", volume.id);
        return Err(incorrect_state(text));
    }
    Ok(())
}

/// ModifyVolume. What changes nothing is a modification too.
pub async fn modify(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let id = params.text("VolumeId");
    let asked = Asked::take(&mut params)?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let id: VolumeId = resource_id::required(id.as_deref(), Dialect::Volume)?;
    if asked.is_nothing() {
        return Err(invalid_value(
            "Invalid input: Must specify at least one of size, type, iops, throughput or multi-attach.",
        ));
    }
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    let row = conn
        .transaction(async |conn| {
            let volume = held(conn, account, &id).await?;
            let shape = asked.check(&volume)?;
            check_attachments(conn, &volume, asked.multi_attach).await?;
            check_time(conn, &id).await?;
            let new = new(&volume, &shape, asked.multi_attach);
            quotas::take_growth(api, conn, &volume, &new).await?;
            let row = rows::begin(conn, &new).await?;
            let row = row.ok_or_else(|| under_way(&id, ModificationState::Modifying))?;
            modify_volume::enqueue(conn, row.id, &id).await?;
            Ok::<_, ApiError>(row)
        })
        .await?;
    api.wake.wake();
    let mut xml = call.answer();
    xml.element("volumeModification", |xml| volume_modifications::fields(xml, &row));
    Ok(xml.finish())
}

/// The volume, if the account has it and it may be modified; nobody else modifies or deletes it until the transaction ends.
async fn held(conn: &mut Conn, account: &str, id: &VolumeId) -> ApiResult<Volume> {
    let row = volume_rows::hold(conn, id).await?.filter(|row| row.account_id == account);
    let row = row.ok_or_else(|| no_volume(id))?;
    match row.state {
        VolumeState::Available | VolumeState::InUse => {}
        VolumeState::Deleting | VolumeState::Deleted => return Err(no_volume(id)),
        state => return Err(incorrect_state(format!("Volume '{id}' is in the '{state}' state."))),
    }
    Ok(row)
}

/// Refuses while the modification before this one is under way, and when there were too many of late.
async fn check_time(conn: &mut Conn, id: &VolumeId) -> ApiResult<()> {
    if let Some(earlier) = rows::of_volume(conn, id).await?.filter(|row| row.ended_at.is_none()) {
        return Err(under_way(id, earlier.state));
    }
    let Some(at) = rows::next_allowed(conn, id, MOST_A_DAY).await? else { return Ok(()) };
    Err(ApiError::new(
        "VolumeModificationRateExceeded",
        format!(
            "You've reached the maximum modification rate per volume limit. Wait until {} before you can issue the next \
             modification request for this volume.",
            time_text(at)
        ),
    ))
}

fn under_way(id: &VolumeId, state: ModificationState) -> ApiError {
    let state = state.to_string().to_uppercase();
    ApiError::new("IncorrectModificationState", format!("Volume {id} cannot be modified in modification state {state}"))
}

fn new(volume: &Volume, shape: &Shape, multi_attach: Option<bool>) -> NewModification {
    let target_size_gib = shape.size_gib.unwrap_or(volume.size_gib);
    NewModification {
        volume_id: volume.id.clone(),
        account_id: volume.account_id.clone(),
        id: Uuid::new_v4(),
        original_size_gib: volume.size_gib,
        original_type: volume.volume_type.clone(),
        original_iops: volume.iops,
        original_throughput: volume.throughput,
        original_multi_attach: volume.multi_attach,
        target_size_gib,
        target_type: shape.volume_type,
        target_iops: shape.iops(target_size_gib),
        target_throughput: shape.throughput,
        target_multi_attach: multi_attach.unwrap_or(volume.multi_attach),
    }
}
