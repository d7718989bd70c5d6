//! The resource `Workspace`: what a person wants.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{PolicySpec, Port, ResourcesSpec, StorageSpec, Variable, WorkspaceStatus};

/// One user's environment: it outlives its pods, sleeps when it is not used, and is archived before its storage goes.
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
    doc = "One user's environment: it outlives its pods, sleeps when it is not used, and is archived before its storage goes.",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.template"),
    printcolumn(name = "Activity", type_ = "string", json_path = ".status.activity"),
    printcolumn(name = "Idle", type_ = "date", json_path = ".status.idleSince"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.next.what"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("a workspace's name is 1 to 63 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storage) == has(oldSelf.storage) || !has(oldSelf.storage)")
        .message("storage that was asked for stays; delete the workspace to let it go")
)]
#[x_kube(
    validation = Rule::new("has(self.id) == has(oldSelf.id) && has(self.source) == has(oldSelf.source)")
        .message("what a workspace is and what it began with never changes")
)]
pub struct WorkspaceSpec {
    /// How Podling calls it, for ever; leave it out, and it follows from the resource's uid. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12), regex(pattern = "^[a-z2-7]{12}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the id of a workspace never changes"))]
    pub id: Option<String>,
    /// The archive whose files it begins with, by its name in the backup store. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("what a workspace began with never changes"))]
    pub source: Option<String>,
    /// Whose it is. Never changes.
    #[schemars(length(min = 1, max = 100), regex(pattern = "^[-a-zA-Z0-9_.@]+$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the owner of a workspace never changes; make another and restore into it"))]
    pub owner: String,
    /// What it is made of: the name of a WorkspaceTemplate in the same namespace. Never changes.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the template of a workspace never changes; make another and restore into it"))]
    pub template: String,
    /// What it shall be. An awake one sleeps by its policy when it is not used, and this is set to Asleep then; leave it out of what a
    /// repository applies, or it is woken each time.
    #[serde(default)]
    pub wanted: WantedState,
    /// What it shall have while it is awake; absent: what its template says. May change while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesSpec>,
    /// Its volume; absent: what its template says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,
    /// What differs from its template's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySpec>,
    /// Ports of it that users reach by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, self.exists_one(b, b.port == a.port))").message("no two names for one port")
    )]
    pub ports: Vec<Port>,
    /// Environment of its terminals and processes, beside its template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub environment: Vec<Variable>,
}

/// What a workspace shall be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum WantedState {
    /// Running while it is in use.
    #[default]
    Awake,
    /// Without a pod; its storage is kept.
    Asleep,
}
