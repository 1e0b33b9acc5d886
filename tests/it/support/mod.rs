//! What the suites share: the real programs they start.

pub mod tgtd;
