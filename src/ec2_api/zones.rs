//! DescribeAvailabilityZones and DescribeRegions: what the configuration says, in EC2's form.
//!
//! Neither is a table, so the filters are evaluated here. The EBS CSI driver asks for the zones with DryRun as its sign of
//! life.

use super::error::ApiResult;
use super::faults::{clip_each, invalid_value};
use super::filters::{self, Filter};
use super::query::Params;
use super::region::Zone;
use super::{Api, Call};

const ZONE_FILTERS: [&str; 11] = [
    "group-long-name",
    "group-name",
    "message",
    "opt-in-status",
    "parent-zone-id",
    "parent-zone-name",
    "region-name",
    "state",
    "zone-id",
    "zone-name",
    "zone-type",
];
const REGION_FILTERS: [&str; 3] = ["endpoint", "opt-in-status", "region-name"];
const OPT_IN: &str = "opt-in-not-required";

/// DescribeAvailabilityZones.
pub fn describe_availability_zones(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let names = params.list("ZoneName")?;
    let ids = params.list("ZoneId")?;
    params.boolean("AllAvailabilityZones")?;
    let filters = params.filters()?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let region = &api.region;
    refuse_unknown("Invalid availability zone: ", &names, |asked| region.zones.iter().any(|zone| zone.name == asked))?;
    refuse_unknown("Invalid availability zone-id: ", &ids, |asked| region.zones.iter().any(|zone| zone.id == asked))?;
    let filters = filters::check(filters, &ZONE_FILTERS)?;
    let group = format!("{}-zg-1", region.name);
    let selected = |zone: &&Zone| {
        (names.is_empty() || names.contains(&zone.name))
            && (ids.is_empty() || ids.contains(&zone.id))
            && filters.iter().all(|filter| {
                all_match(
                    filter,
                    match filter.name.as_str() {
                        "group-name" => &group,
                        "group-long-name" | "region-name" => &region.name,
                        "opt-in-status" => OPT_IN,
                        "state" => "available",
                        "zone-id" => &zone.id,
                        "zone-name" => &zone.name,
                        "zone-type" => "availability-zone",
                        _ => "",
                    },
                )
            })
    };
    let mut xml = call.answer();
    xml.set("availabilityZoneInfo", region.zones.iter().filter(selected), |xml, zone| {
        xml.text("zoneName", &zone.name)
            .text("zoneId", &zone.id)
            .text("zoneState", "available")
            .text("regionName", &region.name)
            .text("groupName", &group)
            .text("optInStatus", OPT_IN)
            .text("networkBorderGroup", &region.name)
            .text("zoneType", "availability-zone")
            .text("groupLongName", &region.name)
            .text("messageSet", "");
    });
    Ok(xml.finish())
}

/// DescribeRegions: the one there is. Its endpoint is the address under which the caller reached us.
pub fn describe_regions(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let names = params.list("RegionName")?;
    params.boolean("AllRegions")?;
    let filters = params.filters()?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let region = &api.region.name;
    refuse_unknown("Invalid region name : ", &names, |asked| asked == region)?;
    let filters = filters::check(filters, &REGION_FILTERS)?;
    let selected = filters.iter().all(|filter| {
        all_match(
            filter,
            match filter.name.as_str() {
                "endpoint" => &call.host,
                "region-name" => region,
                _ => OPT_IN,
            },
        )
    });
    let mut xml = call.answer();
    xml.set("regionInfo", selected.then_some(region), |xml, region| {
        xml.text("regionName", region).text("regionEndpoint", &call.host).text("optInStatus", OPT_IN);
    });
    Ok(xml.finish())
}

/// Refuses the names that are not known, each by its name.
fn refuse_unknown(text: &str, asked: &[String], is_known: impl Fn(&str) -> bool) -> ApiResult<()> {
    let unknown: Vec<&str> = asked.iter().map(String::as_str).filter(|name| !is_known(name)).collect();
    if unknown.is_empty() { Ok(()) } else { Err(invalid_value(format!("{text}[{}]", clip_each(&unknown)))) }
}

/// An attribute that zones here do not have matches nothing.
fn all_match(filter: &Filter, text: &str) -> bool {
    !text.is_empty() && filter.matches(text)
}
