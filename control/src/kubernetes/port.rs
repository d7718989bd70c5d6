//! Ports that users reach by name.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A TCP port in the workspace, reached through its agent.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Name of the port, as users know it ("ide").
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Number of the port that the program listens on.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}
