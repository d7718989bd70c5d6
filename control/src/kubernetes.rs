//! Podling's custom resources. `cargo run -p podling-control --example crds` generates the
//! definitions in `deploy/crds` from these types. Doc comments of the fields become their
//! descriptions.
//!
//! Independent of any connection to a cluster.

#![allow(unreachable_pub, reason = "derives of types with rules generate public items")]
#![allow(clippy::duplicated_attributes, reason = "columns differ only in their names")]

mod fields;
pub mod objects;
mod resolve;
mod strategic_merge;
mod syntax;
mod template;
mod workspace;

pub(crate) use self::syntax::is_dns_label;
pub use self::{
    fields::{
        AccessMode, PolicySpec, Port, ResourceOverrides, ResourcesSpec, SecretKey, StorageOverrides,
        StorageSpec, Variable,
    },
    objects::{ClaimReceiver, VolumeClaimPhase, VolumeClaimState, VolumeClaims, claim_deleted_error},
    resolve::{desired_spec, id_of, limited_warning, requested_resources, resolve, resource_names},
    template::{
        InvalidOverride, PodOverrides, UnusableTemplate, WorkspaceTemplate, WorkspaceTemplateSpec,
        WorkspaceTemplateStatus,
    },
    workspace::{
        DesiredResourceState, LastArchive, NextStepStatus, Workspace, WorkspaceArchive, WorkspaceArchiveSpec,
        WorkspaceSpec, WorkspaceStatus,
    },
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
