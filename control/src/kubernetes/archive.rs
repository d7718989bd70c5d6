//! The resource `WorkspaceArchive`: what is left of a workspace that was deleted.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{Port, StorageSpec, Variable};

/// What is left of a workspace that was deleted: its archives, until their time is over. A new Workspace may begin with one of them (`source`).
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podling.dev",
    version = "v1alpha1",
    kind = "WorkspaceArchive",
    namespaced,
    shortname = "wsa",
    category = "podling",
    derive = "PartialEq",
    doc = "What is left of a workspace that was deleted: its archives, until their time is over. A new Workspace may begin with one of them (source).",
    printcolumn(name = "Workspace", type_ = "string", json_path = ".spec.workspace"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner"),
    printcolumn(name = "Archive", type_ = "string", json_path = ".spec.newest"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceArchiveSpec {
    /// How the workspace was called.
    #[schemars(length(max = 63))]
    pub workspace: String,
    /// Whose it was.
    #[schemars(length(max = 100))]
    pub owner: String,
    /// Its newest archive, by its name in the backup store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub newest: Option<String>,
    /// The volume it had, if it had one of its own. What is made of its archive has the same, and so below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,
    /// Ports of it that users reached by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ports: Vec<Port>,
    /// Its environment, beside its template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub environment: Vec<Variable>,
    /// What the control plane knows it by, for itself alone.
    #[schemars(schema_with = "super::status::anything")]
    pub record: serde_json::Value,
}
