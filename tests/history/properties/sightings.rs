//! In which state who saw a volume when. What a call could only be answered in one state is a sighting too.

use std::collections::BTreeMap;

use vbs::state::VolumeState;

use crate::record::{Action, Event, Outcome, What};

/// A volume as somebody saw it.
#[derive(Clone, Copy)]
pub struct Sighting<'a> {
    pub event: &'a Event,
    pub state: VolumeState,
}

/// All sightings of each volume, in the order of their beginnings. One that is not there is seen as deleted.
pub fn of_volumes(events: &[Event]) -> BTreeMap<&str, Vec<Sighting<'_>>> {
    let mut seen: BTreeMap<&str, Vec<Sighting<'_>>> = BTreeMap::new();
    for event in events {
        let What::Called(action, outcome) = &event.what else { continue };
        let sighting = match (action, outcome) {
            (Action::CreateVolume { .. } | Action::CopyVolume { .. }, Outcome::Volume(volume, state)) => {
                Some((volume, *state))
            }
            (Action::DescribeVolume { volume }, Outcome::SeenVolume(seen)) => Some((volume, seen.state)),
            (Action::DescribeVolume { volume }, Outcome::Refused(code)) if code == "InvalidVolume.NotFound" => {
                Some((volume, VolumeState::Deleted))
            }
            (Action::AttachVolume { volume, .. } | Action::DetachVolume { volume, .. }, Outcome::Done) => {
                Some((volume, VolumeState::InUse))
            }
            (Action::DeleteVolume { volume }, Outcome::Done) => Some((volume, VolumeState::Deleting)),
            _ => None,
        };
        if let Some((volume, state)) = sighting {
            seen.entry(volume).or_default().push(Sighting { event, state });
        }
    }
    for sightings in seen.values_mut() {
        sightings.sort_by_key(|sighting| sighting.event.begun);
    }
    seen
}

/// Whether it is there, or being made.
pub fn is_alive(state: VolumeState) -> bool {
    !matches!(state, VolumeState::Deleting | VolumeState::Deleted)
}

/// Finds two of which the first was over before the second began.
pub fn find_pair<T>(all: &[T], event: impl Fn(&T) -> &Event, wrong: impl Fn(&T, &T) -> bool) -> Option<(&T, &T)> {
    all.iter().find_map(|later| {
        let earlier = |earlier: &&T| event(earlier).is_before(event(later)) && wrong(earlier, later);
        all.iter().find(earlier).map(|earlier| (earlier, later))
    })
}
