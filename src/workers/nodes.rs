//! The nodes: which there are, where they are, and the delegate of each.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::delegate::source::SnapshotSource;
use crate::delegate::{DelegateError, VmmDelegate, VolumeDelegate};

/// A storage node.
#[derive(Clone)]
pub struct VolumeNode {
    /// Its zone.
    pub zone: String,
    /// Its delegate.
    pub delegate: Arc<dyn VolumeDelegate>,
}

/// A hypervisor node.
#[derive(Clone)]
pub struct VmmNode {
    /// Its zone.
    pub zone: String,
    /// The account that new machines belong to.
    pub default_owner: Option<String>,
    /// Its delegate.
    pub delegate: Arc<dyn VmmDelegate>,
}

/// All nodes, by name.
#[derive(Clone, Default)]
pub struct Nodes {
    /// The storage nodes.
    pub volume: BTreeMap<String, VolumeNode>,
    /// The hypervisor nodes.
    pub vmm: BTreeMap<String, VmmNode>,
}

impl Nodes {
    /// The delegate of a storage node. A node that the configuration has lost may come back: worth another try.
    pub fn storage(&self, name: &str) -> Result<&dyn VolumeDelegate, DelegateError> {
        self.volume
            .get(name)
            .map(|node| &*node.delegate)
            .ok_or_else(|| DelegateError::retry(format!("the configuration has no storage node {name}")))
    }

    /// A storage node as the source of its snapshots. See [`Self::storage`].
    pub fn source(&self, name: &str) -> Result<Arc<dyn SnapshotSource>, DelegateError> {
        let node = self.volume.get(name);
        node.map(|node| Arc::clone(&node.delegate) as Arc<dyn SnapshotSource>)
            .ok_or_else(|| DelegateError::retry(format!("the configuration has no storage node {name}")))
    }

    /// The delegate of a hypervisor node.
    pub fn hypervisor(&self, name: &str) -> Result<&dyn VmmDelegate, DelegateError> {
        self.vmm
            .get(name)
            .map(|node| &*node.delegate)
            .ok_or_else(|| DelegateError::retry(format!("the configuration has no hypervisor node {name}")))
    }
}
