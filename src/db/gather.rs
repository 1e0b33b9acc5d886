//! Gathers requests of the same kind that come at the same time into one statement.
//!
//! Clients poll, many times a second, each for one volume; or they make volumes by the hundred. A row is found or written in
//! microseconds; the round trip, the wake-ups on both sides, the start of the executor and the commit on disk cost many times
//! that, and they are the same for one row as for twenty. So while [`MOST_AT_ONCE`] statements are under way, further
//! requests wait and go together in the next. Nobody waits for company: a request that finds fewer under way goes at once.
//!
//! What an answered request has changed, the next describe shows: a statement starts after each request in it has arrived,
//! and a request is answered when its statement has committed.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as QueryError};
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Conn, Error, Pool, Result};

/// How long a request waits for company that would make a statement as large as the one before. Several times what such a
/// statement takes, since one that hangs must not hold up those behind it.
const PATIENCE: Duration = Duration::from_millis(25);
/// Requests in one statement.
const MOST_IN_ONE: usize = 100;

/// A kind of request that can be gathered.
pub trait Batch: Send + 'static {
    /// What a caller asks.
    type Asked: Send + Sync;
    /// What a caller is told.
    type Answer: Send;
    /// Statements under way. With more, fewer requests share one; with a single one, each waits for the one before: right
    /// where throughput counts and nobody waits for the answer.
    const AT_ONCE: usize = 2;
    /// Whether a statement beside others waits until it would be as large as the one before, or these are done, or
    /// [`PATIENCE`] is: right where a statement costs much more than a row of it. Else the first that comes back from a large one goes alone.
    const AS_LARGE: bool = false;

    /// Answers all in one statement, in the order in which they were asked.
    fn run(conn: &mut Conn, asked: &[Self::Asked]) -> impl Future<Output = Result<Vec<Self::Answer>>> + Send;
}

/// Gathers requests of the kind `B`.
pub struct Gather<B: Batch>(Arc<Inner<B>>);

struct Inner<B: Batch> {
    pool: Pool,
    queue: Mutex<Queue<B>>,
}

struct Queue<B: Batch> {
    waiting: Vec<Waiting<B>>,
    under_way: usize,
    /// Requests in the statement that was begun last.
    last: usize,
}

impl<B: Batch> Queue<B> {
    fn is_due(&self) -> bool {
        let room = self.under_way < B::AT_ONCE;
        room && (self.under_way == 0 || !B::AS_LARGE || self.waiting.len() >= self.last)
    }
}

type Waiting<B> = (<B as Batch>::Asked, oneshot::Sender<Result<<B as Batch>::Answer>>);

impl<B: Batch> Gather<B> {
    /// Asks over connections of this pool.
    pub fn new(pool: Pool) -> Self {
        Self(Arc::new(Inner { pool, queue: Mutex::new(Queue { waiting: Vec::new(), under_way: 0, last: 0 }) }))
    }

    /// Asks, alone or with others.
    pub async fn ask(&self, asked: B::Asked) -> Result<B::Answer> {
        let (answer, mut answered) = oneshot::channel();
        if self.0.enqueue((asked, answer)) {
            self.start();
        }
        if B::AS_LARGE {
            if let Ok(told) = timeout(PATIENCE, &mut answered).await {
                return told.unwrap_or_else(|_| Err(broken_off()));
            }
            if self.0.give_way() {
                self.start();
            }
        }
        answered.await.unwrap_or_else(|_| Err(broken_off()))
    }

    fn start(&self) {
        // A task of its own, since others will depend on it and this caller may hang up.
        tokio::spawn(self.0.clone().work());
    }
}

impl<B: Batch> Inner<B> {
    fn queue(&self) -> MutexGuard<'_, Queue<B>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether somebody must start to work.
    fn enqueue(&self, waiting: Waiting<B>) -> bool {
        let mut queue = self.queue();
        queue.waiting.push(waiting);
        let start = queue.is_due();
        queue.under_way += usize::from(start);
        start
    }

