//! Which pod somebody is: its token was made by the API server for the audience `podling`, for a pod that still exists, under the service account
//! of workspaces. Which workspace that is follows from the pod.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{pods::instance, retry::backend_error};
use crate::{
    backend::{AgentReviewer, BackendError, InstanceId, ReportedProcess, ReviewedCredential},
    kubernetes::objects::AUDIENCE,
};

/// Questions to the API server at once; more wait. Each takes it a signature.
const MAX_CONCURRENT_REVIEWS: usize = 16;

/// Knows the pods of one namespace by their tokens.
pub struct KubernetesReviewer {
    reviews: Api<TokenReview>,
    pods: Api<Pod>,
    namespace: String,
    /// Who they are to the API server.
    account: String,
    permits: Semaphore,
}

/// A pod, as a token names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct BoundPod {
    name: String,
    uid: String,
}

impl KubernetesReviewer {
    /// Of the pods that run under this service account.
    pub fn new(client: Client, namespace: &str, account: &str) -> Self {
        Self {
            reviews: Api::all(client.clone()),
            pods: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            account: format!("system:serviceaccount:{namespace}:{account}"),
            permits: Semaphore::new(MAX_CONCURRENT_REVIEWS),
        }
    }

    /// The pod that the API server knows this token is for.
    async fn authenticate(&self, token: &str) -> Result<Option<BoundPod>, BackendError> {
        let _permit = self.permits.acquire().await;
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let status = answer
            .map_err(|error| backend_error("reviewing an agent's token", &error))?
            .status
            .unwrap_or_default();
        let is_for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        let user = status.user.filter(|user| user.username.as_deref() == Some(&self.account));
        Ok(user.filter(|_| status.authenticated == Some(true) && is_for_us).and_then(|user| bound_pod(&user)))
    }
}

impl AgentReviewer for KubernetesReviewer {
    /// The pod's uid.
    type CredentialProof = InstanceId;

    async fn review(&self, credential: &str) -> Result<Option<ReviewedCredential<InstanceId>>, BackendError> {
        // Strangers shall not cost the API server anything: what does not even claim to be ours is not asked about.
        if unverified_namespace(credential).is_none_or(|namespace| namespace != self.namespace) {
            return Ok(None);
        }
        let Some(bound) = self.authenticate(credential).await? else { return Ok(None) };
        let found = self.pods.get_opt(&bound.name).await;
        let pod = found.map_err(|error| backend_error("looking for an agent's pod", &error))?;
        // Another one may have its name by now.
        let instance =
            pod.filter(|pod| pod.uid().as_ref() == Some(&bound.uid)).and_then(|pod| instance(&pod));
        Ok(instance.map(|instance| ReviewedCredential { workspace: instance.workspace, proof: instance.id }))
    }

    fn instance(&self, proof: InstanceId, _process: ReportedProcess) -> InstanceId {
        proof
    }
}

impl std::fmt::Debug for KubernetesReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesReviewer").field("account", &self.account).finish_non_exhaustive()
    }
}

fn bound_pod(user: &UserInfo) -> Option<BoundPod> {
    let extra = user.extra.as_ref()?;
    let one = |key: &str| extra.get(&format!("authentication.kubernetes.io/{key}"))?.first().cloned();
    Some(BoundPod { name: one("pod-name")?, uid: one("pod-uid")? })
}

/// The namespace that a token says it is from. Proves nothing.
fn unverified_namespace(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct UnverifiedClaims {
        #[serde(rename = "kubernetes.io")]
        kubernetes: KubernetesClaims,
    }
    #[derive(Deserialize)]
    struct KubernetesClaims {
        namespace: String,
        #[expect(dead_code, reason = "has to be there")]
        pod: BoundPod,
    }
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<UnverifiedClaims>(&payload).ok().map(|claims| claims.kubernetes.namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_it_is_from_if_it_is_a_pods() {
        let token = |claims: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        let of_pod = r#"{"aud": ["podling"], "kubernetes.io": {"namespace": "team", "pod": {"name": "it", "uid": "u"}}}"#;
        assert_eq!(unverified_namespace(&token(of_pod)).as_deref(), Some("team"));
        for other in [&token(r#"{"kubernetes.io": {"namespace": "team"}}"#), &token("{}"), "a.b.c", "", "…"]
        {
            assert_eq!(unverified_namespace(other), None, "{other}");
        }
    }
}
