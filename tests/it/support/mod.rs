//! What the integration tests stand on.

pub mod cli;
pub mod client;
pub mod cloud;
pub mod example;
pub mod iet;
pub mod kernel;
pub mod postgres;
#[path = "../../support/proxy.rs"]
#[expect(dead_code, reason = "the histories stall it, too")]
pub mod proxy;
pub mod tgtd;
pub mod walk;
