//! Which storage node gets a new volume, and which nodes get nothing new.
//!
//! Answered from memory: volumes are made by the hundred, and a query for each would cost as much as the volume's own rows.
//! What is known comes from the table `nodes`, which the sweeper of any gateway keeps, and is read every few seconds; what
//! this gateway has placed since a node was last looked at is taken off. Before a request is refused for want of room the
//! nodes themselves are asked, so that room which was just given back counts.
//!
//! The numbers only spare a caller a volume that would end in `error`. Whether there is room the node decides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::Notify;
use tracing::warn;

use super::Nodes;
use crate::db::{self, Pool, nodes as rows};

/// How often the table is read.
const REFRESH: Duration = Duration::from_secs(2);
/// A volume that was accepted so shortly before its node was looked at may have been missing there. One that takes longer to be made,
/// when there is room for it alone, may be followed by one that ends in `error`; were this longer, room that there is would be refused.
const MADE_WITHIN: Duration = Duration::from_secs(3);
/// The longest a node may take to say how much room it has.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// Requests that are refused one after another share a look.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where new things may go.
#[derive(Clone)]
pub struct Placement(Arc<Inner>);

struct Inner {
    pool: Pool,
    nodes: Nodes,
    /// `None` until the table was read.
    facts: Mutex<Option<BTreeMap<String, Facts>>>,
    /// When the nodes themselves were last asked.
    looked: tokio::sync::Mutex<Option<Instant>>,
    changed: Notify,
}

/// What is known of a node, and what was done about it since.
#[derive(Debug, Clone)]
struct Facts {
    drained: bool,
    answers: bool,
    /// The bytes that were free at `seen`, if it ever told.
    free: Option<u64>,
    sparse: bool,
    seen: Instant,
    /// What was placed here and may not be in `free` yet: when, and how many bytes.
    recent: VecDeque<(Instant, u64)>,
    /// The sum of `recent`.
    taken: u64,
    /// Volumes that were ever placed here by this process: of nodes alike, each gets its turn.
    placed: u64,
}

impl Placement {
    /// Knows nothing yet.
    pub fn new(pool: Pool, nodes: Nodes) -> Self {
        let (facts, looked, changed) = Default::default();
        Self(Arc::new(Inner { pool, nodes, facts, looked, changed }))
    }

    /// Reads the table if that was never done: before it is, nothing here is to be trusted.
    pub async fn ready(&self) -> db::Result<()> {
        if self.facts().is_none() { self.refresh().await } else { Ok(()) }
    }

    /// Chooses one of these storage nodes for a new volume: the one with the most room. `None` when none can take it.
    pub async fn choose(&self, among: &[&str], bytes: u64) -> db::Result<Option<String>> {
        self.ready().await?;
        if let Some(node) = self.take(among, bytes) {
            return Ok(Some(node));
        }
        self.look(among).await;
        Ok(self.take(among, bytes))
    }

    /// Whether nothing new shall come to the node.
    pub fn is_drained(&self, node: &str) -> bool {
        self.facts().as_ref().and_then(|facts| facts.get(node)).is_some_and(|node| node.drained)
    }

    /// Reads the table now rather than soon.
    pub(super) fn changed(&self) {
        self.0.changed.notify_one();
    }

    /// Reads the table again and again.
    pub(super) async fn watch(self) {
        loop {
            if let Err(error) = self.refresh().await {
                warn!(%error, "what is known of the nodes could not be read");
            }
            tokio::select! {
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    }

    fn facts(&self) -> MutexGuard<'_, Option<BTreeMap<String, Facts>>> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same by what is known, without asking anybody.
    pub fn take(&self, among: &[&str], bytes: u64) -> Option<String> {
        let mut guard = self.facts();
        let facts = guard.get_or_insert_default();
        let unknown = Facts::unknown();
        let of = |node: &str| facts.get(node).unwrap_or(&unknown);
        let fit = among.iter().filter(|node| of(node).takes(bytes));
        let best = fit.max_by_key(|node| (of(node).rank(), std::cmp::Reverse(**node)))?;
        facts.entry((*best).to_owned()).or_insert(unknown).give(bytes, Instant::now());
        Some((*best).to_owned())
    }

    /// Takes note that a volume which was placed on the node has not been accepted.
    pub fn give_back(&self, node: &str, bytes: u64) {
        if let Some(node) = self.facts().as_mut().and_then(|facts| facts.get_mut(node)) {
            node.take_back(bytes);
        }
    }

    async fn refresh(&self) -> db::Result<()> {
        let rows = rows::facts(&mut *self.0.pool.get().await?).await?;
        let now = Instant::now();
        let mut guard = self.facts();
        let facts = guard.get_or_insert_default();
        // A node that was forgotten is one that was never heard of.
        facts.retain(|name, _| rows.iter().any(|row| row.name == *name));
        for row in rows {
            let known = facts.entry(row.name).or_insert_with(Facts::unknown);
            (known.drained, known.answers) = (row.drained, row.answers);
            let seen = row.age_s.and_then(|age| now.checked_sub(Duration::try_from_secs_f64(age).ok()?));
            if let (Some(free), Some(seen)) = (row.free_bytes, seen) {
                known.see(u64::try_from(free).unwrap_or(0), row.sparse, seen);
            }
        }
        Ok(())
    }

    /// Asks those of these storage nodes that are not drained how much room they have, unless that was done just now.
    pub async fn look(&self, among: &[&str]) {
        let among: Vec<&str> = among.iter().copied().filter(|node| !self.is_drained(node)).collect();
        if among.is_empty() {
            return;
        }
        let mut looked = self.0.looked.lock().await;
        if looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return;
        }
        let looks = among.iter().filter_map(|name| Some((*name, self.0.nodes.volume.get(*name)?)));
        let reports = join_all(looks.map(async |(name, node)| {
            let asked = Instant::now();
            let report = tokio::time::timeout(LOOK_LIMIT, node.delegate.observe()).await.ok()?.ok()?;
            Some((name, asked, report))
        }));
        for (name, asked, report) in reports.await.into_iter().flatten() {
            let mut guard = self.facts();
            let known = guard.get_or_insert_default().entry(name.to_owned()).or_insert_with(Facts::unknown);
            known.see(report.free_bytes, report.sparse, asked);
        }
        *looked = Some(Instant::now());
    }
}

impl Facts {
    fn unknown() -> Self {
        Self {
            drained: false,
            answers: false,
            free: None,
            sparse: false,
            seen: Instant::now(),
            recent: VecDeque::new(),
            taken: 0,
            placed: 0,
        }
    }

