//! A deleted volume never comes back, neither in a describe nor on its node.

use std::collections::BTreeMap;

use vbs::state::VolumeState;

use super::sightings::{self, Sighting, find_pair, is_alive};
use crate::checker::Violation;
use crate::record::{Event, What};

pub fn check(events: &[Event]) -> Vec<Violation> {
    let mut found = back_on_a_node(events);
    for (volume, seen) in sightings::of_volumes(events) {
        let back = |before: &Sighting<'_>, after: &Sighting<'_>| {
            let undeleted = before.state == VolumeState::Deleted && after.state == VolumeState::Deleting;
            undeleted || (!is_alive(before.state) && is_alive(after.state))
        };
        if let Some((before, after)) = find_pair(&seen, |sighting| sighting.event, back) {
            let why = format!("{volume} was {}, and is {} again", before.state, after.state);
            found.push(Violation::new(&[volume], why));
        }
    }
    found
}

/// What removes a volume runs at the end of its life, or takes back one that could not be made: nothing may make it after.
fn back_on_a_node(events: &[Event]) -> Vec<Violation> {
    let mut removed: BTreeMap<&str, &Event> = BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        let What::Did(effect) = &event.what else { continue };
        match effect.verb {
            "ensure_no_volume" if effect.succeeded => {
                removed.entry(&effect.resource).or_insert(event);
            }
            "ensure_volume" | "ensure_restored"
                if effect.succeeded && removed.get(&*effect.resource).is_some_and(|gone| gone.is_before(event)) =>
            {
                let why = format!("{} was removed from its node, and made again", effect.resource);
                found.push(Violation::new(&[&effect.resource], why));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::histories::{called, delete, did, lost, not_found, seen};
    use super::*;
    use crate::record::Outcome;

    #[test]
    fn what_is_deleted_stays_deleted() {
        for bad in [
            [called(0, 1, delete("vol-1"), Outcome::Done), seen(2, 3, "vol-1", VolumeState::Available)],
            [not_found(0, 1, "vol-1"), seen(2, 3, "vol-1", VolumeState::Deleting)],
            [seen(0, 1, "vol-1", VolumeState::Deleting), seen(2, 3, "vol-1", VolumeState::Error)],
            [did(0, 1, "ensure_no_volume", "vol-1", 7), did(2, 3, "ensure_volume", "vol-1", 8)],
        ] {
            assert_eq!(check(&bad).len(), 1, "{bad:?}");
        }
        for good in [
            [called(0, 1, delete("vol-1"), Outcome::Done), seen(2, 3, "vol-1", VolumeState::Deleting)],
            [seen(0, 1, "vol-1", VolumeState::Deleting), not_found(2, 3, "vol-1")],
            // It may have been looked at before.
            [called(0, 4, delete("vol-1"), Outcome::Done), seen(2, 3, "vol-1", VolumeState::Available)],
            [lost(0, delete("vol-1")), seen(2, 3, "vol-1", VolumeState::Available)],
            [did(0, 1, "ensure_volume", "vol-1", 7), did(2, 3, "ensure_no_volume", "vol-1", 8)],
        ] {
            assert_eq!(check(&good), [], "{good:?}");
        }
    }
}
