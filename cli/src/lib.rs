//! The command people type. It contains control plane and agent, and is a client of both.
//!
//! [`command`] has one file for each command; they share the way to the control plane ([`target`], [`connector`], [`client`]),
//! patience ([`backoff`], [`follow`], [`journey`], [`waiting`], [`spinner`]), and how they answer ([`output`], [`view`], [`next_transition`]) and fail ([`failure`],
//! [`many`]).

pub mod archive;
pub mod args;
pub mod attach;
pub mod backoff;
pub mod client;
pub mod command;
pub mod connector;
pub mod context;
pub mod cp;
pub mod duration;
pub mod explain;
pub mod failure;
pub mod for_each_target;
pub mod next_transition;
pub mod output;
pub mod partial_file;
pub mod policy;
pub mod progress;
pub mod resources;
pub mod run;
pub mod signal;
pub mod spinner;
pub mod state_waiter;
pub mod stdio;
pub mod target;
pub mod view;
pub mod wake_spinner;
pub mod workspace_watcher;
