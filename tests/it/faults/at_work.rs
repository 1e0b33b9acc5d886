//! A call that its node is still at when its worker has been followed by another.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::Notify;

/// What a worker asks a node.
#[derive(Clone)]
pub struct Asked {
    pub node: &'static str,
    /// The names of what it is about; of what is about nothing, the node's.
    pub things: BTreeSet<String>,
    /// `None`: it only looks.
    pub generation: Option<i64>,
}

/// A call that passed the fence, and has its effect when it is told to.
pub struct AtWork {
    asked: Asked,
    pub go_on: Arc<Notify>,
    /// Whether another worker has come for the same.
    pub is_followed: bool,
}

impl AtWork {
    pub fn new(asked: Asked) -> Self {
        Self { asked, go_on: Arc::default(), is_followed: false }
    }

    /// Looks at a call that came later.
    pub fn see(&mut self, later: &Asked) {
        let Asked { node, things, generation } = &self.asked;
        let same = *node == later.node && !things.is_disjoint(&later.things);
        self.is_followed |= same && (generation.is_none() || *generation != later.generation);
    }
}
