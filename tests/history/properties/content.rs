//! A snapshot or a copy of a volume holds what the volume held at one instant while it was taken, a copy of a snapshot and a volume
//! made of it what the snapshot holds, and a volume at each time what was written last.
//!
//! CreateSnapshot and CopyVolumes promise that what is written after its answer is not in it, when they answer within ten seconds; one that
//! takes longer may be of any instant until it is completed.

use std::collections::{BTreeMap, BTreeSet};

use vbs::state::SnapshotState;

use crate::checker::Violation;
use crate::record::{Action, Event, NEVER, Outcome, Time, What};

/// From this on CreateSnapshot may have answered before the snapshot was taken, in microseconds; some less than ten seconds, since
/// the ten count from when the call arrived.
const MAY_BE_LATE: Time = 9_500_000;

/// The write that is read, since without any other more would be possible, not less; and a copy that was asked for before.
pub fn explains(event: &Event, of: &Violation) -> bool {
    match &event.what {
        What::Wrote { token, .. } => of.about.contains(&written(*token)),
        What::Called(Action::CopyVolume { .. }, _) => of.concerns(event),
        _ => false,
    }
}

/// How a violation names a write.
fn written(token: u64) -> String {
    format!("write {token}")
}

pub fn check(events: &[Event]) -> Vec<Violation> {
    let story = Story::of(events);
    let held = events.iter().filter_map(|event| match &event.what {
        What::Held { of, token } => Some((event, &**of, *token)),
        _ => None,
    });
    held.filter_map(|(event, of, token)| {
        let about = story.lineage(of);
        let Some(token) = token else {
            return Some(Violation::new(&about, format!("{of} is of no one instant")));
        };
        let possible = story.possible(of, event.begun, event.ended).filter(|possible| !possible.contains(&token))?;
        let read = written(token);
        let about = [&about[..], &[&read]].concat();
        Some(Violation::new(&about, format!("{of} holds {token}, and may hold one of {possible:?}")))
    })
    .collect()
}

/// What happened to the bytes.
#[derive(Default)]
struct Story<'a> {
    /// The tokens of each volume's writes, in their order.
    writes: BTreeMap<&'a str, Vec<(u64, &'a Event)>>,
    /// What each volume was made of.
    made: BTreeMap<&'a str, Option<&'a str>>,
    /// What each snapshot was taken of.
    taken: BTreeMap<&'a str, Taken<'a>>,
    /// What each volume is a copy of.
    cloned: BTreeMap<&'a str, Taken<'a>>,
    /// What each snapshot is a copy of.
    copied: BTreeMap<&'a str, &'a str>,
    completed: BTreeMap<&'a str, Time>,
    /// What snapshots were seen to hold.
    held: BTreeMap<&'a str, u64>,
}

struct Taken<'a> {
    volume: &'a str,
    /// When it was asked for first.
    begun: Time,
    answer: &'a Event,
}

impl<'a> Story<'a> {
    fn of(events: &'a [Event]) -> Self {
        let mut story = Self::default();
        let mut asked: BTreeMap<&str, Time> = BTreeMap::new();
        for event in events {
            // One that was asked for again may have been taken since the first time.
            if let What::Called(Action::CopyVolume { token, .. }, _) = &event.what {
                asked.entry(token).or_insert(event.begun);
            }
            match &event.what {
                What::Wrote { volume, token } => story.writes.entry(volume).or_default().push((*token, event)),
                What::Held { of, token: Some(token) } => drop(story.held.insert(of, *token)),
                What::Called(Action::CreateVolume { snapshot, .. }, Outcome::Volume(volume, _)) => {
                    story.made.insert(volume, snapshot.as_deref());
                }
                What::Called(Action::CreateSnapshot { volume }, Outcome::Snapshot(snapshot)) => {
                    story.taken.insert(snapshot, Taken { volume, begun: event.begun, answer: event });
                }
                What::Called(Action::CopyVolume { token, source }, Outcome::Volume(volume, _)) => {
                    let begun = asked.get(&**token).copied().unwrap_or(event.begun);
                    story.cloned.entry(volume).or_insert(Taken { volume: source, begun, answer: event });
                }
                What::Called(Action::CopySnapshot { source }, Outcome::Snapshot(snapshot)) => {
                    story.copied.insert(snapshot, source);
                }
                What::Called(
                    Action::DescribeSnapshot { snapshot },
                    Outcome::SeenSnapshot(SnapshotState::Completed, _),
                ) => {
                    let first = story.completed.entry(snapshot).or_insert(event.ended);
                    *first = event.ended.min(*first);
                }
                _ => {}
            }
        }
        story.writes.values_mut().for_each(|writes| writes.sort_by_key(|(token, _)| *token));
        story
    }

