//! Who is connected, and who goes when all places are taken.
//!
//! A client that holds connections and does nothing with them, or next to nothing, costs little and would keep everybody else
//! out. So a newcomer never waits behind those: of all connections that wait for their client, one is ended whose address has the
//! most, and of these the one that has waited longest. Somebody who comes with thousands only ends their own. What is being
//! served is never ended. A proxy that all clients come through is one address, and loses what was silent longest.
//!
//! Nor does a newcomer wait until the other has gone, which is a matter of time on the processor, and that is what a flood takes.
//! The place changes hands at once, and those on their way out are few more than there are places. For the same reason an
//! address that has as many as any other is given a place anew only when what it would end there has waited for a while: else
//! who comes and comes again would have us do nothing but begin and end connections. Closing one that was not
//! begun costs next to nothing, and the next in the queue may be anybody's.
//!
//! Bodies are the other thing that adds up: large ones are read a few at a time, by whoever comes first, and the rest refused.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::Limits;
use super::connection::Clock;

/// The largest body that anybody may send at any time, in bytes.
pub(super) const SMALL_BODY: usize = 64 << 10;

/// How many larger ones are held at once, so that all of them have 64 MiB at most.
const LARGE_BODIES: usize = 64;

/// How long to wait for a place, while nobody can be asked to leave, before looking again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// How long a connection that waits for its client is safe from newcomers of its own address.
const STAY: Duration = Duration::from_secs(1);

/// All connections of a server.
pub(super) struct Crowd {
    places: usize,
    /// How many may be on their way out besides.
    reserve: usize,
    large_bodies: Semaphore,
    limits: Limits,
    members: Mutex<Members>,
    /// Told when somebody has gone.
    gone: Notify,
}

#[derive(Default)]
struct Members {
    next: u64,
    /// Those that have a place.
    all: HashMap<u64, Arc<Member>>,
    /// How many are on their way out.
    leaving: usize,
    /// Of those that have a place.
    of_group: HashMap<IpAddr, usize>,
    /// Whose newcomers are refused until when, as long as there is no place.
    refused: Option<(IpAddr, Instant)>,
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
}

/// What becomes of a newcomer.
#[derive(Debug, PartialEq, Eq)]
enum Chance {
    /// There is a place.
    Place,
    /// There is none for this one.
    None,
    /// There is none yet.
    Wait,
}

