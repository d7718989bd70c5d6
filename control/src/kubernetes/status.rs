//! Status of the resource `Workspace`. Only the control plane writes it, and only when something
//! changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Observed state of a workspace.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceStatus {
    /// queued, starting, awake, falling-asleep, asleep, archiving, archived, deleting or failed.
    #[schemars(length(max = 32))]
    #[serde(default)]
    pub state: String,
    /// Why the workspace is in its state, as a CamelCase code.
    #[schemars(length(max = 64))]
    #[serde(default)]
    pub reason: String,
    /// The reason in English, with its details.
    #[schemars(length(max = 4096))]
    #[serde(default)]
    pub message: String,
    /// When the workspace entered its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Generation of the spec that this status follows from.
    #[serde(default)]
    pub observed_generation: i64,
    /// Conditions of types Ready, AgentConnected, StorageReady, ArchiveProven and Resized.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Activity from the last heartbeat: active, busy or idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub activity: Option<String>,
    /// Start of the idle time that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Time>,
    /// What happens next if nothing else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextTransition>,
    /// Uid of the pod that serves the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// Identifies one run of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub boot_id: Option<String>,
    /// SHA-256 of the agent's certificate (DER), lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub key_fingerprint: Option<String>,
    /// Number of agents that have had write access to the storage. An archive is proven for one
    /// value.
    #[serde(default)]
    pub storage_generation: i64,
    /// Name of the PersistentVolumeClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub claim_name: Option<String>,
    /// Digest of the image that ran last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image_digest: Option<String>,
    /// The newest proven archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archive: Option<LastArchive>,
    /// The control plane's own record. Opaque, and not a stable interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub record: Option<serde_json::Value>,
}

/// An object whose fields the API server does not validate.
pub(super) fn anything(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// What happens next if nothing else does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NextTransition {
    /// The step, as a CamelCase code: Sleep, Archive, RestartAgent, …
    #[schemars(length(max = 64))]
    pub step: String,
    /// The step in English.
    #[schemars(length(max = 200))]
    #[serde(default)]
    pub message: String,
    /// When the step is due.
    pub at: Time,
}

/// An archive of the workspace, read back and compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastArchive {
    /// Name of the archive in the backup store.
    #[schemars(length(max = 200))]
    pub name: String,
    /// Storage generation that the archive holds.
    pub storage_generation: i64,
    /// When the archive was proven.
    pub at: Time,
}
