//! The `podling` command line. It contains the control plane and the agent, and is a client of
//! both.
//!
//! [`command`] has one module per family of subcommands. They share the connection to the control
//! plane ([`target`], [`client`]), retries and waiting ([`backoff`], [`workspace_watcher`],
//! [`state_waiter`], [`spinner`], [`signal`]), texts ([`output`], [`workspace_text`],
//! [`duration`]), files and streams ([`stdio`], [`local_file`]) and failures
//! ([`failure`]).

pub mod advice;
pub mod backoff;
pub mod client;
pub mod command;
pub mod duration;
pub mod failure;
pub mod local_file;
pub mod output;
pub mod signal;
pub mod spinner;
pub mod state_waiter;
pub mod stdio;
pub mod target;
pub mod workspace_text;
pub mod workspace_watcher;
