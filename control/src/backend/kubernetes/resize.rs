//! Resizes a running pod in place.

use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher::watch_object},
};
use podling_core::workspace::Resources;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    cluster::ClusterClient,
    pod_status, pods,
    retry::{WaitReporter, unless_cancelled},
};
use crate::{
    backend::{BackendError, Observation, ResizePlan},
    kubernetes::{
        ResourcesSpec, has_status_code,
        objects::{CONTAINER, pod_name, resource_requirements},
    },
    watch_backoff::WatchBackoff,
};

impl ClusterClient {
    /// Sets the resources of this epoch's pod, and waits until the node has applied them or the
    /// resize is cancelled.
    pub(super) async fn resize(
        &self,
        resize: ResizePlan,
        observation_tx: &mpsc::Sender<Observation>,
    ) -> Result<(), BackendError> {
        let operation = format!("resize the pod of {}", resize.workspace);
        unless_cancelled(
            &operation,
            &resize.cancellation,
            self.resize_pod(&operation, &resize, observation_tx),
        )
        .await
    }

    async fn resize_pod(
        &self,
        operation: &str,
        resize: &ResizePlan,
        observation_tx: &mpsc::Sender<Observation>,
    ) -> Result<(), BackendError> {
        let reporter = WaitReporter { to: observation_tx, workspace: &resize.workspace, epoch: resize.epoch };
        let (name, wanted) = (pod_name(&resize.workspace, resize.epoch), resize.resources);
        let gone = || BackendError::new(operation, "its pod does not exist any more");
        let pod =
            self.retry_transient(operation, reporter, || self.pods.get_opt(&name)).await?.ok_or_else(gone)?;
        if pods::requested_resources(&pod) != Some(wanted) {
            let patch = Patch::Strategic(resize_patch(wanted));
            self.retry_transient(operation, reporter, || async {
                let params = PatchParams::default();
                match self.pods.patch_subresource("resize", &name, &params, &patch).await {
                    Err(error) if has_status_code(&error, 404) => Ok(None),
                    done => done.map(Some),
                }
            })
            .await?
            .ok_or_else(gone)?;
        }
        self.wait_until_resized(operation, &pod, wanted, reporter).await
    }

    /// Waits until the pod's node has applied `wanted`. Reports each new reason of a delay.
    async fn wait_until_resized(
        &self,
        operation: &str,
        pod: &Pod,
        wanted: Resources,
        reporter: WaitReporter<'_>,
    ) -> Result<(), BackendError> {
        let mut updates =
            pin!(watch_object(self.pods.clone(), &pod.name_any()).backoff(WatchBackoff::default()));
        let mut last_report = None;
        while let Some(now) = updates.next().await {
            let now = match now {
                Ok(now) => now.filter(|now| now.uid() == pod.uid()),
                Err(error) => {
                    tracing::debug!(%error, "failed to watch pod");
                    continue;
                }
            };
            let now = now.filter(|now| pod_status::ended(now).is_none());
            let now = now.ok_or_else(|| BackendError::new(operation, "its pod does not exist any more"))?;
            if pods::requested_resources(&now) != Some(wanted) {
                return Err(BackendError::new(
                    operation,
                    "another client has changed its resources in the meantime",
                ));
            }
            if let Some(never) = pod_status::infeasible_resize(&now) {
                return Err(BackendError::new(operation, never));
            }
            let wait_reason = pod_status::resize_waits(&now);
            match wait_reason {
                None if pods::actual_resources(&now) == Some(wanted) => return Ok(()),
                Some(wait) if last_report.as_ref() != Some(&wait) => {
                    reporter.report(wait.reason, wait.detail.clone()).await;
                    last_report = Some(wait);
                }
                _ => {}
            }
        }
        Err(BackendError::new(operation, "the watch over its pod ended"))
    }
}

fn resize_patch(wanted: Resources) -> serde_json::Value {
    let mut resources = resource_requirements(&ResourcesSpec::of(wanted));
    // The API server rejects a change of a running pod's ephemeral storage.
    for kind in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
        kind.remove("ephemeral-storage");
    }
    json!({"spec": {"containers": [{"name": CONTAINER, "resources": resources}]}})
}
