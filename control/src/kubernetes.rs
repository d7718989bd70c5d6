//! Podling's custom resources. `cargo run -p podling-control --example crds` generates the
//! definitions in `deploy/crds` from these types. Doc comments of the fields become their
//! descriptions.
//!
//! Independent of any connection to a cluster.

#![allow(unreachable_pub, reason = "derives of types with rules generate public items")]
#![allow(clippy::duplicated_attributes, reason = "columns differ only in their names")]

mod archive;
mod claim_state;
mod environment;
pub mod objects;
mod pod_overrides;
mod policy;
mod port;
mod quantity;
mod resolve;
mod resources;
mod status;
mod storage;
mod strategic_merge;
mod template;
mod workspace;
mod yaml;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use self::{
    archive::{WorkspaceArchive, WorkspaceArchiveSpec},
    claim_state::{ClaimReceiver, VolumeClaimPhase, VolumeClaimState, VolumeClaims, claim_deleted_error},
    environment::{SecretKey, Variable},
    pod_overrides::PodOverrides,
    policy::PolicySpec,
    port::Port,
    resolve::{DesiredSpec, id_of, requested_resources, resolve, resource_names},
    resources::ResourcesSpec,
    status::{LastArchive, NextStepStatus, WorkspaceStatus},
    storage::{AccessMode, StorageSpec},
    template::{WorkspaceTemplate, WorkspaceTemplateSpec, WorkspaceTemplateStatus},
    workspace::{DesiredResourceState, Workspace, WorkspaceSpec},
};

/// API group of all resources.
pub const GROUP: &str = "podling.dev";
/// API version of all resources.
pub const VERSION: &str = "v1alpha1";
/// Name under which the control plane owns the fields that it writes.
pub(crate) const MANAGER: &str = "podling";

/// Returns whether the API server rejected a call with this HTTP status code.
pub(crate) fn has_status_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Returns the resource definitions as they are deployed, each with its file name and its YAML.
pub fn definitions() -> Result<Vec<(&'static str, String)>, serde_json::Error> {
    let text = |mut definition: CustomResourceDefinition| {
        let name = definition.spec.names.plural.clone();
        let labels = [("app.kubernetes.io/name", name), ("app.kubernetes.io/component", "api".to_owned())];
        definition.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value)).into());
        serde_json::to_value(definition).map(|value| yaml::document(&value))
    };
    Ok(vec![
        ("workspaces.yaml", text(Workspace::crd())?),
        ("workspacearchives.yaml", text(WorkspaceArchive::crd())?),
        ("workspacetemplates.yaml", text(WorkspaceTemplate::crd())?),
    ])
}
