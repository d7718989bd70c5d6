//! Stories of the agent as a process: a small control plane (the real service, over real TLS) claims it, callers call it.

mod agent;
mod bed;
mod claimed;
mod client;
mod plane;

/// The same words as the stories': they end up in the same summary.
#[path = "../../../tests/src/skipped.rs"]
#[allow(unreachable_pub, reason = "there it is a library's")]
mod skipped;

mod awake;
mod commands;
mod end;
mod init;
mod install;
mod link;
mod race;
mod restore;
mod server;
mod sleep;
mod work;
