//! A resize: the running pod is given what it shall have, and goes on.

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
    pods,
    retry::{WaitReporter, is_code, unless_cancelled},
    words,
};
use crate::{
    backend::{BackendError, Observation, ResizePlan},
    kubernetes::{
        ResourcesSpec,
        objects::{CONTAINER, pod_name, resource_requirements},
    },
};

impl ClusterClient {
    /// Sees to it that the pod of this start has so much.
    pub(super) async fn resize(
        &self,
        resize: ResizePlan,
        observation_tx: &mpsc::Sender<Observation>,
    ) -> Result<(), BackendError> {
        let operation = format!("changing the resources of the pod of {}", resize.workspace);
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
        let gone = || BackendError::new(operation, "its pod is gone");
        let pod =
            self.retry_transient(operation, reporter, || self.pods.get_opt(&name)).await?.ok_or_else(gone)?;
        if pods::requested_resources(&pod) != Some(wanted) {
            let patch = Patch::Strategic(resize_patch(wanted));
            self.retry_transient(operation, reporter, || async {
                let params = PatchParams::default();
                match self.pods.patch_subresource("resize", &name, &params, &patch).await {
                    Err(error) if is_code(&error, 404) => Ok(None),
                    done => done.map(Some),
                }
            })
            .await?
            .ok_or_else(gone)?;
        }
        self.wait_until_resized(operation, &pod, wanted, reporter).await
    }

    /// Waits until the pod's node has done it, and tells what it waits for.
    async fn wait_until_resized(
        &self,
        operation: &str,
        pod: &Pod,
        wanted: Resources,
        reporter: WaitReporter<'_>,
    ) -> Result<(), BackendError> {
        let mut seen = pin!(watch_object(self.pods.clone(), &pod.name_any()).default_backoff());
        let mut said = None;
        while let Some(now) = seen.next().await {
            let now = match now {
                Ok(now) => now.filter(|now| now.uid() == pod.uid()),
                Err(error) => {
                    tracing::debug!(%error, "a pod cannot be watched");
                    continue;
                }
            };
            let now = now.filter(|now| words::ended(now).is_none());
            let now = now.ok_or_else(|| BackendError::new(operation, "its pod is gone"))?;
            if pods::requested_resources(&now) != Some(wanted) {
                return Err(BackendError::new(operation, "somebody else has changed them meanwhile"));
            }
            if let Some(never) = words::never_resized(&now) {
                return Err(BackendError::new(operation, never));
            }
            let waits = words::resize_waits(&now);
            match waits {
                None if pods::actual_resources(&now) == Some(wanted) => return Ok(()),
                Some(why) if said.as_ref() != Some(&why) => {
                    reporter.report(why.clone(), true).await;
                    said = Some(why);
                }
                _ => {}
            }
        }
        Err(BackendError::new(operation, "its pod cannot be watched"))
    }
}

fn resize_patch(wanted: Resources) -> serde_json::Value {
    let mut resources = resource_requirements(&ResourcesSpec::of(wanted));
    // Of the node's disk nothing is changed, and nothing may be.
    for kind in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
        kind.remove("ephemeral-storage");
    }
    json!({"spec": {"containers": [{"name": CONTAINER, "resources": resources}]}})
}
