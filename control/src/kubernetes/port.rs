//! Named container ports of a workspace's pod.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A named container port (TCP) of the pod, for `kubectl port-forward`.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Name of the port, such as "ide".
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Number of the port that a program in the workspace listens on.
    #[schemars(range(min = 1, max = 65535))]
    #[x_kube(
        validation = Rule::new("self != 7070")
            .message("port 7070 belongs to Podling's agent; use another port")
    )]
    pub port: u16,
}
