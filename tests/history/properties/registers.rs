//! What is set and taken away again, and read: a tag of a volume, a permission of a snapshot. A read shows what was set last; what
//! was acknowledged is neither lost nor does it come back after something else was acknowledged.

use std::collections::BTreeMap;

use vbs::state::VolumeState;

use super::sightings::is_alive;
use crate::checker::Violation;
use crate::record::{Action, Event, Outcome, What};

/// Whatever sets or takes away could explain what was read.
pub fn explains(event: &Event, of: &Violation) -> bool {
    let call = event.call().map(|(action, _)| action);
    let sets = matches!(call, Some(Action::Tag { .. } | Action::Share { .. } | Action::DeleteSnapshot { .. }));
    sets && of.concerns(event)
}

/// All that was done to one of them, and read of it.
#[derive(Default)]
struct Register<'a> {
    sets: Vec<Set<'a>>,
    reads: Vec<(&'a Event, Option<&'a str>)>,
}

struct Set<'a> {
    event: &'a Event,
    /// None when it is taken away.
    value: Option<&'a str>,
    /// Whether it was done when the answer came.
    done: bool,
}

impl<'a> Register<'a> {
    fn add(&mut self, event: &'a Event, value: Option<&'a str>, outcome: &Outcome) {
        match outcome {
            Outcome::Refused(_) => {}
            outcome => self.sets.push(Set { event, value, done: *outcome == Outcome::Done }),
        }
    }

    /// The first read that nothing explains.
    fn wrong(&self) -> Option<(&'a Event, Option<&'a str>)> {
        self.reads.iter().copied().find(|(read, value)| {
            let replaced = |since: Option<&Event>| {
                self.sets.iter().any(|other| {
                    let after = since.is_none_or(|since| since.is_before(other.event));
                    other.done && other.value != *value && after && other.event.is_before(read)
                })
            };
            let explained = self
                .sets
                .iter()
                .any(|set| set.value == *value && set.event.begun <= read.ended && !replaced(Some(set.event)));
            let never_set = value.is_none() && !replaced(None);
            !explained && !never_set
        })
    }
}

pub fn check_tags(events: &[Event]) -> Vec<Violation> {
    let mut tags: BTreeMap<(&str, &str), Register<'_>> = BTreeMap::new();
    for event in events {
        if let What::Called(Action::Tag { volume, key, value }, outcome) = &event.what {
            tags.entry((volume, key)).or_default().add(event, value.as_deref(), outcome);
        }
    }
    let mut found = Vec::new();
    for event in events {
        let What::Called(Action::DescribeVolume { volume }, Outcome::SeenVolume(seen)) = &event.what else { continue };
        // With a volume its tags go.
        if !is_alive(seen.state) {
            continue;
        }
        for key in seen.tags.keys().filter(|key| !tags.contains_key(&(&**volume, &***key))) {
            found.push(Violation::new(&[volume], format!("{volume} has a tag {key} that nobody gave it")));
        }
        for ((_, key), tag) in tags.range_mut((&**volume, "")..).take_while(|((of, _), _)| of == volume) {
            tag.reads.push((event, seen.tags.get(*key).map(String::as_str)));
        }
    }
    let wrong = tags.iter().filter_map(|((volume, key), tag)| {
        let (_, value) = tag.wrong()?;
        Some(Violation::new(&[volume], format!("the tag {key} of {volume} is {value:?}, which it cannot have been")))
    });
    found.extend(wrong);
    found
}

/// What is shown of a snapshot to those it is shared with.
const SHOWN: &str = "shown";

pub fn check_shares(events: &[Event]) -> Vec<Violation> {
    let mut shares: BTreeMap<&str, Register<'_>> = BTreeMap::new();
    for event in events {
        match &event.what {
            What::Called(Action::Share { snapshot, with }, outcome) => {
                shares.entry(snapshot).or_default().add(event, with.then_some(SHOWN), outcome);
            }
            // It goes some time after that.
            What::Called(Action::DeleteSnapshot { snapshot }, Outcome::Done | Outcome::Unknown(_)) => {
                let gone = Set { event, value: None, done: false };
                shares.entry(snapshot).or_default().sets.push(gone);
            }
            What::Called(Action::DescribeShared { snapshot }, outcome) => {
                let shown = match outcome {
                    Outcome::SeenSnapshot(..) => Some(SHOWN),
                    Outcome::Refused(code) if code == "InvalidSnapshot.NotFound" => None,
                    _ => continue,
                };
                shares.entry(snapshot).or_default().reads.push((event, shown));
            }
            _ => {}
        }
    }
    let wrong = shares.iter().filter_map(|(snapshot, share)| {
        let (_, shown) = share.wrong()?;
        let is = if shown.is_some() {
            "is shown to an account that it is not shared with"
        } else {
            "is not shown to one that it is"
        };
        Some(Violation::new(&[snapshot], format!("{snapshot} {is}")))
    });
    wrong.collect()
}

