//! Tests of the gateway and of the public router: authorisation, and exchanges that are forwarded
//! unchanged.

mod access;
mod exchange;
mod fake_agent;
mod harness;
mod hostile;
mod protocols;
#[path = "../../src/tests/workspaces.rs"]
mod samples;
mod shutdown;
mod waking;

use podling_core::id::WorkspaceId;

/// Returns the id of the workspace that the tests call.
fn demo() -> WorkspaceId {
    WorkspaceId::from_bits(0x1234_5678_9abc)
}
