//! DescribeInstanceStatus: what a hypervisor node says of a machine, in EC2's words.
//!
//! A node knows whether a machine runs, and no more: a running one is `ok`, of any other EC2 says `not-applicable`. There
//! are no scheduled events here.

use crate::db::describe_instances::{self as table, DescribedInstance};
use crate::db::statement::{Condition, Subject, Values};
use crate::state::InstanceState;

use super::error::ApiResult;
use super::filters::{self, Filter};
use super::paging::{Onward, PageParams, PageRules};
use super::query::Params;
use super::region::Region;
use super::resource_id::{self, Dialect};
use super::xml::Xml;
use super::{Api, Call, faults, instance_filters, tags};

const PAGES: PageRules = PageRules { ids_set: "instancesSet", kind: "instance-status", zero_is_none: false };
/// The most ids of one request, as on EC2.
const MOST_IDS: usize = 100;

const FILTERS: [&str; 18] = [
    "application-status.status",
    "attached-ebs-status.status",
    "availability-zone",
    "availability-zone-id",
    "event.code",
    "event.description",
    "event.instance-event-id",
    "event.not-after",
    "event.not-before",
    "event.not-before-deadline",
    "instance-state-code",
    "instance-state-name",
    "instance-status.reachability",
    "instance-status.status",
    "operator.managed",
    "operator.principal",
    "system-status.reachability",
    "system-status.status",
];

/// DescribeInstanceStatus: of the instances that run, or with IncludeAllInstances of the others too.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let ids = params.list("InstanceId")?;
    let all = params.boolean("IncludeAllInstances")?.unwrap_or(false);
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.boolean("IncludeManagedResources")?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let mut page = page.check(PAGES, !ids.is_empty())?;
    let ids = resource_id::list_of(&ids, Dialect::Instances, MOST_IDS)?;
    let filters = filters::check(filters, &FILTERS)?;
    let mut conditions: Vec<Condition> = filters.iter().map(|filter| condition(filter, &api.region)).collect();
    if !all {
        let running = Values { exact: vec!["running".into()], like: Vec::new() };
        conditions.push(Condition { subject: Subject::Expression("i.state"), values: running });
    }
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    let mut xml = call.answer();
    if !ids.is_empty() {
        let rows = table::by_ids(&mut conn, account, &ids, &conditions).await?;
        if rows.len() < ids.len() {
            tags::refuse(&ids, &table::existing(&mut conn, account, &ids).await?, faults::no_instances)?;
        }
        xml.set("instanceStatusSet", &rows, |xml, row| item(xml, row, &api.region));
        return Ok(xml.finish());
    }
    xml.open("instanceStatusSet");
    let token = loop {
        let rows = table::page(&mut conn, account, page.after.as_deref(), page.fetch(), &conditions).await?;
        let onward = page.write(&mut xml, rows, |row| row.id.to_string(), |xml, row| item(xml, row, &api.region));
        match onward.await? {
            Onward::Fetch => {}
            Onward::End => break None,
            Onward::Token(token) => break Some(token),
        }
    };
    xml.close("instanceStatusSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

/// What a filter looks at.
fn condition(filter: &Filter, region: &Region) -> Condition {
    let expression = match filter.name.as_str() {
        "instance-status.status" | "system-status.status" => {
            "CASE i.state WHEN 'running' THEN 'ok' ELSE 'not-applicable' END"
        }
        "instance-status.reachability" | "system-status.reachability" => {
            "CASE i.state WHEN 'running' THEN 'passed' END"
        }
        name if name.starts_with("event.") || name.ends_with("-status.status") => "NULL::text",
        _ => return instance_filters::condition(filter, region),
    };
    Condition { subject: Subject::Expression(expression), values: filter.values() }
}

fn item(xml: &mut Xml, row: &DescribedInstance, region: &Region) {
    xml.plain("instanceId", &row.id)
        .text("availabilityZone", &row.zone)
        .text("availabilityZoneId", region.zone_id(&row.zone))
        .text("eventsSet", "")
        .element("instanceState", |xml| {
            xml.plain("code", row.state.code()).plain("name", row.state);
        })
        .element("systemStatus", |xml| status(xml, row.state))
        .element("instanceStatus", |xml| status(xml, row.state))
        .element("operator", |xml| {
            xml.plain("managed", false).plain("hiddenByDefault", false);
        });
}

fn status(xml: &mut Xml, state: InstanceState) {
    if state != InstanceState::Running {
        xml.text("status", "not-applicable");
        return;
    }
    xml.text("status", "ok").set("details", [()], |xml, ()| {
        xml.text("name", "reachability").text("status", "passed");
    });
}
