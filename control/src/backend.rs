//! What runs workspaces: the seam between deciding and doing.
//!
//! Must not know why something is started or ended; that is `podling_core::decide`.

use std::fmt;

use podling_core::{id::WorkspaceId, workspace::Epoch};

use crate::snapshot::AgentAddress;

/// Names one started agent among all that ever were: locally its process id, start time and the machine's boot, in a cluster
/// the pod's uid. What an agent says of itself is compared with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(pub String);

/// An agent that a backend runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Whose.
    pub workspace: WorkspaceId,
    /// The start that made it.
    pub epoch: Epoch,
    /// Which one it is.
    pub id: InstanceId,
    /// What it called itself, if the backend knows: only an adopted agent's is known before its hello.
    pub boot_id: Option<String>,
    /// Where it listens.
    pub address: AgentAddress,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
