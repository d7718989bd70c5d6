//! Stories of the agent as a process: a small control plane (the real service, over real TLS) claims it, callers call it.

mod agent;
mod client;
mod plane;

mod end;
mod link;
mod server;
mod work;
