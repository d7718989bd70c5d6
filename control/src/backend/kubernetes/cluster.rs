//! API handles of the objects that the backend uses: the objects of one namespace, and the nodes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Error, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::watcher,
};
use podling_core::id::WorkspaceId;

use super::retry::{WaitReporter, retry_transient};
use crate::{
    backend::BackendError,
    kubernetes::{
        Workspace,
        objects::{PodDefaults, WORKSPACE_LABEL},
    },
    leader_election::Leadership,
    template::TemplateLookup,
};

/// One API handle for each kind of object. Cheap to clone.
#[derive(Clone)]
pub(super) struct ClusterClient {
    pub(super) namespace: String,
    pub(super) pods: Api<Pod>,
    pub(super) claims: Api<PersistentVolumeClaim>,
    pub(super) events: Api<Event>,
    pub(super) nodes: Api<Node>,
    pub(super) templates: TemplateLookup,
    pub(super) workspaces: Api<Workspace>,
    pub(super) defaults: Arc<PodDefaults>,
    leadership: Arc<Leadership>,
}

impl ClusterClient {
    pub(super) fn new(
        client: Client,
        namespace: &str,
        defaults: Arc<PodDefaults>,
        leadership: Arc<Leadership>,
        templates: TemplateLookup,
    ) -> Self {
        Self {
            namespace: namespace.to_owned(),
            pods: Api::namespaced(client.clone(), namespace),
            claims: Api::namespaced(client.clone(), namespace),
            templates,
            workspaces: Api::namespaced(client.clone(), namespace),
            events: Api::namespaced(client.clone(), namespace),
            nodes: Api::all(client),
            defaults,
            leadership,
        }
    }

    /// Retries `call` until it succeeds or fails permanently. Makes no call while this process is
    /// not the leader.
    pub(super) async fn retry_transient<T, F: Future<Output = Result<T, Error>>>(
        &self,
        operation: &str,
        reporter: WaitReporter<'_>,
        call: impl Fn() -> F,
    ) -> Result<T, BackendError> {
        retry_transient(operation, reporter, || self.leadership.is_leader(), call).await
    }

    /// Fails if this process is not the leader. Called before each write outside of
    /// [`Self::retry_transient`], because a process that was suspended may have lost the lease
    /// without noticing.
    pub(super) fn ensure_leader(&self, operation: &str) -> Result<(), BackendError> {
        let superseded = || BackendError::new(operation, "this control plane is not the leader any more");
        self.leadership.is_leader().then_some(()).ok_or_else(superseded)
    }
}

impl std::fmt::Debug for ClusterClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterClient").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Returns a watch configuration that selects the pods of all workspaces.
pub(super) fn all_workspace_pods() -> watcher::Config {
    watcher::Config::default().labels(WORKSPACE_LABEL)
}

/// Returns list parameters that select all objects of one workspace.
pub(super) fn list_by_workspace(workspace: &WorkspaceId) -> ListParams {
    ListParams::default().labels(&workspace_selector(workspace))
}

pub(super) fn workspace_selector(workspace: &WorkspaceId) -> String {
    format!("{WORKSPACE_LABEL}={workspace}")
}

/// Returns parameters that delete this object only, and not a later object of the same name.
pub(super) fn delete_by_uid(object: &impl ResourceExt) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
        ..DeleteParams::default()
    }
}

/// Returns the handles of a cluster whose API server is `client`'s, for tests.
#[cfg(test)]
pub(super) fn for_tests(client: Client) -> ClusterClient {
    let defaults = PodDefaults {
        agent_image: "agent".into(),
        control: "https://control".into(),
        control_ca: "ca".into(),
        service_account: "workspace".into(),
    };
    let templates = TemplateLookup::without_follower(&client, "podling");
    ClusterClient::new(client, "podling", Arc::new(defaults), Leadership::permanent(), templates)
}
