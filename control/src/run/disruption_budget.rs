//! The PodDisruptionBudget of the control plane's replicas, so that drains of several nodes leave
//! one of them running.
//!
//! The leader applies it, and not the base: kubectl sends a patch of a PodDisruptionBudget at each
//! apply and calls it "configured", although nothing changes.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::kubernetes::{MANAGER, objects::control_plane_labels};

/// Name of the object.
const NAME: &str = "podling-control";

/// Creates or updates the budget. A failure is only logged, because Podling works without it.
pub(super) async fn apply(client: &Client, namespace: &str) {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    let budget = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": NAME, "labels": control_plane_labels()},
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
        },
    });
    if let Err(error) = budgets.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(budget)).await
    {
        tracing::warn!(%error, "failed to apply the PodDisruptionBudget {NAME}");
    }
}
