//! The region and its zones, as the configuration has them, with the ids that EC2 gives zones besides their names.

use crate::config::Config;

use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_combination, missing};

/// The region this gateway serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Such as `us-east-1`.
    pub name: String,
    /// Its zones, at least one.
    pub zones: Vec<Zone>,
}

/// An availability zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Such as `us-east-1a`.
    pub name: String,
    /// Such as `use1-az1`. On AWS a zone's number differs from account to account; here it is that of its letter.
    pub id: String,
}

impl Region {
    /// Takes the names from the configuration.
    pub fn new(config: &Config) -> Self {
        let short = abbreviate(&config.region);
        let zone = |(at, name): (usize, &String)| {
            let letter = name.strip_prefix(config.region.as_str()).and_then(|rest| match rest.as_bytes() {
                [letter @ b'a'..=b'z'] => Some(usize::from(letter - b'a')),
                _ => None,
            });
            Zone { name: name.clone(), id: format!("{short}-az{}", letter.unwrap_or(at) + 1) }
        };
        Self { zones: config.zones.iter().enumerate().map(zone).collect(), name: config.region.clone() }
    }

    /// The id of a zone; empty for one that the configuration no longer has.
    pub fn zone_id(&self, name: &str) -> &str {
        self.zones.iter().find(|zone| zone.name == name).map_or("", |zone| &zone.id)
    }

    /// The zone that a request names, by its name or its id.
    pub fn choose(&self, name: Option<&str>, id: Option<&str>) -> ApiResult<&Zone> {
        let (asked, found) = match (name, id) {
            (Some(_), Some(_)) => {
                return Err(invalid_combination(
                    "AvailabilityZone and AvailabilityZoneId can't be used together. Specify only one of these parameters.",
                ));
            }
            (None, None) => return Err(missing("zone")),
            (Some(name), None) => (name, self.zones.iter().find(|zone| zone.name == name)),
            (None, Some(id)) => (id, self.zones.iter().find(|zone| zone.id == id)),
        };
        if asked.is_empty() {
            return Err(missing("zone"));
        }
        found
            .ok_or_else(|| ApiError::new("InvalidZone.NotFound", format!("The zone '{}' does not exist.", clip(asked))))
    }
}

/// Shortens a region's name as zone ids do: `us-east-1` is `use1`, `ap-southeast-2` is `apse2`. Names of another form stay.
fn abbreviate(region: &str) -> String {
    let parts: Vec<&str> = region.split('-').collect();
    let [.., direction, number] = parts.as_slice() else { return region.to_owned() };
    let short = match *direction {
        "north" => "n",
        "south" => "s",
        "east" => "e",
        "west" => "w",
        "central" => "c",
        "northeast" => "ne",
        "northwest" => "nw",
        "southeast" => "se",
        "southwest" => "sw",
        _ => return region.to_owned(),
    };
    format!("{}{short}{number}", parts[..parts.len() - 2].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_ids_have_the_form_of_ec2s() {
        for (region, short) in
            [("us-east-1", "use1"), ("ap-southeast-2", "apse2"), ("us-gov-west-1", "usgovw1"), ("home", "home")]
        {
            assert_eq!(abbreviate(region), short);
        }
    }

    #[test]
    fn a_zone_is_chosen_by_its_name_or_its_id_but_not_by_both() {
        let zone = |name: &str, id: &str| Zone { name: name.into(), id: id.into() };
        let region = Region { name: "us-east-1".into(), zones: vec![zone("us-east-1a", "use1-az1")] };
        assert_eq!(region.choose(Some("us-east-1a"), None).unwrap().id, "use1-az1");
        assert_eq!(region.choose(None, Some("use1-az1")).unwrap().name, "us-east-1a");
        let code = |name, id| region.choose(name, id).unwrap_err().code;
        assert_eq!(code(Some("us-east-1a"), Some("use1-az1")), "InvalidParameterCombination");
        assert_eq!(code(None, None), "MissingParameter");
        assert_eq!(code(Some(""), None), "MissingParameter");
        assert_eq!(code(Some("not-a-zone"), None), "InvalidZone.NotFound");
    }
}
