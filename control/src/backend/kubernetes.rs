//! The backend `kubernetes`. Each agent runs in a pod, and each storage is a PersistentVolumeClaim.
//!
//! Each start creates a new pod, which never restarts by itself; `kubernetes::objects` builds it.
//! One watch over all pods tracks which of them run. Pods are deleted with their grace period and
//! never by force, because a node that does not answer may still write to the volume.

mod claims;
mod pod_tracker;
mod pods;
mod reviewer;
mod running;
mod start;

use std::{
    fmt::{self, Display},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt, future, stream};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Error, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::watcher,
};
use podling_core::{
    id::WorkspaceId,
    reason::{Wait, WaitReason},
    workspace::Epoch,
};
use podling_proto::error::with_causes;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use self::pod_tracker::PodTracker;
pub use self::{claims::VolumeClaimWatcher, reviewer::KubernetesReviewer, running::EvictionGuard};
use super::{Backend, BackendError, Instance, Observation, ResizePlan, StartPlan};
use crate::{
    kubernetes::{
        Workspace,
        objects::{PodDefaults, WORKSPACE_LABEL},
    },
    leader_election::Leadership,
    template::TemplateLookup,
    watches::{backoff_within, watch_all},
};

/// Capacity of the channel from starts and resizes to the driver. Senders wait when it is full.
const OBSERVATIONS: usize = 256;
/// Pause between two checks for problems of containers that have lasted.
const PROBLEM_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds of the pause between two attempts of a call. With the random part, the first pause takes
/// up to 250 ms, and the longest up to 4 s.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(125);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(2);

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
        let events = watch_all(self.cluster.pods.clone(), all_workspace_pods());
        let ticks = stream::unfold((), |()| async {
            sleep(PROBLEM_POLL_INTERVAL).await;
            Some((None, ()))
        });
        let seen = stream::select(events.map(Some), ticks).scan(PodTracker::default(), |pods, event| {
            let seen = match event {
                Some(Ok(event)) => pods.apply_event(event),
                Some(Err(error)) => {
                    tracing::warn!(%error, "failed to watch pods, retrying; using their last known state");
                    Vec::new()
                }
                None => pods.report_lasting_problems(),
            };
            future::ready(Some(stream::iter(seen)))
        });
        stream::select(seen.flatten(), reported)
    }
}

/// One API handle for each kind of object. Cheap to clone.
#[derive(Clone)]
struct ClusterClient {
    namespace: String,
    pods: Api<Pod>,
    claims: Api<PersistentVolumeClaim>,
    events: Api<Event>,
    nodes: Api<Node>,
    templates: TemplateLookup,
    workspaces: Api<Workspace>,
    defaults: Arc<PodDefaults>,
    leadership: Arc<Leadership>,
}

// The templates contain environments.
impl fmt::Debug for ClusterClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterClient").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl ClusterClient {
    fn new(
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
    async fn retry_transient<T, F: Future<Output = Result<T, Error>>>(
        &self,
        operation: PodOperation<'_>,
        call: impl Fn() -> F,
    ) -> Result<T, BackendError> {
        operation.retry_transient(|| self.leadership.is_leader(), call).await
    }

    /// Fails if this process is not the leader. Called before each write outside of
    /// [`Self::retry_transient`], because a process that was suspended may have lost the lease
    /// without noticing.
    fn ensure_leader(&self, operation: &str) -> Result<(), BackendError> {
        let superseded = || BackendError::new(operation, "this control plane is not the leader any more");
        self.leadership.is_leader().then_some(()).ok_or_else(superseded)
    }
}

/// Returns a watch configuration that selects the pods of all workspaces.
fn all_workspace_pods() -> watcher::Config {
    watcher::Config::default().labels(WORKSPACE_LABEL)
}

/// Returns list parameters that select all objects of one workspace.
fn list_by_workspace(workspace: &WorkspaceId) -> ListParams {
    ListParams::default().labels(&workspace_selector(workspace))
}

fn workspace_selector(workspace: &WorkspaceId) -> String {
    format!("{WORKSPACE_LABEL}={workspace}")
}