#[cfg(test)]
mod tests {
    use vbs::state::SnapshotState;

    use super::super::histories::{called, lost, seen_as, shown};
    use super::*;
    use crate::record::SeenVolume;

    fn tag(value: Option<&str>) -> Action {
        Action::Tag { volume: "vol-1".into(), key: "a".into(), value: value.map(str::to_owned) }
    }

    fn set(begun: u64, value: Option<&str>) -> Event {
        called(begun, begun + 1, tag(value), Outcome::Done)
    }

    fn read(begun: u64, value: Option<&str>) -> Event {
        let tags = value.map(|value| ("a".to_owned(), value.to_owned())).into_iter().collect();
        seen_as(begun, begun + 1, "vol-1", SeenVolume { tags, ..shown(VolumeState::Available) })
    }

    #[test]
    fn a_tag_that_was_acknowledged_is_not_lost_and_one_that_was_replaced_does_not_come_back() {
        for bad in [
            vec![set(0, Some("x")), read(2, None)],
            vec![set(0, Some("x")), set(2, None), read(4, Some("x"))],
            vec![set(0, Some("x")), set(2, Some("y")), read(4, Some("x"))],
            vec![set(0, Some("x")), read(2, Some("z"))],
            vec![read(2, Some("z"))],
            vec![set(4, Some("x")), read(0, Some("x"))],
        ] {
            assert_eq!(check_tags(&bad).len(), 1, "{bad:?}");
        }
        for good in [
            vec![read(0, None), set(2, Some("x")), read(4, Some("x"))],
            vec![set(0, Some("x")), set(2, None), read(4, None), set(6, Some("y")), read(8, Some("y"))],
            vec![set(0, Some("x")), lost(2, tag(None)), read(4, None), read(6, Some("x"))],
            vec![lost(0, tag(Some("x"))), set(2, None), read(4, Some("x"))],
            vec![set(0, Some("x")), set(1, Some("y")), read(4, Some("x"))],
            vec![set(0, Some("x")), read(1, None)],
            vec![called(0, 1, tag(Some("x")), Outcome::Refused("InvalidVolume.NotFound".into())), read(4, None)],
        ] {
            assert_eq!(check_tags(&good), [], "{good:?}");
        }
    }

    #[test]
    fn another_account_sees_a_snapshot_from_when_it_is_shared_until_it_is_not() {
        let share =
            |begun, with| called(begun, begun + 1, Action::Share { snapshot: "snap-1".into(), with }, Outcome::Done);
        let look =
            |begun, outcome| called(begun, begun + 1, Action::DescribeShared { snapshot: "snap-1".into() }, outcome);
        let seen = || Outcome::SeenSnapshot(SnapshotState::Completed, 100);
        let hidden = || Outcome::Refused("InvalidSnapshot.NotFound".into());
        for bad in [
            vec![look(0, seen())],
            vec![share(0, true), look(2, hidden())],
            vec![share(0, true), share(2, false), look(4, seen())],
        ] {
            assert_eq!(check_shares(&bad).len(), 1, "{bad:?}");
        }
        let deleted = called(2, 3, Action::DeleteSnapshot { snapshot: "snap-1".into() }, Outcome::Done);
        for good in [
            vec![look(0, hidden()), share(2, true), look(4, seen()), share(6, false), look(8, hidden())],
            vec![share(0, true), look(1, hidden())],
            vec![share(0, true), deleted.clone(), look(4, hidden())],
            vec![share(0, true), deleted, look(4, seen())],
        ] {
            assert_eq!(check_shares(&good), [], "{good:?}");
        }
    }
}
