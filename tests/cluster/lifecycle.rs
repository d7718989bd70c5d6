//! The lifecycle of workspaces as pods of the deployed control plane: by the CLI, by kubectl, and
//! after the loss of pods. Also helpers for the other tests.

use podling_tests::{CommandOutput, Deployed, wait_for, wait_until};
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Tests that share the control plane hold this lock for reading. A test that disturbs the control
/// plane holds it for writing.
static CONTROL_PLANE: RwLock<()> = RwLock::const_new(());

const CONTROL_PODS: &str = "app.kubernetes.io/name=podling-control";

pub(crate) async fn share_control_plane() -> (RwLockReadGuard<'static, ()>, &'static Deployed) {
    (CONTROL_PLANE.read().await, Deployed::get())
}

pub(crate) async fn lock_control_plane() -> (RwLockWriteGuard<'static, ()>, &'static Deployed) {
    (CONTROL_PLANE.write().await, Deployed::get())
}

pub(crate) async fn run_cli(deployed: &Deployed, args: &[&str]) -> CommandOutput {
    deployed.cli().run(args).await.ok()
}

/// Waits until the `Workspace` resource has this state.
pub(crate) async fn wait_state(deployed: &Deployed, name: &str, state: &str) {
    let (object, condition) = (format!("ws/{name}"), format!("jsonpath={{.status.state}}={state}"));
    deployed.namespace().wait(&condition, &object).expect_success();
}

/// Returns the objects of this kind, such as "pods" or "pvc", of the workspace with this id.
pub(crate) fn objects_of(deployed: &Deployed, kind: &str, id: &str) -> Vec<Value> {
    deployed.namespace().list(kind, &format!("podling.dev/workspace={id}"))
}

/// Returns the pods of the control plane.
pub(crate) fn control_pods(deployed: &Deployed) -> Vec<Value> {
    deployed.namespace().list("pods", CONTROL_PODS)
}

/// Merges `spec`, which is JSON, into the spec of the `Workspace` resource.
pub(crate) fn patch_spec(deployed: &Deployed, name: &str, spec: &str) {
    let patch = format!("{{\"spec\": {spec}}}");
    deployed.namespace().kubectl(&["patch", "ws", name, "--type=merge", "--patch", &patch]).expect_success();
}

pub(crate) fn workspace_id(deployed: &Deployed, name: &str) -> String {
    deployed.namespace().field(&format!("ws/{name}"), ".status.id")
}

pub(crate) fn uid_of_only_pod(pods: &[Value]) -> String {
    assert_eq!(pods.len(), 1, "{pods:#?}");
    pods[0]["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn workspace_runs_sleeps_and_is_restored_from_its_archive() {
    let (_control, deployed) = share_control_plane().await;
    run_cli(deployed, &["create", "ada"]).await;
    run_cli(deployed, &["run", "ada", "--", "sh", "-c", "echo kept >~/file; mkdir ~/empty"]).await;
    let id = workspace_id(deployed, "ada");
    let first = uid_of_only_pod(&objects_of(deployed, "pods", &id));
    assert_eq!(objects_of(deployed, "pvc", &id).len(), 1);

    run_cli(deployed, &["sleep", "--force", "ada"]).await;
    assert!(objects_of(deployed, "pods", &id).is_empty(), "a sleeping workspace has no pod");
    assert_eq!(
        deployed.namespace().field("ws/ada", ".spec.desiredState"),
        "Asleep",
        "a later edit to Awake must be a change"
    );
    assert_eq!(run_cli(deployed, &["run", "ada", "--", "cat", "file"]).await.out(), "kept\n");
    assert_ne!(uid_of_only_pod(&objects_of(deployed, "pods", &id)), first);
    assert_eq!(deployed.namespace().field("ws/ada", ".spec.desiredState"), "Awake");

    run_cli(deployed, &["rm", "ada"]).await;
    wait_until("the deletion of its volume", || objects_of(deployed, "pvc", &id).is_empty()).await;
    deployed.namespace().wait("delete", "ws/ada").expect_success();
    let archives = format!("wsa/{id}");
    wait_until("a WorkspaceArchives resource", || deployed.namespace().kubectl(&["get", &archives]).ok).await;
    let archive = deployed.namespace().field(&archives, ".spec.newestArchive");
    run_cli(deployed, &["restore", &archive]).await;
    assert_eq!(
        run_cli(deployed, &["run", "ada", "--", "sh", "-c", "cat file; ls"]).await.out(),
        "kept\nempty\nfile\n"
    );
    assert!(
        !deployed.namespace().kubectl(&["get", &archives]).ok,
        "the WorkspaceArchive is deleted with the restore"
    );
    run_cli(deployed, &["rm", "--discard", "ada"]).await;
}

#[tokio::test]
async fn restored_workspace_keeps_volume_ports_and_environment() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    space
        .kubectl(&["create", "secret", "generic", "tokens", "--from-literal=github=hidden"])
        .expect_success();
    let workspace = r#"{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace",
        "metadata": {"name": "jean"}, "spec": {"owner": "root", "template": "shell",
        "storage": {"size": "2Gi"}, "ports": [{"name": "app", "port": 3000}],
        "environment": [{"name": "EDITOR", "value": "vi"},
        {"name": "TOKEN", "secret": {"name": "tokens", "key": "github"}}]}}"#;
    space.apply(workspace).expect_success();
    space.wait("condition=Ready", "ws/jean").expect_success();
    space.kubectl(&["delete", "ws", "jean"]).expect_success();
    run_cli(deployed, &["restore", "jean"]).await;
    let output = run_cli(deployed, &["run", "jean", "--", "sh", "-c", "echo $EDITOR $TOKEN"]).await.out();
    assert_eq!(output, "vi hidden\n");
    assert_eq!(space.field("ws/jean", ".spec.ports[0].port"), "3000");
    let claims = objects_of(deployed, "pvc", &workspace_id(deployed, "jean"));
    assert_eq!(claims[0]["spec"]["resources"]["requests"]["storage"], "2Gi");
    run_cli(deployed, &["rm", "--discard", "jean"]).await;
}

