//! The resource `Workspace`, with the spec and the status of one workspace, and the resource
//! `WorkspaceArchive`, which represents a deleted workspace that still has archives. Only the
//! control plane writes a status, and only when it changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use podling_core::workspace::DesiredState;
use serde::{Deserialize, Serialize};

use super::{PolicySpec, Port, ResourceOverrides, StorageOverrides, Variable};

/// The environment of one user. It outlives its pods, sleeps while idle, and is archived before its
/// storage is removed.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podling.dev",
    version = "v1alpha1",
    kind = "Workspace",
    namespaced,
    shortname = "ws",
    category = "podling",
    status = "WorkspaceStatus",
    derive = "PartialEq",
    doc = "The environment of one user. It outlives its pods, sleeps while idle, and is archived before \
           its storage is removed.",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.template"),
    printcolumn(name = "Activity", type_ = "string", json_path = ".status.activity"),
    printcolumn(name = "Idle", type_ = "date", json_path = ".status.idleSince"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.next.step"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(
        "self.metadata.name.size() <= 63 && \
         self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
    )
        .message(
            "a workspace's name is 1 to 63 of a-z, 0-9 and '-', starting with a letter \
             and not ending with '-'"
        ),
    validation = Rule::new(
        "!has(self.spec.storage) || !has(self.spec.storage.size) || !has(self.status) || \
         !has(self.status.volumeSize) || (has(oldSelf.spec.storage) && \
         has(oldSelf.spec.storage.size) && self.spec.storage.size == oldSelf.spec.storage.size) || \
         quantity(string(self.spec.storage.size)).compareTo(quantity(self.status.volumeSize)) >= 0"
    )
        .message("a volume cannot shrink: spec.storage.size is smaller than the claim's, status.volumeSize"),
    validation = Rule::new(
        "has(oldSelf.spec.storage) || !has(self.spec.storage) || !has(self.status) || \
         !has(self.status.volumeSize) || \
         (!has(self.spec.storage.className) && !has(self.spec.storage.accessMode))"
    )
        .message(
            "the volume claim exists, so its storage class and access mode cannot change; \
             archive the workspace and restore it into another"
        )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storage) == has(oldSelf.storage) || !has(oldSelf.storage)")
        .message("storage cannot be removed from a workspace; delete the workspace instead")
)]
#[x_kube(
    validation = Rule::new("has(self.id) == has(oldSelf.id) && has(self.source) == has(oldSelf.source)")
        .message("the id and the source of a workspace never change")
)]
pub struct WorkspaceSpec {
    /// Id of the workspace. Default: derived from the uid of the resource. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12), regex(pattern = "^[a-z2-7]{12}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the id of a workspace never changes"))]
    pub id: Option<String>,
    /// Name of the archive whose files the workspace starts with. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200), regex(pattern = "^workspace-[a-z2-7]{12}-[0-9]{8}-[0-9]{6}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the source of a workspace never changes"))]
    pub source: Option<String>,
    /// Owner of the workspace. Never changes.
    #[schemars(length(min = 1, max = 100), regex(pattern = "^[-a-zA-Z0-9_.@]+$"))]
    #[x_kube(
        validation = Rule::new("self == oldSelf")
            .message(
                "the owner of a workspace never changes; \
                 create another workspace and restore into it"
            )
    )]
    pub owner: String,
    /// Name of a WorkspaceTemplate in the same namespace. Never changes.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(
        validation = Rule::new("self == oldSelf")
            .message(
                "the template of a workspace never changes; \
                 create another workspace and restore into it"
            )
    )]
    pub template: String,
    /// Desired state. The controller sets it to Asleep when the workspace goes idle. Leave it out
    /// of GitOps manifests: every sync would wake the workspace.
    #[serde(default)]
    pub desired_state: DesiredResourceState,
    /// Number of the last request to wake or to sleep. Changing it while desiredState is Awake
    /// requests a wake, even while the workspace is falling asleep. Leave it out of GitOps manifests.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub request_seq: i64,
    /// CPU and memory while awake. Default: the template's. May change while awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceOverrides>,
    /// Volume of the workspace. Default: the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageOverrides>,
    /// Timeouts and caps that replace the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySpec>,
    /// Named container ports of the pod, for `kubectl port-forward`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, self.exists_one(b, b.port == a.port))")
            .message("a port number must have only one name")
    )]
    pub ports: Vec<Port>,
    /// Environment variables of terminals and processes, in addition to the template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub environment: Vec<Variable>,
}

/// Desired state of a workspace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DesiredResourceState {
    /// The agent runs until the policy puts the workspace to sleep.
    #[default]
    Awake,
    /// No pod runs, and the storage remains until it is archived.
    Asleep,
    /// The workspace is archived, then removed. Until then, another desired state takes that back.
    Deleted,
    /// The workspace is removed with its files and archives.
    Discarded,
}

impl From<DesiredState> for DesiredResourceState {
    fn from(state: DesiredState) -> Self {
        match state {
            DesiredState::Awake => Self::Awake,
            DesiredState::Asleep => Self::Asleep,
            DesiredState::Deleted => Self::Deleted,
            DesiredState::Discarded => Self::Discarded,
        }
    }
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

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
    /// Conditions of types Ready, StorageReady, ArchiveProven, AgentConnected, Resized, Stalled and
    /// WarningLimited.
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
fn anything(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
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
    pub storage: Option<StorageOverrides>,
    /// Named TCP ports of the workspace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ports: Vec<Port>,
    /// Environment variables of the workspace, in addition to its template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub environment: Vec<Variable>,
    /// The control plane's own record, as one string. Opaque, and not a stable interface.
    #[schemars(schema_with = "anything")]
    pub record: serde_json::Value,
}
