//! An acknowledged create is never lost: a volume or a snapshot that was seen once is there until somebody deletes it.

use std::collections::BTreeMap;

use vbs::state::VolumeState;

use super::sightings::{self, Sighting, find_pair, is_alive};
use crate::checker::Violation;
use crate::record::{Action, Event, Outcome, What};

/// Deletions explain what is not there.
pub fn explains(event: &Event, of: &Violation) -> bool {
    let deletion = matches!(event.call(), Some((Action::DeleteVolume { .. } | Action::DeleteSnapshot { .. }, _)));
    deletion && of.concerns(event)
}

pub fn check(events: &[Event]) -> Vec<Violation> {
    let mut found = lost_snapshots(events);
    let mut deletions: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in events {
        if let Some((Action::DeleteVolume { volume }, _)) = event.call() {
            deletions.entry(volume).or_default().push(event);
        }
    }
    for (volume, seen) in sightings::of_volumes(events) {
        let deletions = deletions.get(volume).map_or(&[][..], Vec::as_slice);
        let deleted_by = |event: &Event| deletions.iter().any(|deletion| deletion.begun <= event.ended);
        let lost = |before: &Sighting<'_>, after: &Sighting<'_>| {
            is_alive(before.state) && !is_alive(after.state) && !deleted_by(after.event)
        };
        if let Some((_, after)) = find_pair(&seen, |sighting| sighting.event, lost) {
            let gone = if after.state == VolumeState::Deleted { "not there" } else { "being deleted" };
            found.push(Violation::new(&[volume], format!("{volume} is {gone}, and nobody has deleted it")));
        }
    }
    found
}

fn lost_snapshots(events: &[Event]) -> Vec<Violation> {
    let mut known: BTreeMap<&str, &Event> = BTreeMap::new();
    let mut deletions: BTreeMap<&str, &Event> = BTreeMap::new();
    for event in events {
        match &event.what {
            What::Called(_, Outcome::Snapshot(snapshot)) => {
                known.entry(snapshot).or_insert(event);
            }
            What::Called(Action::DeleteSnapshot { snapshot }, outcome) if !matches!(outcome, Outcome::Refused(_)) => {
                let first = deletions.entry(snapshot).or_insert(event);
                if event.begun < first.begun {
                    *first = event;
                }
            }
            _ => {}
        }
    }
    let missing = |event: &Event| {
        let What::Called(Action::DescribeSnapshot { snapshot }, Outcome::Refused(code)) = &event.what else {
            return None;
        };
        let is_known = known.get(&**snapshot).is_some_and(|made| made.is_before(event));
        let deleted = deletions.get(&**snapshot).is_some_and(|deletion| deletion.begun <= event.ended);
        (code == "InvalidSnapshot.NotFound" && is_known && !deleted).then(|| snapshot.clone())
    };
    let violation =
        |snapshot: String| Violation::new(&[&snapshot], format!("{snapshot} is not there, and nobody has deleted it"));
    events.iter().filter_map(missing).map(violation).collect()
}

#[cfg(test)]
mod tests {
    use super::super::histories::{called, delete, lost, made, not_found, seen};
    use super::*;

    #[test]
    fn a_volume_that_nobody_deleted_must_be_there() {
        let bad = [made(0, 1, "t", "vol-1"), seen(2, 3, "vol-1", VolumeState::Available), not_found(4, 5, "vol-1")];
        assert_eq!(check(&bad).len(), 1);
        for explained in [
            vec![made(0, 1, "t", "vol-1"), lost(2, delete("vol-1")), not_found(4, 5, "vol-1")],
            vec![made(0, 1, "t", "vol-1"), called(4, 9, delete("vol-1"), Outcome::Done), not_found(4, 5, "vol-1")],
            // It may not have been there yet.
            vec![made(0, 5, "t", "vol-1"), not_found(4, 5, "vol-1")],
        ] {
            assert_eq!(check(&explained), []);
        }
        let refused = Outcome::Refused("VolumeInUse".into());
        let no_excuse = [made(0, 1, "t", "vol-1"), called(2, 3, delete("vol-1"), refused), not_found(4, 5, "vol-1")];
        assert_eq!(check(&no_excuse).len(), 1);
    }

    #[test]
    fn a_snapshot_that_nobody_deleted_must_be_there() {
        let taken = Outcome::Snapshot("snap-1".into());
        let copied = called(0, 1, Action::CopySnapshot { source: "snap-0".into() }, taken.clone());
        let taken = called(0, 1, Action::CreateSnapshot { volume: "vol-1".into() }, taken);
        let refused = Outcome::Refused("InvalidSnapshot.NotFound".into());
        let missing = called(5, 6, Action::DescribeSnapshot { snapshot: "snap-1".into() }, refused);
        assert_eq!(check(&[taken.clone(), missing.clone()]).len(), 1);
        assert_eq!(check(&[copied, missing.clone()]).len(), 1);
        let deleted = lost(2, Action::DeleteSnapshot { snapshot: "snap-1".into() });
        assert_eq!(check(&[taken, deleted, missing]), []);
    }
}
