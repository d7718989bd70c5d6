//! Measures creation, wake, sleep and resize of workspaces as pods, compared with a bare pod of the
//! same image. `cargo xtask cluster bench` runs it.

use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
};
use podling_proto::control::v1::{
    CreateWorkspaceRequest, DeleteWorkspaceRequest, GetWorkspaceRequest, ResizeWorkspaceRequest, Resources,
    SleepWorkspaceRequest, State,
};
use podling_tests::{
    Client, Deployed, Namespace,
    cluster::{MEMORY_LIMIT, image, import_ide_image, kubectl},
    script, wait_for,
};
use serde_json::json;

use crate::{
    prompt,
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 12;
/// An image that contains the agent and a shell.
const IMAGE: &str = "podling/python:0.1.0";
/// Name of the workspaces' template. Its command replaces the image's IDE, which would disturb the
/// measurement.
const TEMPLATE: &str = "bench";
/// Shell script of the bare pod. It exits on SIGTERM.
const BARE_COMMAND: &str = "trap 'exit 0' TERM; sleep infinity & wait";
/// Resources to resize to. CPU 0 leaves the CPU unchanged.
const RESIZED: Resources = Resources { cpu_millis: 0, memory_bytes: 512 << 20 };

/// Measured times, in milliseconds.
#[derive(Default)]
struct PodTimes {
    bare: Samples,
    bare_gone: Samples,
    created: Samples,
    woken: Samples,
    asleep: Samples,
    resized: Samples,
}

/// The deployed control plane, and a namespace for bare pods.
struct BenchCluster {
    client: Client,
    workspace_pods: Api<Pod>,
    bare_pods: Api<Pod>,
    _bare_namespace: Namespace,
}

pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let cluster = BenchCluster::new().await?;
    report.fact(kubectl(&["version"]).expect_success().lines().last().unwrap_or_default().to_owned());
    // The first round reads all files from the disk and is not reported.
    cluster.round("first", &mut PodTimes::default()).await?;
    let mut measured = PodTimes::default();
    for round in 0..ROUNDS {
        cluster.round(&format!("round-{round}"), &mut measured).await?;
    }
    let peer = "a bare pod of that image → Ready";
    let PodTimes { bare, bare_gone, created, woken, asleep, resized } = measured;
    let row = |name: &str, ours: &Samples| Row::new(name.to_owned(), "ms", ours);
    report.row(row("create a workspace and its volume → its shell's prompt", &created).peer(peer, &bare));
    report.row(row("asleep → its shell's prompt, through a request that wakes it", &woken).peer(peer, &bare));
    let more = woken.less(&bare);
    report.row(row("the same, minus the bare pod's time", &more).absolute(Goal::AtMost(100.0)));
    let peer = "that pod, which exits on SIGTERM → gone";
    report.row(row("put to sleep → its pod is gone", &asleep).peer(peer, &bare_gone));
    report.row(row("resized → the kernel has the new limit", &resized));
    Ok(())
}

