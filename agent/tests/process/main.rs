//! Tests of the agent as a process. A fake control plane serves the real gRPC service over TLS and
//! claims the agent; clients call the agent.

mod agent;
mod claimed;
mod client;
mod control_plane;
mod sleep_harness;

/// Shared with the end-to-end tests, so that `cargo xtask` lists skipped tests in one summary.
#[path = "../../../tests/src/skipped.rs"]
#[allow(unreachable_pub, reason = "public items of the tests' library")]
mod skipped;

mod activity;
mod commands;
mod connection;
mod init;
mod install;
mod restore;
mod server;
mod shutdown;
mod sleep;
mod sleep_race;
mod workload;
