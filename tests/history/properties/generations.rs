//! No two gateways do anything in one generation, and no node does anything under an older one than it has seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::Violation;
use crate::record::{Effect, Event, What};

pub fn check(events: &[Event]) -> Vec<Violation> {
    let mut asked: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
    let mut did: BTreeMap<(&str, &str), Vec<(&Event, &Effect)>> = BTreeMap::new();
    for event in events {
        match &event.what {
            What::Asked { generation } => {
                asked.entry(*generation).or_default().insert(&event.who);
            }
            What::Did(effect) => did.entry((&event.who, &effect.resource)).or_default().push((event, effect)),
            _ => {}
        }
    }
    let effects: BTreeSet<i64> = did.values().flatten().map(|(_, effect)| effect.generation).collect();
    let mut found = Vec::new();
    for (generation, gateways) in asked {
        if gateways.len() > 1 && effects.contains(&generation) {
            let gateways: Vec<&str> = gateways.into_iter().collect();
            let why = format!("{} worked under generation {generation}", gateways.join(" and "));
            found.push(Violation::new(&[&generation.to_string()], why));
        }
    }
    for ((node, resource), effects) in did {
        for (earlier, later) in effects.iter().zip(&effects[1..]) {
            if later.1.generation < earlier.1.generation {
                let why = format!("{node} took {later:?} after {earlier:?}");
                found.push(Violation::new(&[resource], why));
            } else if later.0.begun < earlier.0.ended {
                let why = format!("{node} did {later:?} beside {earlier:?}");
                found.push(Violation::new(&[resource], why));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::histories::{did, event};
    use super::*;

    fn asked(gateway: &str, generation: i64) -> Event {
        Event { who: gateway.into(), ..event(0, 0, What::Asked { generation }) }
    }

    #[test]
    fn a_generation_is_one_gateways() {
        let effect = did(1, 2, "ensure_volume", "vol-1", 7);
        assert_eq!(check(&[asked("a", 7), asked("b", 7), effect.clone()]).len(), 1);
        assert_eq!(check(&[asked("a", 7), asked("a", 7), asked("b", 8), effect]), []);
        assert_eq!(check(&[asked("a", 7), asked("b", 7)]), [], "it had no effect");
    }

    #[test]
    fn of_one_resource_one_thing_is_done_at_a_time_and_never_under_an_older_generation() {
        let first = || did(1, 5, "ensure_exported", "vol-1", 7);
        assert_eq!(check(&[first(), did(6, 7, "ensure_no_volume", "vol-1", 6)]).len(), 1);
        assert_eq!(check(&[first(), did(4, 7, "ensure_no_volume", "vol-1", 8)]).len(), 1);
        assert_eq!(check(&[first(), did(4, 7, "ensure_no_volume", "vol-2", 6)]), []);
        assert_eq!(check(&[first(), did(5, 7, "ensure_exported", "vol-1", 7)]), []);
    }
}
