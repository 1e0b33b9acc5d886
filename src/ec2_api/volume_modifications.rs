//! DescribeVolumesModifications: the latest modification of each volume that was ever modified.

use crate::db::describe_modifications as table;
use crate::db::describe_volume_status;
use crate::db::modifications::Modification;
use crate::db::statement::{Condition, Subject};
use crate::ids::VolumeId;
use crate::state::ModificationState;

use super::error::ApiResult;
use super::filters::{self, Filter};
use super::paging::{Onward, PageParams, PageRules, Words};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::xml::Xml;
use super::{Api, Call, faults, tags};

const PAGES: PageRules = PageRules { ids_set: "volumeModificationSet", kind: "modification", zero_is_none: false };

/// EC2 documents the two names in camel case and refuses them; what works there is the other spelling.
const FILTERS: [&str; 13] = [
    "modification-state",
    "original-iops",
    "original-multi-attach-enabled",
    "original-size",
    "original-volume-type",
    "originalMultiAttachEnabled",
    "start-time",
    "target-iops",
    "target-multi-attach-enabled",
    "target-size",
    "target-volume-type",
    "targetMultiAttachEnabled",
    "volume-id",
];

/// DescribeVolumesModifications. A volume that is asked for by its id and was never modified is a fault, also before a filter is
/// looked at.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let ids = params.list("VolumeId")?;
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.boolean("IncludeManagedResources")?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let mut page = page.check_in(Words::Modifications, PAGES, !ids.is_empty())?;
    let ids: Vec<VolumeId> = resource_id::list(&ids, Dialect::Volume)?;
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    let mut xml = call.answer();
    if !ids.is_empty() {
        let mut rows = table::by_ids(&mut conn, account, &ids, &[]).await?;
        if rows.len() < ids.len() {
            tags::refuse(&ids, &describe_volume_status::existing(&mut conn, account, &ids).await?, faults::no_volumes)?;
            let modified: Vec<VolumeId> = rows.iter().map(|row| row.volume_id.clone()).collect();
            tags::refuse(&ids, &modified, faults::no_modifications)?;
        }
        let conditions = conditions(filters)?;
        if !conditions.is_empty() {
            rows = table::by_ids(&mut conn, account, &ids, &conditions).await?;
        }
        xml.set("volumeModificationSet", &rows, item);
        return Ok(xml.finish());
    }
    let conditions = conditions(filters)?;
    xml.open("volumeModificationSet");
    let token = loop {
        let rows = table::page(&mut conn, account, page.after.as_deref(), page.fetch(), &conditions).await?;
        match page.write(&mut xml, rows, |row| row.volume_id.to_string(), item).await? {
            Onward::Fetch => {}
            Onward::End => break None,
            Onward::Token(token) => break Some(token),
        }
    };
    xml.close("volumeModificationSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

fn conditions(filters: Vec<super::query::FilterParam>) -> ApiResult<Vec<Condition>> {
    Ok(filters::check(filters, &FILTERS)?.iter().map(condition).collect())
}

/// What a filter looks at.
fn condition(filter: &Filter) -> Condition {
    let expression = match filter.name.as_str() {
        "modification-state" => "m.state",
        "original-iops" => "m.original_iops::text",
        "original-multi-attach-enabled" | "originalMultiAttachEnabled" => "m.original_multi_attach::text",
        "original-size" => "m.original_size_gib::text",
        "original-volume-type" => "m.original_type",
        "start-time" => r#"to_char(m.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS".000Z"')"#,
        "target-iops" => "m.target_iops::text",
        "target-multi-attach-enabled" | "targetMultiAttachEnabled" => "m.target_multi_attach::text",
        "target-size" => "m.target_size_gib::text",
        "target-volume-type" => "m.target_type",
        _ => "m.volume_id",
    };
    Condition { subject: Subject::Expression(expression), values: filter.values() }
}

fn item(xml: &mut Xml, row: &Modification) {
    fields(xml, row);
    xml.element("operator", |xml| {
        xml.plain("managed", false).plain("hiddenByDefault", false);
    });
}

/// A modification, as ModifyVolume shows it too.
pub fn fields(xml: &mut Xml, row: &Modification) {
    xml.plain("volumeId", &row.volume_id)
        .plain("modificationState", row.state)
        .optional("statusMessage", message(row))
        .plain("targetSize", row.target_size_gib)
        .optional_plain("targetIops", row.target_iops)
        .plain("targetVolumeType", &row.target_type)
        .optional_plain("targetThroughput", row.target_throughput)
        .plain("targetMultiAttachEnabled", row.target_multi_attach)
        .plain("originalSize", row.original_size_gib)
        .optional_plain("originalIops", row.original_iops)
        .plain("originalVolumeType", &row.original_type)
        .optional_plain("originalThroughput", row.original_throughput)
        .plain("originalMultiAttachEnabled", row.original_multi_attach)
        .plain("progress", row.progress)
        .second("startTime", row.started_at);
    if let Some(at) = row.ended_at {
        xml.second("endTime", at);
    }
}

/// What the caller is told besides the state. What a node said of its failure is the operator's to know.
fn message(row: &Modification) -> Option<&'static str> {
    match (row.state, row.reason.as_deref()) {
        (ModificationState::Failed, Some(reason)) if reason.starts_with("InsufficientVolumeCapacity") => {
            Some("There is not enough capacity where the volume is for its new size.")
        }
        (ModificationState::Failed, _) => Some("The volume could not be modified. Try again later."),
        (ModificationState::Completed, _) if row.at_next_attach => {
            Some("An instance that has the volume attached sees its new size when it is attached again.")
        }
        _ => None,
    }
}
