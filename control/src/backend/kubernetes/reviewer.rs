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

use super::{pods::instance, trouble::failed};
use crate::{
    backend::{AgentReviewer, BackendError, InstanceId, ProcessAccount, Reviewed},
    kubernetes::objects::AUDIENCE,
};

/// Questions to the API server at once; more wait. Each takes it a signature.
const AT_ONCE: usize = 16;

/// Knows the pods of one namespace by their tokens.
pub struct KubernetesReviewer {
    reviews: Api<TokenReview>,
    pods: Api<Pod>,
    namespace: String,
    /// Who they are to the API server.
    account: String,
    at_once: Semaphore,
}

/// A pod, as a token names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Named {
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
            at_once: Semaphore::new(AT_ONCE),
        }
    }

    /// The pod that the API server knows this token is for.
    async fn pod_of(&self, token: &str) -> Result<Option<Named>, BackendError> {
        let _turn = self.at_once.acquire().await;
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let status =
            answer.map_err(|error| failed("reviewing an agent's token", &error))?.status.unwrap_or_default();
        let is_for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        let user = status.user.filter(|user| user.username.as_deref() == Some(&self.account));
        Ok(user.filter(|_| status.authenticated == Some(true) && is_for_us).and_then(|user| named(&user)))
    }
}

impl AgentReviewer for KubernetesReviewer {
    /// The pod's uid.
    type Proof = InstanceId;

    async fn review(&self, credential: &str) -> Result<Option<Reviewed<InstanceId>>, BackendError> {
        // Strangers shall not cost the API server anything: what does not even claim to be ours is not asked about.
        if claimed(credential).is_none_or(|claimed| claimed != self.namespace) {
            return Ok(None);
        }
        let Some(named) = self.pod_of(credential).await? else { return Ok(None) };
        let found = self.pods.get_opt(&named.name).await;
        let pod = found.map_err(|error| failed("looking for an agent's pod", &error))?;
        // Another one may have its name by now.
        let instance =
            pod.filter(|pod| pod.uid().as_ref() == Some(&named.uid)).and_then(|pod| instance(&pod));
        Ok(instance.map(|instance| Reviewed { workspace: instance.workspace, proof: instance.id }))
    }

    fn instance(&self, proof: InstanceId, _process: ProcessAccount) -> InstanceId {
        proof
    }
}

impl std::fmt::Debug for KubernetesReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesReviewer").field("account", &self.account).finish_non_exhaustive()
    }
}

fn named(user: &UserInfo) -> Option<Named> {
    let extra = user.extra.as_ref()?;
    let one = |key: &str| extra.get(&format!("authentication.kubernetes.io/{key}"))?.first().cloned();
    Some(Named { name: one("pod-name")?, uid: one("pod-uid")? })
}

/// The namespace that a token says it is from. Proves nothing.
fn claimed(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(rename = "kubernetes.io")]
        kubernetes: Bound,
    }
    #[derive(Deserialize)]
    struct Bound {
        namespace: String,
        #[expect(dead_code, reason = "has to be there")]
        pod: Named,
    }
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Claims>(&payload).ok().map(|claims| claims.kubernetes.namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_it_is_from_if_it_is_a_pods() {
        let token = |claims: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        let of_pod = r#"{"aud": ["podling"], "kubernetes.io": {"namespace": "team", "pod": {"name": "it", "uid": "u"}}}"#;
        assert_eq!(claimed(&token(of_pod)).as_deref(), Some("team"));
        for other in [&token(r#"{"kubernetes.io": {"namespace": "team"}}"#), &token("{}"), "a.b.c", "", "…"]
        {
            assert_eq!(claimed(other), None, "{other}");
        }
    }
}
