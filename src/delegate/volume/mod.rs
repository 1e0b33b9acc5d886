//! Storage nodes: the drivers that keep volumes and snapshots, and the node made of one of them and a target driver.

pub mod copy;
pub mod file;
pub mod local;
