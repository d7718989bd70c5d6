//! Library of the end-to-end tests ("stories"), the cluster tests and the benchmarks. It starts the
//! real binaries, calls them as users do, and asserts that no process is left running. The rest, such
//! as clients and faults, comes from `podling-testkit`.
//!
//! Stories use [`Podling`], [`Client`] and [`Cli`] as a user would. Only the module `podling`
//! depends on the backend, so the same stories run on processes and on pods.

pub mod cli;
pub mod cluster;
pub mod deployed;
pub mod partition;
pub mod podling;
pub mod sleep_helpers;
pub mod tools;
pub mod trace;

pub use cli::{Cli, CommandOutput};
pub use cluster::Namespace;
pub use deployed::Deployed;
pub use partition::NetworkPartition;
pub use podling::{Podling, PodlingOptions, Workspace};
pub use podling_testkit::*;
pub use sleep_helpers::{counted_idle, idle_timeout_policy};
