//! Stories about the gateway and its front: who may call what, and that an exchange passes as it is.

mod access;
mod agent;
mod exchange;
mod hostile;
mod house;
mod protocols;
mod shutdown;
mod waking;

use podling_core::id::WorkspaceId;

/// The workspace of the stories.
fn demo() -> WorkspaceId {
    WorkspaceId::from_bits(0x1234_5678_9abc)
}
