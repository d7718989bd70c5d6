//! The resource `Workspace`, with the spec and the status of one workspace.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{PolicySpec, Port, ResourcesSpec, StorageSpec, Variable, WorkspaceStatus};

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
        "!has(self.spec.storage) || !has(self.status) || !has(self.status.volumeSize) || \
         (has(oldSelf.spec.storage) && self.spec.storage.size == oldSelf.spec.storage.size) || \
         quantity(string(self.spec.storage.size)).compareTo(quantity(self.status.volumeSize)) >= 0"
    )
        .message("a volume cannot shrink: spec.storage.size is smaller than the claim's, status.volumeSize")
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
    /// CPU and memory while awake. Default: the template's. May change while awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesSpec>,
    /// Volume of the workspace. Default: the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,
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
}
