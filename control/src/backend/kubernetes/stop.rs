//! An end: every pod of a workspace is deleted, and gone.

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
    cluster::{Cluster, label, this},
    pods::epoch,
    trouble::{failed, is_code, passes},
    words,
};
use crate::backend::BackendError;

/// For a pod to be gone: what it is given to end in good order, and for its node to clean up.
const LIMIT: Duration = Duration::from_secs(90);

impl Cluster {
    /// Deletes the workspace's pods and waits until they are gone. None is deleted by force, ever: its node may have lost the API server
    /// and run it on, with its hand on the volume.
    pub(super) async fn stop(&self, workspace: &WorkspaceId, last: Epoch) -> Result<(), BackendError> {
        let operation = format!("ending the pods of {workspace}");
        let deadline = Instant::now() + LIMIT;
        let config = watcher::Config::default().labels(&label(workspace));
        let mut events = pin!(watcher(self.pods.clone(), config).default_backoff());
        let mut left: BTreeMap<String, Pod> = BTreeMap::new();
        let mut trouble = None;
        loop {
            let Ok(Some(event)) = timeout_at(deadline, events.next()).await else {
                return Err(BackendError::new(operation, self.why_left(left, trouble).await));
            };
            let may_be_last = matches!(event, Ok(Event::InitDone | Event::Delete(_)));
            match event {
                Ok(Event::Init) => left.clear(),
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    if epoch(&pod).is_some_and(|epoch| epoch > last) {
                        return Err(BackendError::new(
                            operation,
                            "a later start of it runs, which is another control plane's",
                        ));
                    }
                    if pod.metadata.deletion_timestamp.is_none() {
                        self.acts(&operation)?;
                        match self.pods.delete(&pod.name_any(), &this(&pod)).await {
                            Ok(_) => {}
                            // Gone, or another has its name: the watch tells.
                            Err(error) if is_code(&error, 404) || is_code(&error, 409) => {}
                            // Its next change, or the next call, tries again.
                            Err(error) if passes(&error) => trouble = Some(error.to_string()),
                            Err(error) => return Err(failed(operation, &error)),
                        }
                    }
                    left.insert(pod.name_any(), pod);
                }
                Ok(Event::Delete(pod)) => {
                    left.remove(&pod.name_any());
                }
                Ok(Event::InitDone) => {}
                Err(error) => trouble = Some(error.to_string()),
            }
            if may_be_last && left.is_empty() {
                return Ok(());
            }
        }
    }

    /// Why something is left, for people.
    async fn why_left(&self, left: BTreeMap<String, Pod>, trouble: Option<String>) -> String {
        let Some(pod) = left.into_values().next() else {
            return trouble.unwrap_or_else(|| "the cluster does not answer".to_owned());
        };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let Some(node) = node else {
            return trouble.unwrap_or_else(|| format!("the pod {} does not go", pod.name_any()));
        };
        match self.nodes.get_opt(&node).await {
            Ok(Some(seen)) if !words::is_ready(&seen) => format!(
                "the node {node} does not answer, and may still run the pod {}: it waits until the node is back, is removed from \
                 the cluster, or is tainted \"node.kubernetes.io/out-of-service\"",
                pod.name_any()
            ),
            _ => format!(
                "the pod {} on the node {node} does not end within {} s",
                pod.name_any(),
                LIMIT.as_secs()
            ),
        }
    }
}
