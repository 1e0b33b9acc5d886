//! DescribeAddresses: there are none, since there are no networks here. Tools that list machines ask for their addresses in the
//! same breath, and would not list anything if this were refused.

use super::Call;
use super::error::{ApiError, ApiResult};
use super::faults::clip_each;
use super::filters;
use super::query::Params;

const FILTERS: [&str; 10] = [
    "allocation-id",
    "association-id",
    "instance-id",
    "network-border-group",
    "network-interface-id",
    "network-interface-owner-id",
    "private-ip-address",
    "public-ip",
    "tag:",
    "tag-key",
];

/// DescribeAddresses. One that is asked for by name is not there, as on EC2.
pub fn describe(call: &Call, mut params: Params) -> ApiResult<String> {
    let (addresses, allocations) = (params.list("PublicIp")?, params.list("AllocationId")?);
    let filters = params.filters()?;
    params.finish()?;
    call.stop_if_dry_run()?;
    filters::check(filters, &FILTERS)?;
    let named = |asked: &[String]| clip_each(&asked.iter().map(String::as_str).collect::<Vec<_>>());
    if !addresses.is_empty() {
        return Err(ApiError::new("InvalidAddress.NotFound", format!("Address '{}' not found.", named(&addresses))));
    }
    if !allocations.is_empty() {
        let text = format!("The allocation ID '{}' does not exist", named(&allocations));
        return Err(ApiError::new("InvalidAllocationID.NotFound", text));
    }
    let mut xml = call.answer();
    xml.text("addressesSet", "");
    Ok(xml.finish())
}
