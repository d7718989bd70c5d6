//! Status of the resource `Workspace`. Only the control plane writes it, and only when it changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Observed state of a workspace.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceStatus {
    /// Id of the workspace. The names of its pods and its volume claim contain it.
    #[schemars(length(max = 12))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// State of the workspace: queued, starting, awake, falling-asleep, asleep, archiving,
    /// archived, deleting or failed.
    #[schemars(length(max = 32))]
    #[serde(default)]
    pub state: String,
    /// Reason for the state, as a CamelCase code.
    #[schemars(length(max = 64))]
    #[serde(default)]
    pub reason: String,
    /// The reason in English, with its details.
    #[schemars(length(max = 4096))]
    #[serde(default)]
    pub message: String,
    /// Time at which the workspace entered its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Generation of the spec that this status follows from.
    #[serde(default)]
    pub observed_generation: i64,
    /// Conditions of types Ready, StorageReady, ArchiveProven, AgentConnected, Resized and Stalled.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Activity from the last heartbeat: active, busy or idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub activity: Option<String>,
    /// Start of the present idle time. Absent unless the workspace is idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Time>,
    /// The next transition, if the workspace is not used and nothing else changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextStepStatus>,
    /// Uid of the pod that runs the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// Boot id of the agent, which identifies one run of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub boot_id: Option<String>,
    /// SHA-256 of the agent's certificate (DER), lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub key_fingerprint: Option<String>,
    /// Number of agents that have had write access to the storage. An archive is valid for one
    /// value of it.
    #[serde(default)]
    pub storage_generation: i64,
    /// Name of the PersistentVolumeClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub volume_claim_name: Option<String>,
    /// Size that the PersistentVolumeClaim requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub volume_size: Option<String>,
    /// Digest of the image that ran last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image_digest: Option<String>,
    /// The newest proven archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archive: Option<LastArchive>,
    /// The control plane's own record, as one string. Opaque, and not a stable interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub record: Option<serde_json::Value>,
}

/// Returns the schema of a record, which the API server does not validate. It has no type, because
/// earlier versions stored an object.
pub(super) fn anything(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// The next transition, if the workspace is not used and nothing else changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NextStepStatus {
    /// The step, as a CamelCase code such as Sleep, Archive or RestartAgent.
    #[schemars(length(max = 64))]
    pub step: String,
    /// The step in English.
    #[schemars(length(max = 200))]
    #[serde(default)]
    pub message: String,
    /// Time at which the step is due.
    pub at: Time,
}

/// A proven archive of the workspace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastArchive {
    /// Name of the archive in the backup store.
    #[schemars(length(max = 200))]
    pub name: String,
    /// Storage generation that the archive is valid for.
    pub storage_generation: i64,
    /// Time at which the archive was proven.
    pub at: Time,
}
