//! What there is to know of the verbs of nodes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// What a call is about: the names of targets, snapshots and volumes in it. Of some calls one name is all that is specified.
pub fn name_thing(body: &Value, names: &mut BTreeSet<String>) {
    const NAMES: [&str; 4] = ["iqn", "snapshot", "volume", "spec"];
    for (key, value) in body.as_object().into_iter().flatten() {
        match value.as_str() {
            Some(name) if NAMES.contains(&&**key) => drop(names.insert(name.to_owned())),
            _ => name_thing(value, names),
        }
    }
}

/// What the simulation calls the verb.
pub fn sim_verb(node: &str, verb: &str) -> Option<&'static str> {
    let known = [
        "snapshot_method",
        "ensure_volume",
        "ensure_restored",
        "ensure_no_volume",
        "ensure_snapshot",
        "ensure_snapshot_copy",
        "ensure_grown",
        "ensure_grown_disk",
        "ensure_no_snapshot",
        "ensure_exported",
        "ensure_not_exported",
        "ensure_connected",
        "ensure_disconnected",
        "ensure_attached",
        "ensure_detached",
        "ensure_paused",
        "ensure_resumed",
    ];
    match verb {
        "observe" if node.starts_with("vmm") => Some("observe_vmm"),
        "observe" => Some("observe_storage"),
        _ => known.into_iter().find(|name| *name == verb),
    }
}

/// The answer of a node that has done what it was asked.
pub fn lie(node: &str, verb: &str) -> Value {
    match verb {
        "ensure_restored" => json!(100),
        "ensure_snapshot" | "ensure_snapshot_copy" => {
            json!({ "size_bytes": 1_u64 << 30, "data_bytes": 0, "progress": 100 })
        }
        "ensure_grown" | "ensure_grown_disk" => json!("online"),
        "ensure_exported" => json!({ "address": format!("{node}.sim:3260") }),
        "ensure_detached" => json!("gone"),
        "ensure_resumed" => json!("held"),
        _ => Value::Null,
    }
}
