//! The faults of clients, each with the code and the text that AWS answers.
//!
//! Clients search these texts: the EBS CSI driver picks ids out of `… does not exist.` and limits out of `… is too high;
//! maximum is …`, boto scripts match `already in use`. Odd punctuation is AWS's own.

use std::fmt::Display;

use crate::ids::{Id, InstanceId, Kind, SnapshotId, VolumeId};

use super::actions;
use super::error::ApiError;

/// `InvalidParameterValue` with a text of its own.
pub fn invalid_value(message: impl Into<String>) -> ApiError {
    ApiError::new("InvalidParameterValue", message)
}

/// `InvalidParameterCombination` with a text of its own.
pub fn invalid_combination(message: impl Into<String>) -> ApiError {
    ApiError::new("InvalidParameterCombination", message)
}

/// `IncorrectState` with a text of its own.
pub fn incorrect_state(message: impl Into<String>) -> ApiError {
    ApiError::new("IncorrectState", message)
}

/// `UnsupportedOperation`: valid EC2, but nothing that vbs can do; better refused than silently left undone.
pub fn unsupported(message: impl Into<String>) -> ApiError {
    ApiError::new("UnsupportedOperation", message)
}

/// A required parameter is absent, in the words of most actions.
pub fn missing(name: &str) -> ApiError {
    ApiError::new("MissingParameter", format!("The request must contain the parameter {name}"))
}

/// The request is neither a GET nor a POST.
pub fn method_not_allowed() -> ApiError {
    ApiError { status: 405, ..ApiError::new("MethodNotAllowed", "The API takes GET and POST requests only.") }
}

/// The form cannot be decoded.
pub fn malformed_query(why: &str) -> ApiError {
    ApiError::new("MalformedQueryString", format!("The query string is malformed: {why}."))
}

/// A parameter is given twice.
pub fn duplicate_parameter() -> ApiError {
    ApiError::new("InvalidQueryParameter", "The query string is malformed: a parameter is given more than once.")
}

/// A value holds characters that neither XML nor the database can.
pub fn control_characters(name: &str) -> ApiError {
    let name: String = name.chars().take(64).collect();
    invalid_value(format!("The value for parameter {} is invalid. It contains control characters.", lower_first(&name)))
}

/// `Version` is no date.
pub fn no_such_version(version: &str) -> ApiError {
    ApiError::new(
        "NoSuchVersion",
        format!("The requested version ({}) of service AmazonEC2 does not exist", clip(version)),
    )
}

/// There is no `Action`.
pub fn missing_action() -> ApiError {
    ApiError::new("MissingAction", "The request must contain the parameter Action")
}

/// The action is none of ours: one that EC2 has is refused by its name, any other is a mistake.
pub fn no_handler(action: &str) -> ApiError {
    if actions::is_known_to_ec2(action) {
        return unsupported(format!("The action {action} is not supported here."));
    }
    ApiError::new("InvalidAction", format!("The action {} is not valid for this web service.", clip(action)))
}

/// A parameter that the action does not have.
pub fn unknown_parameter(name: &str) -> ApiError {
    ApiError::new("UnknownParameter", format!("The parameter {} is not recognized", clip(name)))
}

/// A value of the wrong type.
pub fn not_a(value: &str, name: &str, kind: &str) -> ApiError {
    let article = if kind.starts_with('i') { "an" } else { "a" };
    invalid_value(format!(
        "Value ({}) for parameter {} is invalid. Value must be {article} {kind}.",
        clip(value),
        lower_first(name)
    ))
}

/// The request was fine, and was only a trial.
pub fn dry_run() -> ApiError {
    ApiError::new("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
}

/// The request carries no signature.
pub fn unsigned() -> ApiError {
    missing("AWSAccessKeyId")
}

/// The key is unknown or disabled, or the signature is wrong: EC2 does not tell which.
pub fn auth_failure() -> ApiError {
    ApiError::new("AuthFailure", "AWS was not able to validate the provided access credentials")
}

/// No such volume, or another account's.
pub fn no_volume(id: impl Display) -> ApiError {
    ApiError::new("InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
}

/// No such snapshot, or another account's.
pub fn no_snapshot(id: impl Display) -> ApiError {
    ApiError::new("InvalidSnapshot.NotFound", format!("The snapshot '{id}' does not exist."))
}

/// No such instance, or another account's.
pub fn no_instance(id: impl Display) -> ApiError {
    ApiError::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
}

/// These volumes of a describe are not there. The EBS CSI driver picks them out of the text, to ask for the others again.
pub fn no_volumes(ids: &[VolumeId]) -> ApiError {
    match ids {
        [one] => no_volume(one),
        many => ApiError::new("InvalidVolume.NotFound", format!("The volumes '{}' do not exist.", list(many))),
    }
}

/// These volumes were never modified. The EBS CSI driver takes the code for that.
pub fn no_modifications(ids: &[VolumeId]) -> ApiError {
    let message = match ids {
        [one] => format!("Modification for volume '{one}' does not exist."),
        many => format!("Modifications for volumes '{}' do not exist.", list(many)),
    };
    ApiError::new("InvalidVolumeModification.NotFound", message)
}

/// These snapshots of a describe are not there.
pub fn no_snapshots(ids: &[SnapshotId]) -> ApiError {
    match ids {
        [one] => no_snapshot(one),
        many => ApiError::new("InvalidSnapshot.NotFound", format!("The snapshots '{}' do not exist.", list(many))),
    }
}

/// These instances of a describe are not there.
pub fn no_instances(ids: &[InstanceId]) -> ApiError {
    match ids {
        [one] => no_instance(one),
        many => ApiError::new("InvalidInstanceID.NotFound", format!("The instance IDs '{}' do not exist", list(many))),
    }
}

fn list<K: Kind>(ids: &[Id<K>]) -> String {
    ids.iter().map(Id::as_str).collect::<Vec<_>>().join(", ")
}

/// The first letter small, as EC2 names parameters in its texts.
pub fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// All of a caller's own texts, each clipped: clients read the names at fault out of a message.
pub fn clip_each(texts: &[&str]) -> String {
    texts.iter().map(|text| clip(text)).collect::<Vec<_>>().join(", ")
}

/// The beginning of a caller's own text: an answer need not be as long as the question.
pub fn clip(text: &str) -> &str {
    match text.char_indices().nth(200) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unknown_id_and_several_are_named_in_sentences_of_their_own() {
        let id = |text| VolumeId::parse(text).unwrap();
        let (a, b) = (id("vol-0000000a"), id("vol-0000000b"));
        assert_eq!(no_volumes(std::slice::from_ref(&a)).message, "The volume 'vol-0000000a' does not exist.");
        assert_eq!(no_volumes(&[a, b]).message, "The volumes 'vol-0000000a, vol-0000000b' do not exist.");
    }

    #[test]
    fn a_long_value_is_not_echoed_whole() {
        assert!(no_handler(&"x".repeat(100_000)).message.len() < 300);
        assert_eq!(clip("äöü"), "äöü");
    }
}