impl Crowd {
    pub(super) fn new(places: usize, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            places: places.max(1),
            reserve: reserve(places),
            large_bodies: Semaphore::new(LARGE_BODIES),
            limits,
            members: Mutex::default(),
            gone: Notify::new(),
        })
    }

    /// Gives a connection from this address a place, if need be that of one that waits for its client; `None` when its address
    /// has enough. Waits only while everybody is being served.
    pub(super) async fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let group = group(peer);
        let mut has_waited = false;
        loop {
            {
                let mut members = self.lock();
                match members.chance(group, has_waited, self.places, self.reserve) {
                    Chance::Place => return Some(self.place(&mut members, group)),
                    Chance::None => return None,
                    Chance::Wait => {}
                }
            }
            // One of them may be done, or wait for its client, at any time.
            let _ = tokio::time::timeout(ASK_AGAIN, self.gone.notified()).await;
            has_waited = true;
        }
    }

    fn place(self: &Arc<Self>, members: &mut Members, group: IpAddr) -> Place {
        let member = Arc::new(Member { group, clock: Clock::new(self.limits), leave: Notify::new() });
        members.next += 1;
        let number = members.next;
        members.all.insert(number, member.clone());
        *members.of_group.entry(group).or_default() += 1;
        Place { number, member, crowd: self.clone() }
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

/// How many connections may be on their way out besides so many places.
pub(super) fn reserve(places: usize) -> usize {
    (places / 8).max(1)
}

impl Members {
    /// What a newcomer of this group can have. Takes the place of another for it if that is how it gets one.
    fn chance(&mut self, newcomer: IpAddr, has_waited: bool, places: usize, reserve: usize) -> Chance {
        if self.all.len() < places {
            return Chance::Place;
        }
        let now = Instant::now();
        if !has_waited && self.refused.is_some_and(|(group, until)| group == newcomer && now < until) {
            return Chance::None;
        }
        let of = |group| self.of_group.get(&group).copied().unwrap_or_default();
        let waiting = self.all.iter().filter_map(|(number, member)| {
            let since = member.clock.waits_since()?;
            Some((Reverse(of(member.group)), since, *number))
        });
        let Some((Reverse(theirs), since, number)) = waiting.min() else { return Chance::Wait };
        let group = self.all[&number].group;
        if theirs < of(newcomer) {
            return Chance::None;
        }
        if group == newcomer && !has_waited && now < since + STAY {
            // Whoever of them is served just now begins to wait later than this one did.
            self.refused = Some((group, since + STAY));
            return Chance::None;
        }
        if self.leaving >= reserve {
            return if group == newcomer && !has_waited { Chance::None } else { Chance::Wait };
        }
        if let Some(member) = self.remove(number) {
            self.leaving += 1;
            member.leave.notify_one();
        }
        Chance::Place
    }

    /// Takes a place away, if it is still there.
    fn remove(&mut self, number: u64) -> Option<Arc<Member>> {
        let member = self.all.remove(&number)?;
        if let Some(count) = self.of_group.get_mut(&member.group) {
            *count -= 1;
            if *count == 0 {
                self.of_group.remove(&member.group);
            }
        }
        Some(member)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut members = self.crowd.lock();
        if members.remove(self.number).is_none() {
            members.leaving -= 1;
        }
        drop(members);
        self.crowd.gone.notify_one();
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

    async fn admitted(crowd: &Arc<Crowd>, peer: IpAddr) -> Place {
        crowd.admit(peer).await.expect("a place")
    }

    #[tokio::test]
    async fn the_address_with_the_most_loses_the_connection_that_has_waited_longest() {
        let crowd = Crowd::new(4, HOURS);
        let (many, one): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        // The oldest is somebody else's; of those who have many, the first is served, the second has just been heard of.
        let honest = admitted(&crowd, one).await;
        let theirs = [admitted(&crowd, many).await, admitted(&crowd, many).await, admitted(&crowd, many).await];
        tokio::time::sleep(Duration::from_millis(2)).await;
        theirs[0].member.clock.enter(Phase::Serving);
        theirs[1].member.clock.enter(Phase::Idle);
        let newcomer = admitted(&crowd, one).await;
        assert!(left(&theirs[2]).await && !left(&theirs[1]).await && !left(&theirs[0]).await && !left(&honest).await);
        // The place has changed hands, but only so many are on their way out at once.
        let waits = tokio::time::timeout(Duration::from_millis(50), crowd.admit([10, 0, 0, 3].into())).await;
        assert!(waits.is_err() && !left(&theirs[1]).await);
        let [served, heard, gone] = theirs;
        drop(gone);
        drop((served, heard, honest, newcomer));
        let members = crowd.lock();
        assert!(members.all.is_empty() && members.of_group.is_empty() && members.leaving == 0);
    }

    #[tokio::test]
    async fn who_has_the_most_places_is_given_another_only_for_one_that_has_waited_for_a_while() {
        let crowd = Crowd::new(2, HOURS);
        let (many, one): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let (first, second) = (admitted(&crowd, many).await, admitted(&crowd, many).await);
        assert!(crowd.admit(many).await.is_none() && !left(&first).await, "they have just come");
        let honest = admitted(&crowd, one).await;
        assert!(left(&first).await, "others are let in at once");
        drop(first);
        tokio::time::sleep(STAY).await;
        let again = admitted(&crowd, many).await;
        assert!(left(&second).await && !left(&honest).await);
        honest.member.clock.enter(Phase::Serving);
        again.member.clock.enter(Phase::Serving);
        drop(second);
        // Who had to wait because all were served gets the first place that there is.
        let (waits, ()) = tokio::join!(admitted(&crowd, many), async {
            tokio::time::sleep(10 * ASK_AGAIN).await;
            again.member.clock.enter(Phase::Idle);
        });
        assert!(left(&again).await && !left(&waits).await);
    }

    #[tokio::test]
    async fn nobody_goes_while_all_are_served_and_a_network_of_ipv6_is_one() {
        let crowd = Crowd::new(2, HOURS);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let places =
            [admitted(&crowd, address("2001:db8::1")).await, admitted(&crowd, address("2001:db8::ffff:2")).await];
        assert_eq!(crowd.lock().of_group.len(), 1);
        assert_eq!(group(address("::ffff:10.0.0.1")), address("10.0.0.1"));
        for place in &places {
            place.member.clock.enter(Phase::Serving);
        }
        assert!(tokio::time::timeout(Duration::from_millis(50), crowd.admit(address("10.0.0.1"))).await.is_err());
        assert!(!left(&places[0]).await && !left(&places[1]).await);
    }
}
