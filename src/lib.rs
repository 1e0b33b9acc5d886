//! vbs, the Virtual Block Store: an EC2-compatible Elastic Block Store for machines you own.
//!
//! The map, from the ground up; a module imports only from those above it in this list:
//!
//! | module | what it is |
//! |---|---|
//! | [`ids`], [`state`], [`config`], [`seal`] | resource ids, states, the configuration file, secrets at rest |
//! | [`sigv4`], [`server`] | AWS signatures, pure; the HTTP server under every role |
//! | [`db`] | Postgres: all truth |
//! | [`delegate`] | storage and hypervisor nodes: traits, drivers, HTTP client and server (never sees [`db`]) |
//! | [`workers`] | the workflow engine, the workflows, the sweeper |
//! | [`ec2_api`] | the EC2 Query API (never sees [`delegate`]) |
//! | [`delegates`], [`gateway`], [`credentials`], [`master_key`] | the roles, put together from the parts |
//! | [`dev`] | `vbs dev`: a private Postgres, tgtd and guests |
//! | [`cli`] | the subcommands |
//! | `fuzzing` | what must hold of hostile bytes; in no build that is shipped |
//!
//! `docs/ARCHITECTURE.md` walks through a request.

pub mod cli;
pub mod config;
pub mod credentials;
pub mod db;
pub mod delegate;
pub mod delegates;
pub mod dev;
pub mod ec2_api;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod gateway;
pub mod ids;
pub mod master_key;
pub mod seal;
pub mod server;
pub mod sigv4;
pub mod state;
pub mod workers;
