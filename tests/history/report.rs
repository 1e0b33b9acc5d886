//! What a failure prints: the seed, what is wrong, and a minimal history of each.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::{self, Property, Violation};
use crate::record::{Event, Outcome, Time, What};

/// How many violations are shown with their histories.
const SHOWN: usize = 5;
/// How many of the disturbances meanwhile are shown with each.
const MOST_DISTURBANCES: usize = 20;
/// How long before the first event of a history they are of interest, in microseconds.
const BEFORE: Time = 5_000_000;

/// Says what is wrong with a history; `None` when nothing is.
pub fn of(events: &[Event], seed: u64) -> Option<String> {
    let mut found = checker::check(events);
    let mut told = BTreeSet::new();
    found.retain(|(property, violation)| told.insert((property.name, violation.about.clone())));
    if found.is_empty() {
        return None;
    }
    let shown: Vec<String> =
        found.iter().take(SHOWN).map(|(property, violation)| one(property, violation, events)).collect();
    let seed = format!("again with the same workload and disturbances: VBS_HISTORY_SEED={seed}");
    Some(format!("{} violations, seed {seed}\n{}\n{seed}", found.len(), shown.join("\n")))
}

fn one(property: &Property, violation: &Violation, events: &[Event]) -> String {
    let minimal = checker::shrink(property, violation, events);
    let lines = |events: &[&Event]| events.iter().map(|event| format!("  {event}")).collect::<Vec<_>>().join("\n");
    let (from, until) = (minimal.first().map_or(0, |e| e.begun), minimal.last().map_or(0, |e| e.begun));
    let meanwhile = |event: &&Event| {
        matches!(event.what, What::Disturbed(_)) && event.begun <= until && event.ended.saturating_add(BEFORE) >= from
    };
    let meanwhile: Vec<&Event> = events.iter().filter(meanwhile).take(MOST_DISTURBANCES).collect();
    format!(
        "\nNOT TRUE: {}\n{}\na minimal history, in seconds:\n{}\nwhat was done to it meanwhile:\n{}",
        property.name,
        violation.why,
        lines(&minimal.iter().collect::<Vec<_>>()),
        lines(&meanwhile),
    )
}

/// How much happened.
pub fn summary(events: &[Event]) -> String {
    let count = |wanted: fn(&What) -> bool| events.iter().filter(|event| wanted(&event.what)).count();
    let calls = count(|what| matches!(what, What::Called(..)));
    let unknown = count(|what| matches!(what, What::Called(_, Outcome::Unknown(_))));
    let refused = count(|what| matches!(what, What::Called(_, Outcome::Refused(_))));
    let writes = count(|what| matches!(what, What::Wrote { .. }));
    let looks = count(|what| matches!(what, What::Held { .. }));
    let effects = count(|what| matches!(what, What::Did(_)));
    let disturbances = count(|what| matches!(what, What::Disturbed(_)));
    let acknowledged: Vec<String> =
        acknowledged(events).iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!(
        "{calls} calls ({refused} refused, {unknown} without an answer), {writes} writes, {looks} looks at bytes, {effects} \
         effects on nodes, {disturbances} disturbances\nacknowledged: {}",
        acknowledged.join(", ")
    )
}

/// How many calls of each action were acknowledged.
pub fn acknowledged(events: &[Event]) -> BTreeMap<&str, u64> {
    let mut acknowledged = BTreeMap::new();
    for event in events {
        if let What::Called(action, outcome) = &event.what
            && !matches!(outcome, Outcome::Refused(_) | Outcome::Unknown(_))
        {
            *acknowledged.entry(action.name()).or_default() += 1;
        }
    }
    acknowledged
}