    /// What waits need not become as many as are under way. Tells whether somebody must start to work.
    fn give_way(&self) -> bool {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            return false;
        }
        queue.last = queue.last.min(queue.waiting.len());
        let start = queue.is_due();
        queue.under_way += usize::from(start);
        start
    }

    /// What goes into the next statement of one that is under way; nothing ends the work of who asked.
    fn next(&self) -> Vec<Waiting<B>> {
        let mut queue = self.queue();
        queue.under_way -= 1;
        let count = if queue.is_due() { queue.waiting.len().min(MOST_IN_ONE) } else { 0 };
        if count > 0 {
            queue.under_way += 1;
            queue.last = count;
        }
        queue.waiting.drain(..count).collect()
    }

    async fn work(self: Arc<Self>) {
        loop {
            // Whoever can run already may ask first: no time is lost, and the statement takes more along.
            tokio::task::yield_now().await;
            let batch = self.next();
            if batch.is_empty() {
                return;
            }
            // A panic drops the batch, whose callers are told; the others must not wait for ever.
            let _ = AssertUnwindSafe(self.answer(batch)).catch_unwind().await;
        }
    }

    async fn answer(&self, batch: Vec<Waiting<B>>) {
        let (asked, mut callers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        match self.run(&asked).await {
            Ok(answers) => {
                for (answer, caller) in answers.into_iter().zip(callers) {
                    // Who has hung up needs no answer.
                    let _ = caller.send(Ok(answer));
                }
            }
            // Postgres has refused the statement and done nothing: who is not to blame shall not suffer for it.
            Err(error) if callers.len() > 1 && refused(&error) => {
                for (asked, caller) in asked.iter().zip(callers) {
                    let alone = self.run(std::slice::from_ref(asked)).await;
                    let _ = caller.send(alone.and_then(|answers| answers.into_iter().next().ok_or_else(no_answer)));
                }
            }
            Err(error) => {
                let last = callers.pop();
                for caller in callers {
                    let told =
                        if matches!(error, Error::Busy) { Error::Busy } else { Error::Connection(error.to_string()) };
                    let _ = caller.send(Err(told));
                }
                let _ = last.map(|caller| caller.send(Err(error)));
            }
        }
    }

    async fn run(&self, asked: &[B::Asked]) -> Result<Vec<B::Answer>> {
        B::run(&mut *self.pool.get().await?, asked).await
    }
}

/// Whether Postgres itself answered with an error. After a connection that broke nobody knows what was done.
fn refused(error: &Error) -> bool {
    match error {
        Error::Query(QueryError::DatabaseError(kind, _)) => !matches!(kind, DatabaseErrorKind::ClosedConnection),
        _ => false,
    }
}

fn broken_off() -> Error {
    Error::Connection("a shared statement broke off".into())
}

fn no_answer() -> Error {
    Error::Connection("a shared statement gave no answer".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Batch for Nothing {
        type Asked = ();
        type Answer = ();
        async fn run(_: &mut Conn, asked: &[()]) -> Result<Vec<()>> {
            Ok(asked.to_vec())
        }
    }

    struct Dear;

    impl Batch for Dear {
        type Asked = ();
        type Answer = ();
        const AS_LARGE: bool = true;
        async fn run(_: &mut Conn, asked: &[()]) -> Result<Vec<()>> {
            Ok(asked.to_vec())
        }
    }

    fn nowhere() -> Pool {
        Pool::new("postgres://127.0.0.1:1/nothing", 1).unwrap()
    }

    #[tokio::test]
    async fn a_request_waits_only_while_enough_are_under_way_and_is_never_forgotten() {
        let Gather(inner) = Gather::<Nothing>::new(nowhere());
        let enqueue = || inner.enqueue(((), oneshot::channel().0));
        for _ in 0..Nothing::AT_ONCE {
            assert!(enqueue());
            assert_eq!(inner.next().len(), 1);
        }
        assert!(!enqueue() && !enqueue());
        // The first to finish takes all that wait, the other finds nothing and leaves.
        assert_eq!((inner.next().len(), inner.next().len()), (2, 0));
        assert!(enqueue(), "a place is free again");
    }

    #[tokio::test]
    async fn a_dear_statement_goes_beside_another_only_when_it_is_as_large_and_nobody_is_forgotten() {
        let Gather(inner) = Gather::<Dear>::new(nowhere());
        let enqueue = || inner.enqueue(((), oneshot::channel().0));
        assert!(enqueue() && enqueue(), "until it is known how large the first one is, another may go");
        assert_eq!((inner.next().len(), inner.next().len()), (2, 0));
        assert!(!enqueue(), "one beside two is too small");
        assert!(enqueue(), "two are as large");
        assert_eq!(inner.next().len(), 2);
        assert!(!enqueue());
        assert_eq!(inner.next().len(), 0, "the first to end leaves it to the other");
        assert_eq!(inner.next().len(), 1, "which is the last, and takes it whatever its size");
    }

    #[tokio::test]
    async fn a_dear_statement_that_hangs_holds_nobody_up() {
        let Gather(inner) = Gather::<Dear>::new(nowhere());
        let enqueue = || inner.enqueue(((), oneshot::channel().0));
        assert!(enqueue() && enqueue());
        assert_eq!((inner.next().len(), inner.next().len()), (2, 0));
        assert!(!inner.give_way(), "nobody waits");
        assert!(!enqueue());
        assert!(inner.give_way(), "it has waited long enough for a second one");
        assert!(!inner.give_way(), "no more than two are under way");
        assert_eq!(inner.next().len(), 1);
    }

    #[tokio::test]
    async fn a_failure_reaches_everyone_who_asked() {
        let gather = Gather::<Nothing>::new(nowhere());
        for answer in futures_util::future::join_all((0..5).map(|_| gather.ask(()))).await {
            assert!(matches!(answer, Err(Error::Connection(_))));
        }
    }
}
