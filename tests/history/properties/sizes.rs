//! A volume never shrinks, for whoever looks; it is as large as it is shown; and a growth that was acknowledged comes about, unless
//! the database says that it was turned back.

use std::collections::{BTreeMap, BTreeSet};

use super::sightings::find_pair;
use crate::checker::Violation;
use crate::record::{Action, Event, Outcome, What};

/// What says that it could not be done explains that it was not, and the end of all work when it must be done.
pub fn explains(event: &Event, of: &Violation) -> bool {
    event.what == What::Settled || (matches!(event.what, What::CouldNotGrow { .. }) && of.concerns(event))
}

/// A size that somebody was shown, or that the volume has on its node.
type Size<'a> = (&'a Event, u64);

#[derive(Default)]
struct Sizes<'a> {
    shown: Vec<Size<'a>>,
    real: Vec<Size<'a>>,
    promised: u64,
}

pub fn check(events: &[Event]) -> Vec<Violation> {
    let mut volumes: BTreeMap<&str, Sizes<'_>> = BTreeMap::new();
    let (mut turned_back, mut settled): (BTreeSet<&str>, Option<&Event>) = (BTreeSet::new(), None);
    for event in events {
        match &event.what {
            What::Called(Action::DescribeVolume { volume }, Outcome::SeenVolume(seen)) => {
                volumes.entry(volume).or_default().shown.push((event, seen.gib));
            }
            What::Called(Action::ModifyVolume { volume, gib }, Outcome::Done) => {
                let promised = &mut volumes.entry(volume).or_default().promised;
                *promised = (*promised).max(*gib);
            }
            What::Sized { volume, gib } => volumes.entry(volume).or_default().real.push((event, *gib)),
            What::CouldNotGrow { volume } => drop(turned_back.insert(volume)),
            What::Settled => settled = Some(event),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (volume, sizes) in volumes {
        let mut say = |why: String| found.push(Violation::new(&[volume], format!("{volume} {why}")));
        let shrinks = |before: &Size<'_>, after: &Size<'_>| after.1 < before.1;
        if let Some((before, after)) = find_pair(&sizes.shown, |size| size.0, shrinks) {
            say(format!("had {} GiB, and then {}", before.1, after.1));
        }
        let lacks = |real: &&Size<'_>| sizes.shown.iter().find(|shown| shown.0.is_before(real.0) && shown.1 > real.1);
        if let Some((shown, real)) = sizes.real.iter().find_map(|real| Some((lacks(&real)?, real))) {
            say(format!("is shown with {} GiB, and has {} on its node", shown.1, real.1));
        }
        let at_the_end = |(event, _): &&Size<'_>| settled.is_some_and(|settled| settled.is_before(event));
        let lost = sizes.shown.iter().filter(at_the_end).find(|(_, gib)| *gib < sizes.promised);
        if let Some((_, gib)) = lost.filter(|_| !turned_back.contains(volume)) {
            say(format!("has {gib} GiB in the end, and {} were promised", sizes.promised));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use vbs::state::VolumeState;

    use super::super::histories::{called, event, seen_as, shown};
    use super::*;
    use crate::record::{SeenVolume, Time};

    fn seen(begun: Time, gib: u64) -> Event {
        seen_as(begun, begun + 2, "vol-1", SeenVolume { gib, ..shown(VolumeState::Available) })
    }

    fn real(begun: Time, gib: u64) -> Event {
        event(begun, begun + 1, What::Sized { volume: "vol-1".into(), gib })
    }

    fn grown(outcome: Outcome) -> Event {
        called(0, 1, Action::ModifyVolume { volume: "vol-1".into(), gib: 8 }, outcome)
    }

    #[test]
    fn a_size_that_was_shown_never_falls_and_is_really_there() {
        assert_eq!(check(&[seen(0, 8), seen(5, 4)]).len(), 1);
        assert_eq!(check(&[seen(0, 8), seen(1, 4)]), [], "at the same time");
        assert_eq!(check(&[seen(0, 4), seen(5, 8)]), []);
        assert_eq!(check(&[seen(0, 8), real(5, 4)]).len(), 1);
        assert_eq!(check(&[seen(0, 4), real(5, 8)]), [], "it is shown later");
    }

    #[test]
    fn a_growth_that_was_acknowledged_is_there_in_the_end_or_was_turned_back() {
        let end = event(50, 50, What::Settled);
        assert_eq!(check(&[grown(Outcome::Done), end.clone(), seen(60, 4)]).len(), 1);
        assert_eq!(check(&[grown(Outcome::Done), seen(40, 4), end.clone(), seen(60, 8)]), []);
        let turned_back = event(90, 90, What::CouldNotGrow { volume: "vol-1".into() });
        assert_eq!(check(&[grown(Outcome::Done), end.clone(), seen(60, 4), turned_back]), []);
        for outcome in [Outcome::Refused("IncorrectModificationState".into()), Outcome::Unknown("lost".into())] {
            assert_eq!(check(&[grown(outcome), end.clone(), seen(60, 4)]), []);
        }
    }
}
