//! Throttling: how many requests an account may make, an action at a time.
//!
//! A bucket an account and action, as on EC2: it holds so many requests, each takes one out, and it fills at a steady rate. Kept
//! as one instant, the one at which the bucket would be full again, so a bucket that is full is one that need not be kept.
//! Each gateway counts for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{Bucket, Throttle};

use super::error::{ApiError, ApiResult};

/// Buckets that are remembered before those that are full again are looked for and forgotten. There are at most as many as
/// accounts times actions.
const TIDY_AT: usize = 4_096;

/// The buckets of all accounts.
#[derive(Debug)]
pub struct Buckets {
    rules: Throttle,
    buckets: Mutex<Full>,
}

/// When each bucket is full again.
#[derive(Debug, Default)]
struct Full {
    at: HashMap<(Arc<str>, &'static str), Instant>,
    tidy_at: usize,
}

impl Buckets {
    /// All are full.
    pub fn new(rules: Throttle) -> Self {
        Self { rules, buckets: Mutex::new(Full { at: HashMap::new(), tidy_at: TIDY_AT }) }
    }

    /// Takes a request out of a bucket, or refuses it.
    pub fn take(&self, account: &Arc<str>, action: &'static str) -> ApiResult<()> {
        let Some(bucket) = self.rule(action) else { return Ok(()) };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.take(account, action, bucket, Instant::now()) {
            return Ok(());
        }
        Err(ApiError::too_much())
    }

    /// The bucket that the configuration gives an action.
    fn rule(&self, action: &str) -> Option<Bucket> {
        let reads = ["Describe", "Get"].iter().any(|start| action.starts_with(start));
        let of_its_kind = if reads { self.rules.reads } else { self.rules.writes };
        self.rules.actions.get(action).copied().or(of_its_kind)
    }
}

impl Full {
    fn take(&mut self, account: &Arc<str>, action: &'static str, bucket: Bucket, now: Instant) -> bool {
        let one = Duration::from_secs_f64(1.0 / bucket.per_second);
        let key = (account.clone(), action);
        let full_at = self.at.get(&key).copied().unwrap_or(now).max(now) + one;
        if full_at - now > one * bucket.burst {
            return false;
        }
        self.at.insert(key, full_at);
        if self.at.len() >= self.tidy_at {
            self.at.retain(|_, full_at| *full_at > now);
            // What is left is in use: look again when there are twice as many.
            self.tidy_at = TIDY_AT.max(self.at.len() * 2);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn full() -> Full {
        Full { at: HashMap::new(), tidy_at: TIDY_AT }
    }

    fn taken(full: &mut Full, account: &str, times: u32, now: Instant) -> u32 {
        let bucket = Bucket { burst: 10, per_second: 2.0 };
        (0..times).map(|_| u32::from(full.take(&account.into(), "CreateVolume", bucket, now))).sum()
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_what_flows_in_and_never_more_than_it_holds() {
        let (mut full, start) = (full(), Instant::now());
        assert_eq!(taken(&mut full, "a", 100, start), 10);
        assert_eq!(taken(&mut full, "a", 100, start + SECOND), 2);
        assert_eq!(taken(&mut full, "a", 100, start + SECOND), 0, "a refused request takes nothing");
        assert_eq!(taken(&mut full, "b", 100, start + SECOND), 10, "each account has its own");
        assert_eq!(taken(&mut full, "a", 100, start + 3600 * SECOND), 10);
    }

    #[test]
    fn buckets_that_are_full_again_are_forgotten() {
        let (mut full, start) = (full(), Instant::now());
        for n in 0..TIDY_AT - 1 {
            taken(&mut full, &n.to_string(), 1, start);
        }
        assert_eq!(full.at.len(), TIDY_AT - 1);
        taken(&mut full, "late", 1, start + 3600 * SECOND);
        assert_eq!(full.at.len(), 1);
    }

    #[test]
    fn an_action_has_its_own_rule_or_that_of_its_kind_and_without_one_no_end() {
        let bucket = |burst| Bucket { burst, per_second: 1.0 };
        let actions = [("CreateVolume".to_owned(), bucket(1))].into_iter().collect();
        let rules = Throttle { reads: Some(bucket(2)), writes: Some(bucket(3)), actions };
        let buckets = Buckets::new(rules);
        let account: Arc<str> = "a".into();
        for (action, most) in
            [("CreateVolume", 1), ("DescribeVolumes", 2), ("GetCallerIdentity", 2), ("DeleteVolume", 3)]
        {
            let taken = (0..10).filter(|_| buckets.take(&account, action).is_ok()).count();
            assert_eq!(taken, most, "{action}");
        }
        assert_eq!(buckets.take(&account, "CreateVolume").unwrap_err().status, 503);
        let unlimited = Buckets::new(Throttle::default());
        assert!((0..100_000).all(|_| unlimited.take(&account, "CreateVolume").is_ok()));
        assert!(unlimited.buckets.lock().unwrap().at.is_empty());
    }
}
