//! DescribeAccountAttributes: what scripts ask to learn whether they are in a network of the old or of the new kind.
//!
//! Here are no networks, so instances are in none, as they were in the time of EC2-Classic; nor can this API launch any.

use super::Call;
use super::error::ApiResult;
use super::faults::{clip_each, invalid_value};
use super::query::Params;

const ATTRIBUTES: [(&str, &str); 6] = [
    ("supported-platforms", "EC2"),
    ("vpc-max-security-groups-per-interface", "0"),
    ("max-elastic-ips", "0"),
    ("max-instances", "0"),
    ("vpc-max-elastic-ips", "0"),
    ("default-vpc", "none"),
];

/// DescribeAccountAttributes.
pub fn describe(call: &Call, mut params: Params) -> ApiResult<String> {
    let names = params.list("AttributeName")?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let is_known = |name: &str| ATTRIBUTES.iter().any(|(known, _)| *known == name);
    let unknown: Vec<&str> = names.iter().map(String::as_str).filter(|name| !is_known(name)).collect();
    if !unknown.is_empty() {
        let asked = clip_each(&unknown);
        return Err(invalid_value(format!(
            "Value ({asked}) for parameter attributeName is invalid. Unknown attribute."
        )));
    }
    let asked = ATTRIBUTES.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|asked| asked == name));
    let mut xml = call.answer();
    xml.set("accountAttributeSet", asked, |xml, (name, value)| {
        xml.text("attributeName", name).set("attributeValueSet", [value], |xml, value| {
            xml.text("attributeValue", value);
        });
    });
    Ok(xml.finish())
}
