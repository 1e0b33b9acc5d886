//! What a failure prints: the seed, what is wrong, and a minimal history of each.

use crate::checker::{self, Property, Violation};
use crate::record::{Event, Outcome, What};

/// How many violations are shown with their histories.
const SHOWN: usize = 5;

/// Says what is wrong with a history; `None` when nothing is.
pub fn of(events: &[Event], seed: u64) -> Option<String> {
    let mut found = checker::check(events);
    found.dedup_by(|a, b| a.0.name == b.0.name && a.1.about == b.1.about);
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
    let lines: Vec<String> = minimal.iter().map(ToString::to_string).collect();
    format!("\nNOT TRUE: {}\n{}\na minimal history, in seconds:\n{}", property.name, violation.why, lines.join("\n"))
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
    let mut dbg: std::collections::BTreeMap<String, u32> = Default::default();
    for event in events {
        if let What::Called(action, outcome) = &event.what {
            let o = match outcome { Outcome::Refused(w) | Outcome::Unknown(w) => w.clone(), _ => "ok".into() };
            let a = format!("{action:?}");
            *dbg.entry(format!("{} {o}", a.split(' ').next().unwrap())).or_default() += 1;
        }
        if let What::Did(e) = &event.what { *dbg.entry(format!("{} {}", e.verb, e.succeeded)).or_default() += 1; }
    }
    println!("{dbg:#?}");
    let disturbances = count(|what| matches!(what, What::Disturbed(_)));
    format!(
        "{calls} calls ({refused} refused, {unknown} without an answer), {writes} writes, {looks} looks at bytes, {effects} \
         effects on nodes, {disturbances} disturbances"
    )
}
