//! One client token gives one volume, but for a volume that could not be made: that gives its token back.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::Violation;
use crate::record::{Action, Event, Outcome, What};

pub fn explains(event: &Event, of: &Violation) -> bool {
    matches!(event.what, What::CouldNotBeMade { .. }) && of.concerns(event)
}

pub fn check(events: &[Event]) -> Vec<Violation> {
    let mut volumes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut failed: BTreeSet<&str> = BTreeSet::new();
    for event in events {
        match &event.what {
            What::Called(
                Action::CreateVolume { token, .. } | Action::CopyVolume { token, .. },
                Outcome::Volume(volume, _),
            ) => {
                volumes.entry(token).or_default().insert(volume);
            }
            What::CouldNotBeMade { volume } => {
                failed.insert(volume);
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (token, volumes) in volumes {
        let whole: Vec<&str> = volumes.into_iter().filter(|volume| !failed.contains(volume)).collect();
        if whole.len() > 1 {
            let about = [&[token][..], &whole].concat();
            found.push(Violation::new(&about, format!("the token {token} gave {}", whole.join(" and "))));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::histories::{event, made};
    use super::*;

    #[test]
    fn a_token_gives_a_second_volume_only_when_the_first_could_not_be_made() {
        let two = vec![made(0, 1, "t", "vol-1"), made(0, 3, "t", "vol-2"), made(0, 3, "other", "vol-3")];
        assert_eq!(check(&two).len(), 1);
        let failed = event(9, 9, What::CouldNotBeMade { volume: "vol-1".into() });
        assert_eq!(check(&[two, vec![failed]].concat()), []);
        assert_eq!(check(&[made(0, 1, "t", "vol-1"), made(5, 6, "t", "vol-1")]), []);
    }
}
