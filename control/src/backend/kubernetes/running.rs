//! Operations on the pods of a workspace that exist: resizes a running pod in place, deletes pods,
//! and annotates pods in use so that autoscalers do not evict them. The annotations do not protect
//! pods from preemption, drains and node failures.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
    runtime::watcher::{self, Event},
};
use podling_core::{
    id::WorkspaceId,
    observed::UseState,
    workspace::{AgentConnection, Epoch, Resources, State},
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

use super::{
    ClusterClient, PodOperation, backend_error, delete_by_uid, is_transient,
    pods::{self, epoch},
    workspace_selector,
};
use crate::{
    backend::{BackendError, Observation, ResizePlan},
    kubernetes::{
        ResourcesSpec, has_status_code,
        objects::{CONTAINER, pod_name, running_requirements},
    },
    snapshot::{SnapshotReceiver, WorkspaceView},
    watches::{watch_all, watch_one},
};

/// Time that the pods have to end: their grace period of 60 s, and 30 s for the node to clean up.
const STOP_TIMEOUT: Duration = Duration::from_secs(90);
/// Annotations of the cluster-autoscaler (its FAQ, "What types of pods can prevent CA from removing
/// a node?") and of Karpenter (its documentation, "Pod-level controls").
const SAFE_TO_EVICT: (&str, &str) = ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false");
const DO_NOT_DISRUPT: (&str, &str) = ("karpenter.sh/do-not-disrupt", "true");
/// Polling interval for the activity of all workspaces.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time that a pod stays annotated after its last use.
const GUARD_HOLD: Duration = Duration::from_secs(60);

impl ClusterClient {
    /// Sets the resources of this epoch's pod, and waits until the node has applied them or the
    /// resize is cancelled.
    pub(crate) async fn resize(
        &self,
        resize: ResizePlan,
        observation_tx: &mpsc::Sender<Observation>,
    ) -> Result<(), BackendError> {
        let name = format!("resize the pod of {}", resize.workspace);
        let (workspace, epoch) = (&resize.workspace, resize.epoch);
        let operation = PodOperation { name: &name, to: observation_tx, workspace, epoch };
        let resizing = self.resize_pod(operation, resize.resources);
        operation.unless_cancelled(&resize.cancellation, resizing).await
    }

    async fn resize_pod(&self, operation: PodOperation<'_>, wanted: Resources) -> Result<(), BackendError> {
        let name = pod_name(operation.workspace, operation.epoch);
        let gone = || operation.failed("its pod does not exist any more");
        let pod = self.retry_transient(operation, || self.pods.get_opt(&name)).await?.ok_or_else(gone)?;
        if pods::requested_resources(&pod) != Some(wanted) {
            let resources = running_requirements(&ResourcesSpec::of(wanted));
            let containers = json!([{"name": CONTAINER, "resources": resources}]);
            let patch = Patch::Strategic(json!({"spec": {"containers": containers}}));
            self.retry_transient(operation, || async {
                let params = PatchParams::default();
                match self.pods.patch_subresource("resize", &name, &params, &patch).await {
                    Err(error) if has_status_code(&error, 404) => Ok(None),
                    done => done.map(Some),
                }
            })
            .await?
            .ok_or_else(gone)?;
        }
        self.wait_until_resized(operation, &pod, wanted).await
    }

    /// Waits until the pod's node has applied `wanted`. Reports each new reason of a delay.
    async fn wait_until_resized(
        &self,
        operation: PodOperation<'_>,
        pod: &Pod,
        wanted: Resources,
    ) -> Result<(), BackendError> {
        let mut updates = watch_one(&self.pods, &pod.name_any());
        let mut last_report = None;
        while let Some(now) = updates.next().await {
            let now = match now {
                Ok(now) => now.filter(|now| now.uid() == pod.uid()),
                Err(error) => {
                    tracing::debug!(%error, "failed to watch pod");
                    continue;
                }
            };
            let now = now.filter(|now| pods::ended(now).is_none());
            let now = now.ok_or_else(|| operation.failed("its pod does not exist any more"))?;
            if pods::requested_resources(&now) != Some(wanted) {
                return Err(operation.failed("another client has changed its resources in the meantime"));
            }
            if let Some(never) = pods::infeasible_resize(&now) {
                return Err(operation.failed(never));
            }
            let wait_reason = pods::resize_waits(&now);
            match wait_reason {
                None if pods::actual_resources(&now) == Some(wanted) => return Ok(()),
                Some(wait) if last_report.as_ref() != Some(&wait) => {
                    operation.report(wait.reason, wait.detail.clone()).await;
                    last_report = Some(wait);
                }
                _ => {}
            }
        }
        Err(operation.failed("the watch over its pod ended"))
    }

    /// Deletes the workspace's pods and waits until they no longer exist. Never deletes by force,
    /// because a node without contact to the API server may still run the pod and write to the
    /// volume. Fails after [`STOP_TIMEOUT`], and if a pod has an epoch after `last`.
    pub(crate) async fn stop(&self, workspace: &WorkspaceId, last: Epoch) -> Result<(), BackendError> {
        let operation = format!("stop the pods of {workspace}");
        let failed = |problem: &str| BackendError::new(&operation, problem);
        let deadline = Instant::now() + STOP_TIMEOUT;
        let config = watcher::Config::default().labels(&workspace_selector(workspace));
        let mut events = watch_all(self.pods.clone(), config);
        let mut remaining: BTreeMap<String, Pod> = BTreeMap::new();
        let mut last_error = None;
        loop {
            let Ok(Some(event)) = timeout_at(deadline, events.next()).await else {
                return Err(failed(&self.describe_remaining(remaining, last_error).await));
            };
            let may_be_last = matches!(event, Ok(Event::InitDone | Event::Delete(_)));
            match event {
                Ok(Event::Init) => remaining.clear(),
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    if epoch(&pod).is_some_and(|epoch| epoch > last) {
                        return Err(failed("another control plane has started a later epoch"));
                    }
                    if pod.metadata.deletion_timestamp.is_none() {
                        self.ensure_leader(&operation)?;
                        match self.pods.delete(&pod.name_any(), &delete_by_uid(&pod)).await {
                            Ok(_) => {}
                            // The pod was deleted already, or replaced by another one of its name.
                            // The watch reports which.
                            Err(error) if has_status_code(&error, 404) || has_status_code(&error, 409) => {}
                            // Retried at the next change of the pod, or by the next call.
                            Err(error) if is_transient(&error) => last_error = Some(error.to_string()),
                            Err(error) => return Err(backend_error(&operation, &error)),
                        }
                    }
                    remaining.insert(pod.name_any(), pod);
                }
                Ok(Event::Delete(pod)) => {
                    remaining.remove(&pod.name_any());
                }
                Ok(Event::InitDone) => {}
                Err(error) => last_error = Some(error.to_string()),
            }
            if may_be_last && remaining.is_empty() {
                return Ok(());
            }
        }
    }

    /// Returns why a pod still exists, as English text.
    async fn describe_remaining(
        &self,
        remaining: BTreeMap<String, Pod>,
        last_error: Option<String>,
    ) -> String {
        let Some(pod) = remaining.into_values().next() else {
            return last_error.unwrap_or_else(|| "the API server does not answer".to_owned());
        };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let Some(node) = node else {
            return last_error.unwrap_or_else(|| format!("the pod {} still exists", pod.name_any()));
        };
        match self.nodes.get_opt(&node).await {
            Ok(Some(seen)) if !pods::is_ready(&seen) => format!(
                "the node {node} does not answer and may still run the pod {}; waiting until the node \
                 is back, is removed from the cluster, or is tainted \
                 \"node.kubernetes.io/out-of-service\"",
                pod.name_any()
            ),
            _ => format!(
                "the pod {} on the node {node} did not end within {} s",
                pod.name_any(),
                STOP_TIMEOUT.as_secs()
            ),
        }
    }
}

