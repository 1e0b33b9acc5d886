//! Simulated nodes live in memory and the rows do not: at a restart the nodes get back what the rows say they have.
//!
//! Exports and disks are not restored here. The sweeper notices that they are gone, as after any node's reboot.

use super::DevError;
use crate::config::{Config, Link};
use crate::db::{self, Conn, Pool};
use crate::delegate::sim::SimCloud;
use crate::delegate::{DelegateError, Generation, SnapshotSpec, VolumeDelegate, VolumeSpec};

/// Older than any lease, so that no worker is held up by it.
const BEFORE_ALL: Generation = Generation(0);
