//! The resource `WorkspaceTemplate`, which contains the image and the defaults of workspaces, and a
//! template's changes of the pods that Podling makes.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Toleration, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{PolicySpec, Port, ResourcesSpec, StorageSpec, Variable, fields::warning_fits_default};

/// Image and defaults of workspaces. A change also applies to existing workspaces that do not set
/// the value themselves: policy and resources change at once, other values with the next start. A
/// workspace that was created through Podling's API sets its own policy and resources.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podling.dev",
    version = "v1alpha1",
    kind = "WorkspaceTemplate",
    namespaced,
    shortname = "wst",
    category = "podling",
    status = "WorkspaceTemplateStatus",
    derive = "PartialEq",
    doc = "Image and defaults of workspaces. A change also applies to existing workspaces that do not \
           set the value themselves: policy and resources change at once, other values with the next \
           start. A workspace that was created through Podling's API sets its own policy and resources.",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".spec.resources.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.resources.memory"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.inject) || !self.inject || (has(self.command) && self.command.size() > 0)"
    )
        .message("a template with inject needs a command, because the image's own entrypoint is not known"),
    validation = warning_fits_default()
)]
pub struct WorkspaceTemplateSpec {
    /// One-line description for users.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 200))]
    pub description: String,
    /// Image of the workspace container.
    #[schemars(length(min = 1, max = 500))]
    pub image: String,
    /// Command of the workspace, such as an IDE, which runs beside its terminals. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// Set if the image contains no agent. An init container then copies the agent into the pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inject: bool,
    /// CPU and memory of a workspace while it is awake.
    #[serde(default)]
    pub resources: ResourcesSpec,
    /// Volume of a workspace.
    #[serde(default)]
    pub storage: StorageSpec,
    /// Timeouts and caps. A workspace may override each of them.
    #[serde(default)]
    pub policy: PolicySpec,
    /// Named container ports of the pod, for `kubectl port-forward`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, self.exists_one(b, b.port == a.port))")
            .message("a port number must have only one name")
    )]
    pub ports: Vec<Port>,
    /// Environment variables of terminals and processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub environment: Vec<Variable>,
    /// Labels of the nodes that may run the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Strategic merge patch over the pods that Podling makes, such as extended resources, volumes,
    /// sidecars, labels or affinity. Takes effect at the next start. The condition Ready says whether
    /// it is valid; workspaces cannot be created or started while it is not.
    #[serde(default, skip_serializing_if = "PodOverrides::is_empty")]
    pub pod_overrides: PodOverrides,
}

/// Observed state of a template. Only the control plane writes it.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceTemplateStatus {
    /// Generation of the spec that this status follows from.
    #[serde(default)]
    pub observed_generation: i64,
    /// The condition Ready: whether workspaces can be started from the template.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A strategic merge patch of a pod, as for `kubectl patch`. Podling's own container is called
/// "workspace".
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodOverrides {
    /// Labels and annotations of the pods.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub metadata: Map<String, Value>,
    /// Patch of the pods' spec. Lists are merged by their merge keys: containers, volumes and
    /// variables by name, mounts by mountPath. `$patch: delete` removes an element.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub spec: Map<String, Value>,
}

/// An override that cannot be merged, or that Podling does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("podOverrides.{path}: {problem}")]
pub struct InvalidOverride {
    /// The field, such as `spec.containers[workspace].command`.
    pub path: String,
    pub problem: String,
}

/// Returns the error for the field at `path`.
pub(super) fn broken(path: impl Into<String>, problem: impl Into<String>) -> InvalidOverride {
    InvalidOverride { path: path.into(), problem: problem.into() }
}

/// Why no workspace can be started from a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnusableTemplate {
    #[error(
        "metadata.name: no workspace can name it; a template's name is 1 to 63 of a-z, 0-9 and \"-\", \
         starting with a letter and not ending with \"-\""
    )]
    Name,
    /// A field of the spec, such as `image`, has a value that Podling does not accept.
    #[error("{field}: {problem}")]
    Field { field: String, problem: String },
    #[error(transparent)]
    PodOverrides(InvalidOverride),
}

impl UnusableTemplate {
    /// Returns the reason of the condition Ready, as a CamelCase code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Name => "InvalidName",
            Self::Field { .. } => "InvalidSpec",
            Self::PodOverrides(_) => "InvalidPodOverrides",
        }
    }
}

impl PodOverrides {
    /// Returns whether nothing is overridden.
    pub fn is_empty(&self) -> bool {
        self.metadata.is_empty() && self.spec.is_empty()
    }

    /// Returns the patch of a pod.
    pub(crate) fn as_patch(&self) -> Map<String, Value> {
        let parts = [("metadata", &self.metadata), ("spec", &self.spec)];
        let set = parts.into_iter().filter(|(_, part)| !part.is_empty());
        set.map(|(name, part)| (name.to_owned(), Value::Object(part.clone()))).collect()
    }
}

/// Returns the schema of an object whose fields the API server does not validate.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
