//! Stories that can run with workspaces as processes or as pods. `cargo xtask stories` runs them on
//! processes, and `cargo xtask cluster stories` on pods.

mod agent_restarts;
mod archives;
mod client_calls;
mod commands;
mod copies;
mod crash_points;
mod crashes;
mod foreign_clients;
mod grpc_web;
mod http;
mod keep_awake;
mod keystroke_races;
mod lossy_network;
mod progress_display;
mod quota;
mod resource_exhaustion;
mod restore;
mod silent_agents;
mod sleep_and_wake;
mod sleep_while_attached;
mod stalled_store;
mod start_errors;
mod store_failures;
mod tokens;
mod unauthenticated_connections;
mod viewers;
