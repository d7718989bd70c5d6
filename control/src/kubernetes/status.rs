//! What is known of a workspace. Written by the control plane alone, and only when something changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What is known.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceStatus {
    /// queued, starting, awake, falling-asleep, asleep, archiving, archived, deleting or failed.
    #[schemars(length(max = 32))]
    #[serde(default)]
    pub state: String,
    /// Why, for people.
    #[schemars(length(max = 4096))]
    #[serde(default)]
    pub reason: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The generation of the spec that this follows from.
    #[serde(default)]
    pub observed_generation: i64,
    /// Ready, AgentConnected, StorageReady, ArchiveProven and Resized.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What its agent said last: active, busy or idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub activity: Option<String>,
    /// Since when it is idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Time>,
    /// What happens next if nothing else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextTransition>,
    /// The pod that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// Which run of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub boot_id: Option<String>,
    /// SHA-256 of the agent's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub key_fingerprint: Option<String>,
    /// Grows with every start of an agent that may write the storage: an archive is proven for one of them.
    #[serde(default)]
    pub storage_generation: i64,
    /// The volume's claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub claim_name: Option<String>,
    /// The image that ran, by its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image_digest: Option<String>,
    /// Its newest archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archive: Option<LastArchive>,
    /// What the control plane knows it by, for itself alone: written and read as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub record: Option<serde_json::Value>,
}

/// An object of which the API server need know nothing.
pub(super) fn anything(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NextTransition {
    /// For people: "sleeps", "is archived".
    #[schemars(length(max = 200))]
    pub what: String,
    /// When.
    pub at: Time,
}

/// An archive that was proven.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastArchive {
    /// Its name in the backup store.
    #[schemars(length(max = 200))]
    pub name: String,
    /// Which storage generation it holds.
    pub storage_generation: i64,
    /// When it was proven.
    pub at: Time,
}
