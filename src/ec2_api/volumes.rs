//! DescribeVolumes and DeleteVolume, and the form in which a volume is shown.

use diesel_async::AsyncConnection;

use crate::db::Conn;
use crate::db::attachments as attachment_rows;
use crate::db::describe_volumes::{self as table, DescribedVolume};
use crate::db::statement::{Condition, Instant, Subject, Values, merge_joins};
use crate::db::volumes as volume_rows;
use crate::ids::VolumeId;
use crate::state::VolumeState;
use crate::workers::delete_volume;

use super::error::{ApiError, ApiResult};
use super::filters::{self, Filter};
use super::paging::{Onward, PageParams, PageRules};
use super::query::Params;
use super::region::Region;
use super::resource_id::{self, Dialect};
use super::xml::Xml;
use super::{Api, Call, faults, tags};

const PAGES: PageRules = PageRules { ids_set: "volumeIdsSet", kind: "volume", zero_is_none: false };

const FILTERS: [&str; 22] = [
    "attachment.attach-time",
    "attachment.delete-on-termination",
    "attachment.device",
    "attachment.instance-id",
    "attachment.status",
    "availability-zone",
    "availability-zone-id",
    "create-time",
    "encrypted",
    "fast-restored",
    "multi-attach-enabled",
    "operator.managed",
    "operator.principal",
    "size",
    "snapshot-id",
    "status",
    "tag:",
    "tag-key",
    "tag-value",
    "volume-id",
    "volume-initialization-rate",
    "volume-type",
];

