//! Hand-made events, for the histories that the properties are tried on.

use std::collections::BTreeMap;

use vbs::state::{AttachmentState, SnapshotState, VolumeState};

use crate::record::{Action, Effect, Event, NEVER, Outcome, SeenVolume, Time, What};

pub fn event(begun: Time, ended: Time, what: What) -> Event {
    Event { begun, ended, who: "somebody".into(), what }
}

pub fn called(begun: Time, ended: Time, action: Action, outcome: Outcome) -> Event {
    event(begun, ended, What::Called(action, outcome))
}

/// A call whose answer was lost.
pub fn lost(begun: Time, action: Action) -> Event {
    called(begun, NEVER, action, Outcome::Unknown("lost".into()))
}

pub fn made(begun: Time, ended: Time, token: &str, volume: &str) -> Event {
    made_of(begun, ended, token, volume, None)
}

pub fn made_of(begun: Time, ended: Time, token: &str, volume: &str, snapshot: Option<&str>) -> Event {
    let action =
        Action::CreateVolume { token: token.into(), snapshot: snapshot.map(str::to_owned), multi_attach: false };
    called(begun, ended, action, Outcome::Volume(volume.into(), VolumeState::Creating))
}

pub fn seen(begun: Time, ended: Time, volume: &str, state: VolumeState) -> Event {
    seen_with(begun, ended, volume, state, &[])
}

pub fn seen_with(
    begun: Time,
    ended: Time,
    volume: &str,
    state: VolumeState,
    attachments: &[(&str, AttachmentState)],
) -> Event {
    let attachments = attachments.iter().map(|(instance, state)| ((*instance).to_owned(), *state)).collect();
    seen_as(begun, ended, volume, SeenVolume { attachments, ..shown(state) })
}

pub fn shown(state: VolumeState) -> SeenVolume {
    SeenVolume { state, gib: 4, multi_attach: false, tags: BTreeMap::new(), attachments: Vec::new() }
}

pub fn seen_as(begun: Time, ended: Time, volume: &str, seen: SeenVolume) -> Event {
    called(begun, ended, Action::DescribeVolume { volume: volume.into() }, Outcome::SeenVolume(seen))
}

pub fn not_found(begun: Time, ended: Time, volume: &str) -> Event {
    let refused = Outcome::Refused("InvalidVolume.NotFound".into());
    called(begun, ended, Action::DescribeVolume { volume: volume.into() }, refused)
}

pub fn seen_snapshot(begun: Time, ended: Time, snapshot: &str, state: SnapshotState, progress: u8) -> Event {
    let action = Action::DescribeSnapshot { snapshot: snapshot.into() };
    called(begun, ended, action, Outcome::SeenSnapshot(state, progress))
}

pub fn attach(volume: &str, instance: &str) -> Action {
    Action::AttachVolume { volume: volume.into(), instance: instance.into() }
}

pub fn detach(volume: &str, instance: &str) -> Action {
    Action::DetachVolume { volume: volume.into(), instance: instance.into() }
}

pub fn delete(volume: &str) -> Action {
    Action::DeleteVolume { volume: volume.into() }
}

pub fn did(begun: Time, ended: Time, verb: &'static str, resource: &str, generation: i64) -> Event {
    let effect = Effect { verb, resource: resource.into(), machine: None, generation, succeeded: true };
    event(begun, ended, What::Did(effect))
}

pub fn did_in(begun: Time, ended: Time, verb: &'static str, volume: &str, machine: &str) -> Event {
    let effect =
        Effect { verb, resource: volume.into(), machine: Some(machine.into()), generation: 1, succeeded: true };
    event(begun, ended, What::Did(effect))
}
