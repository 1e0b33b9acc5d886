//! CreateSnapshots: of all volumes of an instance, at one instant.
//!
//! A machine boots from a disk of its own here, which is no volume. So there is nothing for `ExcludeBootVolume` to exclude, and
//! every attached volume is a data volume.

use std::collections::BTreeSet;

use diesel_async::AsyncConnection;
use uuid::Uuid;

use crate::db::snapshots::{self as rows, NewSnapshot, Snapshot};
use crate::db::{Conn, attachments, describe_tags, nodes, tags as tag_rows};
use crate::ids::{InstanceId, SnapshotId, VolumeId};
use crate::state::SnapshotState;
use crate::workers::create_snapshots;

use super::attachments::find_instance;
use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_value, unsupported};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::snapshots::{await_cut, check_description, hold_source, is_elsewhere, outposts};
use super::tag_rules::{self, MAX_TAGS, Tags};
use super::{Api, Call, quotas, tags};

/// The most volumes that can be excluded.
const MAX_EXCLUDED: usize = 40;

/// What is asked for.
struct Request {
    instance: InstanceId,
    excluded: BTreeSet<VolumeId>,
    description: String,
    copy_tags: bool,
    tags: Tags,
}

/// CreateSnapshots. All of them are made, or none.
pub async fn create(api: &Api, call: &Call, params: Params) -> ApiResult<String> {
    let request = check(params)?;
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    find_instance(&mut conn, account, &request.instance).await?;
    call.stop_if_dry_run()?;
    let set = Uuid::new_v4();
    let made = conn
        .transaction(async |conn| {
            let volumes = choose(conn, &request).await?;
            if volumes.len() > 1 {
                check_rest(conn, &volumes).await?;
            }
            quotas::take_snapshots(api, conn, account, &volumes.iter().collect::<Vec<_>>()).await?;
            let mut made = Vec::with_capacity(volumes.len());
            for volume in &volumes {
                made.push(insert(conn, account, &request, set, volume).await?);
            }
            let members: Vec<_> = made.iter().map(|(row, _)| (row.id.clone(), row.volume_id.clone())).collect();
            create_snapshots::enqueue(conn, set, &members).await?;
            Ok::<_, ApiError>(made)
        })
        .await?;
    api.wake.wake();
    drop(conn);
    let is_cut = || async { create_snapshots::is_cut(&mut *api.pool.get().await?, set).await };
    if !await_cut(is_cut).await {
        tracing::info!(%set, "answered before it was cut");
    }
    Ok(render(call, &made))
}

fn check(mut params: Params) -> ApiResult<Request> {
    let instance = params.text("InstanceSpecification.InstanceId");
    params.boolean("InstanceSpecification.ExcludeBootVolume")?;
    let excluded = params.list("InstanceSpecification.ExcludeDataVolumeId")?;
    let description = params.text("Description").unwrap_or_default();
    let copy_tags = params.filled("CopyTagsFromSource");
    let elsewhere = is_elsewhere(&mut params);
    let specifications = params.tag_specifications()?;
    params.finish()?;
    let instance = resource_id::required(instance.as_deref(), Dialect::Instance)?;
    if excluded.len() > MAX_EXCLUDED {
        return Err(invalid_value(format!("At most {MAX_EXCLUDED} volumes can be excluded on a single call.")));
    }
    let excluded: Vec<VolumeId> = resource_id::list(&excluded, Dialect::Volume)?;
    if let Some(source) = copy_tags.as_deref().filter(|source| *source != "volume") {
        return Err(invalid_value(format!(
            "Value ({}) for parameter copyTagsFromSource is invalid. Expected: 'volume'.",
            clip(source)
        )));
    }
    let tags = tag_rules::from_specifications(specifications, "snapshot")?;
    check_description(&description)?;
    if elsewhere {
        return Err(outposts());
    }
    Ok(Request {
        instance,
        excluded: excluded.into_iter().collect(),
        description,
        copy_tags: copy_tags.is_some(),
        tags,
    })
}

/// The volumes of the instance that are not excluded, held so that they stay attached until the transaction ends.
async fn choose(conn: &mut Conn, request: &Request) -> ApiResult<Vec<VolumeId>> {
    let instance = &request.instance;
    for volume in attachments::volumes_of_instance(conn, instance).await? {
        hold_source(conn, &volume).await?;
    }
    // Whoever changes an attachment holds the volume: those that are still there stay.
    let attached = attachments::volumes_of_instance(conn, instance).await?;
    let strays = request.excluded.iter().filter(|volume| !attached.contains(volume));
    let refusals: Vec<String> =
        strays.map(|stray| format!("Volume '{stray}' is not attached to instance '{instance}'.")).collect();
    if !refusals.is_empty() {
        return Err(invalid_value(refusals.join(" ")));
    }
    let chosen: Vec<VolumeId> = attached.into_iter().filter(|volume| !request.excluded.contains(volume)).collect();
    if chosen.is_empty() {
        return Err(invalid_value(format!("Instance '{instance}' has no attached volumes that are not excluded.")));
    }
    Ok(chosen)
}

/// Refuses volumes that an instance has whose host cannot rest it; with Multi-Attach it need not be the one that was named.
async fn check_rest(conn: &mut Conn, volumes: &[VolumeId]) -> ApiResult<()> {
    for (instance, node) in attachments::hosts_of_volumes(conn, volumes).await? {
        if !create_snapshots::can_rest(&nodes::drivers(conn, &node).await?) {
            return Err(unsupported(format!(
                "The host of instance '{instance}' cannot rest its I/O, so its volumes cannot be snapshotted at one point in \
                 time. Exclude all but one."
            )));
        }
    }
    Ok(())
}

async fn insert(
    conn: &mut Conn,
    account: &str,
    request: &Request,
    set: Uuid,
    volume: &VolumeId,
) -> ApiResult<(Snapshot, Tags)> {
    let source = hold_source(conn, volume).await?;
    let mut tags = if request.copy_tags { tag_rows::of_resource(conn, volume.as_str()).await? } else { Tags::new() };
    tags.extend(request.tags.clone());
    if tags.len() > MAX_TAGS {
        return Err(tag_rules::too_many());
    }
    let new = NewSnapshot {
        id: &SnapshotId::generate(),
        account_id: account,
        volume_id: volume,
        volume_size_gib: source.size_gib,
        node: &source.node,
        description: &request.description,
        state: SnapshotState::Pending,
        set_id: Some(set),
    };
    let row = rows::insert(conn, &new).await?;
    describe_tags::insert(conn, account, "snapshot", row.id.as_str(), &tags).await?;
    Ok((row, tags))
}

fn render(call: &Call, made: &[(Snapshot, Tags)]) -> String {
    let mut xml = call.answer();
    xml.set("snapshotSet", made, |xml, (row, asked)| {
        xml.text("description", &row.description);
        tags::asked(xml, asked);
        xml.plain("encrypted", row.encrypted)
            .plain("volumeId", &row.volume_id)
            .plain("state", row.state)
            .plain("volumeSize", row.volume_size_gib)
            .time("startTime", row.started_at)
            .text("progress", "")
            .text("ownerId", &row.account_id)
            .plain("snapshotId", &row.id);
    });
    xml.finish()
}
