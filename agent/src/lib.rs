//! The agent: the daemon inside a workspace that serves its terminals, processes and files, and
//! reports its activity.
//!
//! The modules are in suggested reading order. `run` is the composition root. `api` translates
//! between proto and domain types. `server` and `control_connection` speak gRPC and HTTP. All other
//! modules are domain code without tonic or axum.

// Test fixtures shared with the integration tests use the path `podling_agent::`. The alias makes it
// valid here.
#[cfg(test)]
extern crate self as podling_agent;

pub mod run;

pub mod args;
pub mod config;
pub mod init;
pub mod shutdown;
pub mod tasks;

pub mod claim;
pub mod control_connection;

pub mod activity;
pub mod admission;
pub mod process;
pub mod sleep;

pub mod account;
pub mod archive;
pub mod byte_log;
pub mod child;
pub mod files;
pub mod spawn;
pub mod terminal;

pub mod api;
pub mod metrics;
pub mod server;

mod entry;
mod procfs;
pub mod state_file;
mod util;

#[cfg(test)]
#[path = "tests/workspace.rs"]
mod test_workspace;

pub use entry::{main_with, program};
