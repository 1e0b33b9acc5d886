//! DescribeRegions: the one region of the configuration, in EC2's form. What a region is stands in `region.rs`.

use super::error::ApiResult;
use super::filters;
use super::query::Params;
use super::zones::{OPT_IN, all_match, refuse_unknown};
use super::{Api, Call};

const FILTERS: [&str; 3] = ["endpoint", "opt-in-status", "region-name"];

/// DescribeRegions: the one there is. Its endpoint is the address under which the caller reached us.
pub fn describe_regions(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let names = params.list("RegionName")?;
    params.boolean("AllRegions")?;
    let filters = params.filters()?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let region = &api.region.name;
    refuse_unknown("Invalid region name : ", &names, |asked| asked == region)?;
    let filters = filters::check(filters, &FILTERS)?;
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
