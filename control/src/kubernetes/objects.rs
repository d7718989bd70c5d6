//! What of a workspace exists in a cluster: its pod and its claim, as the API server is told. Pure.
//!
//! Must not know how they get there, or when.

mod claim;
mod pod;

use std::collections::BTreeMap;

use podling_core::{id::WorkspaceId, workspace::Epoch};

pub use self::{
    claim::claim,
    pod::{pod, pod_name, resource_requirements},
};
use super::{Port, ResourcesSpec, SecretKey, StorageSpec, WorkspaceTemplateSpec};

/// Whose an object is: a label of each.
pub const WORKSPACE_LABEL: &str = "podling.dev/workspace";
/// What a pod is made of: a label, by which a NetworkPolicy says where its like may go.
pub const TEMPLATE_LABEL: &str = "podling.dev/template";
/// Which start of an agent a pod is: an annotation.
pub const EPOCH_ANNOTATION: &str = "podling.dev/epoch";
/// Holds a workspace's resource until its data is archived, or somebody let it go.
pub const ARCHIVE_FIRST: &str = "podling.dev/archive-first";
/// Set to "true" on a workspace's resource that is deleted: its data goes with it, archived or not.
pub const DISCARD: &str = "podling.dev/discard";
/// The container that a person works in.
pub const CONTAINER: &str = "workspace";
/// Where its agent listens.
pub const AGENT_PORT: u16 = 7070;
/// Whom the tokens of agents are for.
pub const AUDIENCE: &str = "podling";
/// Holds a claim until its data is archived, or somebody let it go: whoever deletes a workspace, a namespace or all of an application must not
/// take the data with it. For the same reason a claim has no ownerReference.
pub const KEEP_DATA: &str = "podling.dev/keep-data";

/// One start of a workspace's agent.
#[derive(Debug, Clone)]
pub struct PodStart {
    /// Whose.
    pub workspace: WorkspaceId,
    /// Which.
    pub epoch: Epoch,
    /// What it is made of.
    pub template: WorkspaceTemplateSpec,
    /// How that is called.
    pub template_name: String,
    /// What it has.
    pub resources: ResourcesSpec,
    /// What of its environment secrets hold: its node puts it there, and nobody else reads it.
    pub secrets: Vec<(String, SecretKey)>,
    /// What users reach by name.
    pub ports: Vec<Port>,
    /// Its volume's claim; recorded, not computed.
    pub claim_name: String,
}

/// What all workspaces of a cluster have in common.
#[derive(Debug, Clone)]
pub struct PodDefaults {
    /// The image of the agent, for images that have none.
    pub agent_image: String,
    /// Where agents dial: `https://HOST:PORT`.
    pub control: String,
    /// The ConfigMap with the CA of the control plane's certificate, under the key `ca.pem`.
    pub control_ca: String,
    /// Who pods are to the API server: somebody without any rights, for whom tokens with the audience `podling` are made.
    pub service_account: String,
}

fn labels(workspace: &WorkspaceId) -> BTreeMap<String, String> {
    BTreeMap::from([
        (WORKSPACE_LABEL.to_owned(), workspace.to_string()),
        ("app.kubernetes.io/name".to_owned(), "workspace".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), "podling".to_owned()),
    ])
}

/// The claim of a new workspace.
pub fn claim_name(workspace: &WorkspaceId) -> String {
    format!("workspace-{workspace}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start of a template that says no more than it must.
    pub(super) fn start() -> PodStart {
        let template = serde_json::json!({"image": "registry.example.org/python:1"});
        let workspace = WorkspaceId::from_bits(7);
        PodStart {
            claim_name: claim_name(&workspace),
            workspace,
            epoch: 3,
            template: serde_json::from_value(template).unwrap(),
            resources: ResourcesSpec { cpu: "500m".into(), memory: "2Gi".into() },
            template_name: "python".into(),
            secrets: Vec::new(),
            ports: Vec::new(),
        }
    }

    pub(super) fn defaults() -> PodDefaults {
        PodDefaults {
            agent_image: "podling/agent:0.1.0".into(),
            control: "https://podling-control.podling:8443".into(),
            control_ca: "podling-ca".into(),
            service_account: "podling-workspace".into(),
        }
    }
}
