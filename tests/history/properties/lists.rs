//! A list of all volumes, however many pages it has, shows each that was there when it began and that nobody has deleted since,
//! and none that was gone by then.

use std::collections::BTreeMap;

use vbs::state::VolumeState;

use super::sightings::{self, is_alive};
use crate::checker::Violation;
use crate::record::{Action, Event, Outcome, What};

/// Deletions explain what is not there.
pub fn explains(event: &Event, of: &Violation) -> bool {
    matches!(event.call(), Some((Action::DeleteVolume { .. }, _))) && of.concerns(event)
}

pub fn check(events: &[Event]) -> Vec<Violation> {
    let mut deletions: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events {
        if let Some((Action::DeleteVolume { volume }, _)) = event.call() {
            let first = deletions.entry(volume).or_insert(event.begun);
            *first = event.begun.min(*first);
        }
    }
    let lists = events.iter().filter_map(|event| match &event.what {
        What::Called(Action::ListVolumes, Outcome::Listed(volumes)) => Some((event, volumes)),
        _ => None,
    });
    let lists: Vec<_> = lists.collect();
    let mut found = Vec::new();
    for (volume, seen) in sightings::of_volumes(events) {
        let deleted = deletions.get(volume).copied();
        let alive = seen.iter().filter(|one| is_alive(one.state)).map(|one| one.event.ended);
        let gone = seen.iter().filter(|one| one.state == VolumeState::Deleted).map(|one| one.event.ended);
        let (made, gone) = (alive.min(), gone.min());
        let was = |time: Option<u64>, list: &Event| time.is_some_and(|time| time < list.begun);
        for (list, volumes) in &lists {
            let listed = volumes.contains(volume);
            if !listed && was(made, list) && deleted.is_none_or(|deleted| deleted > list.ended) {
                let why = format!("a list does not show {volume}, which nobody has deleted");
                found.push(Violation::new(&[volume], why));
            }
            if listed && was(gone, list) {
                found.push(Violation::new(&[volume], format!("a list shows {volume}, which is gone")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::histories::{called, delete, lost, made, not_found};
    use super::*;

    fn list(begun: u64, volumes: &[&str]) -> Event {
        let listed = Outcome::Listed(volumes.iter().map(ToString::to_string).collect());
        called(begun, begun + 5, Action::ListVolumes, listed)
    }

    #[test]
    fn a_list_shows_what_is_there_and_not_what_is_gone() {
        let made = made(0, 1, "t", "vol-1");
        assert_eq!(check(&[made.clone(), list(2, &["vol-2"])]).len(), 1);
        assert_eq!(check(&[made.clone(), list(2, &["vol-1", "vol-2"])]), []);
        assert_eq!(check(&[made.clone(), list(1, &[])]), [], "it may not have been there yet");
        for deletion in [lost(0, delete("vol-1")), called(6, 9, delete("vol-1"), Outcome::Done)] {
            assert_eq!(check(&[made.clone(), deletion, list(2, &[])]), []);
        }
        let later = called(8, 9, delete("vol-1"), Outcome::Done);
        assert_eq!(check(&[made.clone(), later, list(2, &[])]).len(), 1);
        assert_eq!(check(&[made.clone(), not_found(2, 3, "vol-1"), list(4, &["vol-1"])]).len(), 1);
        assert_eq!(check(&[made, not_found(2, 4, "vol-1"), list(4, &["vol-1"])]), []);
    }
}
