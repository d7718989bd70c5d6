//! The contract of a backend, held by pods: a start is one pod, storage outlives it, and what goes wrong is said in words.

use std::{
    env,
    ops::Range,
    path::PathBuf,
    pin::Pin,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use futures_util::{Stream, StreamExt};
use kube::Client;
use podling_control::{
    backend::{
        AgentReviewer, Backend, BackendError, Instance, Observation, StartPlan,
        kubernetes::{KubernetesBackend, KubernetesReviewer},
    },
    kubernetes::objects::PodDefaults,
    lease::Leadership,
};
use podling_core::{
    id::WorkspaceId,
    policy::Policy,
    reason::{Wait, WaitReason},
    time::Timestamp,
    workspace::{DesiredState, Resources, Spec},
};
use podling_tests::{
    cluster::{Namespace, image, install_crds},
    report_skipped,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(120);
const ACCOUNT: &str = "podling-workspace";

/// A namespace with what workspaces want of it, and a backend there.
struct Ground {
    space: Namespace,
    backend: Arc<KubernetesBackend>,
    observations: Pin<Box<dyn Stream<Item = Observation> + Send>>,
}

impl Ground {
    async fn new() -> Self {
        install_crds();
        let space = Namespace::new();
        space.kubectl(&["create", "serviceaccount", ACCOUNT]).good();
        space.kubectl(&["create", "configmap", "podling-ca", "--from-literal=ca.pem=nobody"]).good();
        space.apply(&template("debian", &image("debian:bookworm-slim"))).good();
        let defaults = PodDefaults {
            agent_image: image("podling/agent:0.1.0"),
            control: "https://nobody.invalid:1".into(),
            control_ca: "podling-ca".into(),
            service_account: ACCOUNT.into(),
        };
        let backend =
            Arc::new(KubernetesBackend::new(client().await, space.name(), defaults, Leadership::permanent()));
        let observations = Box::pin(backend.observe());
        let mut ground = Self { space, backend, observations };
        let is_list = |seen| matches!(seen, Observation::Listed { .. }).then_some(());
        ground.sees("a list", is_list).await;
        ground
    }

    async fn start(&self, plan: &StartPlan) -> Result<Instance, BackendError> {
        timeout(DEADLINE, self.backend.ensure(plan.clone())).await.expect("it starts or says why not")
    }

    /// What is observed next of what is looked for.
    async fn sees<T>(&mut self, what: &str, wanted: impl Fn(Observation) -> Option<T>) -> T {
        let seen = async {
            loop {
                let next = self.observations.next().await.expect("the backend goes on telling");
                if let Some(seen) = wanted(next) {
                    return seen;
                }
            }
        };
        timeout(DEADLINE, seen).await.unwrap_or_else(|_| panic!("{what} is never observed"))
    }

    async fn sees_waiting(&mut self) -> Wait {
        self.sees("waiting", |seen| match seen {
            Observation::Waits { waits, .. } => waits,
            _ => None,
        })
        .await
    }

    async fn sees_end(&mut self, of: &Instance) -> String {
        self.sees("an end", |seen| match seen {
            Observation::Ended { instance, how } if instance.id == of.id => Some(how),
            _ => None,
        })
        .await
    }

    fn pods(&self) -> String {
        self.space.kubectl(&["get", "pods", "--output", "name"]).good()
    }

    fn in_pod(&self, plan: &StartPlan, script: &str) -> String {
        let pod = format!("workspace-{}-{}", plan.workspace, plan.epoch);
        self.space.kubectl(&["exec", &pod, "--", "sh", "-c", script]).good()
    }
}

async fn client() -> Client {
    Client::try_default().await.expect("KUBECONFIG names a cluster")
}

/// A template of an image that has no agent.
fn template(name: &str, image: &str) -> String {
    format!(
        r#"
apiVersion: podling.dev/v1alpha1
kind: WorkspaceTemplate
metadata: {{name: {name}}}
spec:
  image: {image}
  inject: true
  command: [sleep, infinity]
  storage: {{size: 1Gi}}
"#
    )
}

fn plan(template: &str) -> StartPlan {
    let workspace = WorkspaceId::from_bits(fastrand::u64(..));
    let resources = Resources { cpu_millis: 100, memory_bytes: 64 << 20 };
    let spec = Spec {
        id: workspace.clone(),
        name: "demo".parse().unwrap(),
        owner: "ada".parse().unwrap(),
        template: template.into(),
        command: vec![],
        env: Default::default(),
        policy: Policy::default(),
        resources,
        desired_state: DesiredState::Awake,
        request_seq: 1,
        source: None,
        created: Timestamp(0),
        request_id: String::new(),
    };
    let (spec, cancellation) = (Arc::new(spec), CancellationToken::new());
    StartPlan { workspace, epoch: 1, secret: String::new(), spec, resources, cancellation }
}

#[tokio::test]
async fn a_start_is_one_pod_and_storage_outlives_it() {
    let mut ground = Ground::new().await;
    let first = plan("debian");
    let instance = ground.start(&first).await.unwrap();
    assert_eq!(ground.start(&first).await.unwrap(), instance, "repeated, it is the same");
    ground.in_pod(&first, "echo kept >~/file && test \"$(id -u)\" = 1000");
    assert!(
        ground.in_pod(&first, "tr '\\0' ' ' </proc/1/cmdline").contains("podling-agent -- sleep infinity")
    );

    // Another control plane finds it.
    let other = KubernetesBackend::new(
        client().await,
        ground.space.name(),
        empty_pod_defaults(),
        Leadership::permanent(),
    );
    let listed = Box::pin(other.observe()).next().await;
    let Some(Observation::Listed { running, .. }) = listed else { panic!("{listed:?}") };
    assert_eq!(running, std::slice::from_ref(&instance));

    ground.backend.stop(first.workspace.clone(), 9).await.unwrap();
    ground.sees_end(&instance).await;
    assert_eq!(ground.pods(), "");
    ground.backend.stop(first.workspace.clone(), 9).await.unwrap();

    let second = StartPlan { epoch: 2, ..first.clone() };
    assert_ne!(ground.start(&second).await.unwrap().id, instance.id);
    let superseded = ground.backend.stop(first.workspace.clone(), 1).await.unwrap_err().to_string();
    assert!(superseded.contains("another control plane has started"), "{superseded}");
    assert_eq!(ground.in_pod(&second, "cat ~/file"), "kept");
    ground.backend.stop(second.workspace.clone(), 9).await.unwrap();

    // Whoever deletes the claim does not get the data.
    let claim = format!("pvc/workspace-{}", first.workspace);
    let mut anew: Value =
        serde_json::from_str(&ground.space.kubectl(&["get", &claim, "--output=json"]).good()).unwrap();
    let volume = format!("persistentvolume/{}", ground.space.field(&claim, ".spec.volumeName"));
    ground.space.kubectl(&["delete", &claim, "--wait=false"]).good();
    assert_eq!(ground.space.field(&claim, ".metadata.finalizers[0]"), "podling.dev/keep-data");
    let refused = ground.start(&StartPlan { epoch: 3, ..first.clone() }).await.unwrap_err();
    assert!(refused.to_string().contains("was deleted, so no pod can use it"), "{refused}");
    // What is said there helps.
    let patch = |what: &str, patch: &str| {
        ground.space.kubectl(&["patch", what, "--type=merge", "--patch", patch]).good();
    };
    patch(&volume, r#"{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}"#);
    patch(&claim, r#"{"metadata": {"finalizers": null}}"#);
    ground.space.wait("delete", &claim).good();
    patch(&volume, r#"{"spec": {"claimRef": null}}"#);
    let metadata = &anew["metadata"];
    anew["metadata"] = json!({"name": metadata["name"], "labels": metadata["labels"], "finalizers": ["podling.dev/keep-data"]});
    ground.space.apply(&anew.to_string()).good();
    ground.space.wait("jsonpath={.status.phase}=Bound", &claim).good();
    let third = StartPlan { epoch: 3, ..first.clone() };
    ground.start(&third).await.unwrap();
    assert_eq!(ground.in_pod(&third, "cat ~/file"), "kept");
    ground.backend.stop(first.workspace.clone(), 9).await.unwrap();
    patch(&volume, r#"{"spec": {"persistentVolumeReclaimPolicy": "Delete"}}"#);
    ground.backend.remove(first.workspace.clone()).await.unwrap();
    ground.space.wait("delete", &volume).good();
    ground.backend.remove(first.workspace.clone()).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_deleted_or_dies_is_said_to_have_ended_and_how() {
    let mut ground = Ground::new().await;
    let first = plan("debian");
    let pod = format!("workspace-{}-1", first.workspace);
    let instance = ground.start(&first).await.unwrap();
    ground.space.kubectl(&["delete", "pod", &pod]).good();
    assert_eq!(ground.sees_end(&instance).await, "its pod was deleted");
    let again = ground.start(&StartPlan { epoch: 2, ..first.clone() }).await.unwrap();
    ground.in_pod(&StartPlan { epoch: 2, ..first.clone() }, "kill -9 -1; true");
    // Nobody in the pod can kill its first process; its node can.
    let pod = format!("workspace-{}-2", first.workspace);
    ground.space.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]).good();
    assert_eq!(ground.sees_end(&again).await, "its pod was deleted");
    ground.backend.stop(first.workspace.clone(), 9).await.unwrap();
}

#[tokio::test]
async fn what_a_start_waits_for_is_said_and_it_waits_only_as_long_as_it_is_wanted() {
    let mut ground = Ground::new().await;
    let mut large = plan("debian");
    large.resources.cpu_millis = 4_000_000;
    let (backend, plan) = (ground.backend.clone(), large.clone());
    let mut starting = JoinSet::new();
    starting.spawn(async move { backend.ensure(plan).await });
    let waits = ground.sees_waiting().await;
    assert_eq!(waits.reason, WaitReason::Unschedulable);
    assert!(waits.detail.contains("Insufficient cpu"), "{waits:?}");
    large.cancellation.cancel();
    let refused = timeout(DEADLINE, starting.join_all()).await.expect("it gives up").remove(0).unwrap_err();
    assert!(refused.to_string().contains("the operation was cancelled"), "{refused}");
    ground.backend.stop(large.workspace.clone(), 9).await.unwrap();
    assert_eq!(ground.pods(), "");
}

#[tokio::test]
async fn a_quota_of_the_namespace_is_queued_for() {
    let mut ground = Ground::new().await;
    ground.space.kubectl(&["create", "quota", "team", "--hard=pods=0"]).good();
    let plan = plan("debian");
    let (backend, asked) = (ground.backend.clone(), plan.clone());
    let mut starting = JoinSet::new();
    starting.spawn(async move { backend.ensure(asked).await });
    let waits = ground.sees_waiting().await;
    assert_eq!(waits.reason, WaitReason::QuotaExceeded);
    assert!(waits.detail.contains("team, requested: pods=1, used: pods=0"), "{waits:?}");
    let more = r#"{"spec": {"hard": {"pods": "1"}}}"#;
    ground.space.kubectl(&["patch", "quota", "team", "--patch", more]).good();
    timeout(DEADLINE, starting.join_all()).await.expect("there is room").remove(0).unwrap();
    ground.backend.stop(plan.workspace, 9).await.unwrap();
}

#[tokio::test]
async fn what_never_can_start_says_why() {
    let ground = Ground::new().await;
    let unknown = ground.start(&plan("pyton")).await.unwrap_err().to_string();
    assert!(unknown.contains("there is no WorkspaceTemplate \"pyton\""), "{unknown}");
    ground.space.apply(&template("missing", "registry.invalid/no/such:1")).good();
    let missing = plan("missing");
    let refused = ground.start(&missing).await.unwrap_err().to_string();
    assert!(refused.contains("the image registry.invalid/no/such:1 cannot be pulled"), "{refused}");
    ground.backend.stop(missing.workspace, 9).await.unwrap();
}

#[tokio::test]
async fn who_an_agent_is_follows_from_the_pod_its_token_was_made_for() {
    let ground = Ground::new().await;
    let reviewer = KubernetesReviewer::new(client().await, ground.space.name(), ACCOUNT);
    let plan = plan("debian");
    let instance = ground.start(&plan).await.unwrap();
    let pod = format!("workspace-{}-1", plan.workspace);
    let token = ground.in_pod(&plan, "cat /run/podling/token/token");
    let reviewed = reviewer.review(&token).await.unwrap().expect("it is one of ours");
    assert_eq!((reviewed.workspace, reviewed.proof), (plan.workspace.clone(), instance.id));

    let made = |args: &[&str]| ground.space.kubectl(&[&["create", "token"], args].concat()).good();
    let bound = ["--bound-object-kind=Pod", "--bound-object-name", &pod];
    let same = made(&[&[ACCOUNT, "--audience=podling"][..], &bound].concat());
    assert!(reviewer.review(&same).await.unwrap().is_some(), "what the test makes itself is as good");
    // (One of its letters would not do: not every bit of the last one counts.)
    let signed_anew = format!("{}.{}", token.rsplit_once('.').unwrap().0, same.rsplit_once('.').unwrap().1);
    for (why, other) in [
        ("for another audience", made(&[&[ACCOUNT, "--audience=vault"][..], &bound].concat())),
        ("for nobody in particular", made(&[&[ACCOUNT][..], &bound].concat())),
        ("for no pod", made(&[ACCOUNT, "--audience=podling"])),
        ("of another account", made(&["default", "--audience=podling"])),
        ("with another's signature", signed_anew),
        ("none", "nonsense".into()),
    ] {
        assert!(reviewer.review(&other).await.unwrap().is_none(), "a token {why}");
    }
    match (at_another_time(&token, -60..600), at_another_time(&token, -7200..-3600)) {
        (Some(good), Some(over)) => {
            assert!(reviewer.review(&good).await.unwrap().is_some(), "signed as the cluster does");
            assert!(reviewer.review(&over).await.unwrap().is_none(), "a token that is over");
        }
        _ => report_skipped("tokens that are over", "the cluster's key is not ours"),
    }
    let elsewhere = KubernetesReviewer::new(client().await, "default", ACCOUNT);
    assert!(elsewhere.review(&token).await.unwrap().is_none(), "another team's");
    ground.backend.stop(plan.workspace, 9).await.unwrap();
    assert!(reviewer.review(&token).await.unwrap().is_none(), "its pod is gone");
}

/// The same token, good from and until so many seconds from now, signed by the cluster's own key; `None` where nobody has that.
fn at_another_time(token: &str, good: Range<i64>) -> Option<String> {
    let key = PathBuf::from(env::var_os("KUBECONFIG")?).with_file_name("accounts.key");
    let der = ["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in", key.to_str()?];
    let der = Command::new("openssl").args(der).output().ok().filter(|done| done.status.success())?.stdout;
    let mut parts = token.split('.');
    let (head, claims) = (parts.next()?, BASE64.decode(parts.next()?).ok()?);
    let mut claims: Value = serde_json::from_slice(&claims).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
    for (claim, at) in [("iat", good.start), ("nbf", good.start), ("exp", good.end)] {
        claims[claim] = (now + at).into();
    }
    let signed = format!("{head}.{}", BASE64.encode(claims.to_string()));
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random).ok()?;
    let signature = key.sign(&random, signed.as_bytes()).ok()?;
    Some(format!("{signed}.{}", BASE64.encode(signature)))
}

fn empty_pod_defaults() -> PodDefaults {
    let none = String::new;
    PodDefaults { agent_image: none(), control: none(), control_ca: none(), service_account: none() }
}
