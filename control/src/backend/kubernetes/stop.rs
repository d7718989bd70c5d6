//! Stops a workspace: deletes all of its pods and waits until they no longer exist.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use podling_core::{id::WorkspaceId, workspace::Epoch};
use tokio::time::{Instant, timeout_at};

use super::{
    cluster::{ClusterClient, delete_by_uid, workspace_selector},
    pod_status,
    pods::epoch,
    retry::{backend_error, is_transient},
};
use crate::{backend::BackendError, kubernetes::has_status_code, watch_backoff::WatchBackoff};

/// Time that the pods have to end: their grace period of 60 s, and 30 s for the node to clean up.
const STOP_TIMEOUT: Duration = Duration::from_secs(90);

impl ClusterClient {
    /// Deletes the workspace's pods and waits until they no longer exist. Never deletes by force,
    /// because a node without contact to the API server may still run the pod and write to the
    /// volume. Fails after [`STOP_TIMEOUT`], and if a pod has an epoch after `last`.
    pub(super) async fn stop(&self, workspace: &WorkspaceId, last: Epoch) -> Result<(), BackendError> {
        let operation = format!("stop the pods of {workspace}");
        let deadline = Instant::now() + STOP_TIMEOUT;
        let config = watcher::Config::default().labels(&workspace_selector(workspace));
        let mut events = pin!(watcher(self.pods.clone(), config).backoff(WatchBackoff::default()));
        let mut remaining: BTreeMap<String, Pod> = BTreeMap::new();
        let mut last_error = None;
        loop {
            let Ok(Some(event)) = timeout_at(deadline, events.next()).await else {
                return Err(BackendError::new(
                    operation,
                    self.describe_remaining(remaining, last_error).await,
                ));
            };
            let may_be_last = matches!(event, Ok(Event::InitDone | Event::Delete(_)));
            match event {
                Ok(Event::Init) => remaining.clear(),
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    if epoch(&pod).is_some_and(|epoch| epoch > last) {
                        return Err(BackendError::new(
                            operation,
                            "another control plane has started a later epoch",
                        ));
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
                            Err(error) => return Err(backend_error(operation, &error)),
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
            Ok(Some(seen)) if !pod_status::is_ready(&seen) => format!(
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
