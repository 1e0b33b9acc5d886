//! Describes never go back in time: what one has shown is the past for whoever asks afterwards, at whichever gateway.
//!
//! Nobody is shown less than another was before: vbs promises this of all clients together, and so of each.

use std::collections::BTreeMap;

use vbs::state::{AttachmentState, SnapshotState, VolumeState};

use super::sightings::{self, Sighting, find_pair};
use crate::checker::Violation;
use crate::record::{Action, Event, Outcome, What};

/// Attaches explain why an attachment is there again, and detaches why it is not.
pub fn explains(event: &Event, of: &Violation) -> bool {
    let Some((Action::AttachVolume { instance, .. } | Action::DetachVolume { instance, .. }, _)) = event.call() else {
        return false;
    };
    of.about.contains(instance) && of.concerns(event)
}

pub fn check(events: &[Event]) -> Vec<Violation> {
    let mut found = volumes(events);
    found.extend(snapshots(events));
    found.extend(attachments(events));
    found
}

fn volumes(events: &[Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (volume, seen) in sightings::of_volumes(events) {
        let back = |before: &Sighting<'_>, after: &Sighting<'_>| goes_back(before.state, after.state);
        if let Some((before, after)) = find_pair(&seen, |sighting| sighting.event, back) {
            let why = format!("{volume} was {}, and then {}", before.state, after.state);
            found.push(Violation::new(&[volume], why));
        }
    }
    found
}

fn goes_back(before: VolumeState, after: VolumeState) -> bool {
    let whole = |state| matches!(state, VolumeState::Available | VolumeState::InUse);
    match after {
        VolumeState::Creating => before != VolumeState::Creating,
        VolumeState::Available | VolumeState::InUse => before == VolumeState::Error,
        VolumeState::Error => whole(before),
        // Those that are back from the dead are another property's.
        VolumeState::Deleting | VolumeState::Deleted => false,
    }
}

fn snapshots(events: &[Event]) -> Vec<Violation> {
    let mut seen: BTreeMap<&str, Vec<(&Event, SnapshotState, u8)>> = BTreeMap::new();
    for event in events {
        let What::Called(Action::DescribeSnapshot { snapshot }, outcome) = &event.what else { continue };
        let sighting = match outcome {
            Outcome::SeenSnapshot(state, progress) => (event, *state, *progress),
            Outcome::Refused(code) if code == "InvalidSnapshot.NotFound" => (event, SnapshotState::Deleting, 100),
            _ => continue,
        };
        seen.entry(snapshot).or_default().push(sighting);
    }
    let mut found = Vec::new();
    for (snapshot, seen) in seen {
        let back = |(_, before, done): &(&Event, SnapshotState, u8),
                    (_, after, progress): &(&Event, SnapshotState, u8)| {
            match before {
                SnapshotState::Pending => *after == SnapshotState::Pending && progress < done,
                _ => before != after && *after != SnapshotState::Deleting,
            }
        };
        if let Some((before, after)) = find_pair(&seen, |sighting| sighting.0, back) {
            let why = format!("{snapshot} was {} ({} %), then {} ({} %)", before.1, before.2, after.1, after.2);
            found.push(Violation::new(&[snapshot], why));
        }
    }
    found
}

/// An attachment as somebody saw it; without a state there is none.
type Stage<'a> = (&'a Event, Option<AttachmentState>);

/// The way of an attachment. Another one of the same instance begins it anew.
fn stage(state: Option<AttachmentState>) -> u8 {
    match state {
        Some(AttachmentState::Attaching) => 0,
        Some(AttachmentState::Attached) => 1,
        Some(AttachmentState::Detaching) => 2,
        Some(AttachmentState::Busy) => 3,
        Some(AttachmentState::Detached) | None => 4,
    }
}

fn attachments(events: &[Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    for ((volume, instance), Ways { mut seen, attaches, detaches }) in ways(events) {
        seen.sort_by_key(|(event, _)| event.begun);
        let between = |calls: &[&Event], before: &Stage<'_>, after: &Stage<'_>| {
            calls.iter().any(|call| call.may_come_between(before.0, after.0))
        };
        let wrong = |before: &Stage<'_>, after: &Stage<'_>| {
            let (from, to) = (stage(before.1), stage(after.1));
            // A guest that holds on may be asked again, or be forced.
            let asked = matches!(after.0.call(), Some((Action::DetachVolume { .. }, _)));
            let again = asked && before.1 == Some(AttachmentState::Busy);
            let back = to < from && !again && !between(&attaches, before, after);
            // Once attached it stays so until somebody wants it otherwise.
            back || (from == 1 && to > 1 && !between(&detaches, before, after))
        };
        if let Some((before, after)) = find_pair(&seen, |sighting| sighting.0, wrong) {
            let why = format!("the attachment of {volume} to {instance} was {:?}, and then {:?}", before.1, after.1);
            found.push(Violation::new(&[volume, instance], why));
        }
    }
    found
}

/// All that was seen and done of a volume's attachments to one instance.
#[derive(Default)]
struct Ways<'a> {
    seen: Vec<Stage<'a>>,
    attaches: Vec<&'a Event>,
    detaches: Vec<&'a Event>,
}

