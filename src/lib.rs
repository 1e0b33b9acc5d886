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
//! | [`dev`] | `vbs dev`: a private Postgres, tgtd and guests |
//!
//! `docs/ARCHITECTURE.md` walks through a request.

pub mod config;
pub mod db;
pub mod delegate;
pub mod dev;
pub mod ec2_api;
pub mod ids;
pub mod seal;
pub mod server;
pub mod sigv4;
pub mod state;
pub mod workers;