#[tokio::test]
async fn control_plane_log_has_only_json_lines() {
    let (_control, deployed) = share_control_plane().await;
    for pod in control_pods(deployed) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let log = deployed.namespace().kubectl(&["logs", name]).expect_success();
        for line in log.lines() {
            assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()), "{name}: {line}");
        }
    }
}

#[tokio::test]
async fn kubectl_alone_controls_the_whole_lifecycle() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    let workspace = r#"{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace",
        "metadata": {"name": "grace"}, "spec": {"owner": "grace", "template": "shell",
        "policy": {"idleTimeout": "2h"}}}"#;
    space.apply(workspace).expect_success();
    space.wait("condition=Ready", "ws/grace").expect_success();
    let id = workspace_id(deployed, "grace");
    let table = space.kubectl(&["get", "ws", "grace"]).expect_success();
    assert!(table.contains("awake") && table.contains("grace") && table.contains("shell"), "{table}");
    let explained = run_cli(deployed, &["explain", &id]).await.out();
    assert!(explained.contains("2h"), "{explained}");

    patch_spec(
        deployed,
        "grace",
        r#"{"desiredState": "Asleep", "resources": {"cpu": "200m", "memory": "192Mi"}}"#,
    );
    wait_state(deployed, "grace", "asleep").await;
    assert!(objects_of(deployed, "pods", &id).is_empty());
    patch_spec(deployed, "grace", r#"{"desiredState": "Awake"}"#);
    wait_state(deployed, "grace", "awake").await;
    let pods = objects_of(deployed, "pods", &id);
    assert_eq!(pods[0]["spec"]["containers"][0]["resources"]["limits"]["cpu"], "200m");
    let (observed, written) = (
        space.field("ws/grace", ".status.observedGeneration"),
        space.field("ws/grace", ".metadata.generation"),
    );
    assert_eq!(observed, written);

    // The archive outlives the resource even if the deletion cascades.
    space.kubectl(&["delete", "ws", "grace", "--cascade=foreground", "--timeout=60s"]).expect_success();
    let archive = space.field(&format!("wsa/{id}"), ".spec.newestArchive");
    assert!(archive.starts_with(&format!("workspace-{id}-")), "{archive}");
    assert!(objects_of(deployed, "pvc", &id).is_empty() && objects_of(deployed, "pods", &id).is_empty());
}