    /// Takes note of what was free at a time, unless something newer is known.
    fn see(&mut self, free: u64, sparse: bool, seen: Instant) {
        if self.free.is_some() && seen < self.seen {
            return;
        }
        (self.free, self.sparse, self.seen) = (Some(free), sparse, seen);
        while let Some((at, bytes)) = self.recent.front().copied() {
            if at + MADE_WITHIN >= seen {
                break;
            }
            self.recent.pop_front();
            self.taken = self.taken.saturating_sub(bytes);
        }
    }

    fn room(&self) -> u64 {
        self.free.unwrap_or(0).saturating_sub(self.taken)
    }

    fn takes(&self, bytes: u64) -> bool {
        let fits = match self.free {
            None => true,
            Some(free) if self.sparse => free > 0,
            Some(_) => self.room() >= bytes,
        };
        fits && !self.drained
    }

    /// The greater the better.
    fn rank(&self) -> (bool, u64, std::cmp::Reverse<u64>) {
        (self.answers, self.room(), std::cmp::Reverse(self.placed))
    }

    fn give(&mut self, bytes: u64, now: Instant) {
        self.placed += 1;
        // Of what is not known nothing can be taken off.
        if self.free.is_some() {
            self.recent.push_back((now, bytes));
            self.taken = self.taken.saturating_add(bytes);
        }
    }

    fn take_back(&mut self, bytes: u64) {
        // What a look has seen to since is not in the list any more.
        if let Some(at) = self.recent.iter().rposition(|(_, given)| *given == bytes) {
            self.recent.remove(at);
            self.taken = self.taken.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(free: u64) -> Facts {
        Facts { free: Some(free), answers: true, ..Facts::unknown() }
    }

    fn placement(facts: &[(&str, Facts)]) -> Placement {
        let placement = Placement::new(Pool::new("postgres://127.0.0.1:1/nothing", 1).unwrap(), Nodes::default());
        *placement.facts() = Some(facts.iter().map(|(name, facts)| ((*name).to_owned(), facts.clone())).collect());
        placement
    }

    fn taken(placement: &Placement, among: &[&str], bytes: u64, times: usize) -> String {
        (0..times).map(|_| placement.take(among, bytes).unwrap_or_else(|| "-".into())).collect()
    }

    #[test]
    fn volumes_go_where_the_most_room_is_until_there_is_none() {
        let placement = placement(&[("a", known(5)), ("b", known(4))]);
        assert_eq!(taken(&placement, &["a", "b"], 2, 5), "abab-");
        assert_eq!(taken(&placement, &["a", "b"], 1, 2), "a-");
    }

    #[test]
    fn nodes_without_a_limit_take_turns_and_one_of_sparse_files_takes_any_size() {
        let endless = placement(&[("a", known(u64::MAX)), ("b", known(u64::MAX))]);
        assert_eq!(taken(&endless, &["a", "b"], 1, 4), "abab");
        let sparse = placement(&[("a", Facts { sparse: true, ..known(1) }), ("b", Facts { sparse: true, ..known(0) })]);
        assert_eq!(taken(&sparse, &["a", "b"], 100, 2), "aa");
    }

    #[test]
    fn a_drained_node_gets_nothing_and_one_that_does_not_answer_only_what_no_other_can_take() {
        let drained = Facts { drained: true, ..known(9) };
        let placement = placement(&[("a", drained), ("b", Facts { answers: false, ..known(9) }), ("c", known(1))]);
        assert_eq!(taken(&placement, &["a", "b", "c"], 1, 3), "cbb");
        assert_eq!(taken(&placement, &["a"], 1, 1), "-");
        assert_eq!(taken(&placement, &["never heard of"], 1, 1), "never heard of");
    }

    #[test]
    fn what_was_placed_and_not_accepted_takes_no_room() {
        let placement = placement(&[("a", known(5))]);
        for _ in 0..10 {
            assert_eq!(taken(&placement, &["a"], 3, 1), "a");
            placement.give_back("a", 3);
        }
        placement.give_back("a", 3);
        assert_eq!(taken(&placement, &["a"], 3, 2), "a-");
    }

    #[test]
    fn what_was_placed_counts_until_a_look_that_must_have_seen_it() {
        let mut node = known(10);
        let start = Instant::now();
        node.give(4, start);
        node.give(3, start + MADE_WITHIN * 2);
        node.see(10, false, start + MADE_WITHIN / 2);
        assert_eq!(node.room(), 3, "neither was made for sure");
        node.see(6, false, start + MADE_WITHIN * 2);
        assert_eq!(node.room(), 3, "the first is in what the node says");
        node.see(10, false, start);
        assert_eq!(node.room(), 3, "old news");
    }
}
