//! Tests that the Kubernetes backend fulfils the contract of a backend, without a control plane. A
//! start creates one pod, storage outlives the pod, and errors name their cause.

use std::{
    env,
    ops::Range,
    path::PathBuf,
    pin::Pin,
    process::Command,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use futures_util::{Stream, StreamExt};
use kube::Client;
use podling_control::{
    backend::{
        AgentReviewer, Backend, BackendError, Instance, Observation, StartPlan, StartPurpose,
        kubernetes::{KubernetesBackend, KubernetesReviewer},
    },
    kubernetes::objects::PodDefaults,
    leader_election::Leadership,
    template::TemplateFollower,
};
use podling_core::{
    id::WorkspaceId,
    policy::Policy,
    reason::{Wait, WaitReason},
    time::Timestamp,
    workspace::{DesiredState, Resources, Spec},
};
use podling_tests::{
    Namespace,
    cluster::{image, install_crds},
    report_skipped, within,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const ACCOUNT: &str = "podling-workspace";

/// A namespace with the objects that workspaces need, and a backend for it.
struct BackendFixture {
    space: Namespace,
    backend: Arc<KubernetesBackend>,
    observations: Pin<Box<dyn Stream<Item = Observation> + Send>>,
}

impl BackendFixture {
    async fn new() -> Self {
        install_crds();
        let space = Namespace::new();
        space.kubectl(&["create", "serviceaccount", ACCOUNT]).expect_success();
        space.kubectl(&["create", "configmap", "podling-ca", "--from-literal=ca.pem=none"]).expect_success();
        space.apply(&template("debian", &image("debian:bookworm-slim"))).expect_success();
        let defaults = PodDefaults {
            agent_image: image("podling/agent:0.1.0"),
            control: "https://control.invalid:1".into(),
            control_ca: "podling-ca".into(),
            service_account: ACCOUNT.into(),
        };
        let backend = Arc::new(backend(client().await, space.name(), defaults).await);
        let observations = Box::pin(backend.observe());
        let mut fixture = Self { space, backend, observations };
        let is_list = |observation| matches!(observation, Observation::Listed { .. }).then_some(());
        fixture.wait_observation("a list", is_list).await;
        fixture
    }

    async fn start(&self, plan: &StartPlan) -> Result<Instance, BackendError> {
        within("a start or an error", self.backend.ensure(plan.clone())).await
    }

    /// Waits for the next observation for which `select` returns a value.
    async fn wait_observation<T>(&mut self, what: &str, select: impl Fn(Observation) -> Option<T>) -> T {
        let found = async {
            loop {
                let next = self.observations.next().await.expect("the stream of observations continues");
                if let Some(value) = select(next) {
                    return value;
                }
            }
        };
        within(what, found).await
    }

    async fn wait_waits(&mut self) -> Wait {
        self.wait_observation("a waiting start", |observation| match observation {
            Observation::Waits { waits, .. } => waits,
            _ => None,
        })
        .await
    }

    async fn wait_end(&mut self, ended: &Instance) -> String {
        self.wait_observation("the end of an instance", |observation| match observation {
            Observation::Ended { instance, detail } if instance.id == ended.id => Some(detail),
            _ => None,
        })
        .await
    }

    fn pods(&self) -> String {
        self.space.kubectl(&["get", "pods", "--output", "name"]).expect_success()
    }

    fn in_pod(&self, plan: &StartPlan, script: &str) -> String {
        let pod = format!("workspace-{}-{}", plan.workspace, plan.epoch);
        self.space.kubectl(&["exec", &pod, "--", "sh", "-c", script]).expect_success()
    }
}

/// Creates a backend that reads a template when a workspace starts, unless the template exists now.
async fn backend(client: Client, namespace: &str, defaults: PodDefaults) -> KubernetesBackend {
    let opened = TemplateFollower::open(&client, namespace, "debian", Leadership::permanent()).await;
    let templates = opened.expect("a list of templates").0.lookup();
    KubernetesBackend::new(client, namespace, defaults, Leadership::permanent(), templates)
}

async fn client() -> Client {
    Client::try_default().await.expect("KUBECONFIG names a cluster")
}

/// Returns the manifest of a template that injects the agent into an image without one.
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
        storage_bytes: None,
        desired_state: DesiredState::Awake,
        request_seq: 1,
        source: None,
        created: Timestamp(0),
        request_id: String::new(),
    };
    let (spec, cancellation) = (Arc::new(spec), CancellationToken::new());
    let (secret, purpose) = (String::new(), StartPurpose::Serve);
    let (epoch, expects_files) = (1, false);
    StartPlan { workspace, epoch, purpose, expects_files, secret, spec, resources, cancellation }
}

