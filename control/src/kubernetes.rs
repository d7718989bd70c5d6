//! Podling's custom resources. The definitions in `deploy/crds` are generated from these types,
//! including the descriptions; `cargo run -p podling-control --example crds` writes them.
//!
//! Must not know how a cluster is reached, or what follows from a resource.

#![allow(unreachable_pub, reason = "what a derive makes beside a type with rules is public")]
#![allow(clippy::duplicated_attributes, reason = "columns are alike in all but their names")]

mod archive;
mod environment;
pub mod objects;
mod policy;
mod port;
mod resolve;
mod resources;
mod status;
mod storage;
mod template;
mod workspace;

use kube::CustomResourceExt;

pub use self::{
    archive::{WorkspaceArchive, WorkspaceArchiveSpec},
    environment::{SecretKey, Variable},
    policy::PolicySpec,
    port::Port,
    resolve::{DesiredSpec, id_of, requested_resources, resolve, resource_names},
    resources::ResourcesSpec,
    status::{LastArchive, NextTransition, WorkspaceStatus},
    storage::{AccessMode, StorageSpec},
    template::{WorkspaceTemplate, WorkspaceTemplateSpec},
    workspace::{DesiredResourceState, Workspace, WorkspaceSpec},
};

/// API group of all resources.
pub const GROUP: &str = "podling.dev";
/// API version of all resources.
pub const VERSION: &str = "v1alpha1";

/// The resource definitions as deployed: file name and content.
pub fn definitions() -> Result<Vec<(&'static str, String)>, serde_json::Error> {
    // JSON needs no further library; kubectl and kustomize accept it as YAML.
    let text = |definition| serde_json::to_string_pretty(&definition).map(|text| text + "\n");
    Ok(vec![
        ("workspaces.json", text(Workspace::crd())?),
        ("workspacearchives.json", text(WorkspaceArchive::crd())?),
        ("workspacetemplates.json", text(WorkspaceTemplate::crd())?),
    ])
}