/// Updates the annotations of all pods as the activity of their workspaces changes.
#[derive(Debug)]
pub struct EvictionGuard {
    cluster: ClusterClient,
    /// Last known state of each pod, by the pod's name.
    pods: BTreeMap<String, GuardState>,
}

#[derive(Debug, Clone, Copy)]
struct GuardState {
    guarded: bool,
    last_used: Instant,
}

impl EvictionGuard {
    pub(super) fn new(cluster: ClusterClient) -> Self {
        Self { cluster, pods: BTreeMap::new() }
    }

    /// Runs until the driver has ended.
    pub async fn run(mut self, snapshots: SnapshotReceiver) {
        while snapshots.has_changed().is_ok() {
            let snapshot = snapshots.borrow().clone();
            let used: BTreeMap<_, _> =
                snapshot.workspaces.values().filter_map(|view| pod_in_use(view)).collect();
            self.pods.retain(|pod, _| used.contains_key(pod));
            for (pod, used) in used {
                if let Err(error) = self.update(&pod, used).await {
                    tracing::debug!(pod, %error, "failed to update autoscaler annotations; retrying");
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn update(&mut self, pod: &str, used: bool) -> Result<(), kube::Error> {
        let now = Instant::now();
        let known = match self.pods.get(pod) {
            Some(known) => *known,
            // Another control plane may have annotated the pod.
            None => {
                let Some(found) = self.cluster.pods.get_opt(pod).await? else { return Ok(()) };
                GuardState { guarded: found.annotations().contains_key(SAFE_TO_EVICT.0), last_used: now }
            }
        };
        let known = GuardState { last_used: if used { now } else { known.last_used }, ..known };
        let wanted = used || (known.guarded && now.duration_since(known.last_used) < GUARD_HOLD);
        self.pods.insert(pod.to_owned(), known);
        if wanted != known.guarded && self.cluster.leadership.is_leader() {
            self.annotate(pod, wanted).await?;
            self.pods.insert(pod.to_owned(), GuardState { guarded: wanted, ..known });
        }
        Ok(())
    }

    async fn annotate(&self, pod: &str, wanted: bool) -> Result<(), kube::Error> {
        let value = |value: &str| wanted.then(|| value.to_owned());
        let annotations =
            json!({SAFE_TO_EVICT.0: value(SAFE_TO_EVICT.1), DO_NOT_DISRUPT.0: value(DO_NOT_DISRUPT.1)});
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        match self.cluster.pods.patch_metadata(pod, &PatchParams::default(), &patch).await {
            Err(error) if !has_status_code(&error, 404) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Returns the pod of an awake workspace, and whether the workspace is active or busy. `None` while
/// the agent is not connected; the pod then keeps its annotations.
fn pod_in_use(view: &WorkspaceView) -> Option<(String, bool)> {
    let (agent, activity) = (view.agent.as_ref()?, view.activity.as_ref()?);
    if view.state != State::Awake || view.connection != AgentConnection::Connected {
        return None;
    }
    let used = activity.use_state() == UseState::Yes;
    Some((pod_name(&view.spec.id, agent.epoch), used))
}
