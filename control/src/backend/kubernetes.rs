//! The backend `kubernetes`. Each agent runs in a pod, and each storage is a PersistentVolumeClaim.
//!
//! Each start creates a new pod, which never restarts by itself; `kubernetes::objects` builds it.
//! One watch over all pods tracks which of them run. Pods are deleted with their grace period and
//! never by force, because a node that does not answer may still write to the volume.

mod cluster;
mod eviction_guard;
mod pod_status;
mod pods;
mod resize;
mod retry;
mod reviewer;
mod start;
mod stop;
mod storage;
mod volume_claims;
mod warnings;

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{Stream, StreamExt, future, stream};
use kube::{
    Client,
    runtime::{WatchStreamExt, watcher},
};
use podling_core::{id::WorkspaceId, workspace::Epoch};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::{cluster::ClusterClient, pods::PodTracker};
pub use self::{
    eviction_guard::EvictionGuard, reviewer::KubernetesReviewer, volume_claims::VolumeClaimWatcher,
};
use crate::{
    backend::{Backend, BackendError, Instance, Observation, ResizePlan, StartPlan},
    kubernetes::objects::PodDefaults,
    leader_election::Leadership,
    template::TemplateLookup,
    watch_backoff::WatchBackoff,
};

/// Capacity of the channel from starts and resizes to the driver. Senders wait when it is full.
const OBSERVATIONS: usize = 256;

/// Runs workspaces as pods of one namespace.
#[derive(Debug)]
pub struct KubernetesBackend {
    cluster: ClusterClient,
    observation_tx: mpsc::Sender<Observation>,
    observations: Mutex<Option<mpsc::Receiver<Observation>>>,
}

impl KubernetesBackend {
    /// Creates a backend that acts in `namespace` with the permissions of `client`, while
    /// `leadership` lasts.
    pub fn new(
        client: Client,
        namespace: &str,
        defaults: PodDefaults,
        leadership: Arc<Leadership>,
        templates: TemplateLookup,
    ) -> Self {
        let (observation_tx, observations) = mpsc::channel(OBSERVATIONS);
        let cluster = ClusterClient::new(client, namespace, Arc::new(defaults), leadership, templates);
        Self { cluster, observation_tx, observations: Mutex::new(Some(observations)) }
    }

    /// Returns the guard that protects pods in use from autoscalers. The caller runs it.
    pub fn eviction_guard(&self) -> EvictionGuard {
        EvictionGuard::new(self.cluster.clone())
    }

    /// Returns the watcher of the workspaces' volume claims. The caller runs it.
    pub fn volume_claim_watcher(&self) -> VolumeClaimWatcher {
        VolumeClaimWatcher::new(self.cluster.clone())
    }
}

impl Backend for KubernetesBackend {
    async fn ensure(&self, plan: StartPlan) -> Result<Instance, BackendError> {
        self.cluster.start(plan, &self.observation_tx).await
    }

    async fn resize(&self, resize: ResizePlan) -> Result<(), BackendError> {
        self.cluster.resize(resize, &self.observation_tx).await
    }

    async fn stop(&self, workspace: WorkspaceId, last: Epoch) -> Result<(), BackendError> {
        self.cluster.stop(&workspace, last).await
    }

    async fn remove(&self, workspace: WorkspaceId) -> Result<(), BackendError> {
        self.cluster.remove_storage(&workspace).await
    }

    fn observe(&self) -> impl Stream<Item = Observation> + Send + 'static {
        let reported = self.observations.lock().unwrap_or_else(PoisonError::into_inner).take();
        let reported =
            reported.map(ReceiverStream::new).map_or_else(|| stream::empty().boxed(), StreamExt::boxed);
        let events = watcher(self.cluster.pods.clone(), cluster::all_workspace_pods())
            .backoff(WatchBackoff::default());
        let seen = events.scan(PodTracker::default(), |pods, event| {
            let seen = event.map(|event| pods.apply_event(event)).unwrap_or_else(|error| {
                tracing::warn!(%error, "failed to watch pods, retrying; using their last known state");
                Vec::new()
            });
            future::ready(Some(stream::iter(seen)))
        });
        stream::select(seen.flatten(), reported)
    }
}
