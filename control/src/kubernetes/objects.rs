//! Builds the objects of a workspace in a cluster: its pod and its volume claim. Does no I/O.

mod overrides;
mod pod;
mod pod_security;
mod volume_claim;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use podling_core::{
    id::{WorkspaceId, WorkspaceName},
    workspace::Epoch,
};

pub use self::{
    overrides::InvalidOverride,
    pod::{AGENT_INIT_CONTAINER, pod, pod_name, resource_requirements, template_problem},
    volume_claim::volume_claim,
};
use super::{Port, ResourcesSpec, SecretKey, StorageSpec, WorkspaceTemplateSpec};

/// Label of every object, with the id of its workspace.
pub const WORKSPACE_LABEL: &str = "podling.dev/workspace";
/// Label of a pod, with the name of its template. NetworkPolicies select pods by this label.
pub const TEMPLATE_LABEL: &str = "podling.dev/template";
/// Annotation of a pod, with the epoch that the pod was created for.
pub const EPOCH_ANNOTATION: &str = "podling.dev/epoch";
/// Finalizer of a Workspace resource. Keeps the resource until its data is archived or discarded.
pub const ARCHIVE_BEFORE_DELETE: &str = "podling.dev/archive-before-delete";
/// Annotation of a Workspace resource. With "true", its deletion deletes the data without an
/// archive.
pub const DISCARD: &str = "podling.dev/discard";
/// Name of the container that runs the agent and the user's programs.
pub const CONTAINER: &str = "workspace";
/// TCP port of the agent in the pod.
pub const AGENT_PORT: u16 = 7070;
/// Audience of the agents' service account tokens.
pub const AUDIENCE: &str = "podling";
/// Finalizer of a claim. Keeps the claim until its data is archived or discarded: deleting a
/// workspace, a namespace or a whole application must not delete the data. For the same reason a
/// claim has no ownerReference.
pub const KEEP_DATA: &str = "podling.dev/keep-data";

/// One start of a workspace's agent, as input for [`pod`].
#[derive(Debug, Clone)]
pub struct PodStart {
    pub workspace: WorkspaceId,
    pub epoch: Epoch,
    /// Name of the workspace, which becomes the pod's hostname.
    pub name: WorkspaceName,
    /// The template at the time of this start.
    pub template: WorkspaceTemplateSpec,
    /// Name of the WorkspaceTemplate resource.
    pub template_name: String,
    /// Requests and limits of the workspace container.
    pub resources: ResourcesSpec,
    /// Names of variables, with the secrets of their values. The node reads the values; the control
    /// plane never does.
    pub secrets: Vec<(String, SecretKey)>,
    /// Named TCP ports of the workspace container.
    pub ports: Vec<Port>,
    /// Name of the workspace's volume claim. An existing claim may have another name than
    /// [`volume_claim_name`] returns.
    pub volume_claim_name: String,
    /// The Workspace resource as the pod's controller, without which `kubectl drain` refuses to
    /// evict the pod. `None` while the resource is being deleted: the garbage collector would
    /// delete the pod in which the archive is made.
    pub controller: Option<OwnerReference>,
}

/// Settings that all pods of a cluster share.
#[derive(Debug, Clone)]
pub struct PodDefaults {
    /// Agent image for templates whose image contains no agent.
    pub agent_image: String,
    /// URL that agents connect to, in the form `https://HOST:PORT`.
    pub control: String,
    /// ConfigMap with the CA of the control plane's certificate, under the key `ca.pem`.
    pub control_ca: String,
    /// Service account of the pods. It has no permissions; its tokens with the audience `podling`
    /// identify agents.
    pub service_account: String,
}

fn labels(workspace: &WorkspaceId) -> BTreeMap<String, String> {
    let mut labels = workspace_labels(workspace);
    labels.insert(WORKSPACE_LABEL.to_owned(), workspace.to_string());
    labels
}

/// Returns the recommended labels of an object that belongs to a workspace.
pub fn workspace_labels(workspace: &WorkspaceId) -> BTreeMap<String, String> {
    recommended_labels("workspace", workspace.as_str(), "workspace")
}

/// Returns the recommended labels of an object that the control plane creates for itself.
pub fn control_plane_labels() -> BTreeMap<String, String> {
    recommended_labels("podling-control", "podling", "control-plane")
}

/// Returns labels that tools of Kubernetes group objects by.
fn recommended_labels(name: &str, instance: &str, component: &str) -> BTreeMap<String, String> {
    let labels = [
        ("name", name),
        ("instance", instance),
        ("component", component),
        ("part-of", "podling"),
        ("managed-by", "podling"),
    ];
    labels.map(|(key, value)| (format!("app.kubernetes.io/{key}"), value.to_owned())).into()
}

/// Returns the name of the claim that is created for a new workspace.
pub fn volume_claim_name(workspace: &WorkspaceId) -> String {
    format!("workspace-{workspace}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start from a minimal template.
    pub(super) fn start() -> PodStart {
        let template = serde_json::json!({"image": "registry.example.org/python:1"});
        let workspace = WorkspaceId::from_bits(7);
        PodStart {
            volume_claim_name: volume_claim_name(&workspace),
            workspace,
            epoch: 3,
            name: "demo".parse().unwrap(),
            template: serde_json::from_value(template).unwrap(),
            resources: ResourcesSpec { cpu: "500m".into(), memory: "2Gi".into() },
            template_name: "python".into(),
            secrets: Vec::new(),
            ports: Vec::new(),
            controller: None,
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
