//! A workspace's volume.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// How many pods may have a volume at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum AccessMode {
    /// One.
    #[default]
    ReadWriteOncePod,
    /// Those of one node; Podling never starts a second.
    ReadWriteOnce,
}

impl AccessMode {
    /// As Kubernetes calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::ReadWriteOncePod => "ReadWriteOncePod",
            Self::ReadWriteOnce => "ReadWriteOnce",
        }
    }
}

/// A volume that is kept while its workspace sleeps.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)")
        .message("the class of a volume never changes; archive the workspace and restore into another")
)]
pub struct StorageSpec {
    /// Its size ("10Gi"). May grow where its class allows it, and never shrinks.
    #[serde(default = "size")]
    #[schemars(length(max = 16), regex(pattern = "^[1-9][0-9]*(Mi|Gi|Ti)$"))]
    #[x_kube(
        validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) >= 0").message("a volume never shrinks")
    )]
    pub size: String,
    /// How many may have it at once. ReadWriteOncePod lets the cluster see to it that there is never more than one pod; a class whose driver
    /// does not know that wants ReadWriteOnce.
    #[serde(default)]
    pub access_mode: AccessMode,
    /// Its StorageClass; absent: the cluster's default.
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
