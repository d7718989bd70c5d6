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
    cluster::Cluster,
    pods,
    trouble::{Telling, is_code, while_wanted},
    words,
};
use crate::{
    backend::{BackendError, Observation, Resize},
    kubernetes::{
        ResourcesSpec,
        objects::{CONTAINER, pod_name, resource_requirements},
    },
};

impl Cluster {
    /// Sees to it that the pod of this start has so much.
    pub(super) async fn resize(
        &self,
        resize: Resize,
        told: &mpsc::Sender<Observation>,
    ) -> Result<(), BackendError> {
        let operation = format!("changing the resources of the pod of {}", resize.workspace);
        while_wanted(&operation, &resize.given_up, self.resized(&operation, &resize, told)).await
    }

    async fn resized(
        &self,
        operation: &str,
        resize: &Resize,
        told: &mpsc::Sender<Observation>,
    ) -> Result<(), BackendError> {
        let telling = Telling { to: told, workspace: &resize.workspace, epoch: resize.epoch };
        let (name, wanted) = (pod_name(&resize.workspace, resize.epoch), resize.resources);
        let gone = || BackendError::new(operation, "its pod is gone");
        let pod = self.patiently(operation, telling, || self.pods.get_opt(&name)).await?.ok_or_else(gone)?;
        if pods::wanted(&pod) != Some(wanted) {
            let patch = Patch::Strategic(change(wanted));
            self.patiently(operation, telling, || async {
                let params = PatchParams::default();
                match self.pods.patch_subresource("resize", &name, &params, &patch).await {
                    Err(error) if is_code(&error, 404) => Ok(None),
                    done => done.map(Some),
                }
            })
            .await?
            .ok_or_else(gone)?;
        }
        self.is_in_force(operation, &pod, wanted, telling).await
    }

    /// Waits until the pod's node has done it, and tells what it waits for.
    async fn is_in_force(
        &self,
        operation: &str,
        pod: &Pod,
        wanted: Resources,
        telling: Telling<'_>,
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
            if pods::wanted(&now) != Some(wanted) {
                return Err(BackendError::new(operation, "somebody else has changed them meanwhile"));
            }
            if let Some(never) = words::never_resized(&now) {
                return Err(BackendError::new(operation, never));
            }
            let waits = words::resize_waits(&now);
            match waits {
                None if pods::has(&now) == Some(wanted) => return Ok(()),
                Some(why) if said.as_ref() != Some(&why) => {
                    telling.tell(why.clone(), true).await;
                    said = Some(why);
                }
                _ => {}
            }
        }
        Err(BackendError::new(operation, "its pod cannot be watched"))
    }
}

fn change(wanted: Resources) -> serde_json::Value {
    let mut resources = resource_requirements(&ResourcesSpec::of(wanted));
    // Of the node's disk nothing is changed, and nothing may be.
    for kind in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
        kind.remove("ephemeral-storage");
    }
    json!({"spec": {"containers": [{"name": CONTAINER, "resources": resources}]}})
}
