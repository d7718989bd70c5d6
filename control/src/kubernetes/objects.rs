//! Builds the objects of a workspace in a cluster: its pod and its volume claim. Describes the
//! state of a claim, as the status of the workspace displays it. Does no I/O.

mod overrides;
mod pod;
mod validation;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::ResourceExt;
use podling_core::{
    id::{WorkspaceId, WorkspaceName},
    policy::Policy,
    workspace::Epoch,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use self::pod::plain_pod;
pub use self::pod::{AGENT_INIT_CONTAINER, pod_name, running_requirements};
use super::{
    InvalidOverride, Port, ResourcesSpec, SecretKey, StorageSpec, UnusableTemplate, WorkspaceTemplateSpec,
    syntax::is_dns_label, template::broken,
};

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

/// Annotation of a claim, with the reason why its volume could not be expanded.
pub const EXPANSION_ERROR: &str = "podling.dev/expansion-error";

/// Start of the names of claims. The id of the workspace follows.
const CLAIM_PREFIX: &str = "workspace-";

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
    /// evict the pod. `None` while the garbage collector deletes all objects that the resource
    /// owns.
    pub controller: Option<OwnerReference>,
    /// Whether the agent only archives or restores the storage. It then requests no devices, so
    /// that it does not wait for a free GPU.
    pub maintenance: bool,
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
    format!("{CLAIM_PREFIX}{workspace}")
}

/// Builds the claim of a workspace. It outlives the workspace's pods, and is deleted only after its
/// data is archived or discarded.
pub fn volume_claim(workspace: &WorkspaceId, name: &str, storage: &StorageSpec) -> PersistentVolumeClaim {
    let claim = json!({
        "metadata": {"name": name, "labels": labels(workspace), "finalizers": [KEEP_DATA]},
        "spec": {
            "accessModes": [storage.access_mode],
            "resources": {"requests": {"storage": storage.size}},
            "storageClassName": storage.class_name,
        },
    });
    // Contains only fields of claims; a test reads each.
    serde_json::from_value(claim).expect("the manifest is a claim")
}

/// Returns the workspace that a claim belongs to, according to its label. A claim without a valid
/// label belongs to the workspace in its name: its label may have been removed, but its data stays.
pub fn workspace_of_claim(claim: &PersistentVolumeClaim) -> Option<WorkspaceId> {
    let labelled = claim.labels().get(WORKSPACE_LABEL).and_then(|id| id.parse().ok());
    labelled.or_else(|| claim.metadata.name.as_deref()?.strip_prefix(CLAIM_PREFIX)?.parse().ok())
}

/// Receives the states of all claims.
pub type ClaimReceiver = watch::Receiver<Arc<VolumeClaims>>;

/// The observed claims of all workspaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeClaims {
    /// Whether the first list of claims is complete.
    pub listed: bool,
    pub claims: BTreeMap<WorkspaceId, VolumeClaimState>,
}

/// A claim, and whether pods can use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeClaimState {
    pub name: String,
    pub phase: VolumeClaimPhase,
    /// Size that the claim requests.
    pub size: Option<String>,
    /// Text that explains the phase. For a bound claim, the reason why it could not be expanded. May
    /// be empty.
    pub detail: String,
}

/// The phase of a volume claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeClaimPhase {
    /// No volume is bound to the claim yet.
    Pending,
    Bound,
    /// The claim's volume does not exist any more.
    Lost,
    /// The claim was deleted outside Podling. Only Podling's finalizer still keeps it.
    Deleted,
}

impl VolumeClaimState {
    /// Returns the state of a claim.
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let phase = match phase {
            _ if claim.metadata.deletion_timestamp.is_some() => VolumeClaimPhase::Deleted,
            Some("Bound") => VolumeClaimPhase::Bound,
            Some("Lost") => VolumeClaimPhase::Lost,
            _ => VolumeClaimPhase::Pending,
        };
        let detail = match phase {
            VolumeClaimPhase::Deleted => claim_deleted_error(claim),
            VolumeClaimPhase::Bound => claim.annotations().get(EXPANSION_ERROR).cloned().unwrap_or_default(),
            _ => String::new(),
        };
        let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
        let size = requests.and_then(|requests| Some(requests.get("storage")?.0.clone()));
        Self { name: claim.name_any(), phase, size, detail }
    }
}

/// Explains what to do about a claim that was deleted outside Podling. No pod can use such a claim,
/// and only Podling's finalizer still protects its data.
pub fn claim_deleted_error(claim: &PersistentVolumeClaim) -> String {
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    format!(
        "the claim {name} was deleted, so no pod can use it any more. Its data is on the volume \
         {volume:?}: set the volume's persistentVolumeReclaimPolicy to Retain, remove the finalizer \
         {KEEP_DATA} from the claim, remove the volume's claimRef, and create a claim {name} for it \
         with the same labels",
        name = claim.name_any(),
    )
}

/// Explains what to do if the claim with a workspace's files does not exist.
pub fn claim_missing_error(workspace: &str) -> String {
    format!(
        "the claim with the files of the workspace does not exist: neither {CLAIM_PREFIX}{workspace} nor one \
         with the label {WORKSPACE_LABEL}={workspace}; create it for its volume (docs/backup.md), restore an \
         archive under a new name, or delete the workspace with podling rm --discard"
    )
}

type Checked = Result<(), InvalidOverride>;

/// Yields the elements of a list; none if the value is no list.
fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn name_of(element: &Value) -> &str {
    element["name"].as_str().unwrap_or_default()
}

