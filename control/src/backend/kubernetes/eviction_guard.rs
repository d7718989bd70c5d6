//! Annotates pods in use so that autoscalers do not evict them. The annotations do not protect pods
//! from preemption, drains and node failures.

use std::{collections::BTreeMap, time::Duration};

use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use podling_core::workspace::{AgentConnection, State};
use podling_proto::agent::v1::ActivityLevel;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::cluster::ClusterClient;
use crate::{
    kubernetes::{has_status_code, objects::pod_name},
    snapshot::{SnapshotReceiver, WorkspaceView},
};

/// Annotations of the cluster-autoscaler (its FAQ, "What types of pods can prevent CA from removing
/// a node?") and of Karpenter (its documentation, "Pod-level controls").
const SAFE_TO_EVICT: (&str, &str) = ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false");
const DO_NOT_DISRUPT: (&str, &str) = ("karpenter.sh/do-not-disrupt", "true");

/// Polling interval for the activity of all workspaces.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time that a pod stays annotated after its last use.
const GUARD_HOLD: Duration = Duration::from_secs(60);

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
        if wanted != known.guarded && self.cluster.ensure_leader("annotate a pod").is_ok() {
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
    let used = matches!(activity.level(), ActivityLevel::Active | ActivityLevel::Busy);
    Some((pod_name(&view.spec.id, agent.epoch), used))
}
