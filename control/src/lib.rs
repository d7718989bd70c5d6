//! The control plane. It schedules workspaces, monitors their agents, and is the single address for
//! browsers, CLI and services.
//!
//! `run` is the composition root. `server` accepts connections; `api`, `agents` and `gateway`
//! handle the calls. `driver` is the only writer of workspace status.

// Test fixtures shared with the integration tests use the path `podling_control::`. The alias makes it
// valid here.
#[cfg(test)]
extern crate self as podling_control;

pub mod activity;
pub mod agent_address;
pub mod agents;
pub mod api;
pub mod archiver;
pub mod args;
pub mod backend;
pub mod backup_store;
mod clock;
pub mod config;
mod dial;
pub mod driver;
mod executor;
pub mod gateway;
pub mod identity;
pub mod kubernetes;
pub mod leader_election;
pub mod log;
pub mod metrics;
pub mod open_files;
pub mod pinned_certificate;
pub mod principal;
pub mod progress;
pub mod quantity;
mod reasons;
pub mod run;
#[cfg(test)]
#[path = "tests/samples.rs"]
mod samples;
pub mod server;
pub mod snapshot;
pub mod store;
pub mod template;
pub mod terminal_features;
mod watches;
