//! Tests of the agent as a process. A fake control plane serves the real gRPC service over TLS and
//! claims the agent; clients call the agent.

mod sleep_harness;

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