fn ways(events: &[Event]) -> BTreeMap<(&str, &str), Ways<'_>> {
    let mut ways: BTreeMap<(&str, &str), Ways<'_>> = BTreeMap::new();
    for event in events {
        match event.call() {
            Some((Action::AttachVolume { volume, instance }, outcome)) => {
                let way = ways.entry((volume, instance)).or_default();
                way.attaches.push(event);
                if *outcome == Outcome::Done {
                    way.seen.push((event, Some(AttachmentState::Attaching)));
                }
            }
            Some((Action::DetachVolume { volume, instance }, outcome)) => {
                let way = ways.entry((volume, instance)).or_default();
                way.detaches.push(event);
                if *outcome == Outcome::Done {
                    way.seen.push((event, Some(AttachmentState::Detaching)));
                }
            }
            _ => {}
        }
    }
    for event in events {
        let What::Called(Action::DescribeVolume { volume }, Outcome::SeenVolume(seen)) = &event.what else { continue };
        for ((_, instance), way) in ways.range_mut((&**volume, "")..).take_while(|((id, _), _)| id == volume) {
            let state = seen.attachments.iter().find(|(id, _)| id == instance).map(|(_, state)| *state);
            way.seen.push((event, state));
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::super::histories::{attach, called, detach, lost, seen, seen_snapshot, seen_with};
    use super::*;

    fn attachment(begun: u64, state: AttachmentState) -> Event {
        seen_with(begun, begun + 1, "vol-1", VolumeState::InUse, &[("i-1", state)])
    }

    #[test]
    fn a_volume_goes_the_way_of_volumes() {
        for (before, after) in [
            (VolumeState::Available, VolumeState::Creating),
            (VolumeState::InUse, VolumeState::Error),
            (VolumeState::Error, VolumeState::Available),
        ] {
            assert_eq!(check(&[seen(0, 1, "vol-1", before), seen(2, 3, "vol-1", after)]).len(), 1);
            assert_eq!(check(&[seen(0, 2, "vol-1", before), seen(2, 3, "vol-1", after)]), [], "at once");
        }
        assert_eq!(check(&[seen(0, 1, "vol-1", VolumeState::InUse), seen(2, 3, "vol-1", VolumeState::Available)]), []);
    }

    #[test]
    fn a_snapshot_is_completed_once_and_its_progress_never_falls() {
        let seen = |at, state, progress| seen_snapshot(at, at + 1, "snap-1", state, progress);
        let (pending, completed) = (SnapshotState::Pending, SnapshotState::Completed);
        assert_eq!(check(&[seen(0, completed, 100), seen(2, pending, 99)]).len(), 1);
        assert_eq!(check(&[seen(0, pending, 40), seen(2, pending, 30)]).len(), 1);
        assert_eq!(check(&[seen(0, pending, 40), seen(2, pending, 60), seen(4, completed, 100)]), []);
    }

    #[test]
    fn an_attachment_goes_its_way_once_for_each_attach() {
        use AttachmentState::{Attached, Attaching, Busy, Detaching};
        let made = || called(0, 1, attach("vol-1", "i-1"), Outcome::Done);
        let ended = || called(4, 5, detach("vol-1", "i-1"), Outcome::Done);
        let gone = seen(8, 9, "vol-1", VolumeState::Available);
        for bad in [
            vec![made(), attachment(2, Attached), attachment(4, Attaching)],
            vec![made(), attachment(2, Attached), ended(), attachment(6, Attached)],
            vec![made(), attachment(2, Attached), attachment(4, Detaching)],
            vec![made(), attachment(2, Attached), gone.clone()],
        ] {
            assert_eq!(check(&bad).len(), 1, "{bad:?}");
        }
        let again = lost(6, attach("vol-1", "i-1"));
        let forced = called(8, 9, detach("vol-1", "i-1"), Outcome::Done);
        for good in [
            vec![made(), attachment(2, Attaching), gone],
            vec![made(), attachment(2, Attached), ended(), attachment(6, Busy), forced],
            vec![made(), attachment(2, Attached), ended(), attachment(6, Detaching)],
            vec![made(), attachment(2, Attached), ended(), again, attachment(7, Attached)],
        ] {
            assert_eq!(check(&good), [], "{good:?}");
        }
    }
}