impl BenchCluster {
    async fn new() -> Result<Self> {
        import_ide_image("python")?;
        let deployed = Deployed::get();
        let template = json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate", "metadata": {"name": TEMPLATE},
            "spec": {
                "image": image(IMAGE), "command": ["sleep", "infinity"],
                "resources": {"cpu": "500m", "memory": "256Mi"}, "storage": {"size": "1Gi"},
            },
        });
        deployed.namespace().apply(&template.to_string()).expect_success();
        let kube = kube::Client::try_default().await?;
        let bare = Namespace::new();
        Ok(Self {
            client: deployed.client(),
            workspace_pods: Api::namespaced(kube.clone(), deployed.namespace().name()),
            bare_pods: Api::namespaced(kube, bare.name()),
            _bare_namespace: bare,
        })
    }

    async fn round(&self, name: &str, measured: &mut PodTimes) -> Result<()> {
        self.bare_pod(name, measured).await?;
        let mut workspaces = self.client.workspaces();
        let create = CreateWorkspaceRequest {
            name: name.to_owned(),
            template: TEMPLATE.to_owned(),
            ..Default::default()
        };
        let begun = Instant::now();
        let made = workspaces.create(create).await?.into_inner().workspace.context("no workspace")?;
        let inside = self.client.clone().for_workspace(&made.id);
        prompt::open_shell(&inside).await?;
        measured.created.push(milliseconds(begun));

        let begun = Instant::now();
        let more = ResizeWorkspaceRequest { workspace: made.id.clone(), resources: Some(RESIZED) };
        workspaces.resize(more).await?;
        let limit = RESIZED.memory_bytes.to_string();
        wait_for("the new memory limit", async || {
            let has = inside.run(script(MEMORY_LIMIT)).await.stdout;
            (String::from_utf8_lossy(&has).trim() == limit).then_some(())
        })
        .await;
        measured.resized.push(milliseconds(begun));

        let label = format!("podling.dev/workspace={}", made.id);
        let pods = self.workspace_pods.list(&ListParams::default().labels(&label)).await?;
        let pod = pods.items.first().and_then(|pod| pod.metadata.name.clone()).context("no pod")?;
        let begun = Instant::now();
        workspaces.sleep(SleepWorkspaceRequest { workspace: made.id.clone(), force: true }).await?;
        wait_until(&self.workspace_pods, &pod, |event| matches!(event, WatchEvent::Deleted(_))).await?;
        measured.asleep.push(milliseconds(begun));

        wait_for("the workspace to be asleep", async || {
            let get = GetWorkspaceRequest { workspace: made.id.clone() };
            let now = self.client.workspaces().get(get).await.ok()?.into_inner().workspace?;
            (now.state() == State::Asleep).then_some(())
        })
        .await;
        let begun = Instant::now();
        prompt::open_shell(&inside).await?;
        measured.woken.push(milliseconds(begun));

        let delete = DeleteWorkspaceRequest { workspace: made.id.clone(), discard: true };
        workspaces.delete(delete).await?;
        wait_for("the removal of all its pods", async || {
            let left = self.workspace_pods.list(&ListParams::default().labels(&label)).await;
            left.is_ok_and(|left| left.items.is_empty()).then_some(())
        })
        .await;
        Ok(())
    }

    /// Creates and deletes a pod as `kubectl run` and `kubectl delete` do, without the time of
    /// kubectl itself.
    async fn bare_pod(&self, name: &str, measured: &mut PodTimes) -> Result<()> {
        let security = json!({
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
            "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"},
        });
        let container = json!({
            "name": name, "image": image(IMAGE), "command": ["sh", "-c", BARE_COMMAND],
            "securityContext": security,
        });
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"containers": [container], "restartPolicy": "Never"},
        }))?;
        let begun = Instant::now();
        self.bare_pods.create(&PostParams::default(), &pod).await?;
        wait_until(
            &self.bare_pods,
            name,
            |event| matches!(event, WatchEvent::Modified(pod) if is_ready(pod)),
        )
        .await?;
        measured.bare.push(milliseconds(begun));
        let begun = Instant::now();
        self.bare_pods.delete(name, &DeleteParams::default()).await?;
        wait_until(&self.bare_pods, name, |event| matches!(event, WatchEvent::Deleted(_))).await?;
        measured.bare_gone.push(milliseconds(begun));
        Ok(())
    }
}

/// Watches a pod until `reached` returns true for an event. Returns at once if the pod does not
/// exist.
async fn wait_until(pods: &Api<Pod>, name: &str, reached: impl Fn(&WatchEvent<Pod>) -> bool) -> Result<()> {
    let only = format!("metadata.name={name}");
    let now = pods.list(&ListParams::default().fields(&only)).await?;
    let version = now.metadata.resource_version.context("a list without a version")?;
    let Some(pod) = now.items.into_iter().next() else { return Ok(()) };
    if reached(&WatchEvent::Modified(pod)) {
        return Ok(());
    }
    let mut events = Box::pin(pods.watch(&WatchParams::default().fields(&only), &version).await?);
    while let Some(event) = events.try_next().await? {
        if reached(&event) {
            return Ok(());
        }
    }
    anyhow::bail!("the watch of {name} ended")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
