//! The resource `WorkspaceTemplate`: what workspaces are made of.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{PolicySpec, Port, ResourcesSpec, StorageSpec, Variable};

/// What workspaces are made of. Those that exist follow it where they say nothing themselves: in policy and resources at once, in everything
/// else with their next start. (A workspace made through Podling's API says its policy and resources itself.)
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podling.dev",
    version = "v1alpha1",
    kind = "WorkspaceTemplate",
    namespaced,
    shortname = "wst",
    category = "podling",
    derive = "PartialEq",
    doc = "What workspaces are made of. Those that exist follow it where they say nothing themselves: in policy and resources at once, in everything else with their next start. (A workspace made through Podling's API says its policy and resources itself.)",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".spec.resources.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.resources.memory"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.inject) || !self.inject || (has(self.command) && self.command.size() > 0)")
        .message("an image that gets its agent injected needs a command: what its own entrypoint is cannot be known")
)]
pub struct WorkspaceTemplateSpec {
    /// For people, one line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 200))]
    pub description: String,
    /// The container's image.
    #[schemars(length(min = 1, max = 500))]
    pub image: String,
    /// The workspace's own command (an IDE); empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// Whether the image lacks the agent: it is put there by an init container then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inject: bool,
    /// What a workspace has while it is awake.
    #[serde(default)]
    pub resources: ResourcesSpec,
    /// A workspace's volume.
    #[serde(default)]
    pub storage: StorageSpec,
    /// How long what may last.
    #[serde(default)]
    pub policy: PolicySpec,
    /// Ports that users reach by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub ports: Vec<Port>,
    /// Environment of terminals and processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub environment: Vec<Variable>,
    /// Nodes that its pods may run on, by label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that its pods bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
}
