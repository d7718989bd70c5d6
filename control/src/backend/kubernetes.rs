//! The backend `kubernetes`: an agent is a pod, storage a volume claim.
//!
//! One start is one pod, which never restarts by itself; what it is made of says `kubernetes::objects`. Which pods live is known by
//! one watch over all of them. A pod ends by being deleted in good order, and never by force: where its node does not answer nobody knows
//! whether it still writes to its volume.
//!
//! Must not know what a workspace is wanted for.

mod cluster;
mod eviction_guard;
mod pods;
mod resize;
mod retry;
mod reviewer;
mod start;
mod stop;
mod storage;
mod words;

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
pub use self::{eviction_guard::EvictionGuard, reviewer::KubernetesReviewer};
use crate::{
    backend::{Backend, BackendError, Instance, Observation, ResizePlan, StartPlan},
    kubernetes::objects::PodDefaults,
    lease::Leadership,
};

/// Tellings of starts that wait for the driver. When it is full they wait.
const OBSERVATIONS: usize = 256;

/// Runs workspaces as pods of one namespace.
#[derive(Debug)]
pub struct KubernetesBackend {
    cluster: ClusterClient,
    observation_tx: mpsc::Sender<Observation>,
    observations: Mutex<Option<mpsc::Receiver<Observation>>>,
}

impl KubernetesBackend {
    /// In this namespace, by the rights that `client` has there, for as long as it is our leadership.
    pub fn new(client: Client, namespace: &str, defaults: PodDefaults, leadership: Arc<Leadership>) -> Self {
        let (observation_tx, observations) = mpsc::channel(OBSERVATIONS);
        let cluster = ClusterClient::new(client, namespace, Arc::new(defaults), leadership);
        Self { cluster, observation_tx, observations: Mutex::new(Some(observations)) }
    }

    /// What keeps the autoscalers away from pods in use.
    pub fn eviction_guard(&self) -> EvictionGuard {
        EvictionGuard::new(self.cluster.clone())
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
        // A watch that breaks off begins anew, after a pause that grows and is never twice the same.
        let events = watcher(self.cluster.pods.clone(), cluster::all_workspace_pods()).default_backoff();
        let seen = events.scan(PodTracker::default(), |pods, event| {
            let seen = event.map(|event| pods.apply_event(event)).unwrap_or_else(|error| {
                tracing::warn!(%error, "the pods cannot be watched; what was seen of them still counts");
                Vec::new()
            });
            future::ready(Some(stream::iter(seen)))
        });
        stream::select(seen.flatten(), reported)
    }
}
