//! A snapshot or a copy of a volume holds what the volume held at one instant while it was taken, a copy of a snapshot and a volume
//! made of it what the snapshot holds, and a volume at each time what was written last.
//!
//! CreateSnapshot and CopyVolumes promise that what is written after its answer is not in it, when they answer within ten seconds; one that
//! takes longer may be of any instant until it is completed.

use std::collections::BTreeMap;

use vbs::state::SnapshotState;

use crate::checker::Violation;
use crate::record::{Action, Event, NEVER, Outcome, Time, What};

/// From this on CreateSnapshot may have answered before the snapshot was taken, in microseconds; some less than ten seconds, since
/// the ten count from when the call arrived.
const MAY_BE_LATE: Time = 9_500_000;

/// The write that is read: without any other more would be possible, not less.
pub fn explains(event: &Event, of: &Violation) -> bool {
    matches!(&event.what, What::Wrote { token, .. } if of.about.contains(&written(*token)))
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
        if let Some(source) = story.copied.get(of) {
            return story.refuse_copy(of, source, token);
        }
        if let Some(taken) = story.taken.get(of) {
            let until = story.taken_by(of, taken);
            return story.refuse((taken.volume, of), token, taken.event.begun, until);
        }
        let first = story.cloned.get(of).filter(|_| !story.wrote(of, token));
        let refused = first.and_then(|cloned| {
            story.refuse((cloned.volume, of), token, cloned.event.begun, story.taken_by(of, cloned))
        });
        refused.or_else(|| story.refuse((of, of), token, event.begun, event.ended))
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
    taken: BTreeMap<&'a str, Taken<'a>>,
    /// What each volume is a copy of.
    cloned: BTreeMap<&'a str, Taken<'a>>,
    /// What each snapshot is a copy of.
    copied: BTreeMap<&'a str, &'a str>,
    completed: BTreeMap<&'a str, Time>,
    /// What snapshots hold.
    held: BTreeMap<&'a str, u64>,
}

struct Taken<'a> {
    volume: &'a str,
    event: &'a Event,
}

impl<'a> Story<'a> {
    fn of(events: &'a [Event]) -> Self {
        let mut story = Self::default();
        for event in events {
            match &event.what {
                What::Wrote { volume, token } => story.writes.entry(volume).or_default().push((*token, event)),
                What::Held { of, token: Some(token) } => drop(story.held.insert(of, *token)),
                What::Called(Action::CreateVolume { snapshot, .. }, Outcome::Volume(volume, _)) => {
                    story.made.insert(volume, snapshot.as_deref());
                }
                What::Called(Action::CreateSnapshot { volume }, Outcome::Snapshot(snapshot)) => {
                    story.taken.insert(snapshot, Taken { volume, event });
                }
                What::Called(Action::CopyVolume { source, .. }, Outcome::Volume(volume, _)) => {
                    story.cloned.entry(volume).or_insert(Taken { volume: source, event });
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

    /// Whether it was written to the volume itself.
    fn wrote(&self, volume: &str, token: Option<u64>) -> bool {
        let writes = self.writes.get(volume).map_or(&[][..], Vec::as_slice);
        writes.iter().any(|(written, _)| Some(*written) == token)
    }

    /// Why a copy cannot hold this: it is not what its source was seen to hold, or what that may hold.
    fn refuse_copy(&self, of: &str, source: &str, token: Option<u64>) -> Option<Violation> {
        let about =
            |violation: Violation| Violation { about: [vec![of.to_owned()], violation.about].concat(), ..violation };
        match (self.held.get(source), self.taken.get(source), self.copied.get(source)) {
            (Some(held), _, _) if token == Some(*held) => None,
            (Some(held), _, _) => {
                let why = format!("{of} holds {token:?}, but {source}, which it is a copy of, {held}");
                Some(Violation::new(&[of, source], why))
            }
            (None, Some(cut), _) => {
                let until = self.taken_by(source, cut);
                self.refuse((cut.volume, source), token, cut.event.begun, until).map(about)
            }
            (None, None, Some(further)) => self.refuse_copy(source, further, token).map(about),
            (None, None, None) => None,
        }
    }

    /// Until when it was taken.
    fn taken_by(&self, snapshot: &str, taken: &Taken<'_>) -> Time {
        if taken.event.ended - taken.event.begun < MAY_BE_LATE {
            return taken.event.ended;
        }
        self.completed.get(snapshot).copied().unwrap_or(NEVER)
    }

    /// Why a volume cannot have held this at any time between the two.
    fn refuse(&self, (volume, of): (&str, &str), token: Option<u64>, from: Time, until: Time) -> Option<Violation> {
        let Some(token) = token else {
            let why = format!("{of} is of no one instant of {volume}");
            return Some(Violation::new(&[of, volume], why));
        };
        // Of a volume nobody knows the making of, its call being lost, only the writes are known.
        let first = match self.made.get(volume) {
            Some(None) => Some(0),
            Some(Some(snapshot)) => self.held.get(snapshot).copied(),
            None => None,
        };
        let writes = self.writes.get(volume).map_or(&[][..], Vec::as_slice);
        let ends = writes.iter().map(|(_, event)| event.ended).chain([NEVER]);
        let begins = [0].into_iter().chain(writes.iter().map(|(_, event)| event.begun));
        let tokens = [first].into_iter().chain(writes.iter().map(|(token, _)| Some(*token)));
        let mut possible = tokens.zip(begins.zip(ends)).filter(|(_, (begun, ended))| *begun <= until && *ended >= from);
        if possible.clone().any(|(held, _)| held.is_none_or(|held| held == token)) {
            return None;
        }
        let read = written(token);
        let mut about = vec![of, volume];
        about.dedup();
        about.extend(self.made.get(volume).copied().flatten());
        about.push(&read);
        let possible: Vec<u64> = possible.by_ref().filter_map(|(held, _)| held).collect();
        Some(Violation::new(&about, format!("{of} holds {token}, but {volume} held one of {possible:?} then")))
    }
}

#[cfg(test)]
mod tests {
    use vbs::state::VolumeState;

    use super::super::histories::{called, event, made, made_of, seen_snapshot};
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
    }

    #[test]
    fn a_volume_holds_what_was_written_last() {
        assert_eq!(check(&with(&[held(40, "vol-1", Some(3))])), []);
        assert_eq!(check(&with(&[held(30, "vol-1", Some(2))])), [], "at the same time");
        assert_eq!(check(&with(&[held(40, "vol-1", Some(2))])).len(), 1);
        assert_eq!(check(&[held(40, "vol-9", Some(2))]), [], "nobody knows what it was made of");
    }
}
