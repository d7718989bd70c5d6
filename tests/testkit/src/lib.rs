//! What the tests of all crates share: waits, directories, certificates, servers on free ports,
//! clients, a fake control plane, the agent as a process, fault injection, golden files and the
//! inspection of processes.
//!
//! It depends on no crate of the product but `podling-proto`, so that each crate can use it in its
//! unit tests. Fakes of a crate's own types stay in the tests of that crate.

pub mod agent_client;
pub mod agent_process;
pub mod client;
pub mod client_helpers;
pub mod control_plane;
pub mod golden;
pub mod grpc_web;
pub mod http;
pub mod interactive_client;
pub mod machine;
pub mod net;
pub mod processes;
pub mod proxy;
pub mod pty;
pub mod resuming_client;
pub mod terminal_stream;
pub mod tls;
pub mod tree;
pub mod wait;
pub mod zips;

pub use agent_process::AgentProcess;
pub use client::{AuthenticatedChannel, Client};
pub use client_helpers::{
    argv, assert_same_bytes, command, path, process_exit_code, reason, refused, script, terminal_exit_code,
    wire_duration,
};
pub use control_plane::{AgentSession, FakeControlPlane};
pub use grpc_web::{FrameParser, GrpcWebClient, GrpcWebFrame, ResponseStream};
pub use interactive_client::{InteractiveClient, LineCounts};
pub use machine::{SmallDisk, launcher_without_dac_override, program, report_skipped};
pub use net::DialAddress;
pub use processes::SuspendedProcess;
pub use proxy::{FaultyProxy, NetworkFaults, seed};
pub use pty::TerminalWindow;
pub use resuming_client::{EpochLog, ResumingClient};
pub use terminal_stream::{TerminalStream, attach_open, from_now, from_oldest, user_input};
pub use wait::{
    WAIT_TIMEOUT, wait_blocking, wait_blocking_every_ms, wait_for, wait_long, wait_until, within,
};
