//! One node that does not answer must not hold up what is to be done on the others.
//!
//! A call to such a node lasts until its time-out, for hours where volumes are copied, and every workflow that needs the node ends
//! up in one. So the places that a gateway has for workflows are not shared by all: each lane, which is the nodes that a workflow
//! needs, has places of its own. What waits for a dead node takes those of its own lanes, and no others. A workflow in a step holds
//! no connection to the database, only a little memory.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinSet};

/// The workflows that run, by lane.
pub(super) struct Lanes {
    /// Places of each lane.
    most: usize,
    running: JoinSet<()>,
    lane_of: HashMap<Id, String>,
    taken: HashMap<String, usize>,
}

impl Lanes {
    /// Nothing runs, and each lane has so many places.
    pub(super) fn new(most: usize) -> Self {
        Self { most, running: JoinSet::new(), lane_of: HashMap::new(), taken: HashMap::new() }
    }

    /// The free places of each lane in which something runs. The others have all of theirs.
    pub(super) fn room(&self) -> Vec<(&str, usize)> {
        self.taken.iter().map(|(lane, taken)| (lane.as_str(), self.most.saturating_sub(*taken))).collect()
    }

    /// Runs a workflow; tells whether it got the last place of its lane.
    pub(super) fn spawn(&mut self, lane: String, workflow: impl Future<Output = ()> + Send + 'static) -> bool {
        let id = self.running.spawn(workflow).id();
        let taken = self.taken.entry(lane.clone()).or_default();
        *taken += 1;
        self.lane_of.insert(id, lane);
        *taken >= self.most
    }

    /// Takes note of all that have ended.
    pub(super) fn tidy(&mut self) {
        while let Some(ended) = self.running.try_join_next_with_id() {
            self.note(ended.map_or_else(|panicked| panicked.id(), |(id, ())| id));
        }
    }

    /// Waits until one ends; `None` when nothing runs.
    pub(super) async fn ended(&mut self) -> Option<()> {
        let ended = self.running.join_next_with_id().await?;
        self.note(ended.map_or_else(|panicked| panicked.id(), |(id, ())| id));
        Some(())
    }

    fn note(&mut self, ended: Id) {
        let Some(lane) = self.lane_of.remove(&ended) else { return };
        if let Some(taken) = self.taken.get_mut(&lane) {
            *taken -= 1;
            if *taken == 0 {
                self.taken.remove(&lane);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lane_has_its_own_places_and_gets_them_back_whatever_ended_what_ran() {
        let mut lanes = Lanes::new(2);
        assert!(!lanes.spawn("dead".into(), std::future::pending()));
        assert!(lanes.spawn("dead".into(), async { panic!("in a workflow") }));
        assert!(!lanes.spawn("other".into(), async {}));
        let rooms = |lanes: &Lanes| {
            let mut rooms: Vec<_> = lanes.room().into_iter().map(|(lane, room)| (lane.to_owned(), room)).collect();
            rooms.sort();
            rooms
        };
        assert_eq!(rooms(&lanes), [("dead".to_owned(), 0), ("other".to_owned(), 1)]);
        assert!(lanes.ended().await.is_some() && lanes.ended().await.is_some());
        assert_eq!(rooms(&lanes), [("dead".to_owned(), 1)]);
    }
}
