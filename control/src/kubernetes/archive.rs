//! The resource `WorkspaceArchive`, which represents a deleted workspace that still has archives.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{Port, StorageSpec, Variable};

/// A deleted workspace that still has archives. It exists until its last archive expires. A new
/// Workspace can start from one of its archives (`source`).
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podling.dev",
    version = "v1alpha1",
    kind = "WorkspaceArchive",
    namespaced,
    shortname = "wsa",
    category = "podling",
    derive = "PartialEq",
    doc = "A deleted workspace that still has archives. It exists until its last archive expires. \
           A new Workspace can start from one of its archives (source).",
    printcolumn(name = "Workspace", type_ = "string", json_path = ".spec.workspace"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner"),
    printcolumn(name = "Archive", type_ = "string", json_path = ".spec.newestArchive"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceArchiveSpec {
    /// Name of the workspace.
    #[schemars(length(max = 63))]
    pub workspace: String,
    /// Owner of the workspace.
    #[schemars(length(max = 100))]
    pub owner: String,
    /// Name of the newest archive in the backup store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub newest_archive: Option<String>,
    /// Volume of the workspace, if its spec named one. A workspace that is restored from the
    /// archive gets the same volume settings, ports and environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,
    /// Named TCP ports of the workspace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ports: Vec<Port>,
    /// Environment variables of the workspace, in addition to its template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub environment: Vec<Variable>,
    /// The control plane's own record, as one string. Opaque, and not a stable interface.
    #[schemars(schema_with = "super::status::anything")]
    pub record: serde_json::Value,
}
