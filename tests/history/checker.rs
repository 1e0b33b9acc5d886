//! What must be true of every history. Pure: a history in, the violations out.
//!
//! Each property speaks only of what is certain. A call whose answer was lost may have had its effect or not, at any time after
//! it was made, and counts as whatever explains what was seen.

use crate::properties::{attachments, backwards, content, deleted, generations, lists, lost, registers, sizes, tokens};
use crate::record::Event;

/// Something that vbs promises never happens.
pub struct Property {
    pub name: &'static str,
    pub check: fn(&[Event]) -> Vec<Violation>,
    /// Whether an event can only explain what was seen, and never be what is wrong: a minimal history keeps it, or it would
    /// show a violation that there was not.
    pub explains: fn(&Event, &Violation) -> bool,
}

/// That it happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// The volume, snapshot, token or generation, and what else must be looked at to understand it.
    pub about: Vec<String>,
    pub why: String,
}

impl Violation {
    pub fn new(about: &[&str], why: String) -> Self {
        Self { about: about.iter().map(ToString::to_string).collect(), why }
    }

    /// Whether an event has to do with it.
    pub fn concerns(&self, event: &Event) -> bool {
        self.about.iter().any(|name| event.is_about(name))
    }
}

pub static PROPERTIES: [Property; 12] = [
    Property { name: "an acknowledged create is never lost", check: lost::check, explains: lost::explains },
    Property {
        name: "two attachments of one volume never overlap",
        check: attachments::check_overlap,
        explains: attachments::explains,
    },
    Property {
        name: "a volume is in one machine at a time",
        check: attachments::check_machines,
        explains: attachments::explains,
    },
    Property { name: "a deleted volume never comes back", check: deleted::check, explains: |_, _| false },
    Property { name: "one client token gives one volume", check: tokens::check, explains: tokens::explains },
    Property {
        name: "a volume and a snapshot hold what the volume held",
        check: content::check,
        explains: content::explains,
    },
    Property { name: "describes never go back in time", check: backwards::check, explains: backwards::explains },
    Property {
        name: "a volume never shrinks, and grows as was promised",
        check: sizes::check,
        explains: sizes::explains,
    },
    Property {
        name: "a tag has the value that it was given last",
        check: registers::check_tags,
        explains: registers::explains,
    },
    Property {
        name: "another account sees a snapshot while it is shared with it",
        check: registers::check_shares,
        explains: registers::explains,
    },
    Property { name: "a list shows all that is there", check: lists::check, explains: lists::explains },
    Property {
        name: "no two gateways do anything in one generation, and no node goes back to an older one",
        check: generations::check,
        explains: |_, _| false,
    },
];

/// Every violation of every property.
pub fn check(events: &[Event]) -> Vec<(&'static Property, Violation)> {
    let violations =
        |property: &'static Property| (property.check)(events).into_iter().map(move |violation| (property, violation));
    PROPERTIES.iter().flat_map(violations).collect()
}

/// The shortest part of a history that can be found in which a property is violated in the same matter.
pub fn shrink(property: &Property, violation: &Violation, events: &[Event]) -> Vec<Event> {
    let keeps = |event: &Event| (property.explains)(event, violation);
    let fails = |events: &[Event]| (property.check)(events).iter().any(|found| found.about == violation.about);
    let mut left: Vec<Event> = events.to_vec();
    let about: Vec<Event> = events.iter().filter(|event| violation.concerns(event)).cloned().collect();
    if fails(&about) {
        left = about;
    }
    let mut size = left.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        while start < left.len() {
            let end = (start + size).min(left.len());
            let dropped = |index: usize, event: &Event| (start..end).contains(&index) && !keeps(event);
            let without: Vec<Event> = left
                .iter()
                .enumerate()
                .filter(|(index, event)| !dropped(*index, event))
                .map(|(_, e)| e.clone())
                .collect();
            if without.len() < left.len() && fails(&without) {
                left = without;
            } else {
                start = end;
            }
        }
        if size == 1 {
            return left;
        }
        size = size.div_ceil(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::properties::histories::{called, seen};
    use crate::record::{Action, Outcome};
    use vbs::state::VolumeState;

    #[test]
    fn a_minimal_history_has_what_is_wrong_and_what_could_have_explained_it_and_no_more() {
        let delete =
            |volume: &str, at| called(at, at + 1, Action::DeleteVolume { volume: volume.into() }, Outcome::Done);
        let mut events: Vec<Event> =
            (0..500).map(|n| seen(10 * n, 10 * n + 5, "vol-1", VolumeState::Available)).collect();
        events.extend((0..50).map(|n| delete("vol-2", 7 * n)));
        events.push(seen(6000, 6001, "vol-1", VolumeState::Deleting));
        events.push(delete("vol-1", 7000));
        let found = check(&events);
        assert_eq!(found.len(), 1, "{:?}", found.iter().map(|(property, _)| property.name).collect::<Vec<_>>());
        let minimal = shrink(found[0].0, &found[0].1, &events);
        assert_eq!(minimal.len(), 3, "{minimal:?}");
        assert_eq!((minimal[1].begun, minimal[2].begun), (6000, 7000));
    }
}
