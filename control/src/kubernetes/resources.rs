//! CPU and memory of a workspace while it is awake.

use kube::KubeSchema;
use podling_core::workspace::Resources;
use serde::{Deserialize, Serialize};

/// CPU and memory of a workspace. The container's requests and limits are both set to these values.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    /// Cores ("2") or millicores ("500m").
    #[serde(default = "cpu")]
    #[schemars(length(max = 16), regex(pattern = "^[1-9][0-9]*m?$"))]
    pub cpu: String,
    /// Bytes with a unit ("512Mi", "2Gi").
    #[serde(default = "memory")]
    #[schemars(length(max = 16), regex(pattern = "^[1-9][0-9]*(Ki|Mi|Gi|Ti)?$"))]
    #[x_kube(
        validation = Rule::new("quantity(self).compareTo(quantity('64Mi')) >= 0")
            .message("the agent and a shell need at least 64Mi of memory")
    )]
    pub memory: String,
}

impl ResourcesSpec {
    /// Converts resources to exact values in millicores and bytes.
    pub fn of(resources: Resources) -> Self {
        Self { cpu: format!("{}m", resources.cpu_millis), memory: resources.memory_bytes.to_string() }
    }
}

impl Default for ResourcesSpec {
    fn default() -> Self {
        Self { cpu: cpu(), memory: memory() }
    }
}

fn cpu() -> String {
    "1".into()
}

fn memory() -> String {
    "1Gi".into()
}
