//! DescribeVolumeStatus: how the volumes are, as far as vbs knows.
//!
//! It knows whether a volume's storage node answers, and has the volume. Such a volume is `ok`; while that is not so,
//! `insufficient-data`; after five minutes `impaired`, with an event that tells since when. There is nothing that a caller could do about
//! it, so there are no actions.

use crate::db::describe_volume_status::{self as table, DescribedStatus};
use crate::db::statement::{Condition, Subject};
use crate::ids::VolumeId;

use super::error::ApiResult;
use super::filters::{self, Filter};
use super::paging::{Onward, PageParams, PageRules};
use super::query::Params;
use super::region::Region;
use super::resource_id::{self, Dialect};
use super::xml::Xml;
use super::{Api, Call, faults, tags};

const PAGES: PageRules = PageRules { ids_set: "volumeIdsSet", kind: "volume-status", zero_is_none: false };

const FILTERS: [&str; 14] = [
    "action.code",
    "action.description",
    "action.event-id",
    "attachment-status.instance-id",
    "attachment-status.io-performance",
    "availability-zone",
    "event.description",
    "event.event-id",
    "event.event-type",
    "event.not-after",
    "event.not-before",
    "volume-status.details-name",
    "volume-status.details-status",
    "volume-status.status",
];

/// DescribeVolumeStatus. An empty id is none, as on EC2.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let mut ids = params.list("VolumeId")?;
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.boolean("IncludeManagedResources")?;
    params.finish()?;
    call.stop_if_dry_run()?;
    ids.retain(|id| !id.is_empty());
    let mut page = page.check(PAGES, !ids.is_empty())?;
    let ids: Vec<VolumeId> = resource_id::list(&ids, Dialect::VolumeStatus)?;
    let filters = filters::check(filters, &FILTERS)?;
    let conditions: Vec<Condition> = filters.iter().map(condition).collect();
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    let mut xml = call.answer();
    if !ids.is_empty() {
        let rows = table::by_ids(&mut conn, account, &ids, &conditions).await?;
        if rows.len() < ids.len() {
            tags::refuse(&ids, &table::existing(&mut conn, account, &ids).await?, faults::no_volumes)?;
        }
        xml.set("volumeStatusSet", &rows, |xml, row| item(xml, row, &api.region));
        return Ok(xml.finish());
    }
    xml.open("volumeStatusSet");
    let token = loop {
        let rows = table::page(&mut conn, account, page.after.as_deref(), page.fetch(), &conditions).await?;
        let onward = page.write(&mut xml, rows, |row| row.id.to_string(), |xml, row| item(xml, row, &api.region));
        match onward.await? {
            Onward::Fetch => {}
            Onward::End => break None,
            Onward::Token(token) => break Some(token),
        }
    };
    xml.close("volumeStatusSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

/// Whether an attachment is the volume's.
const OF_VOLUME: &str = "b.volume_id = s.id";

/// What a filter looks at.
fn condition(filter: &Filter) -> Condition {
    let subject = match filter.name.as_str() {
        "attachment-status.instance-id" => Subject::Attachment(OF_VOLUME, "b.instance_id"),
        "attachment-status.io-performance" => Subject::Attachment(OF_VOLUME, "s.io_performance"),
        "availability-zone" => Subject::Expression("s.zone"),
        "event.description" => Subject::Expression("s.event_description"),
        "event.event-id" => Subject::Expression("s.event_id"),
        "event.event-type" => Subject::Expression("s.event_type"),
        "event.not-before" => {
            Subject::Expression(r#"to_char(s.event_not_before AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#)
        }
        "volume-status.details-name" => Subject::Any(&[
            "'io-enabled'",
            "'io-performance'",
            "CASE WHEN s.initialization IS NOT NULL THEN 'initialization-state' END",
        ]),
        "volume-status.details-status" => Subject::Any(&["s.io_enabled", "s.io_performance", "s.initialization"]),
        "volume-status.status" => Subject::Expression("s.status"),
        // The actions, and the end of an event that is still going on.
        _ => Subject::Expression("NULL::text"),
    };
    Condition { subject, values: filter.values() }
}

fn item(xml: &mut Xml, row: &DescribedStatus, region: &Region) {
    xml.plain("volumeId", &row.id)
        .text("availabilityZone", &row.zone)
        .text("availabilityZoneId", region.zone_id(&row.zone))
        .element("volumeStatus", |xml| {
            xml.text("status", &row.status).element("details", |xml| details(xml, row));
        })
        .text("actionsSet", "")
        .element("eventsSet", |xml| event(xml, row));
    if !row.instance_ids.is_empty() {
        xml.set("attachmentStatuses", &row.instance_ids, |xml, instance| {
            xml.text("ioPerformance", &row.io_performance).text("instanceId", instance);
        });
    }
    if let Some(state) = &row.initialization {
        xml.element("initializationStatusDetails", |xml| initialization(xml, row, state));
    }
    xml.element("operator", |xml| {
        xml.plain("managed", false).plain("hiddenByDefault", false);
    });
}

fn details(xml: &mut Xml, row: &DescribedStatus) {
    let all = [
        ("io-enabled", Some(&row.io_enabled)),
        ("io-performance", Some(&row.io_performance)),
        ("initialization-state", row.initialization.as_ref()),
    ];
    xml.items(all.iter().filter_map(|(name, status)| Some((name, (*status)?))), |xml, (name, status)| {
        xml.text("name", name).text("status", status);
    });
}

fn event(xml: &mut Xml, row: &DescribedStatus) {
    let (Some(id), Some(since)) = (&row.event_id, row.event_not_before) else { return };
    // One for each instance that has the volume.
    let instances: Vec<_> = row.instance_ids.iter().map(Some).collect();
    let each = if instances.is_empty() { &[None][..] } else { &instances };
    xml.items(each, |xml, instance| {
        xml.optional("description", row.event_description.as_deref())
            .text("eventId", id)
            .optional("eventType", row.event_type.as_deref())
            .time("notBefore", since)
            .optional("instanceId", instance.map(String::as_str));
    });
}

/// A volume has all of its snapshot's bytes before it is `available`.
fn initialization(xml: &mut Xml, row: &DescribedStatus, state: &str) {
    let (progress, share_left) = if state == "completed" { (100, 0) } else { (0, 1) };
    let kind = if row.initialization_rate.is_some() { "provisioned-rate" } else { "default" };
    let seconds_left = |rate: i32| share_left * i64::from(row.size_gib) * 1024 / i64::from(rate.max(1));
    xml.text("initializationType", kind)
        .plain("progress", progress)
        .optional_plain("estimatedTimeToCompleteInSeconds", row.initialization_rate.map(seconds_left));
}
