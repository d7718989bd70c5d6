//! Workspaces as pods, under the control plane as it is deployed: by the command line, by kubectl alone, and when pods are taken away.

use podling_tests::{CommandOutput, deployed::Deployed, wait_for};
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Most stories share the control plane; one that ends it has it alone.
static CONTROL: RwLock<()> = RwLock::const_new(());

const CONTROL_PODS: &str = "app.kubernetes.io/name=podling-control";

pub(crate) async fn shared() -> (RwLockReadGuard<'static, ()>, &'static Deployed) {
    (CONTROL.read().await, Deployed::get())
}

pub(crate) async fn alone() -> (RwLockWriteGuard<'static, ()>, &'static Deployed) {
    (CONTROL.write().await, Deployed::get())
}

pub(crate) async fn podling(deployed: &Deployed, args: &[&str]) -> CommandOutput {
    deployed.cli().run(args).await.ok()
}

/// Waits until a workspace is in this state, as kubectl shows it.
pub(crate) async fn is(deployed: &Deployed, name: &str, state: &str) {
    let (what, path) = (format!("ws/{name}"), format!("jsonpath={{.status.state}}={state}"));
    deployed.space().wait(&path, &what).good();
}

/// What there is of a workspace: its pods, or its claims.
pub(crate) fn of(deployed: &Deployed, kind: &str, id: &str) -> Vec<Value> {
    list(deployed, kind, &format!("podling.dev/workspace={id}"))
}

/// The pods of the control plane.
pub(crate) fn controls(deployed: &Deployed) -> Vec<Value> {
    list(deployed, "pods", CONTROL_PODS)
}

/// As somebody who knows kubectl alone.
pub(crate) fn edit(deployed: &Deployed, name: &str, spec: &str) {
    let patch = format!("{{\"spec\": {spec}}}");
    deployed.space().kubectl(&["patch", "ws", name, "--type=merge", "--patch", &patch]).good();
}

fn list(deployed: &Deployed, kind: &str, label: &str) -> Vec<Value> {
    let list = deployed.space().kubectl(&["get", kind, "--selector", label, "--output", "json"]).good();
    let list: Value = serde_json::from_str(&list).unwrap();
    list["items"].as_array().unwrap().clone()
}

pub(crate) fn id_of(deployed: &Deployed, name: &str) -> String {
    deployed.space().field(&format!("ws/{name}"), ".status.record.spec.id")
}

pub(crate) fn uid(pods: &[Value]) -> String {
    assert_eq!(pods.len(), 1, "{pods:#?}");
    pods[0]["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_workspace_lives_in_pods_sleeps_without_one_and_comes_back_from_its_archive() {
    let (_control, deployed) = shared().await;
    podling(deployed, &["create", "ada"]).await;
    podling(deployed, &["run", "ada", "--", "sh", "-c", "echo kept >~/file; mkdir ~/empty"]).await;
    let id = id_of(deployed, "ada");
    let first = uid(&of(deployed, "pods", &id));
    assert_eq!(of(deployed, "pvc", &id).len(), 1);

    podling(deployed, &["sleep", "--force", "ada"]).await;
    assert!(of(deployed, "pods", &id).is_empty(), "asleep it has no pod");
    assert_eq!(
        deployed.space().field("ws/ada", ".spec.desired_state"),
        "Asleep",
        "or an edit to Awake would be none"
    );
    assert_eq!(podling(deployed, &["run", "ada", "--", "cat", "file"]).await.out(), "kept\n");
    assert_ne!(uid(&of(deployed, "pods", &id)), first);
    assert_eq!(deployed.space().field("ws/ada", ".spec.desired_state"), "Awake");

    podling(deployed, &["rm", "ada"]).await;
    wait_for("only its archive is left", async || of(deployed, "pvc", &id).is_empty().then_some(())).await;
    deployed.space().wait("delete", "ws/ada").good();
    let left = format!("wsa/{id}");
    wait_for("what is left shows", async || deployed.space().kubectl(&["get", &left]).ok.then_some(())).await;
    let archive = deployed.space().field(&left, ".spec.newest");
    podling(deployed, &["restore", &archive]).await;
    assert_eq!(
        podling(deployed, &["run", "ada", "--", "sh", "-c", "cat file; ls"]).await.out(),
        "kept\nempty\nfile\n"
    );
    assert!(!deployed.space().kubectl(&["get", &left]).ok, "it is a workspace again");
    podling(deployed, &["rm", "--discard", "ada"]).await;
}

#[tokio::test]
async fn what_comes_out_of_an_archive_has_the_volume_the_ports_and_the_environment_that_it_had() {
    let (_control, deployed) = shared().await;
    let space = deployed.space();
    space.kubectl(&["create", "secret", "generic", "tokens", "--from-literal=github=hidden"]).good();
    let workspace = r#"{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "jean"},
        "spec": {"owner": "root", "template": "shell", "storage": {"size": "2Gi"}, "ports": [{"name": "app", "port": 3000}],
        "environment": [{"name": "EDITOR", "value": "vi"}, {"name": "TOKEN", "secret": {"name": "tokens", "key": "github"}}]}}"#;
    space.apply(workspace).good();
    space.wait("condition=Ready", "ws/jean").good();
    space.kubectl(&["delete", "ws", "jean"]).good();
    podling(deployed, &["restore", "jean"]).await;
    let said = podling(deployed, &["run", "jean", "--", "sh", "-c", "echo $EDITOR $TOKEN"]).await.out();
    assert_eq!(said, "vi hidden\n");
    assert_eq!(space.field("ws/jean", ".spec.ports[0].port"), "3000");
    let claims = of(deployed, "pvc", &id_of(deployed, "jean"));
    assert_eq!(claims[0]["spec"]["resources"]["requests"]["storage"], "2Gi");
    podling(deployed, &["rm", "--discard", "jean"]).await;
}

