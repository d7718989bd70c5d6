//! The agent: one per workspace, in its container (or, with the local backend, beside it).
//!
//! The modules in suggested reading order. `run` is the composition root; `api` holds the edges that translate proto; everything
//! else is domain code that knows neither tonic nor axum.

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
mod install;

pub use entry::{main_with, program};

/// An error with all that caused it, in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