/// Returns parameters that delete this object only, and not a later object of the same name.
fn delete_by_uid(object: &impl ResourceExt) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
        ..DeleteParams::default()
    }
}

/// Returns whether a retry of the call may succeed without any change by a user.
fn is_transient(error: &Error) -> bool {
    match error {
        // 409: another client changed the object between our read and our write.
        Error::Api(status) => matches!(status.code, 408 | 409 | 429 | 500..),
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// Returns a message if the error means that a ResourceQuota of the namespace is exhausted.
fn quota_exceeded(error: &Error) -> Option<String> {
    match error {
        Error::Api(status) if status.code == 403 && status.message.contains("exceeded quota") => {
            let (_, quota) = status.message.split_once("exceeded quota: ")?;
            Some(format!("the ResourceQuota of its namespace is exhausted: {quota}"))
        }
        _ => None,
    }
}

/// A start or a resize in progress. Reports to the driver what the operation waits for.
#[derive(Debug, Clone, Copy)]
struct PodOperation<'a> {
    /// Infinitive with its object, for errors: "start the pod of abcdefgh2345".
    name: &'a str,
    to: &'a mpsc::Sender<Observation>,
    workspace: &'a WorkspaceId,
    epoch: Epoch,
}

impl PodOperation<'_> {
    fn failed(self, problem: impl Display) -> BackendError {
        BackendError::new(self.name, problem)
    }

    async fn report(&self, reason: WaitReason, detail: String) {
        self.set(Some(Wait { reason, detail })).await;
    }

    /// Reports this wait, or that the start or resize no longer waits.
    async fn set(&self, waits: Option<Wait>) {
        let (workspace, epoch) = (self.workspace.clone(), self.epoch);
        // Sending fails only after the driver has ended.
        let _gone = self.to.send(Observation::Waits { workspace, epoch, waits }).await;
    }

    /// Retries `call` until it succeeds or fails permanently, and reports what each retry waits for.
    /// Makes no call while `may` returns false.
    async fn retry_transient<T, F: Future<Output = Result<T, Error>>>(
        self,
        may: impl Fn() -> bool,
        call: impl Fn() -> F,
    ) -> Result<T, BackendError> {
        let mut pauses = backoff_within(MIN_RETRY_PAUSE, MAX_RETRY_PAUSE);
        loop {
            // A process that lost the leadership waits here until it regains it or ends.
            if may() {
                let error = match call().await {
                    Ok(done) => return Ok(done),
                    Err(error) => error,
                };
                if let Some(why) = quota_exceeded(&error) {
                    self.report(WaitReason::QuotaExceeded, why).await;
                } else if is_transient(&error) {
                    self.report(WaitReason::ApiServerUnavailable, error_text(&error)).await;
                } else {
                    return Err(backend_error(self.name, &error));
                }
            }
            sleep(pauses.next().unwrap_or_default()).await;
        }
    }

    /// Runs `work`. Drops it and fails if the operation is cancelled first.
    async fn unless_cancelled<T>(
        self,
        cancellation: &CancellationToken,
        work: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let cancelled = || Err(self.failed("the operation was cancelled"));
        cancellation.run_until_cancelled(work).await.unwrap_or_else(cancelled)
    }
}

/// Converts an error of the API server.
fn backend_error(operation: impl Into<String>, error: &Error) -> BackendError {
    BackendError::new(operation, error_text(error))
}

