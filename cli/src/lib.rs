//! The `podling` command line. It contains the control plane and the agent, and is a client of
//! both.
//!
//! [`command`] has one module per subcommand. They share the connection to the control plane
//! ([`target`], [`connector`], [`client`]), retries and waiting ([`backoff`],
//! [`workspace_watcher`], [`state_waiter`], [`wake_spinner`], [`spinner`]), output ([`output`],
//! [`view`], [`next_step`], [`partial_file`], [`special_file`]) and failures ([`failure`],
//! [`for_each_target`], [`signal`]).

pub mod archive;
pub mod args;
pub mod backoff;
pub mod client;
pub mod command;
pub mod duration;
pub mod failure;
#[cfg(test)]
mod golden;
pub mod local_file;
pub mod output;
pub mod policy;
pub mod signal;
pub mod spinner;
pub mod state_waiter;
pub mod stdio;
pub mod target;
pub mod workspace_json;
pub mod workspace_text;
pub mod workspace_watcher;
