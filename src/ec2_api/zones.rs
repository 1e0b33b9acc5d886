//! DescribeAvailabilityZones: the zones of the configuration, in EC2's form.
//!
//! They are no table, so the filters are evaluated here. The EBS CSI driver asks for the zones with DryRun as its sign of
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
/// What a region and a zone say of themselves: nobody must ask for one to be let in.
pub(super) const OPT_IN: &str = "opt-in-not-required";

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

/// Refuses the names that are not known, each by its name.
pub(super) fn refuse_unknown(text: &str, asked: &[String], is_known: impl Fn(&str) -> bool) -> ApiResult<()> {
    let unknown: Vec<&str> = asked.iter().map(String::as_str).filter(|name| !is_known(name)).collect();
    if unknown.is_empty() { Ok(()) } else { Err(invalid_value(format!("{text}[{}]", clip_each(&unknown)))) }
}

/// Whether an attribute passes a filter. One that nothing here has matches nothing.
pub(super) fn all_match(filter: &Filter, text: &str) -> bool {
    !text.is_empty() && filter.matches(text)
}