/// Returns the message of the API server, or the chain of causes if there was no response.
fn error_text(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        _ => with_causes(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use kube::core::Status;
    use tokio::time::Instant;

    use super::*;
    use crate::template::TemplateFollower;

    /// Returns the handles of a cluster whose API server is `client`'s.
    pub(super) async fn cluster_client(client: Client) -> ClusterClient {
        let defaults = PodDefaults {
            agent_image: "agent".into(),
            control: "https://control".into(),
            control_ca: "ca".into(),
            service_account: "workspace".into(),
        };
        let opened = TemplateFollower::open(&client, "podling", "shell", Leadership::permanent()).await;
        let templates = opened.expect("the API server lists no template").0.lookup();
        ClusterClient::new(client, "podling", Arc::new(defaults), Leadership::permanent(), templates)
    }

    fn api(code: u16, message: &str) -> Error {
        Error::Api(Box::new(Status { code, message: message.into(), ..Status::default() }))
    }

    #[test]
    fn only_transient_codes_are_retried() {
        for code in [408, 409, 429, 500, 503, 504] {
            assert!(is_transient(&api(code, "")), "{code}");
        }
        for code in [400, 401, 403, 404, 410, 422] {
            assert!(!is_transient(&api(code, "")), "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn exhausted_quota_is_reported_and_retried() {
        let full = "pods \"it\" is forbidden: exceeded quota: team, requested: pods=1, \
                    used: pods=3, limited: pods=3";
        let (tries, workspace) = (Mutex::new(0), WorkspaceId::from_bits(7));
        let (to, mut heard) = mpsc::channel(8);
        let operation = PodOperation { name: "create it", to: &to, workspace: &workspace, epoch: 1 };
        let done = operation.retry_transient(
            || true,
            || async {
                let mut tries = tries.lock().unwrap();
                *tries += 1;
                match *tries {
                    1..=3 => Err(api(403, full)),
                    4 => Err(api(500, "etcdserver: leader changed")),
                    _ => Ok(*tries),
                }
            },
        );
        assert_eq!(done.await.unwrap(), 5);
        let mut told = Vec::new();
        while let Ok(Observation::Waits { waits: Some(waits), .. }) = heard.try_recv() {
            told.push(waits);
        }
        assert_eq!(told.len(), 4);
        assert_eq!(told[0].reason, WaitReason::QuotaExceeded);
        assert!(told[0].detail.contains("team, requested: pods=1"), "{told:?}");
        assert_eq!(told[3].reason, WaitReason::ApiServerUnavailable);
        assert!(told[3].detail.contains("leader changed"), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn retries_pause_for_125_ms_to_4_s() {
        let (tries, workspace) = (Mutex::new(Vec::new()), WorkspaceId::from_bits(7));
        let (to, _heard) = mpsc::channel(16);
        let operation = PodOperation { name: "create it", to: &to, workspace: &workspace, epoch: 1 };
        let done = operation.retry_transient(
            || true,
            || async {
                let mut tries = tries.lock().unwrap();
                tries.push(Instant::now());
                if tries.len() < 12 { Err(api(503, "it is away")) } else { Ok(()) }
            },
        );
        done.await.unwrap();
        let tries = tries.into_inner().unwrap();
        let pauses: Vec<_> = tries.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        // The timer rounds up to milliseconds.
        assert!((125..=251).contains(&pauses[0]), "{pauses:?}");
        assert!(pauses[5..].iter().all(|pause| (2000..=4001).contains(pause)), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_pause_without_leadership_and_do_not_fail() {
        let (tries, looks, workspace) = (Mutex::new(0), Mutex::new(0), WorkspaceId::from_bits(7));
        let (to, _heard) = mpsc::channel(8);
        let operation = PodOperation { name: "create it", to: &to, workspace: &workspace, epoch: 1 };
        let may = || {
            let mut looks = looks.lock().unwrap();
            *looks += 1;
            // Renewals of the lease fail for a while.
            !(2..=5).contains(&*looks)
        };
        let done = operation.retry_transient(may, || async {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            if *tries == 1 { Err(api(503, "it is away")) } else { Ok(*tries) }
        });
        assert_eq!(done.await.unwrap(), 2);
        assert_eq!(*looks.lock().unwrap(), 6);
    }

    #[tokio::test]
    async fn forbidden_call_is_not_retried() {
        let forbidden = || async { Err::<(), _>(api(403, "violates PodSecurity \"restricted\"")) };
        let (workspace, (to, _heard)) = (WorkspaceId::from_bits(7), mpsc::channel(8));
        let operation = PodOperation { name: "create it", to: &to, workspace: &workspace, epoch: 1 };
        let refused = operation.retry_transient(|| true, forbidden).await;
        assert_eq!(refused.unwrap_err().to_string(), "cannot create it: violates PodSecurity \"restricted\"");
    }
}