#[tokio::test]
async fn start_creates_one_pod_and_storage_outlives_it() {
    let mut fixture = BackendFixture::new().await;
    let first = plan("debian");
    let instance = fixture.start(&first).await.unwrap();
    assert_eq!(fixture.start(&first).await.unwrap(), instance, "a repeated start returns the same instance");
    fixture.in_pod(&first, "echo kept >~/file && test \"$(id -u)\" = 1000");
    assert!(
        fixture.in_pod(&first, "tr '\\0' ' ' </proc/1/cmdline").contains("podling-agent -- sleep infinity")
    );

    // The backend of another control plane lists the instance.
    let other = backend(client().await, fixture.space.name(), empty_pod_defaults()).await;
    let listed = Box::pin(other.observe()).next().await;
    let Some(Observation::Listed { running, .. }) = listed else { panic!("{listed:?}") };
    assert_eq!(running, std::slice::from_ref(&instance));

    fixture.backend.stop(first.workspace.clone(), 9).await.unwrap();
    fixture.wait_end(&instance).await;
    assert_eq!(fixture.pods(), "");
    fixture.backend.stop(first.workspace.clone(), 9).await.unwrap();

    let second = StartPlan { epoch: 2, ..first.clone() };
    assert_ne!(fixture.start(&second).await.unwrap().id, instance.id);
    let superseded = fixture.backend.stop(first.workspace.clone(), 1).await.unwrap_err().to_string();
    assert!(superseded.contains("another control plane has started"), "{superseded}");
    assert_eq!(fixture.in_pod(&second, "cat ~/file"), "kept");
    fixture.backend.stop(second.workspace.clone(), 9).await.unwrap();

    // The deletion of the claim does not delete the data, because of the finalizer.
    let claim = format!("pvc/workspace-{}", first.workspace);
    let mut new_claim = fixture.space.kubectl(&["get", &claim, "--output=json"]).json();
    let volume = format!("persistentvolume/{}", fixture.space.field(&claim, ".spec.volumeName"));
    fixture.space.kubectl(&["delete", &claim, "--wait=false"]).expect_success();
    assert_eq!(fixture.space.field(&claim, ".metadata.finalizers[0]"), "podling.dev/keep-data");
    let refused = fixture.start(&StartPlan { epoch: 3, ..first.clone() }).await.unwrap_err();
    assert!(refused.to_string().contains("was deleted, so no pod can use it"), "{refused}");
    // The steps that the message gives recover the data.
    let patch = |object: &str, patch: &str| {
        fixture.space.kubectl(&["patch", object, "--type=merge", "--patch", patch]).expect_success();
    };
    patch(&volume, r#"{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}"#);
    patch(&claim, r#"{"metadata": {"finalizers": null}}"#);
    fixture.space.wait("delete", &claim).expect_success();
    patch(&volume, r#"{"spec": {"claimRef": null}}"#);
    let metadata = &new_claim["metadata"];
    new_claim["metadata"] = json!({
        "name": metadata["name"], "labels": metadata["labels"],
    });
    fixture.space.apply(&new_claim.to_string()).expect_success();
    fixture.space.wait("jsonpath={.status.phase}=Bound", &claim).expect_success();
    let third = StartPlan { epoch: 3, ..first.clone() };
    fixture.start(&third).await.unwrap();
    assert_eq!(
        fixture.space.field(&claim, ".metadata.finalizers[?(@=='podling.dev/keep-data')]"),
        "podling.dev/keep-data",
        "the new claim is protected too"
    );
    assert_eq!(fixture.in_pod(&third, "cat ~/file"), "kept");
    fixture.backend.stop(first.workspace.clone(), 9).await.unwrap();
    patch(&volume, r#"{"spec": {"persistentVolumeReclaimPolicy": "Delete"}}"#);
    fixture.backend.remove(first.workspace.clone()).await.unwrap();
    fixture.space.wait("delete", &volume).expect_success();
    fixture.backend.remove(first.workspace.clone()).await.unwrap();
    let expecting = StartPlan { epoch: 4, expects_files: true, ..first.clone() };
    let missing = fixture.start(&expecting).await.unwrap_err().to_string();
    assert!(missing.contains("the claim with the files of the workspace does not exist"), "{missing}");
    assert!(!fixture.space.kubectl(&["get", &claim]).ok, "no empty claim is created");
}

#[tokio::test]
async fn deleted_pod_is_observed_with_its_cause() {
    let mut fixture = BackendFixture::new().await;
    let first = plan("debian");
    let pod = format!("workspace-{}-1", first.workspace);
    let instance = fixture.start(&first).await.unwrap();
    fixture.space.kubectl(&["delete", "pod", &pod]).expect_success();
    assert_eq!(fixture.wait_end(&instance).await, "its pod was deleted");
    let again = fixture.start(&StartPlan { epoch: 2, ..first.clone() }).await.unwrap();
    fixture.in_pod(&StartPlan { epoch: 2, ..first.clone() }, "kill -9 -1; true");
    // No process in the pod can kill PID 1, but the node can.
    let pod = format!("workspace-{}-2", first.workspace);
    fixture.space.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]).expect_success();
    assert_eq!(fixture.wait_end(&again).await, "its pod was deleted");
    fixture.backend.stop(first.workspace.clone(), 9).await.unwrap();
}

#[tokio::test]
async fn waiting_start_reports_its_cause_until_cancelled() {
    let mut fixture = BackendFixture::new().await;
    let mut large = plan("debian");
    large.resources.cpu_millis = 4_000_000;
    let (backend, plan) = (fixture.backend.clone(), large.clone());
    let mut starting = JoinSet::new();
    starting.spawn(async move { backend.ensure(plan).await });
    let waits = fixture.wait_waits().await;
    assert_eq!(waits.reason, WaitReason::Unschedulable);
    assert!(waits.detail.contains("Insufficient cpu"), "{waits:?}");
    large.cancellation.cancel();
    let refused = within("the start ends", starting.join_all()).await.remove(0).unwrap_err();
    assert!(refused.to_string().contains("the operation was cancelled"), "{refused}");
    fixture.backend.stop(large.workspace.clone(), 9).await.unwrap();
    assert_eq!(fixture.pods(), "");
}

#[tokio::test]
async fn start_names_what_is_missing_and_continues() {
    let mut fixture = BackendFixture::new().await;
    let plan = plan("later");
    let (backend, waiting_plan) = (fixture.backend.clone(), plan.clone());
    let mut starting = JoinSet::new();
    starting.spawn(async move { backend.ensure(waiting_plan).await });
    let waits = fixture.wait_waits().await;
    assert_eq!(waits.reason, WaitReason::TemplateMissing);
    assert!(waits.detail.contains("there is no WorkspaceTemplate \"later\""), "{waits:?}");
    // The pod is created without the ConfigMap, and stays in ContainerCreating.
    fixture.space.kubectl(&["delete", "configmap", "podling-ca"]).expect_success();
    fixture.space.apply(&template("later", &image("debian:bookworm-slim"))).expect_success();
    let is_mount = |observation| match observation {
        Observation::Waits { waits: Some(waits), .. } if waits.reason == WaitReason::MountFailed => {
            Some(waits)
        }
        _ => None,
    };
    let waits = fixture.wait_observation("a volume that cannot be mounted", is_mount).await;
    assert!(waits.detail.contains("configmap \"podling-ca\" not found"), "{waits:?}");
    fixture
        .space
        .kubectl(&["create", "configmap", "podling-ca", "--from-literal=ca.pem=none"])
        .expect_success();
    within("the kubelet tries again", starting.join_all()).await.remove(0).unwrap();
    fixture.backend.stop(plan.workspace, 9).await.unwrap();
}

#[tokio::test]
async fn start_beyond_the_namespace_quota_waits() {
    let mut fixture = BackendFixture::new().await;
    fixture.space.kubectl(&["create", "quota", "team", "--hard=pods=0"]).expect_success();
    let plan = plan("debian");
    let (backend, waiting_plan) = (fixture.backend.clone(), plan.clone());
    let mut starting = JoinSet::new();
    starting.spawn(async move { backend.ensure(waiting_plan).await });
    let waits = fixture.wait_waits().await;
    assert_eq!(waits.reason, WaitReason::QuotaExceeded);
    assert!(waits.detail.contains("team, requested: pods=1, used: pods=0"), "{waits:?}");
    let more = r#"{"spec": {"hard": {"pods": "1"}}}"#;
    fixture.space.kubectl(&["patch", "quota", "team", "--patch", more]).expect_success();
    within("a start within the raised quota", starting.join_all()).await.remove(0).unwrap();
    fixture.backend.stop(plan.workspace, 9).await.unwrap();
}

#[tokio::test]
async fn impossible_start_fails_with_its_cause() {
    let fixture = BackendFixture::new().await;
    fixture.space.apply(&template("missing", "registry.invalid/no/such:1")).expect_success();
    let missing = plan("missing");
    let refused = fixture.start(&missing).await.unwrap_err().to_string();
    assert!(refused.contains("the image registry.invalid/no/such:1 cannot be pulled"), "{refused}");
    fixture.backend.stop(missing.workspace, 9).await.unwrap();
}

#[tokio::test]
async fn agent_identity_follows_from_the_pod_of_its_token() {
    let fixture = BackendFixture::new().await;
    let reviewer = KubernetesReviewer::new(client().await, fixture.space.name(), ACCOUNT);
    let plan = plan("debian");
    let instance = fixture.start(&plan).await.unwrap();
    let pod = format!("workspace-{}-1", plan.workspace);
    let token = fixture.in_pod(&plan, "cat /run/podling/token/token");
    let reviewed = reviewer.review(&token).await.unwrap().expect("a token of a workspace's pod");
    assert_eq!((reviewed.workspace, reviewed.proof), (plan.workspace.clone(), instance.id));

    let create_token =
        |args: &[&str]| fixture.space.kubectl(&[&["create", "token"], args].concat()).expect_success();
    let bound = ["--bound-object-kind=Pod", "--bound-object-name", &pod];
    let same = create_token(&[&[ACCOUNT, "--audience=podling"][..], &bound].concat());
    assert!(reviewer.review(&same).await.unwrap().is_some(), "another token for the same pod is accepted");
    // The signature of another token. If only its last letter were changed, the signature might
    // stay the same, because some bits of that letter are unused.
    let wrong_signature =
        format!("{}.{}", token.rsplit_once('.').unwrap().0, same.rsplit_once('.').unwrap().1);
    for (why, other) in [
        ("for another audience", create_token(&[&[ACCOUNT, "--audience=vault"][..], &bound].concat())),
        ("for the default audience", create_token(&[&[ACCOUNT][..], &bound].concat())),
        ("for no pod", create_token(&[ACCOUNT, "--audience=podling"])),
        ("of another account", create_token(&["default", "--audience=podling"])),
        ("with the signature of another token", wrong_signature),
        ("that is not a JWT", "nonsense".into()),
    ] {
        assert!(reviewer.review(&other).await.unwrap().is_none(), "a token {why} is rejected");
    }
    match (with_validity(&token, -60..600), with_validity(&token, -7200..-3600)) {
        (Some(valid), Some(expired)) => {
            assert!(
                reviewer.review(&valid).await.unwrap().is_some(),
                "a valid token that the test signs is accepted"
            );
            assert!(reviewer.review(&expired).await.unwrap().is_none(), "an expired token is rejected");
        }
        _ => report_skipped("expired tokens", "the cluster's signing key is not readable"),
    }
    let elsewhere = KubernetesReviewer::new(client().await, "default", ACCOUNT);
    assert!(elsewhere.review(&token).await.unwrap().is_none(), "a token of another namespace is rejected");
    fixture.backend.stop(plan.workspace, 9).await.unwrap();
    assert!(reviewer.review(&token).await.unwrap().is_none(), "a token of a deleted pod is rejected");
}

/// Returns the same token with another validity period, in seconds from now, signed with the
/// cluster's key. Returns `None` if that key is not readable.
fn with_validity(token: &str, validity: Range<i64>) -> Option<String> {
    let key = PathBuf::from(env::var_os("KUBECONFIG")?).with_file_name("accounts.key");
    let der = ["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in", key.to_str()?];
    let der =
        Command::new("openssl").args(der).output().ok().filter(|output| output.status.success())?.stdout;
    let mut parts = token.split('.');
    let (head, claims) = (parts.next()?, BASE64.decode(parts.next()?).ok()?);
    let mut claims: Value = serde_json::from_slice(&claims).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
    for (claim, at) in [("iat", validity.start), ("nbf", validity.start), ("exp", validity.end)] {
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
