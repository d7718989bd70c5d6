//! What of the cluster the backend reaches: the objects of one namespace, and its nodes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Error, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::watcher,
};
use podling_core::id::WorkspaceId;

use super::trouble::{Telling, patiently};
use crate::{
    backend::BackendError,
    kubernetes::{
        Workspace, WorkspaceTemplate,
        objects::{PodDefaults, WORKSPACE_LABEL},
    },
    lease::Leadership,
};

/// The objects, by kind.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) namespace: String,
    pub(super) pods: Api<Pod>,
    pub(super) claims: Api<PersistentVolumeClaim>,
    pub(super) nodes: Api<Node>,
    pub(super) templates: Api<WorkspaceTemplate>,
    pub(super) workspaces: Api<Workspace>,
    pub(super) defaults: Arc<PodDefaults>,
    leadership: Arc<Leadership>,
}

impl Cluster {
    pub(super) fn new(
        client: Client,
        namespace: &str,
        defaults: Arc<PodDefaults>,
        leadership: Arc<Leadership>,
    ) -> Self {
        Self {
            namespace: namespace.to_owned(),
            pods: Api::namespaced(client.clone(), namespace),
            claims: Api::namespaced(client.clone(), namespace),
            templates: Api::namespaced(client.clone(), namespace),
            workspaces: Api::namespaced(client.clone(), namespace),
            nodes: Api::all(client),
            defaults,
            leadership,
        }
    }

    /// Tries until it is done, or it is known that it never will be; only while no other control plane can decide.
    pub(super) async fn patiently<T, F: Future<Output = Result<T, Error>>>(
        &self,
        operation: &str,
        telling: Telling<'_>,
        call: impl Fn() -> F,
    ) -> Result<T, BackendError> {
        patiently(operation, telling, || self.leadership.is_leader(), call).await
    }

    /// Asked before anything is made or removed: who stood still for a while may not know yet that another acts by now.
    pub(super) fn acts(&self, operation: &str) -> Result<(), BackendError> {
        let superseded = || BackendError::new(operation, "this control plane does not decide any more");
        self.leadership.is_leader().then_some(()).ok_or_else(superseded)
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// All that are some workspace's.
pub(super) fn ours() -> watcher::Config {
    watcher::Config::default().labels(WORKSPACE_LABEL)
}

/// All of one workspace.
pub(super) fn of(workspace: &WorkspaceId) -> ListParams {
    ListParams::default().labels(&label(workspace))
}

pub(super) fn label(workspace: &WorkspaceId) -> String {
    format!("{WORKSPACE_LABEL}={workspace}")
}

/// Deletes the very object that was seen, and no other that has its name by now.
pub(super) fn this(object: &impl ResourceExt) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
        ..DeleteParams::default()
    }
}
