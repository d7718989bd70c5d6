//! A start: the claim, the pod, and that the pod runs.

use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::sync::mpsc;

use super::{
    cluster::Cluster,
    pods::{instance, is_running},
    trouble::{Telling, is_code, patiently},
    words,
};
use crate::{
    backend::{BackendError, Instance, Observation, Plan},
    kubernetes::{
        ResourcesSpec, WorkspaceTemplateSpec,
        objects::{Start, pod},
    },
};

impl Cluster {
    /// Sees to it that the pod of this start runs.
    pub(super) async fn start(
        &self,
        plan: Plan,
        told: &mpsc::Sender<Observation>,
    ) -> Result<Instance, BackendError> {
        let operation = format!("starting the pod of {}", plan.workspace);
        let given_up = plan.given_up.clone();
        let started = given_up.run_until_cancelled(self.started(&operation, &plan, told)).await;
        started.unwrap_or_else(|| Err(BackendError::new(operation, "it is not wanted any more")))
    }

    async fn started(
        &self,
        operation: &str,
        plan: &Plan,
        told: &mpsc::Sender<Observation>,
    ) -> Result<Instance, BackendError> {
        let telling = Telling { to: told, plan };
        let template = self.template(operation, telling).await?;
        let claim_name = self.claim(&template.storage, telling).await?;
        let start = Start {
            workspace: plan.workspace.clone(),
            epoch: plan.epoch,
            template,
            resources: ResourcesSpec::of(plan.resources),
            claim_name,
        };
        let pod = pod(&start, &self.house);
        let name = pod.name_any();
        self.acts(operation)?;
        let made = patiently(operation, telling, || async {
            match self.pods.create(&PostParams::default(), &pod).await {
                // By us, and we did not hear it; or by another control plane.
                Err(error) if is_code(&error, 409) => self.pods.get(&name).await,
                made => made,
            }
        });
        self.runs(operation, made.await?).await
    }

    async fn template(
        &self,
        operation: &str,
        telling: Telling<'_>,
    ) -> Result<WorkspaceTemplateSpec, BackendError> {
        let name = &telling.plan.spec.template;
        let found = patiently(operation, telling, || self.templates.get_opt(name)).await?;
        let missing = || {
            BackendError::new(
                operation,
                format!("there is no WorkspaceTemplate {name:?} in {}", self.namespace),
            )
        };
        Ok(found.ok_or_else(missing)?.spec)
    }

    /// Waits until the pod runs. What it waits for meanwhile the watch over all pods tells.
    async fn runs(&self, operation: &str, made: Pod) -> Result<Instance, BackendError> {
        let uid = made.uid();
        let mut seen = pin!(watch_object(self.pods.clone(), &made.name_any()).default_backoff());
        while let Some(pod) = seen.next().await {
            let pod = match pod {
                Ok(pod) => pod.filter(|pod| pod.uid() == uid),
                Err(error) => {
                    tracing::debug!(%error, "a pod cannot be watched");
                    continue;
                }
            };
            let pod = pod.ok_or_else(|| BackendError::new(operation, "its pod was deleted"))?;
            if let Some(how) = words::ended(&pod).or_else(|| words::hopeless(&pod)) {
                return Err(BackendError::new(operation, how));
            }
            if pod.metadata.deletion_timestamp.is_some() {
                return Err(BackendError::new(operation, "its pod is being deleted"));
            }
            if is_running(&pod)
                && let Some(instance) = instance(&pod)
            {
                return Ok(instance);
            }
        }
        Err(BackendError::new(operation, "its pod cannot be watched"))
    }
}