    /// What a volume may hold at some time between the two, or a snapshot at any; `None`: nobody knows.
    fn possible(&self, of: &str, from: Time, until: Time) -> Option<BTreeSet<u64>> {
        if let Some(source) = self.copied.get(of) {
            return self.kept(source);
        }
        if let Some(taken) = self.taken.get(of) {
            return self.taken_of(of, taken);
        }
        let writes = self.writes.get(of).map_or(&[][..], Vec::as_slice);
        // Each is there until the next one has ended.
        let ends = writes.iter().skip(1).map(|(_, next)| next.ended).chain([NEVER]);
        let there = writes.iter().zip(ends).filter(|((_, event), ended)| event.begun <= until && *ended >= from);
        let mut possible: BTreeSet<u64> = there.map(|((token, _), _)| *token).collect();
        if writes.first().is_none_or(|(_, first)| first.ended >= from) {
            possible.extend(self.first(of)?);
        }
        Some(possible)
    }

    /// What a volume may have held before it was written to. Of one nobody knows the making of, its call being lost, only the
    /// writes are known.
    fn first(&self, volume: &str) -> Option<BTreeSet<u64>> {
        match (self.made.get(volume), self.cloned.get(volume)) {
            (Some(None), _) => Some([0].into()),
            (Some(Some(snapshot)), _) => self.kept(snapshot),
            (None, Some(cloned)) => self.taken_of(volume, cloned),
            (None, None) => None,
        }
    }

    /// What a snapshot was seen to hold, or else may hold.
    fn kept(&self, snapshot: &str) -> Option<BTreeSet<u64>> {
        let seen = self.held.get(snapshot).map(|held| [*held].into());
        let unknown = || !self.copied.contains_key(snapshot) && !self.taken.contains_key(snapshot);
        seen.or_else(|| if unknown() { None } else { self.possible(snapshot, 0, NEVER) })
    }

    /// What may have been taken of a volume.
    fn taken_of(&self, snapshot: &str, Taken { volume, begun, answer }: &Taken<'_>) -> Option<BTreeSet<u64>> {
        let in_time = answer.ended - answer.begun < MAY_BE_LATE;
        let late = || self.completed.get(snapshot).copied().unwrap_or(NEVER);
        self.possible(volume, *begun, if in_time { answer.ended } else { late() })
    }

    /// A volume or a snapshot, what it was made of, and so on.
    fn lineage<'b>(&'b self, of: &'b str) -> Vec<&'b str> {
        let parent = |of: &str| {
            let taken = self.taken.get(of).or_else(|| self.cloned.get(of)).map(|taken| taken.volume);
            self.copied.get(of).copied().or(taken).or(self.made.get(of).copied().flatten())
        };
        std::iter::successors(Some(of), |of| parent(of)).collect()
    }
}

#[cfg(test)]
mod tests {
    use vbs::state::VolumeState;

    use super::super::histories::{called, event, lost, made, made_of, seen_snapshot};
    use super::*;

    fn wrote(begun: Time, token: u64) -> Event {
        event(begun, begun + 1, What::Wrote { volume: "vol-1".into(), token })
    }

    fn held(begun: Time, of: &str, token: Option<u64>) -> Event {
        event(begun, begun + 1, What::Held { of: of.into(), token })
    }

    fn taken(begun: Time, ended: Time) -> Event {
        let action = Action::CreateSnapshot { volume: "vol-1".into() };
        called(begun, ended, action, Outcome::Snapshot("snap-1".into()))
    }

    fn with(events: &[Event]) -> Vec<Event> {
        [&[made(0, 1, "t", "vol-1"), wrote(10, 1), wrote(20, 2), wrote(30, 3)], events].concat()
    }

    #[test]
    fn a_snapshot_holds_what_the_volume_held_between_call_and_answer() {
        for (from, until, possible) in [(12, 19, &[1][..]), (12, 25, &[1, 2]), (20, 29, &[1, 2]), (2, 9, &[0])] {
            for token in 0..4 {
                let found = check(&with(&[taken(from, until), held(90, "snap-1", Some(token))]));
                assert_eq!(found.is_empty(), possible.contains(&token), "{token} from {from} to {until}");
            }
        }
        assert_eq!(check(&with(&[taken(12, 19), held(90, "snap-1", None)])).len(), 1, "torn");
    }

