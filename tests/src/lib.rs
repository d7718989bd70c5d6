//! Library of the end-to-end tests ("stories"), the cluster tests and the benchmarks. It starts the
//! real binaries, calls them as users do, injects faults, and asserts that no process is left
//! running.
//!
//! Stories use [`Podling`], [`Client`] and [`Cli`] as a user would. Only the module `podling`
//! depends on the backend, so the same stories run on processes and on pods.

pub mod agent_client;
pub mod cli;
pub mod client;
pub mod client_helpers;
pub mod cluster;
pub mod deployed;
pub mod disk;
pub mod fake_control_plane;
pub mod grpc_web;
pub mod http;
pub mod interactive_client;
pub mod partition;
pub mod podling;
pub mod program;
pub mod proxy;
pub mod pty;
pub mod resuming_client;
pub mod running_processes;
pub mod skipped;
pub mod sleep_helpers;
pub mod standalone_agent;
pub mod suspended_process;
pub mod tls;
pub mod tools;
pub mod trace;
pub mod tree;
pub mod wait;
pub mod zips;

pub use cli::{Cli, CommandOutput};
pub use client::{AuthenticatedChannel, Client};
pub use disk::SmallDisk;
pub use podling::{Podling, PodlingOptions, Workspace};
pub use skipped::report_skipped;
pub use wait::{wait_for, wait_long, within};
