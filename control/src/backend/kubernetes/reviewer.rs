//! Authenticates agents by TokenReview. A token is valid if the API server issued it for the
//! audience `podling`, to an existing pod that runs under the workspaces' service account. A label
//! of the pod names the workspace.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{backend_error, pods::instance};
use crate::{
    backend::{AgentReviewer, BackendError, InstanceId, ReportedProcess, ReviewedCredential},
    kubernetes::objects::AUDIENCE,
};

/// Concurrent TokenReviews. Further ones wait, so that agents cannot overload the API server.
const MAX_CONCURRENT_REVIEWS: usize = 16;

/// Authenticates the agents of one namespace by their pods' tokens.
#[derive(Debug)]
pub struct KubernetesReviewer {
    reviews: Api<TokenReview>,
    pods: Api<Pod>,
    namespace: String,
    /// Username that the API server gives to the pods' service account.
    account: String,
    permits: Semaphore,
}

/// The pod that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BoundPod {
    name: String,
    uid: String,
}

impl KubernetesReviewer {
    /// Creates a reviewer that accepts the pods of `namespace` that run under this service account.
    pub fn new(client: Client, namespace: &str, account: &str) -> Self {
        Self {
            reviews: Api::all(client.clone()),
            pods: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            account: format!("system:serviceaccount:{namespace}:{account}"),
            permits: Semaphore::new(MAX_CONCURRENT_REVIEWS),
        }
    }

    /// Asks the API server which pod the token is bound to. Returns `None` if the token is not
    /// valid.
    async fn authenticate(&self, token: &str) -> Result<Option<BoundPod>, BackendError> {
        let _permit = self.permits.acquire().await;
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let status = answer
            .map_err(|error| backend_error("review the token of an agent", &error))?
            .status
            .unwrap_or_default();
        let is_for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        let user = status.user.filter(|user| user.username.as_deref() == Some(&self.account));
        Ok(user.filter(|_| status.authenticated == Some(true) && is_for_us).and_then(|user| bound_pod(&user)))
    }
}

impl AgentReviewer for KubernetesReviewer {
    /// Uid of the agent's pod.
    type CredentialProof = InstanceId;

    async fn review(&self, credential: &str) -> Result<Option<ReviewedCredential<InstanceId>>, BackendError> {
        // A token that does not claim this namespace is rejected without a TokenReview, so that
        // unauthenticated clients cause no load on the API server.
        if unverified_namespace(credential).is_none_or(|namespace| namespace != self.namespace) {
            return Ok(None);
        }
        let Some(bound) = self.authenticate(credential).await? else { return Ok(None) };
        let found = self.pods.get_opt(&bound.name).await;
        let pod = found.map_err(|error| backend_error("read the pod of an agent", &error))?;
        // A later pod may have the same name.
        let instance =
            pod.filter(|pod| pod.uid().as_ref() == Some(&bound.uid)).and_then(|pod| instance(&pod));
        Ok(instance.map(|instance| ReviewedCredential { workspace: instance.workspace, proof: instance.id }))
    }

    fn instance(&self, proof: InstanceId, _process: ReportedProcess) -> InstanceId {
        proof
    }
}

fn bound_pod(user: &UserInfo) -> Option<BoundPod> {
    let extra = user.extra.as_ref()?;
    let one = |key: &str| extra.get(&format!("authentication.kubernetes.io/{key}"))?.first().cloned();
    Some(BoundPod { name: one("pod-name")?, uid: one("pod-uid")? })
}

/// Returns the namespace that a token of a pod claims, without verifying the token. `None` for a
/// text that is not such a token.
fn unverified_namespace(token: &str) -> Option<String> {
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let claims = &claims["kubernetes.io"];
    let names_pod = ["name", "uid"].iter().all(|field| claims["pod"][field].is_string());
    claims["namespace"].as_str().filter(|_| names_pod).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_is_read_only_from_pod_bound_tokens() {
        let token = |claims: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        let of_pod = r#"{"aud": ["podling"], "kubernetes.io":
            {"namespace": "team", "pod": {"name": "it", "uid": "u"}}}"#;
        assert_eq!(unverified_namespace(&token(of_pod)).as_deref(), Some("team"));
        for other in [&token(r#"{"kubernetes.io": {"namespace": "team"}}"#), &token("{}"), "a.b.c", "", "…"]
        {
            assert_eq!(unverified_namespace(other), None, "{other}");
        }
    }
}
