//! Two attachments of one volume never overlap, but for Multi-Attach: neither as callers see them, nor in the machines.

use std::collections::{BTreeMap, BTreeSet};

use vbs::state::AttachmentState;

use super::sightings::find_pair;
use crate::checker::Violation;
use crate::record::{Action, Effect, Event, Outcome, What};

/// Detaches explain why another instance has the volume, and creates that several may.
pub fn explains(event: &Event, of: &Violation) -> bool {
    let called = event.call().map(|(action, _)| action);
    let disk = matches!(&event.what, What::Did(effect) if effect.verb == "ensure_detached");
    let call = matches!(called, Some(Action::DetachVolume { .. } | Action::CreateVolume { multi_attach: true, .. }));
    (disk || call) && of.concerns(event)
}

/// An instance that has a volume, as somebody saw it.
struct Holder<'a> {
    event: &'a Event,
    instance: &'a str,
    /// Whether it has it until somebody detaches it; an attachment that is being made may still fail.
    attached: bool,
}

pub fn check_overlap(events: &[Event]) -> Vec<Violation> {
    let mut holders: BTreeMap<&str, Vec<Holder<'_>>> = BTreeMap::new();
    let mut detaches: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    let (shared, mut found) = (shared(events), Vec::new());
    for event in events {
        let What::Called(action, outcome) = &event.what else { continue };
        match (action, outcome) {
            (Action::DetachVolume { volume, .. }, outcome) if !matches!(outcome, Outcome::Refused(_)) => {
                detaches.entry(volume).or_default().push(event);
            }
            (Action::AttachVolume { volume, instance }, Outcome::Done) => {
                holders.entry(volume).or_default().push(Holder { event, instance, attached: false });
            }
            (Action::DescribeVolume { volume }, Outcome::SeenVolume(seen)) => {
                if seen.attachments.len() > 1 && !seen.multi_attach {
                    let why = format!("{volume} is attached to {:?} at once", seen.attachments);
                    found.push(Violation::new(&[volume], why));
                }
                for (instance, state) in &seen.attachments {
                    let attached = *state == AttachmentState::Attached;
                    holders.entry(volume).or_default().push(Holder { event, instance, attached });
                }
            }
            _ => {}
        }
    }
    for (volume, mut holders) in holders.into_iter().filter(|(volume, _)| !shared.contains(volume)) {
        holders.sort_by_key(|holder| holder.event.begun);
        let detaches = detaches.get(volume).map_or(&[][..], Vec::as_slice);
        let unexplained = |before: &Holder<'_>, after: &Holder<'_>| {
            let mut between = detaches.iter().filter(|detach| detach.may_come_between(before.event, after.event));
            before.attached && before.instance != after.instance && between.next().is_none()
        };
        if let Some((before, after)) = find_pair(&holders, |holder| holder.event, unexplained) {
            let why = format!("{volume} went from {} to {} without a detach", before.instance, after.instance);
            found.push(Violation::new(&[volume], why));
        }
    }
    found
}

/// The volumes that several instances may have.
fn shared(events: &[Event]) -> BTreeSet<&str> {
    events.iter().filter_map(shared_by).collect()
}

fn shared_by(event: &Event) -> Option<&str> {
    match &event.what {
        What::Called(Action::CreateVolume { multi_attach: true, .. }, Outcome::Volume(id, _)) => Some(id),
        What::Called(Action::DescribeVolume { volume }, Outcome::SeenVolume(seen)) if seen.multi_attach => Some(volume),
        _ => None,
    }
}

/// A machine has a disk from the end of an attach that succeeded until, at the earliest, somebody begins to take it away.
pub fn check_machines(events: &[Event]) -> Vec<Violation> {
    let shared = shared(events);
    let mut has: BTreeMap<&str, &str> = BTreeMap::new();
    let mut found = Vec::new();
    let mut disks: Vec<(&Event, &Effect, &str)> = events
        .iter()
        .filter_map(|event| match &event.what {
            What::Did(effect) => Some((event, effect, effect.machine.as_deref()?)),
            _ => None,
        })
        .collect();
    // Of one volume each begins when the one before it has ended, or its node's guard is broken.
    disks.sort_by_key(|(event, effect, _)| if effect.verb == "ensure_attached" { event.ended } else { event.begun });
    for (_, effect, machine) in disks {
        let volume = &*effect.resource;
        match effect.verb {
            "ensure_attached" if effect.succeeded && !shared.contains(volume) => {
                if let Some(other) = has.insert(volume, machine).filter(|other| *other != machine) {
                    let why = format!("{volume} is a disk of {other} and of {machine}");
                    found.push(Violation::new(&[volume], why));
                }
            }
            "ensure_detached" if has.get(volume) == Some(&machine) => {
                has.remove(volume);
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use vbs::state::VolumeState;

    use super::super::histories::{attach, called, detach, did_in, lost, seen_with};
    use super::*;

    fn attached(begun: u64, instances: &[&str]) -> Event {
        let attachments: Vec<_> = instances.iter().map(|instance| (*instance, AttachmentState::Attached)).collect();
        seen_with(begun, begun + 1, "vol-1", VolumeState::InUse, &attachments)
    }

    #[test]
    fn a_volume_goes_to_another_instance_only_after_a_detach() {
        let taken = called(4, 5, attach("vol-1", "i-2"), Outcome::Done);
        assert_eq!(check_overlap(&[attached(0, &["i-1"]), taken.clone()]).len(), 1);
        assert_eq!(check_overlap(&[attached(0, &["i-1"]), attached(4, &["i-2"])]).len(), 1);
        assert_eq!(check_overlap(&[attached(0, &["i-1", "i-2"])]).len(), 1);
        for detach in [
            called(2, 3, detach("vol-1", "i-1"), Outcome::Done),
            lost(2, detach("vol-1", "i-1")),
            called(5, 9, detach("vol-1", "i-1"), Outcome::Done),
        ] {
            assert_eq!(check_overlap(&[attached(1, &["i-1"]), detach, taken.clone()]), []);
        }
        let refused = called(2, 3, detach("vol-1", "i-1"), Outcome::Refused("IncorrectState".into()));
        assert_eq!(check_overlap(&[attached(0, &["i-1"]), refused, taken]).len(), 1);
        let shared = Action::CreateVolume { token: "t".into(), snapshot: None, multi_attach: true };
        let shared = called(0, 1, shared, Outcome::Volume("vol-1".into(), VolumeState::Creating));
        assert_eq!(check_overlap(&[shared, attached(2, &["i-1"]), attached(4, &["i-2"])]), []);
    }

    #[test]
    fn a_volume_is_no_two_machines_disk() {
        let (first, second) =
            (did_in(0, 1, "ensure_attached", "vol-1", "vm-1"), did_in(4, 5, "ensure_attached", "vol-1", "vm-2"));
        assert_eq!(check_machines(&[first.clone(), second.clone()]).len(), 1);
        let let_go = did_in(2, 3, "ensure_detached", "vol-1", "vm-1");
        assert_eq!(check_machines(&[first, let_go, second]), []);
    }
}