#[tokio::test]
async fn deleted_or_evicted_pod_is_replaced_with_its_files() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    run_cli(deployed, &["create", "alan"]).await;
    let id = workspace_id(deployed, "alan");
    run_cli(deployed, &["run", "alan", "--", "sh", "-c", "echo here >file"]).await;
    let mut before = uid_of_only_pod(&objects_of(deployed, "pods", &id));
    for (how, cause) in [("delete", "its pod was deleted"), ("evict", "its pod was evicted")] {
        let name = objects_of(deployed, "pods", &id)[0]["metadata"]["name"].as_str().unwrap().to_owned();
        if how == "delete" {
            space.kubectl(&["delete", "pod", &name, "--wait=false"]).expect_success();
        } else {
            // A drain of the node evicts pods by the same request.
            let eviction = format!(
                r#"{{"apiVersion": "policy/v1", "kind": "Eviction",
                    "metadata": {{"name": "{name}", "namespace": "podling"}}}}"#
            );
            space
                .post(&format!("/api/v1/namespaces/podling/pods/{name}/eviction"), &eviction)
                .expect_success();
        }
        wait_until("another pod to serve it", || {
            let state = space.field("ws/alan", ".status.state");
            let pods = objects_of(deployed, "pods", &id);
            state == "awake" && pods.len() == 1 && uid_of_only_pod(&pods) != before
        })
        .await;
        before = uid_of_only_pod(&objects_of(deployed, "pods", &id));
        assert_eq!(run_cli(deployed, &["run", "alan", "--", "cat", "file"]).await.out(), "here\n");
        let explained = run_cli(deployed, &["explain", "alan"]).await.out();
        assert!(explained.contains(cause), "{explained}");
    }
    run_cli(deployed, &["rm", "--discard", "alan"]).await;
}

#[tokio::test]
async fn removed_finalizers_and_labels_are_added_again() {
    let (_control, deployed) = share_control_plane().await;
    run_cli(deployed, &["create", "radia"]).await;
    let (space, id) = (deployed.namespace(), workspace_id(deployed, "radia"));
    let claim = format!("pvc/workspace-{id}");
    let bare = r#"{"metadata": {"finalizers": null, "labels": {"podling.dev/workspace": null}}}"#;
    for object in ["ws/radia", &claim] {
        space.kubectl(&["patch", object, "--type=merge", "--patch", bare]).expect_success();
    }
    wait_until("the finalizer of the workspace", || {
        let finalizers = space.field("ws/radia", ".metadata.finalizers");
        finalizers.contains("podling.dev/archive-before-delete")
    })
    .await;
    wait_until("finalizer and label of the claim", || {
        let is_protected = space.field(&claim, ".metadata.finalizers").contains("podling.dev/keep-data");
        is_protected && objects_of(deployed, "pvc", &id).len() == 1
    })
    .await;
    run_cli(deployed, &["rm", "--discard", "radia"]).await;
}

#[tokio::test]
async fn killed_control_plane_finds_running_workspaces() {
    let (_control, deployed) = lock_control_plane().await;
    let space = deployed.namespace();
    run_cli(deployed, &["create", "edsger"]).await;
    let id = workspace_id(deployed, "edsger");
    let served_by = uid_of_only_pod(&objects_of(deployed, "pods", &id));
    run_cli(deployed, &["run", "edsger", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >job"])
        .await;

    let pod_uids =
        || control_pods(deployed).iter().map(|pod| pod["metadata"]["uid"].clone()).collect::<Vec<_>>();
    let old = pod_uids();
    deployed
        .namespace()
        .kubectl(&["delete", "pod", "--selector", CONTROL_PODS, "--grace-period=0", "--force"])
        .expect_success();
    // This edit is written while no control plane runs.
    patch_spec(deployed, "edsger", r#"{"policy": {"idleTimeout": "3h"}}"#);
    wait_until("new pods of the control plane", || {
        let new = pod_uids();
        new.len() == old.len() && new.iter().all(|pod| !old.contains(pod))
    })
    .await;
    deployed.wait_ready();
    run_cli(deployed, &["run", "edsger", "--", "sh", "-c", "kill -0 $(cat job)"]).await;
    assert_eq!(
        uid_of_only_pod(&objects_of(deployed, "pods", &id)),
        served_by,
        "the same pod still serves it"
    );
    wait_for("the edit to be observed", async || {
        run_cli(deployed, &["policy", "show", "edsger"]).await.out().contains("3h").then_some(())
    })
    .await;
    run_cli(deployed, &["rm", "--discard", "edsger"]).await;
    space.wait("delete", "ws/edsger").expect_success();
}
