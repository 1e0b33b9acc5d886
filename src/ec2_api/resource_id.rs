//! Reads resource ids from the wire and words the refusals.
//!
//! EC2 grew over many years, and each family of actions refuses a bad id in a dialect of its own; clients match code and
//! text. Any 8 or 17 hexadecimal digits pass here: AWS calls some of them malformed by a check that nobody has published,
//! and for us they are ids that do not exist.

use crate::ids::{Id, IdError, Kind};

use super::error::{ApiError, ApiResult};
use super::faults::{clip, clip_each, invalid_value};

/// The most ids of one describe.
const MOST_IDS: usize = 1_000;

/// How an action words its refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// DeleteVolume.
    DeleteVolume,
    /// DescribeVolumes, over all its ids.
    Volumes,
    /// AttachVolume, DetachVolume, CreateSnapshot, ModifyVolume, DescribeVolumesModifications, DescribeVolumeAttribute,
    /// EnableVolumeIO.
    Volume,
    /// ModifyVolumeAttribute.
    VolumeAttribute,
    /// DescribeVolumeStatus.
    VolumeStatus,
    /// CreateVolume, DescribeSnapshots and DeleteSnapshot.
    Snapshot,
    /// ResetSnapshotAttribute.
    ResetSnapshot,
    /// AttachVolume, DetachVolume.
    Instance,
    /// DescribeInstances.
    Instances,
}

/// Reads an id that must be there.
pub fn required<K: Kind>(text: Option<&str>, dialect: Dialect) -> ApiResult<Id<K>> {
    text.map_or_else(|| Err(absent(dialect)), |text| read(text, dialect))
}

/// Reads a list of ids; none means all. Twins are asked for once.
///
/// An answer to a list of ids has no pages, so the list has an end. EC2 publishes none for these actions, but no known client
/// asks for more at once; the words are those of its DescribeInstanceStatus, which takes 100.
pub fn list<K: Kind>(texts: &[String], dialect: Dialect) -> ApiResult<Vec<Id<K>>> {
    list_of(texts, dialect, MOST_IDS)
}

/// As [`list`], of an action that takes fewer.
pub fn list_of<K: Kind>(texts: &[String], dialect: Dialect, most: usize) -> ApiResult<Vec<Id<K>>> {
    if texts.len() > most {
        let text = format!(
            "{} exceeds the maximum number of IDs that can be specified ({most}). Please specify fewer than {most} IDs.",
            texts.len()
        );
        return Err(ApiError::new("InvalidRequest", text));
    }
    let mut ids = Vec::with_capacity(texts.len());
    let mut bad: Vec<(&str, IdError)> = Vec::new();
    for text in texts {
        match Id::parse(text) {
            Ok(id) => ids.push(id),
            Err(why) => bad.push((text, why)),
        }
    }
    if let Some(&(first, why)) = bad.first() {
        // Every one, in the words for the first, since clients take out what is named and ask for the rest.
        let named: Vec<&str> = bad.iter().map(|(text, _)| *text).filter(|text| !text.is_empty()).collect();
        let named = if first.is_empty() { String::new() } else { clip_each(&named) };
        return Err(refusal(&named, why, dialect));
    }
    ids.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    ids.dedup_by(|a, b| a.as_str() == b.as_str());
    Ok(ids)
}

/// Reads one id.
pub fn read<K: Kind>(text: &str, dialect: Dialect) -> ApiResult<Id<K>> {
    Id::parse(text).map_err(|why| refusal(clip(text), why, dialect))
}

fn absent(dialect: Dialect) -> ApiError {
    let message = match dialect {
        Dialect::DeleteVolume => {
            return ApiError::new(
                "MissingParameter",
                "The request must include the VolumeId parameter. Add the required parameter and retry the request.",
            );
        }
        Dialect::VolumeAttribute => "volumeId".into(),
        Dialect::Volumes | Dialect::Volume | Dialect::VolumeStatus => null("null", "volumeId"),
        Dialect::Snapshot | Dialect::ResetSnapshot => null("null", "snapshotId"),
        Dialect::Instance | Dialect::Instances => null("null", "instanceId"),
    };
    ApiError::new("MissingParameter", message)
}

