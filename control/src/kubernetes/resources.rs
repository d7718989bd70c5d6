//! CPU and memory of a workspace while it is awake.

use kube::KubeSchema;
use podling_core::workspace::Resources;
use serde::{Deserialize, Serialize};

use super::quantity;

/// CPU and memory of a workspace. The container's requests and limits are both set to these values.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    /// Cores ("2", "0.5") or millicores ("500m").
    #[serde(default = "cpu", deserialize_with = "quantity::deserialize")]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(
        validation = Rule::new(
            "quantity(string(self)).isGreaterThan(quantity('0')) && \
             quantity(string(self)).compareTo(quantity('1k')) <= 0"
        )
            .message("must be more than 0 and at most 1000 cores")
    )]
    pub cpu: String,
    /// Bytes with a unit ("512Mi", "2Gi").
    #[serde(default = "memory", deserialize_with = "quantity::deserialize")]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(
        validation = Rule::new(
            "quantity(string(self)).compareTo(quantity('64Mi')) >= 0 && \
             quantity(string(self)).compareTo(quantity('64Ti')) <= 0"
        )
            .message("must be at least 64Mi, for the agent and a shell, and at most 64Ti")
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
