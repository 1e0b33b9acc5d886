//! What clients do, decided by the seed alone: which call comes next, and with which of the things there are.
//!
//! Which things there are then depends on what happened, so the same seed gives the same workload and the same disturbances, but
//! not the same history.

use rand::Rng;
use rand::rngs::StdRng;

/// What a client does next. The number chooses among what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Create,
    /// Again what somebody of the same group has asked for last, with the same token.
    CreateAgain,
    Restore,
    Delete,
    Attach,
    Detach,
    TakeSnapshot,
    DeleteSnapshot,
    Describe,
    DescribeSnapshot,
    Write,
    Modify,
    Tag,
    Untag,
    Copy,
    CopyVolume,
    Share,
    DescribeShared,
    List,
}

/// How often each is done.
const WEIGHTS: [(Step, u32); 19] = [
    (Step::Create, 50),
    (Step::CreateAgain, 40),
    (Step::Restore, 30),
    (Step::Delete, 60),
    (Step::Attach, 150),
    (Step::Detach, 90),
    (Step::TakeSnapshot, 80),
    (Step::DeleteSnapshot, 30),
    (Step::Describe, 250),
    (Step::DescribeSnapshot, 100),
    (Step::Write, 120),
    (Step::Modify, 40),
    (Step::Tag, 60),
    (Step::Untag, 30),
    (Step::Copy, 30),
    (Step::CopyVolume, 20),
    (Step::Share, 40),
    (Step::DescribeShared, 40),
    (Step::List, 20),
];

/// The next step.
pub fn next(rng: &mut StdRng) -> Step {
    let all: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut at = rng.random_range(0..all);
    for (step, weight) in WEIGHTS {
        if at < weight {
            return step;
        }
        at -= weight;
    }
    Step::Describe
}
