//! Objects of the control plane that the leader creates, and restores when they are deleted or
//! changed: the ConfigMap with the CA certificate, without which no pod of a workspace can start,
//! and the PodDisruptionBudget of the replicas.
//!
//! Independent of what the objects are for. The shared Secret has a module of its own, because its
//! content is not known before it is read.

use std::{fmt::Debug, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::{core::v1::ConfigMap, policy::v1::PodDisruptionBudget};
use kube::{
    Api, Client, Error, Resource,
    api::{Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    kubernetes::{MANAGER, objects::control_plane_labels},
    leader_election::Leadership,
    watches::{backoff, watch_one},
};

/// Name of the PodDisruptionBudget, and value of the label by which it selects the replicas.
const BUDGET: &str = "podling-control";
/// Shortest pause between two writes. A client that changes an object again and again is not
/// answered faster than this.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

/// An object and the content that it must have. Other clients may add to the content.
#[derive(Debug)]
pub(super) struct OwnedObject<K> {
    api: Api<K>,
    name: String,
    /// The object as it is applied, with the metadata `name` and `labels`.
    desired: Value,
}

impl OwnedObject<ConfigMap> {
    /// The ConfigMap with the CA certificate with which agents verify the control plane.
    pub(super) fn ca(client: &Client, namespace: &str, name: &str, ca_pem: &str) -> Self {
        Self::new(client, namespace, name, json!({"data": {"ca.pem": ca_pem}}))
    }
}

impl OwnedObject<PodDisruptionBudget> {
    /// The budget that keeps one replica running while nodes are drained.
    pub(super) fn disruption_budget(client: &Client, namespace: &str) -> Self {
        let selector = json!({"matchLabels": {"app.kubernetes.io/name": BUDGET}});
        Self::new(client, namespace, BUDGET, json!({"spec": {"maxUnavailable": 1, "selector": selector}}))
    }
}

impl<K> OwnedObject<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + 'static,
{
    fn new(client: &Client, namespace: &str, name: &str, mut desired: Value) -> Self {
        desired["apiVersion"] = K::api_version(&()).into();
        desired["kind"] = K::kind(&()).into();
        desired["metadata"] = json!({"name": name, "labels": control_plane_labels()});
        Self { api: Api::namespaced(client.clone(), namespace), name: name.to_owned(), desired }
    }

    /// Creates the object, or sets the desired content of the existing one.
    pub(super) async fn apply(&self) -> Result<(), Error> {
        let params = PatchParams::apply(MANAGER).force();
        self.api.patch(&self.name, &params, &Patch::Apply(&self.desired)).await.map(drop)
    }

    /// Applies the object whenever it is missing or lacks desired content, while this replica is the
    /// leader. Ends only if the watch ends.
    pub(super) async fn keep(&self, leadership: &Leadership) {
        let kind = K::kind(&());
        let (kind, name) = (&*kind, &*self.name);
        let mut versions = watch_one(&self.api, name);
        while let Some(version) = versions.next().await {
            match version {
                Ok(version) if self.is_complete(version.as_ref()) => continue,
                Ok(_) => {
                    leadership.wait().await;
                    tracing::warn!(kind, name, "object is missing or changed; writing it again");
                }
                Err(error) => {
                    tracing::debug!(kind, name, %error, "failed to watch object");
                    continue;
                }
            }
            for pause in backoff() {
                leadership.wait().await;
                match self.apply().await {
                    Ok(()) => break,
                    Err(error) => tracing::warn!(kind, name, %error, "failed to write object; retrying"),
                }
                sleep(pause).await;
            }
            sleep(WRITE_PAUSE).await;
        }
    }

    /// Returns whether the object has all desired content.
    fn is_complete(&self, object: Option<&K>) -> bool {
        let Some(object) = object.and_then(|object| serde_json::to_value(object).ok()) else { return false };
        // Tools such as Argo CD set labels to values of their own, and must not be overruled.
        let has_labels = self.desired["metadata"]["labels"].as_object().is_none_or(|labels| {
            labels.keys().all(|label| object["metadata"]["labels"].get(label).is_some())
        });
        has_labels && ["data", "spec"].iter().all(|part| contains(&object[part], &self.desired[part]))
    }
}

/// Returns whether `object` has all fields of `desired`, with the same values.
fn contains(object: &Value, desired: &Value) -> bool {
    match desired {
        Value::Object(fields) => fields.iter().all(|(name, value)| contains(&object[name], value)),
        _ => object == desired,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use http::Method;
    use tokio::time::Instant;

    use super::*;
    use crate::samples;

    fn client() -> Client {
        samples::api_client(|_, _| samples::api_not_found())
    }

    /// Returns whether the object with this change of its desired content is complete.
    fn is_complete_with<K>(owned: &OwnedObject<K>, change: impl FnOnce(&mut Value)) -> bool
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + Send
            + 'static,
    {
        let mut object = owned.desired.clone();
        change(&mut object);
        owned.is_complete(Some(&serde_json::from_value(object).expect("an object")))
    }

    #[tokio::test]
    async fn changed_content_or_removed_label_makes_object_incomplete() {
        let ca = OwnedObject::ca(&client(), "podling", "podling-ca", "certificate");
        assert!(is_complete_with(&ca, |_| {}));
        assert!(is_complete_with(&ca, |map| map["data"]["other"] = "added".into()));
        assert!(!is_complete_with(&ca, |map| map["data"]["ca.pem"] = "".into()));
        assert!(!is_complete_with(&ca, |map| map["data"] = json!({})));
        assert!(!is_complete_with(&ca, |map| map["metadata"]["labels"] = json!({})));
        let label = "app.kubernetes.io/instance";
        assert!(is_complete_with(&ca, |map| map["metadata"]["labels"][label] = "argo".into()));
        assert!(!ca.is_complete(None));

        let budget = OwnedObject::disruption_budget(&client(), "podling");
        assert!(is_complete_with(&budget, |_| {}));
        assert!(is_complete_with(&budget, |object| object["status"] = json!({
            "currentHealthy": 2, "desiredHealthy": 1, "disruptionsAllowed": 1, "expectedPods": 2,
        })));
        assert!(!is_complete_with(&budget, |object| object["spec"]["maxUnavailable"] = 2.into()));
    }

    #[tokio::test(start_paused = true)]
    async fn deleted_budget_is_applied_again_until_it_succeeds() {
        let applied = Arc::new(AtomicUsize::new(0));
        let attempts = applied.clone();
        let client = samples::api_client(move |method, _| match *method {
            Method::PATCH if attempts.fetch_add(1, SeqCst) > 0 => {
                let kind = "PodDisruptionBudget";
                (200, json!({"apiVersion": "policy/v1", "kind": kind, "metadata": {"name": BUDGET}}))
            }
            Method::PATCH => (503, json!({"kind": "Status", "code": 503, "message": "", "reason": ""})),
            _ => samples::api_list(json!([])),
        });
        let leadership = Leadership::new(Instant::now(), Duration::ZERO);
        let budget = OwnedObject::disruption_budget(&client, "podling");
        tokio::select! {
            () = budget.keep(&leadership) => unreachable!("the watch does not end"),
            () = sleep(Duration::from_secs(5)) => {}
        }
        assert_eq!(applied.load(SeqCst), 2, "the failed write was repeated, the other was not");
    }
}
