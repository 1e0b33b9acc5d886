//! Gathers describes of one volume that come at the same time into one statement.
//!
//! Clients poll: many requests a second, each for one volume. The row is found in microseconds; the round trip, the wake-ups
//! on both sides and the start of the executor cost ten times that, and they are the same for one row as for twenty. So while
//! [`MOST_AT_ONCE`] statements are under way, further requests wait and go together in the next. Nobody waits for
//! company: a request that finds fewer under way is asked at once.
//!
//! What an answered request has changed, the next describe shows: a statement starts after each request in it has arrived.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::describe_volumes::{self, DescribedVolume};
use super::{Error, Pool, Result};
use crate::ids::VolumeId;

/// Statements under way. With more, fewer requests share one; with a single one, all wait for the slowest.
const MOST_AT_ONCE: usize = 2;
/// Volumes in one statement.
const MOST_IN_ONE: usize = 100;

/// Describes single volumes.
#[derive(Clone)]
pub struct Gather(Arc<Inner>);

struct Inner {
    pool: Pool,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Asked>,
    under_way: usize,
}

/// A request that waits.
struct Asked {
    account_id: Arc<str>,
    id: VolumeId,
    answer: oneshot::Sender<Result<Option<DescribedVolume>>>,
}

impl Gather {
    /// Asks over connections of this pool.
    pub fn new(pool: Pool) -> Self {
        Self(Arc::new(Inner { pool, queue: Mutex::default() }))
    }

    /// The volume, if this account has it.
    pub async fn volume(&self, account_id: &Arc<str>, id: &VolumeId) -> Result<Option<DescribedVolume>> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { account_id: account_id.clone(), id: id.clone(), answer };
        if self.0.enqueue(asked) {
            // A task of its own, since others will depend on it and this caller may hang up.
            tokio::spawn(self.0.clone().work());
        }
        answered.await.unwrap_or_else(|_| Err(Error::Connection("a shared query broke off".into())))
    }
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether somebody must start to work.
    fn enqueue(&self, asked: Asked) -> bool {
        let mut queue = self.queue();
        queue.waiting.push(asked);
        let start = queue.under_way < MOST_AT_ONCE;
        queue.under_way += usize::from(start);
        start
    }

    /// What goes into the next statement; nothing ends the work of who asked.
    fn next(&self) -> Vec<Asked> {
        let mut queue = self.queue();
        let count = queue.waiting.len().min(MOST_IN_ONE);
        queue.under_way -= usize::from(count == 0);
        queue.waiting.drain(..count).collect()
    }

    async fn work(self: Arc<Self>) {
        loop {
            let batch = self.next();
            if batch.is_empty() {
                return;
            }
            // A panic drops the batch, whose callers are told; the others must not wait for ever.
            let _ = AssertUnwindSafe(self.answer(batch)).catch_unwind().await;
        }
    }

    async fn answer(&self, batch: Vec<Asked>) {
        let found = async {
            let ids: Vec<&str> = batch.iter().map(|asked| asked.id.as_str()).collect();
            describe_volumes::of_any_account(&mut *self.pool.get().await?, &ids).await
        };
        match found.await {
            Ok(rows) => {
                let rows: HashMap<&VolumeId, &DescribedVolume> = rows.iter().map(|row| (&row.id, row)).collect();
                for Asked { account_id, id, answer } in batch {
                    let own = rows.get(&id).filter(|row| *row.account_id == *account_id);
                    // Who has hung up needs no answer.
                    let _ = answer.send(Ok(own.map(|row| (*row).clone())));
                }
            }
            Err(error) => {
                for asked in batch {
                    let _ = asked.answer.send(Err(Error::Connection(error.to_string())));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked { account_id: "1".into(), id: VolumeId::generate(), answer: oneshot::channel().0 }
    }

    #[tokio::test]
    async fn a_request_waits_only_while_enough_are_under_way_and_is_never_forgotten() {
        let inner = Inner { pool: Pool::new("postgres://nowhere", 1).unwrap(), queue: Mutex::default() };
        for _ in 0..MOST_AT_ONCE {
            assert!(inner.enqueue(asked()));
            assert_eq!(inner.next().len(), 1);
        }
        assert!(!inner.enqueue(asked()) && !inner.enqueue(asked()));
        // The first to finish takes all that wait, the other finds nothing and leaves.
        assert_eq!((inner.next().len(), inner.next().len()), (2, 0));
        assert!(inner.enqueue(asked()), "a place is free again");
    }

    #[tokio::test]
    async fn a_failure_reaches_everyone_who_asked() {
        let gather = Gather::new(Pool::new("postgres://127.0.0.1:1/nothing", 1).unwrap());
        let account = Arc::from("123456789012");
        let ids: Vec<VolumeId> = (0..5).map(|_| VolumeId::generate()).collect();
        let asked = ids.iter().map(|id| gather.volume(&account, id));
        for answer in futures_util::future::join_all(asked).await {
            assert!(matches!(answer, Err(Error::Connection(_))));
        }
    }
}