    #[test]
    fn one_that_is_answered_late_may_be_of_any_instant_until_it_is_completed() {
        let late = 20_000_000;
        let completed = seen_snapshot(late + 10, late + 20, "snap-1", SnapshotState::Completed, 100);
        let history = |at, token| {
            with(&[taken(12, late), wrote(at, 4), completed.clone(), held(late + 90, "snap-1", Some(token))])
        };
        assert_eq!(check(&history(late + 1, 4)), []);
        assert_eq!(check(&history(late + 40, 4)).len(), 1);
    }

    #[test]
    fn a_restored_volume_holds_what_its_snapshot_does() {
        let restored = |token| {
            let history = [taken(12, 19), held(50, "snap-1", Some(1)), made_of(60, 61, "u", "vol-2", Some("snap-1"))];
            with(&[&history[..], &[held(90, "vol-2", Some(token))]].concat())
        };
        assert_eq!(check(&restored(1)), []);
        assert_eq!(check(&restored(2)).len(), 1);
    }

    #[test]
    fn what_was_made_of_a_snapshot_that_nobody_looked_at_holds_what_that_may_hold() {
        let copy = called(40, 41, Action::CopySnapshot { source: "snap-1".into() }, Outcome::Snapshot("snap-2".into()));
        let again =
            called(70, 71, Action::CreateSnapshot { volume: "vol-2".into() }, Outcome::Snapshot("snap-3".into()));
        for of in ["snap-1", "snap-2"] {
            let restored = made_of(60, 61, "u", "vol-2", Some(of));
            let history = [taken(12, 25), copy.clone(), restored, again.clone()];
            for look in ["vol-2", "snap-3"] {
                let found = |token| check(&with(&[&history[..], &[held(90, look, Some(token))]].concat())).len();
                assert_eq!([0, 1, 2, 3].map(found), [1, 0, 0, 1], "{look} of {of}");
            }
        }
        let unknown = [made_of(60, 61, "u", "vol-2", Some("snap-9")), held(90, "vol-2", Some(3))];
        assert_eq!(check(&with(&unknown)), [], "nobody knows what it was taken of");
    }

    #[test]
    fn a_copy_holds_what_its_source_does_and_so_does_the_copy_of_a_copy() {
        let copied = |source: &str, copy: &str| {
            called(20, 21, Action::CopySnapshot { source: source.into() }, Outcome::Snapshot(copy.into()))
        };
        let both = [taken(12, 19), copied("snap-1", "snap-2"), copied("snap-2", "snap-3")];
        for source in [None, Some(held(50, "snap-1", Some(1)))] {
            for of in ["snap-2", "snap-3"] {
                let history = |token| {
                    let seen = [&both[..], source.as_slice(), &[held(90, of, token)]].concat();
                    check(&with(&seen)).len()
                };
                assert_eq!([history(Some(1)), history(Some(2)), history(None)], [0, 1, 1], "{of} {source:?}");
            }
        }
        let unknown = [copied("snap-9", "snap-2"), held(90, "snap-2", Some(2))];
        assert_eq!(check(&with(&unknown)), []);
    }

    #[test]
    fn a_copy_of_a_volume_holds_what_that_held_between_call_and_answer_until_it_is_written_to() {
        let action = Action::CopyVolume { token: "u".into(), source: "vol-1".into() };
        let copied = called(12, 25, action, Outcome::Volume("vol-2".into(), VolumeState::Creating));
        let own = event(100, 101, What::Wrote { volume: "vol-2".into(), token: 9 });
        let found =
            |begun, token| check(&with(&[copied.clone(), own.clone(), held(begun, "vol-2", Some(token))])).len();
        assert_eq!([0, 1, 2, 3].map(|token| found(90, token)), [1, 0, 0, 1]);
        assert_eq!([1, 9].map(|token| found(110, token)), [1, 0], "it was written to since");
        let action = Action::CopyVolume { token: "u".into(), source: "vol-1".into() };
        let history = [lost(5, action), copied, held(90, "vol-2", Some(0))];
        assert_eq!(check(&with(&history)), [], "it may have been copied when it was asked for first");
    }

    #[test]
    fn a_volume_holds_what_was_written_last() {
        assert_eq!(check(&with(&[held(40, "vol-1", Some(3))])), []);
        assert_eq!(check(&with(&[held(30, "vol-1", Some(2))])), [], "at the same time");
        assert_eq!(check(&with(&[held(40, "vol-1", Some(2))])).len(), 1);
        assert_eq!(check(&[held(40, "vol-9", Some(2))]), [], "nobody knows what it was made of");
    }
}
