//! The volume of a workspace.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::quantity;

/// Access mode of the volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum AccessMode {
    /// The cluster ensures that at most one pod uses the volume.
    #[default]
    ReadWriteOncePod,
    /// The cluster allows several pods of one node to use the volume, but Podling starts only one.
    ReadWriteOnce,
}

impl AccessMode {
    /// Returns the access mode's name in Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOncePod => "ReadWriteOncePod",
            Self::ReadWriteOnce => "ReadWriteOnce",
        }
    }
}

/// The volume of a workspace. It remains while the workspace is asleep.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "has(self.className) == has(oldSelf.className) && \
         (!has(self.className) || self.className == oldSelf.className)"
    )
        .message(
            "the storage class of a volume cannot change; \
             archive the workspace and restore it into another"
        )
)]
pub struct StorageSpec {
    /// Size of the volume ("10Gi"). It cannot shrink. It can grow if the StorageClass allows it.
    #[serde(default = "size", deserialize_with = "quantity::deserialize")]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(
        validation = Rule::new(
            "quantity(string(self)).compareTo(quantity('1Mi')) >= 0 && \
             quantity(string(self)).compareTo(quantity('1Pi')) <= 0"
        )
            .message("must be at least 1Mi and at most 1Pi"),
        validation = Rule::new("quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0")
            .message("a volume cannot shrink")
    )]
    pub size: String,
    /// With ReadWriteOncePod, the cluster ensures that at most one pod uses the volume. Use
    /// ReadWriteOnce if the driver of the StorageClass does not support ReadWriteOncePod.
    #[serde(default)]
    pub access_mode: AccessMode,
    /// Name of the StorageClass. Default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self { size: size(), access_mode: AccessMode::default(), class_name: None }
    }
}

fn size() -> String {
    "10Gi".into()
}