/// Builds the pod of one start. Fails if the overrides of its template are not valid.
pub fn pod(start: &PodStart, defaults: &PodDefaults) -> Result<Pod, InvalidOverride> {
    let mut pod = overrides::apply(plain_pod(start, defaults), &start.template.pod_overrides)?;
    if start.maintenance {
        pod::drop_devices(&mut pod);
    }
    Ok(pod)
}

/// Returns why no workspace can be started from the template; `None` if it is valid. An older CRD may
/// have accepted a policy that the present one rejects.
pub fn template_problem(name: &str, template: &WorkspaceTemplateSpec) -> Option<UnusableTemplate> {
    if !is_dns_label(name) || !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Some(UnusableTemplate::Name);
    }
    let invalid = |field: &str, problem: String| UnusableTemplate::Field { field: field.to_owned(), problem };
    if let Err(problem) = validation::check_image(&template.image) {
        return Some(invalid("image", problem.to_owned()));
    }
    for (key, value) in &template.node_selector {
        if let Err(problem) = validation::check_label(key, value) {
            return Some(invalid(&format!("nodeSelector[{key}]"), problem.to_owned()));
        }
    }
    if let Err(error) = Policy::default().requested(&template.policy.overrides()) {
        return Some(invalid("policy.warning", error.to_string()));
    }
    override_problem(name, template).map(UnusableTemplate::PodOverrides)
}

/// Returns why the template's overrides cannot be applied to its pods.
fn override_problem(name: &str, template: &WorkspaceTemplateSpec) -> Option<InvalidOverride> {
    let workspace = WorkspaceId::from_bits(0);
    let start = PodStart {
        epoch: 1,
        name: "workspace".parse().ok()?,
        template: template.clone(),
        template_name: name.to_owned(),
        resources: template.resources.clone(),
        secrets: Vec::new(),
        ports: template.ports.clone(),
        volume_claim_name: volume_claim_name(&workspace),
        controller: None,
        maintenance: false,
        workspace,
    };
    // The rules do not depend on these settings.
    let defaults = PodDefaults {
        agent_image: "agent".to_owned(),
        control: String::new(),
        control_ca: String::new(),
        service_account: "workspace".to_owned(),
    };
    pod(&start, &defaults).err()
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
            maintenance: false,
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

    #[test]
    fn claim_belongs_to_its_label_or_else_to_its_name() {
        let (workspace, other) = (WorkspaceId::from_bits(7), WorkspaceId::from_bits(8));
        let claim = |name: &str, label: Option<&str>| {
            let mut claim = volume_claim(&workspace, name, &StorageSpec::default());
            claim.metadata.labels = label.map(|id| [(WORKSPACE_LABEL.to_owned(), id.to_owned())].into());
            workspace_of_claim(&claim)
        };
        let name = volume_claim_name(&workspace);
        assert_eq!(claim("recovered", Some(workspace.as_str())), Some(workspace.clone()));
        assert_eq!(claim(&name, None), Some(workspace.clone()));
        assert_eq!(claim(&name, Some("")), Some(workspace.clone()), "the label is not valid");
        assert_eq!(claim(&name, Some(other.as_str())), Some(other));
        assert_eq!((claim("recovered", None), claim("workspace-data", None)), (None, None));
    }

    #[test]
    fn template_that_no_workspace_can_use_is_named() {
        let problem = |name: &str, fields: serde_json::Value| {
            let mut template = serde_json::json!({"image": "python"});
            template.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let template = serde_json::from_value(template).unwrap();
            template_problem(name, &template).map(|problem| (problem.reason(), problem.to_string()))
        };
        let none = || serde_json::json!({});
        assert_eq!(problem("python", none()), None);
        for name in ["1w", "w.x", &"w".repeat(64)] {
            let (reason, message) = problem(name, none()).expect(name);
            assert_eq!(reason, "InvalidName");
            assert!(message.contains("no workspace can name it"), "{message}");
        }
        for (fields, field) in [
            (serde_json::json!({"image": "docker.io/UPPER:::x"}), "image: "),
            (serde_json::json!({"nodeSelector": {"pool": "a b"}}), "nodeSelector[pool]: "),
            (serde_json::json!({"policy": {"warning": "3h"}}), "policy.warning: must be at most 450 s"),
        ] {
            let (reason, message) = problem("python", fields).expect(field);
            assert_eq!(reason, "InvalidSpec");
            assert!(message.starts_with(field), "{message}");
        }
        let overrides = serde_json::json!({"podOverrides": {"spec": {"hostPID": true}}});
        assert_eq!(problem("python", overrides).expect("hostPID").0, "InvalidPodOverrides");
    }

    #[test]
    fn claim_survives_deletion_of_other_objects() {
        let workspace = WorkspaceId::from_bits(7);
        let claim = volume_claim(&workspace, &volume_claim_name(&workspace), &StorageSpec::default());
        assert_eq!(claim.metadata.owner_references, None, "a cascading delete would delete the claim");
        assert_eq!(claim.labels()[WORKSPACE_LABEL], workspace.as_str());
        assert_eq!(claim.metadata.finalizers.unwrap(), [KEEP_DATA]);
        let spec = claim.spec.unwrap();
        assert_eq!(spec.access_modes.unwrap(), ["ReadWriteOncePod"]);
        assert_eq!(spec.storage_class_name, None, "the cluster's default class");
        assert_eq!(spec.resources.unwrap().requests.unwrap()["storage"].0, "10Gi");
    }
}
