//! What a tag may be: the rules that creating actions and CreateTags share.

use std::collections::BTreeMap;

use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_value};
use super::query::{TagParam, TagSpecification};

/// The most tags a resource may have.
pub const MAX_TAGS: usize = 50;
/// The most characters of a key.
const MAX_KEY: usize = 128;
/// The most characters of a value.
const MAX_VALUE: usize = 256;

/// Tags that have passed, by key.
pub type Tags = BTreeMap<String, String>;

/// Reads the tag specifications of an action that makes resources of one type.
pub fn from_specifications(specifications: Vec<TagSpecification>, resource_type: &str) -> ApiResult<Tags> {
    let mut tags = Tags::new();
    for specification in specifications {
        match specification.resource_type.as_deref() {
            None | Some("") => return Err(invalid_value("Tag specification resource type must have a value")),
            Some(asked) if asked != resource_type => {
                let asked = clip(asked);
                return Err(invalid_value(format!(
                    "'{asked}' is not a valid taggable resource type for this operation."
                )));
            }
            Some(_) if specification.tags.is_empty() => {
                return Err(invalid_value("Tag specification must have at least one tag"));
            }
            Some(_) => add(&mut tags, specification.tags)?,
        }
    }
    Ok(tags)
}

/// Reads the tags of CreateTags. A value that is absent is empty.
pub fn from_params(params: Vec<TagParam>) -> ApiResult<Tags> {
    let mut tags = Tags::new();
    add(&mut tags, params)?;
    Ok(tags)
}

/// The refusal of more tags than a resource may have.
pub fn too_many() -> ApiError {
    ApiError::new("TagLimitExceeded", "The maximum number of Tags for a resource has been reached.")
}

/// Whether Amazon keeps the key for itself.
pub fn is_reserved(key: &str) -> bool {
    key.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("aws:"))
}

fn add(tags: &mut Tags, params: Vec<TagParam>) -> ApiResult<()> {
    for TagParam { key, value } in params {
        let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
        if key.is_empty() {
            return Err(invalid_value("Tag key must have a value"));
        }
        if is_reserved(&key) {
            return Err(invalid_value("Tag keys starting with 'aws:' are reserved for internal use"));
        }
        if key.chars().count() > MAX_KEY {
            return Err(invalid_value(format!("Tag key exceeds the maximum length of {MAX_KEY} characters")));
        }
        if value.chars().count() > MAX_VALUE {
            return Err(invalid_value(format!("Tag value exceeds the maximum length of {MAX_VALUE} characters")));
        }
        if tags.contains_key(&key) {
            return Err(invalid_value(format!("Duplicate tag key '{key}' specified.")));
        }
        tags.insert(key, value);
    }
    if tags.len() > MAX_TAGS { Err(too_many()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(key: &str, value: &str) -> TagParam {
        TagParam { key: Some(key.into()), value: Some(value.into()) }
    }

    #[test]
    fn tags_outside_the_rules_are_refused_each_with_its_own_text() {
        let long = "ä".repeat(129);
        for (tags, text) in [
            (vec![tag("", "v")], "Tag key must have a value"),
            (vec![TagParam { key: None, value: None }], "Tag key must have a value"),
            (vec![tag("AWS:x", "")], "Tag keys starting with 'aws:' are reserved for internal use"),
            (vec![tag("a", "1"), tag("a", "2")], "Duplicate tag key 'a' specified."),
            (vec![tag(&long, "")], "Tag key exceeds the maximum length of 128 characters"),
            (vec![tag("k", &"v".repeat(257))], "Tag value exceeds the maximum length of 256 characters"),
        ] {
            assert_eq!(from_params(tags).unwrap_err().message, text);
        }
        let many = |n| (0..n).map(|i| tag(&format!("k{i}"), "")).collect();
        assert!(from_params(many(50)).is_ok());
        assert_eq!(from_params(many(51)).unwrap_err().code, "TagLimitExceeded");
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        assert!(from_params(vec![tag(&"ä".repeat(128), &"ö".repeat(256))]).is_ok());
    }

    #[test]
    fn a_specification_must_be_for_the_resource_that_is_made() {
        let of =
            |resource_type: Option<&str>, tags| TagSpecification { resource_type: resource_type.map(Into::into), tags };
        let text = |spec| from_specifications(vec![spec], "volume").unwrap_err().message;
        assert_eq!(
            text(of(Some("snapshot"), vec![tag("a", "b")])),
            "'snapshot' is not a valid taggable resource type for this operation."
        );
        assert_eq!(text(of(None, vec![tag("a", "b")])), "Tag specification resource type must have a value");
        assert_eq!(text(of(Some("volume"), vec![])), "Tag specification must have at least one tag");
        let twice = vec![of(Some("volume"), vec![tag("a", "1")]), of(Some("volume"), vec![tag("a", "2")])];
        assert_eq!(from_specifications(twice, "volume").unwrap_err().message, "Duplicate tag key 'a' specified.");
    }
}
