//! What the integration tests stand on.

pub mod cli;
pub mod client;
pub mod cloud;
pub mod example;
pub mod iet;
pub mod kernel;
pub mod postgres;
#[path = "../../support/proxy.rs"]
pub mod proxy;
pub mod tgtd;
pub mod walk;
