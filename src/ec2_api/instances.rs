//! DescribeInstances: the machines that VMM delegates report, as clients expect instances to look.

use crate::db::describe_instances::{self as table, DescribedInstance};
use crate::db::instances::Shape;
use crate::db::statement::{Condition, Subject, Values};

use super::error::ApiResult;
use super::paging::{Onward, PageParams, PageRules};
use super::query::Params;
use super::region::Region;
use super::resource_id::{self, Dialect};
use super::xml::Xml;
use super::{Api, Call, faults, filters, instance_filters, instance_types, tags};

const PAGES: PageRules = PageRules { ids_set: "instancesSet", kind: "instance", zero_is_none: false };

/// DescribeInstances. Terminated instances are shown only to those who ask for their id or their state.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let ids = params.list("InstanceId")?;
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.boolean("IncludeManagedResources")?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let mut page = page.check(PAGES, !ids.is_empty())?;
    let ids = resource_id::list(&ids, Dialect::Instances)?;
    let filters = filters::check(filters, &instance_filters::known())?;
    let mut conditions: Vec<Condition> =
        filters.iter().map(|filter| instance_filters::condition(filter, &api.region)).collect();
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    let mut xml = call.answer();
    if !ids.is_empty() {
        let rows = table::by_ids(&mut conn, account, &ids, &conditions).await?;
        if rows.len() < ids.len() {
            tags::refuse(&ids, &table::existing(&mut conn, account, &ids).await?, faults::no_instances)?;
        }
        xml.set("reservationSet", &rows, |xml, row| reservation(xml, row, account, &api.region));
        return Ok(xml.finish());
    }
    if !filters.iter().any(|filter| filter.name.starts_with("instance-state-")) {
        let living = Values { exact: vec!["running".into(), "stopped".into()], like: Vec::new() };
        conditions.push(Condition { subject: Subject::Expression("i.state"), values: living });
    }
    xml.open("reservationSet");
    let token = loop {
        let rows = table::page(&mut conn, account, page.after.as_deref(), page.fetch(), &conditions).await?;
        let onward = page.write(
            &mut xml,
            rows,
            |row| row.id.to_string(),
            |xml, row| reservation(xml, row, account, &api.region),
        );
        match onward.await? {
            Onward::Fetch => {}
            Onward::End => break None,
            Onward::Token(token) => break Some(token),
        }
    };
    xml.close("reservationSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

/// Each instance is a reservation of its own.
fn reservation(xml: &mut Xml, row: &DescribedInstance, account: &str, region: &Region) {
    let digits = row.id.as_str().trim_start_matches("i-");
    xml.plain("reservationId", format_args!("r-{digits}")).plain("ownerId", account).text("groupSet", "");
    xml.element("instancesSet", |xml| {
        xml.element("item", |xml| instance(xml, row, region));
    });
}

fn instance(xml: &mut Xml, row: &DescribedInstance, region: &Region) {
    xml.plain("instanceId", &row.id)
        .text("imageId", "")
        .element("instanceState", |xml| {
            xml.plain("code", row.state.code()).plain("name", row.state);
        })
        .text("privateDnsName", &row.machine)
        .text("dnsName", "")
        .text("reason", "")
        .plain("amiLaunchIndex", 0)
        .text("productCodes", "")
        .text("instanceType", &instance_types::name(Shape { vcpus: row.vcpus, memory_mib: row.memory_mib }))
        .time("launchTime", row.launched_at)
        .element("placement", |xml| {
            xml.text("availabilityZone", &row.zone)
                .text("availabilityZoneId", region.zone_id(&row.zone))
                .text("groupName", "")
                .text("tenancy", "default");
        })
        .element("monitoring", |xml| {
            xml.text("state", "disabled");
        })
        .text("groupSet", "")
        .text("architecture", "x86_64")
        .text("rootDeviceType", "instance-store")
        .text("rootDeviceName", "/dev/sda1");
    xml.set("blockDeviceMapping", 0..row.volume_ids.as_ref().map_or(0, Vec::len), |xml, at| mapping(xml, row, at));
    xml.text("virtualizationType", "hvm").text("clientToken", "");
    tags::set(xml, &row.tag_keys, &row.tag_values);
    xml.text("hypervisor", "xen").text("networkInterfaceSet", "").plain("ebsOptimized", false);
    xml.element("cpuOptions", |xml| {
        xml.plain("coreCount", row.vcpus).plain("threadsPerCore", 1);
    });
    xml.element("operator", |xml| {
        xml.plain("managed", false).plain("hiddenByDefault", false);
    });
}

/// The state of an attachment as instances show it: EC2 has no `busy` there, only at the volume.
pub fn attachment_status(state: &str) -> &str {
    if state == "busy" { "detaching" } else { state }
}

/// The attachment at this place of the lists.
fn mapping(xml: &mut Xml, row: &DescribedInstance, at: usize) {
    fn field<T>(list: Option<&Vec<T>>, at: usize) -> Option<&T> {
        list.and_then(|list| list.get(at))
    }
    xml.optional("deviceName", field(row.devices.as_ref(), at).map(String::as_str)).element("ebs", |xml| {
        xml.optional("volumeId", field(row.volume_ids.as_ref(), at).map(String::as_str))
            .optional("status", field(row.attachment_states.as_ref(), at).map(|state| attachment_status(state)));
        if let Some(attached_at) = field(row.attached_at.as_ref(), at) {
            xml.second("attachTime", *attached_at);
        }
        xml.optional_plain("deleteOnTermination", field(row.delete_on_termination.as_ref(), at));
    });
}