/// DescribeVolumes. One id without filters is the request that clients poll with: those that come together share a statement.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let ids = params.list("VolumeId")?;
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.boolean("IncludeManagedResources")?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let mut page = page.check(PAGES, !ids.is_empty())?;
    let ids = resource_id::list(&ids, Dialect::Volumes)?;
    let filters = filters::check(filters, &FILTERS)?;
    let conditions: Vec<Condition> = filters.iter().map(|filter| condition(filter, &api.region)).collect();
    let account = &call.caller.account_id;
    let mut xml = call.answer();
    if let ([id], []) = (&ids[..], &conditions[..]) {
        let row = api.describe_one.ask((account.clone(), id.clone())).await?.ok_or_else(|| faults::no_volume(id))?;
        xml.set("volumeSet", [&row], |xml, row| item(xml, row, account, &api.region));
        return Ok(xml.finish());
    }
    let mut conn = api.pool.get().await?;
    if !ids.is_empty() {
        let rows = table::by_ids(&mut conn, account, &ids, &conditions).await?;
        if rows.len() < ids.len() {
            tags::refuse(&ids, &table::existing(&mut conn, account, &ids).await?, faults::no_volumes)?;
        }
        xml.set("volumeSet", &rows, |xml, row| item(xml, row, account, &api.region));
        return Ok(xml.finish());
    }
    xml.open("volumeSet");
    let mut write = async |conn: &mut Conn| loop {
        let rows = table::page(conn, account, page.after.as_deref(), page.fetch(), &conditions).await?;
        let onward =
            page.write(&mut xml, rows, |row| row.id.to_string(), |xml, row| item(xml, row, account, &api.region));
        match onward.await? {
            Onward::Fetch => {}
            Onward::End => return Ok::<_, ApiError>(None),
            Onward::Token(token) => return Ok(Some(token)),
        }
    };
    let token = if conditions.len() > 1 {
        conn.transaction(async |conn| {
            merge_joins(conn).await?;
            write(conn).await
        })
        .await?
    } else {
        write(&mut conn).await?
    };
    xml.close("volumeSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

const CREATE_TIME: Instant =
    Instant { at: "v.created_at", text: "(v.created_at AT TIME ZONE interval '0' + interval '1 microsecond')::text" };

const ATTACH_TIME: Instant = Instant {
    at: "date_trunc('second', b.attached_at)",
    text: "(date_trunc('second', b.attached_at) AT TIME ZONE interval '0' + interval '1 microsecond')::text",
};

/// How often a volume that is about to be free is tried to be deleted.
const TRIES: usize = 3;

/// What a filter looks at.
fn condition(filter: &Filter, region: &Region) -> Condition {
    let subject = |subject| Condition { subject, values: filter.values() };
    let expression = match filter.name.as_str() {
        "attachment.attach-time" => return subject(Subject::VolumeAttachmentInstant(ATTACH_TIME)),
        "attachment.delete-on-termination" => {
            return subject(Subject::VolumeAttachment("b.delete_on_termination::text"));
        }
        "attachment.device" => return subject(Subject::VolumeAttachment("b.device")),
        "attachment.instance-id" => return subject(Subject::VolumeAttachment("b.instance_id")),
        "attachment.status" => return subject(Subject::VolumeAttachment("b.state")),
        "availability-zone" => "v.zone",
        "availability-zone-id" => {
            let zones = region.zones.iter().filter(|zone| filter.matches(&zone.id)).map(|zone| zone.name.clone());
            let values = Values { exact: zones.collect(), like: Vec::new() };
            return Condition { subject: Subject::Expression("v.zone"), values };
        }
        "create-time" => return subject(Subject::Instant(CREATE_TIME)),
        "encrypted" => "v.encrypted::text",
        "fast-restored" | "operator.managed" => "'false'::text",
        "multi-attach-enabled" => "v.multi_attach::text",
        "operator.principal" => "NULL::text",
        "size" => "v.size_gib::text",
        "snapshot-id" => "coalesce(v.snapshot_id, '')",
        "status" => "v.state",
        "volume-id" => "v.id",
        "volume-initialization-rate" => "v.initialization_rate::text",
        "volume-type" => "v.volume_type",
        _ => return tags::condition(filter),
    };
    subject(Subject::Expression(expression))
}

/// A volume as DescribeVolumes shows it: an empty `snapshotId` and `attachmentSet` stay, an empty `tagSet` does not.
fn item(xml: &mut Xml, row: &DescribedVolume, account: &str, region: &Region) {
    xml.plain("volumeId", &row.id)
        .optional_plain("sourceVolumeId", row.source_volume_id.as_ref())
        .plain("size", row.size_gib)
        .text("snapshotId", row.snapshot_id.as_ref().map_or("", |id| id.as_str()))
        .text("availabilityZone", &row.zone)
        .text("availabilityZoneId", region.zone_id(&row.zone))
        .plain("status", row.state)
        .time("createTime", row.created_at)
        .element("attachmentSet", |xml| attachments(xml, row));
    tags::set(xml, &row.tag_keys, &row.tag_values);
    xml.plain("volumeType", &row.volume_type)
        .optional_plain("iops", row.iops)
        .plain("encrypted", row.encrypted)
        .plain("multiAttachEnabled", row.multi_attach)
        .optional_plain("throughput", row.throughput)
        .optional_plain("volumeInitializationRate", row.initialization_rate)
        .plain("ownerId", account)
        .plain("volumeArn", format_args!("arn:aws:ec2:{}:{account}:volume/{}", region.name, row.id))
        .element("operator", |xml| {
            xml.plain("managed", false).plain("hiddenByDefault", false);
        });
}

fn attachments(xml: &mut Xml, row: &DescribedVolume) {
    let (Some(instances), Some(devices), Some(states), Some(times), Some(ends)) =
        (&row.instance_ids, &row.devices, &row.attachment_states, &row.attached_at, &row.delete_on_termination)
    else {
        return;
    };
    let all = instances.iter().zip(devices).zip(states).zip(times).zip(ends);
    xml.items(all, |xml, ((((instance, device), state), at), ends)| {
        xml.plain("volumeId", &row.id)
            .text("instanceId", instance)
            .text("device", device)
            .text("status", state)
            .second("attachTime", *at)
            .plain("deleteOnTermination", ends);
    });
}

/// DeleteVolume. A volume that is being made may be deleted too; one that is attached may not.
pub async fn delete(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let id = params.text("VolumeId");
    params.finish()?;
    let id: VolumeId = resource_id::required(id.as_deref(), Dialect::DeleteVolume)?;
    let mut conn = api.pool.get().await?;
    find(&mut conn, &call.caller.account_id, &id).await?;
    call.stop_if_dry_run()?;
    for _ in 0..TRIES {
        if conn.transaction(async |conn| delete_volume::start(conn, &id).await).await? {
            api.wake.wake();
            return Ok(call.done());
        }
        let live = attachment_rows::live_of_volume(&mut conn, &id).await?;
        if !live.is_empty() {
            let instances: Vec<&str> = live.iter().map(|(row, _)| row.instance_id.as_str()).collect();
            let text = format!("Volume {id} is currently attached to {}", instances.join(", "));
            return Err(ApiError::new("VolumeInUse", text));
        }
        // Somebody else has deleted it; or a detach has ended between the two looks, and now it can be deleted.
        find(&mut conn, &call.caller.account_id, &id).await?;
    }
    Err(ApiError::unavailable(format!("{id} is in use, and attached to nothing")))
}

/// The volume, if the account has it and nobody has deleted it. For all but the describes, one that is being deleted is gone.
pub async fn find(conn: &mut Conn, account: &str, id: &VolumeId) -> ApiResult<volume_rows::Volume> {
    let gone = [VolumeState::Deleting, VolumeState::Deleted];
    volume_rows::find(conn, id)
        .await?
        .filter(|row| row.account_id == account && !gone.contains(&row.state))
        .ok_or_else(|| faults::no_volume(id))
}
