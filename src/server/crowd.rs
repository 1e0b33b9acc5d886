//! Who is connected, and who goes when all places are taken.
//!
//! A client that holds connections and does nothing with them, or next to nothing, costs little and would keep everybody else
//! out. So a newcomer never waits behind those: of all connections that wait for their client, one is ended whose address has the
//! most, and of these the one that has waited longest. Somebody who comes with thousands only ends their own. What is being
//! served is never ended. A proxy that all clients come through is one address, and loses what was silent longest.
//!
//! Bodies are the other thing that adds up: large ones are read a few at a time, by whoever comes first, and the rest refused.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::Limits;
use super::connection::Clock;

/// The largest body that anybody may send at any time, in bytes.
pub(super) const SMALL_BODY: usize = 64 << 10;

/// How many larger ones are held at once, so that all of them have 64 MiB at most.
const LARGE_BODIES: usize = 64;

/// How long to wait for a place before another one is asked to leave.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// All connections of a server.
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    large_bodies: Semaphore,
    limits: Limits,
    /// How many are asked to leave at once, so that the next newcomers need not wait until somebody has gone.
    at_once: usize,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    next: u64,
    all: HashMap<u64, Arc<Member>>,
    of_group: HashMap<IpAddr, usize>,
}

/// A connection.
pub(super) struct Member {
    group: IpAddr,
    /// What it waits for.
    pub(super) clock: Clock,
    /// Told when it shall go.
    pub(super) leave: Notify,
}

/// A connection's place, which is free again when this is gone.
pub(super) struct Place {
    number: u64,
    /// Whose it is.
    pub(super) member: Arc<Member>,
    crowd: Arc<Crowd>,
    _permit: OwnedSemaphorePermit,
}

impl Crowd {
    pub(super) fn new(places: usize, limits: Limits) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)));
        let (large_bodies, at_once) = (Semaphore::new(LARGE_BODIES), (places.available_permits() / 8).max(1));
        Arc::new(Self { places, large_bodies, limits, at_once, members: Mutex::default() })
    }

    /// Gives a connection from this address a place, if need be by ending one that waits for its client.
    pub(super) async fn admit(self: &Arc<Self>, peer: IpAddr) -> Place {
        let permit = match self.places.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.make_room().await,
        };
        let member = Arc::new(Member { group: group(peer), clock: Clock::new(self.limits), leave: Notify::new() });
        let mut members = self.lock();
        members.next += 1;
        let number = members.next;
        members.all.insert(number, member.clone());
        *members.of_group.entry(member.group).or_default() += 1;
        Place { number, member, crowd: self.clone(), _permit: permit }
    }

    async fn make_room(&self) -> OwnedSemaphorePermit {
        loop {
            self.lock().ask_to_leave(self.at_once);
            // While all are being served there is nobody to ask, and one of them may be done at any time.
            if let Ok(permit) = tokio::time::timeout(ASK_AGAIN, self.places.clone().acquire_owned()).await {
                return permit.expect("the semaphore is never closed");
            }
        }
    }

    /// The times that connections are held to.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Leave to hold a body that is not small; `None` while too many do.
    pub(super) fn hold_large_body(&self) -> Option<SemaphorePermit<'_>> {
        self.large_bodies.try_acquire().ok()
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// Asks so many, or as many as there are to ask.
    fn ask_to_leave(&self, how_many: usize) {
        let waiting = self.all.values().filter_map(|member| Some((member, member.clock.waits_since()?)));
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable_by_key(|(member, since)| {
            (Reverse(self.of_group.get(&member.group).copied().unwrap_or_default()), *since)
        });
        for (member, _) in waiting.into_iter().take(how_many) {
            member.leave.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut members = self.crowd.lock();
        members.all.remove(&self.number);
        if let Some(count) = members.of_group.get_mut(&self.member.group) {
            *count -= 1;
            if *count == 0 {
                members.of_group.remove(&self.member.group);
            }
        }
    }
}

/// Whose connections are counted together: an address's, and of IPv6 a network's, since whoever has one address has all of it.
fn group(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::Phase;
    use super::*;

    const HOURS: Limits = Limits { read: Duration::from_secs(7200), idle: Duration::from_secs(7200) };

    async fn left(place: &Place) -> bool {
        tokio::time::timeout(Duration::from_millis(50), place.member.leave.notified()).await.is_ok()
    }

    #[tokio::test]
    async fn the_address_with_the_most_loses_the_connection_that_has_waited_longest() {
        let crowd = Crowd::new(4, HOURS);
        let (many, one): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        // The oldest is somebody else's; of those who have many, the first is served, the second has just been heard of.
        let honest = crowd.admit(one).await;
        let theirs = [crowd.admit(many).await, crowd.admit(many).await, crowd.admit(many).await];
        tokio::time::sleep(Duration::from_millis(2)).await;
        theirs[0].member.clock.enter(Phase::Serving);
        theirs[1].member.clock.enter(Phase::Idle);
        let newcomer = tokio::time::timeout(Duration::from_millis(50), crowd.admit(one)).await;
        assert!(newcomer.is_err(), "there is no place before somebody has gone");
        assert!(left(&theirs[2]).await && !left(&theirs[1]).await && !left(&theirs[0]).await && !left(&honest).await);
        let [served, heard, gone] = theirs;
        drop(gone);
        crowd.admit(one).await;
        drop((served, heard, honest));
        assert!(crowd.lock().all.is_empty() && crowd.lock().of_group.is_empty());
    }

    #[tokio::test]
    async fn nobody_goes_while_all_are_served_and_a_network_of_ipv6_is_one() {
        let crowd = Crowd::new(2, HOURS);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let places = [crowd.admit(address("2001:db8::1")).await, crowd.admit(address("2001:db8::ffff:2")).await];
        assert_eq!(crowd.lock().of_group.len(), 1);
        assert_eq!(group(address("::ffff:10.0.0.1")), address("10.0.0.1"));
        for place in &places {
            place.member.clock.enter(Phase::Serving);
        }
        assert!(tokio::time::timeout(Duration::from_millis(50), crowd.admit(address("10.0.0.1"))).await.is_err());
        assert!(!left(&places[0]).await && !left(&places[1]).await);
    }
}