#[tokio::test]
async fn kubectl_alone_makes_a_workspace_puts_it_to_sleep_wakes_it_and_lets_it_go() {
    let (_control, deployed) = shared().await;
    let space = deployed.space();
    let workspace = r#"{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "grace"},
        "spec": {"owner": "grace", "template": "shell", "policy": {"idleTimeout": "2h"}}}"#;
    space.apply(workspace).good();
    space.wait("condition=Ready", "ws/grace").good();
    let id = id_of(deployed, "grace");
    let shown = space.kubectl(&["get", "ws", "grace"]).good();
    assert!(shown.contains("awake") && shown.contains("grace") && shown.contains("shell"), "{shown}");
    let explained = podling(deployed, &["explain", &id]).await.out();
    assert!(explained.contains("2h"), "{explained}");

    edit(deployed, "grace", r#"{"desiredState": "Asleep", "resources": {"cpu": "200m", "memory": "192Mi"}}"#);
    is(deployed, "grace", "asleep").await;
    assert!(of(deployed, "pods", &id).is_empty());
    edit(deployed, "grace", r#"{"desiredState": "Awake"}"#);
    is(deployed, "grace", "awake").await;
    let pods = of(deployed, "pods", &id);
    assert_eq!(pods[0]["spec"]["containers"][0]["resources"]["limits"]["cpu"], "200m");
    let (seen, written) = (
        space.field("ws/grace", ".status.observedGeneration"),
        space.field("ws/grace", ".metadata.generation"),
    );
    assert_eq!(seen, written);

    // Its data outlives the resource, whoever deletes it and how.
    space.kubectl(&["delete", "ws", "grace", "--cascade=foreground", "--timeout=60s"]).good();
    let left = space.field(&format!("wsa/{id}"), ".spec.newest");
    assert!(left.starts_with(&format!("workspace-{id}-")), "{left}");
    assert!(of(deployed, "pvc", &id).is_empty() && of(deployed, "pods", &id).is_empty());
}

#[tokio::test]
async fn a_workspace_whose_pod_is_deleted_or_evicted_comes_back_with_its_files() {
    let (_control, deployed) = shared().await;
    let space = deployed.space();
    podling(deployed, &["create", "alan"]).await;
    let id = id_of(deployed, "alan");
    podling(deployed, &["run", "alan", "--", "sh", "-c", "echo here >file"]).await;
    let mut before = uid(&of(deployed, "pods", &id));
    for (how, words) in [("delete", "its pod was deleted"), ("evict", "its pod was evicted")] {
        let name = of(deployed, "pods", &id)[0]["metadata"]["name"].as_str().unwrap().to_owned();
        if how == "delete" {
            space.kubectl(&["delete", "pod", &name, "--wait=false"]).good();
        } else {
            // As a drain of its node does.
            let eviction = format!(
                r#"{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{name}", "namespace": "podling"}}}}"#
            );
            space.post(&format!("/api/v1/namespaces/podling/pods/{name}/eviction"), &eviction).good();
        }
        wait_for("another pod serves it", async || {
            let state = space.field("ws/alan", ".status.state");
            let pods = of(deployed, "pods", &id);
            (state == "awake" && pods.len() == 1 && uid(&pods) != before).then_some(())
        })
        .await;
        before = uid(&of(deployed, "pods", &id));
        assert_eq!(podling(deployed, &["run", "alan", "--", "cat", "file"]).await.out(), "here\n");
        let explained = podling(deployed, &["explain", "alan"]).await.out();
        assert!(explained.contains(words), "{explained}");
    }
    podling(deployed, &["rm", "--discard", "alan"]).await;
}

#[tokio::test]
async fn a_control_plane_that_is_killed_finds_everything_again() {
    let (_control, deployed) = alone().await;
    let space = deployed.space();
    podling(deployed, &["create", "edsger"]).await;
    let id = id_of(deployed, "edsger");
    let served_by = uid(&of(deployed, "pods", &id));
    podling(deployed, &["run", "edsger", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >job"])
        .await;

    let names = || controls(deployed).iter().map(|pod| pod["metadata"]["uid"].clone()).collect::<Vec<_>>();
    let old = names();
    deployed
        .space()
        .kubectl(&["delete", "pod", "--selector", CONTROL_PODS, "--grace-period=0", "--force"])
        .good();
    // Meanwhile somebody wants something.
    edit(deployed, "edsger", r#"{"policy": {"idleTimeout": "3h"}}"#);
    wait_for("others stand in their place", async || {
        let new = names();
        (new.len() == old.len() && new.iter().all(|pod| !old.contains(pod))).then_some(())
    })
    .await;
    deployed.is_up();
    podling(deployed, &["run", "edsger", "--", "sh", "-c", "kill -0 $(cat job)"]).await;
    assert_eq!(uid(&of(deployed, "pods", &id)), served_by, "it went on all the while");
    wait_for("what was changed meanwhile is seen", async || {
        podling(deployed, &["policy", "show", "edsger"]).await.out().contains("3h").then_some(())
    })
    .await;
    podling(deployed, &["rm", "--discard", "edsger"]).await;
    space.wait("delete", "ws/edsger").good();
}
