//! What happened in a run, as it was seen from outside: every call with its answer, every write of a guest, every effect on a node.
//!
//! All of it is seen by one process, on one clock, so that "before" means before: an event has an effect, if any, at one instant
//! between its beginning and its end. A call whose answer was lost may have one at any time after its beginning, or never.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use vbs::state::{AttachmentState, SnapshotState, VolumeState};

/// Microseconds since the run began.
pub type Time = u64;

/// The end of what has not been seen to end.
pub const NEVER: Time = u64::MAX;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub begun: Time,
    pub ended: Time,
    /// The client, gateway or node that did it.
    pub who: String,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A call to a gateway: one try of what an SDK may try several times.
    Called(Action, Outcome),
    /// A guest's write: from then on this is the volume's content.
    Wrote { volume: String, token: u64 },
    /// A look at what a volume or a snapshot holds on its node; none when that is of no one instant.
    Held { of: String, token: Option<u64> },
    /// A delegate did something, or tried to.
    Did(Effect),
    /// A gateway asked a node for something under this generation.
    Asked { generation: i64 },
    /// A look at how large a volume is on its node.
    Sized { volume: String, gib: u64 },
    /// The database says that the volume could not be made.
    CouldNotBeMade { volume: String },
    /// The database says that a modification of the volume was turned back.
    CouldNotGrow { volume: String },
    /// Nothing is being worked on, and everything is well: what was acknowledged has come about.
    Settled,
    /// What was done to make it hard.
    Disturbed(String),
}

/// A `Tag` without a value is taken away. A snapshot is shared with the other account, which describes what is shared. A list is of
/// all volumes, page by page.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    CreateVolume { token: String, snapshot: Option<String>, multi_attach: bool },
    DeleteVolume { volume: String },
    AttachVolume { volume: String, instance: String },
    DetachVolume { volume: String, instance: String },
    CreateSnapshot { volume: String },
    DeleteSnapshot { snapshot: String },
    DescribeVolume { volume: String },
    DescribeSnapshot { snapshot: String },
    CopyVolume { token: String, source: String },
    ModifyVolume { volume: String, gib: u64 },
    Tag { volume: String, key: String, value: Option<String> },
    CopySnapshot { source: String },
    Share { snapshot: String, with: bool },
    DescribeShared { snapshot: String },
    ListVolumes,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Made, with the id and the state that the answer shows.
    Volume(String, VolumeState),
    Snapshot(String),
    Done,
    SeenVolume(SeenVolume),
    SeenSnapshot(SnapshotState, u8),
    /// The ids of all pages.
    Listed(BTreeSet<String>),
    /// Refused with this code: nothing was done.
    Refused(String),
    /// Nobody knows whether it was done, or will be.
    Unknown(String),
}

/// A volume as a describe shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenVolume {
    pub state: VolumeState,
    pub gib: u64,
    pub multi_attach: bool,
    pub tags: BTreeMap<String, String>,
    /// Instances and the states of their attachments.
    pub attachments: Vec<(String, AttachmentState)>,
}

/// What a delegate did under a lease.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    pub verb: &'static str,
    /// The volume or snapshot whose generations are fenced.
    pub resource: String,
    pub machine: Option<String>,
    pub generation: i64,
    /// Whether it said that all was done; else part of it may be.
    pub succeeded: bool,
}

impl Event {
    /// Whether this was over when the other began.
    pub fn is_before(&self, other: &Event) -> bool {
        self.ended < other.begun
    }

    /// Whether this may have had its effect before the other had, and after `since`.
    pub fn may_come_between(&self, since: &Event, other: &Event) -> bool {
        self.ended >= since.begun && self.begun <= other.ended
    }

    /// The call, unless it was refused.
    pub fn call(&self) -> Option<(&Action, &Outcome)> {
        match &self.what {
            What::Called(_, Outcome::Refused(_)) => None,
            What::Called(action, outcome) => Some((action, outcome)),
            _ => None,
        }
    }

    /// Whether the event is about a resource, a token or a generation of this name.
    pub fn is_about(&self, name: &str) -> bool {
        let same = |text: &String| text == name;
        match &self.what {
            What::Called(action, outcome) => {
                let made = match outcome {
                    Outcome::Volume(id, _) | Outcome::Snapshot(id) => id == name,
                    _ => false,
                };
                made || match action {
                    Action::CreateVolume { token, snapshot, .. } => same(token) || snapshot.as_ref().is_some_and(same),
                    Action::CopyVolume { token, source } => same(token) || same(source),
                    Action::DeleteVolume { volume }
                    | Action::AttachVolume { volume, .. }
                    | Action::DetachVolume { volume, .. }
                    | Action::CreateSnapshot { volume }
                    | Action::DescribeVolume { volume }
                    | Action::ModifyVolume { volume, .. }
                    | Action::Tag { volume, .. } => same(volume),
                    Action::DeleteSnapshot { snapshot }
                    | Action::DescribeSnapshot { snapshot }
                    | Action::CopySnapshot { source: snapshot }
                    | Action::Share { snapshot, .. }
                    | Action::DescribeShared { snapshot } => same(snapshot),
                    // What it does not show counts as much as what it does.
                    Action::ListVolumes => true,
                }
            }
            What::Wrote { volume, .. }
            | What::Sized { volume, .. }
            | What::CouldNotBeMade { volume }
            | What::CouldNotGrow { volume } => same(volume),
            What::Settled => true,
            What::Held { of, .. } => same(of),
            What::Did(effect) => same(&effect.resource) || effect.generation.to_string() == name,
            What::Asked { generation } => generation.to_string() == name,
            What::Disturbed(_) => false,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Time| format!("{}.{:06}", time / 1_000_000, time % 1_000_000);
        let ended = if self.ended == NEVER { "?".to_owned() } else { seconds(self.ended) };
        write!(f, "{:>11} - {ended:>11}  {:<24} {:?}", seconds(self.begun), self.who, self.what)
    }
}

/// Where everybody writes down what they do.
pub struct Record {
    start: Instant,
    events: Mutex<Vec<Event>>,
}

impl Record {
    pub fn new() -> Self {
        Self { start: Instant::now(), events: Mutex::default() }
    }

    /// The time.
    pub fn now(&self) -> Time {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(NEVER)
    }

    /// Writes down what began at a time and has ended now.
    pub fn add(&self, begun: Time, who: impl Into<String>, what: What) {
        let unknown = matches!(what, What::Called(_, Outcome::Unknown(_)));
        let ended = if unknown { NEVER } else { self.now() };
        let event = Event { begun, ended, who: who.into(), what };
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// All of it, in the order of the beginnings.
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        events.sort_by_key(|event| (event.begun, event.ended));
        events
    }
}
