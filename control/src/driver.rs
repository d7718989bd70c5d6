//! The driver: the only writer of what workspaces are.

mod error;
mod event;
mod handle;

pub use error::DriverError;
pub use event::{AgentHello, Beat, ClaimContent, ConnectionId, NewWorkspace, ToAgent};
pub use handle::DriverHandle;