/// What is said of one that is `shown`, or of several.
fn refusal(shown: &str, why: IdError, dialect: Dialect) -> ApiError {
    let missing = |message: String| ApiError::new("MissingParameter", message);
    match (dialect, why) {
        (Dialect::DeleteVolume, _) => invalid_value(format!("The volume ID '{shown}' is malformed")),
        (Dialect::VolumeAttribute, _) => {
            ApiError::new("InvalidVolumeID.Malformed", format!("The volume ID '{shown}' is malformed"))
        }
        (Dialect::VolumeStatus, IdError::NotAnId) => {
            ApiError::new("InvalidVolumeID.Malformed", format!("Invalid id: \"{shown}\" (expecting \"vol-...\")"))
        }
        (Dialect::VolumeStatus, IdError::WrongLength) => {
            ApiError::new("InvalidVolumeID.Malformed", format!("Invalid id: \"{shown}\""))
        }
        (Dialect::ResetSnapshot, _) => {
            ApiError::new("InvalidSnapshotID.Malformed", format!("The snapshot ID '{shown}' is malformed"))
        }
        (Dialect::Volumes, _) if shown.is_empty() => missing("The request must contain the parameter volumes".into()),
        (Dialect::Volumes, _) => invalid_value(expected(shown, "volumes", "vol")),
        (Dialect::Volume, _) if shown.is_empty() => missing(null("", "volumeId")),
        (Dialect::Snapshot, _) if shown.is_empty() => missing(null("", "snapshotId")),
        (Dialect::Instance, _) if shown.is_empty() => missing(null("", "instanceId")),
        (Dialect::Volume, IdError::NotAnId) => invalid_value(expected(shown, "volumeId", "vol")),
        (Dialect::Snapshot, IdError::NotAnId) => invalid_value(expected(shown, "snapshotId", "snap")),
        (Dialect::Volume, IdError::WrongLength) => malformed("InvalidVolumeID.Malformed", shown, "VOLUME"),
        (Dialect::Snapshot, IdError::WrongLength) => malformed("InvalidSnapshotID.Malformed", shown, "SNAPSHOT"),
        (Dialect::Instance, IdError::NotAnId) => {
            ApiError::new("InvalidInstanceID.Malformed", format!("Invalid id: \"{shown}\" (expecting \"i-...\")"))
        }
        (Dialect::Instance | Dialect::Instances, _) => {
            ApiError::new("InvalidInstanceID.Malformed", format!("Invalid id: \"{shown}\""))
        }
    }
}

fn null(value: &str, name: &str) -> String {
    format!("Value ({value}) for parameter {name} is invalid. Parameter may not be null or empty.")
}

fn expected(value: &str, name: &str, prefix: &str) -> String {
    format!("Value ({value}) for parameter {name} is invalid. Expected: '{prefix}-...'.")
}

/// The blanks are AWS's, the one at the end too.
fn malformed(code: &'static str, value: &str, kind: &str) -> ApiError {
    ApiError::new(code, format!("Value ( {value} ) for parameter {kind} is invalid. "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Instance, Snapshot, Volume};

    fn fault<K: Kind + std::fmt::Debug>(text: &str, dialect: Dialect) -> (&'static str, String) {
        let error = read::<K>(text, dialect).unwrap_err();
        (error.code, error.message)
    }

    #[test]
    fn all_that_are_bad_are_named_in_the_words_for_the_first() {
        let refused = |ids: &[&str], dialect| {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            list::<Volume>(&ids, dialect).unwrap_err().message
        };
        assert_eq!(
            refused(&["bad", "vol-0123456789abcdef0", "worse", "vol-123"], Dialect::Volumes),
            "Value (bad, worse, vol-123) for parameter volumes is invalid. Expected: 'vol-...'."
        );
        assert_eq!(refused(&["vol-1", "vol-2"], Dialect::VolumeStatus), "Invalid id: \"vol-1, vol-2\"");
        assert_eq!(refused(&["", "bad"], Dialect::Volumes), "The request must contain the parameter volumes");
    }

    #[test]
    fn each_action_refuses_a_bad_id_in_its_own_words() {
        let long = "vol-000000000000000000";
        for (found, code, message) in [
            (
                fault::<Volume>("bad", Dialect::DeleteVolume),
                "InvalidParameterValue",
                "The volume ID 'bad' is malformed",
            ),
            (fault::<Volume>("", Dialect::DeleteVolume), "InvalidParameterValue", "The volume ID '' is malformed"),
            (
                fault::<Volume>("bad", Dialect::Volumes),
                "InvalidParameterValue",
                "Value (bad) for parameter volumes is invalid. Expected: 'vol-...'.",
            ),
            (
                fault::<Volume>("", Dialect::Volumes),
                "MissingParameter",
                "The request must contain the parameter volumes",
            ),
            (
                fault::<Volume>(long, Dialect::Volume),
                "InvalidVolumeID.Malformed",
                "Value ( vol-000000000000000000 ) for parameter VOLUME is invalid. ",
            ),
            (
                fault::<Snapshot>("snap-0ABCDEF0", Dialect::Snapshot),
                "InvalidParameterValue",
                "Value (snap-0ABCDEF0) for parameter snapshotId is invalid. Expected: 'snap-...'.",
            ),
            (
                fault::<Volume>("", Dialect::VolumeAttribute),
                "InvalidVolumeID.Malformed",
                "The volume ID '' is malformed",
            ),
            (
                fault::<Volume>("bad", Dialect::VolumeStatus),
                "InvalidVolumeID.Malformed",
                "Invalid id: \"bad\" (expecting \"vol-...\")",
            ),
            (
                fault::<Volume>(long, Dialect::VolumeStatus),
                "InvalidVolumeID.Malformed",
                "Invalid id: \"vol-000000000000000000\"",
            ),
            (
                fault::<Instance>("10.10.1.202", Dialect::Instance),
                "InvalidInstanceID.Malformed",
                "Invalid id: \"10.10.1.202\" (expecting \"i-...\")",
            ),
        ] {
            assert_eq!(found, (code, message.to_owned()));
        }
    }

    #[test]
    fn a_list_is_sorted_and_without_twins() {
        let texts = ["vol-0000000b", "vol-0000000a", "vol-0000000b"].map(str::to_owned);
        let ids = list::<Volume>(&texts, Dialect::Volumes).unwrap();
        assert_eq!(ids.iter().map(Id::as_str).collect::<Vec<_>>(), ["vol-0000000a", "vol-0000000b"]);
    }
}
