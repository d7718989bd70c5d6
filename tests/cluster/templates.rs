//! Fields that workspaces inherit from templates, and workspaces of two owners with the same name.

use std::time::Duration;

use podling_tests::{Deployed, cluster::image, wait_for, wait_long, wait_until};
use serde_json::Value;

use crate::lifecycle::{
    objects_of, patch_spec, run_cli, share_control_plane, uid_of_only_pod, wait_state, workspace_id,
};

/// Time limit for a start or an archive whose pod has an init container that takes 25 s.
const SLOW_DEADLINE: Duration = Duration::from_secs(120);

/// Creates or replaces a template.
fn apply_template(deployed: &Deployed, name: &str, idle: &str, greeting: &str, port: u16) {
    let image = image("debian:bookworm-slim");
    let template = format!(
        r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate",
            "metadata": {{"name": "{name}"}}, "spec": {{
            "image": "{image}", "inject": true, "command": ["sleep", "infinity"],
            "policy": {{"idleTimeout": "{idle}"}},
            "resources": {{"cpu": "100m", "memory": "128Mi"}}, "storage": {{"size": "1Gi"}},
            "environment": [{{"name": "GREETING", "value": "{greeting}"}}],
            "ports": [{{"name": "web", "port": {port}}}]}}}}"#
    );
    deployed.namespace().apply(&template).expect_success();
}

async fn wait_policy(deployed: &Deployed, name: &str, expected: &str) {
    wait_for(&format!("a policy with {expected}"), async || {
        run_cli(deployed, &["policy", "show", name]).await.out().contains(expected).then_some(())
    })
    .await;
}

async fn variable_in_pod(deployed: &Deployed, workspace: &str, variable: &str) -> String {
    let script = format!("printf %s \"${variable}\"");
    run_cli(deployed, &["run", workspace, "--", "sh", "-c", &script]).await.out()
}

#[tokio::test]
async fn template_change_reaches_inherited_fields_only() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    apply_template(deployed, "changing", "5h", "hello", 3000);
    for (name, policy) in [("anita", "{}"), ("frances", r#"{"idleTimeout": "7h"}"#)] {
        let workspace = format!(
            r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
                "spec": {{"owner": "{name}", "template": "changing", "policy": {policy}}}}}"#
        );
        space.apply(&workspace).expect_success();
    }
    wait_state(deployed, "anita", "awake").await;
    wait_state(deployed, "frances", "awake").await;
    let (anita, frances) = (workspace_id(deployed, "anita"), workspace_id(deployed, "frances"));
    assert_eq!(variable_in_pod(deployed, &anita, "GREETING").await, "hello");
    let pod = uid_of_only_pod(&objects_of(deployed, "pods", &anita));

    apply_template(deployed, "changing", "6h", "good morning", 4000);
    wait_policy(deployed, &anita, "6h").await;
    wait_policy(deployed, &frances, "7h").await;
    assert_eq!(
        uid_of_only_pod(&objects_of(deployed, "pods", &anita)),
        pod,
        "a change of the template must not replace the pod"
    );
    assert_eq!(
        space.field("ws/anita", ".spec.policy"),
        "{}",
        "inherited fields are not copied into the spec"
    );

    // A change of environment and ports takes effect with the next pod.
    run_cli(deployed, &["sleep", "--force", &anita]).await;
    assert_eq!(variable_in_pod(deployed, &anita, "GREETING").await, "good morning");
    let ports = objects_of(deployed, "pods", &anita)[0]["spec"]["containers"][0]["ports"].clone();
    assert_eq!((&ports[0]["name"], &ports[0]["containerPort"]), (&Value::from("web"), &Value::from(4000)));

    // A field that a user writes into the spec is retained as written.
    patch_spec(deployed, "anita", r#"{"policy": {"idleTimeout": "8h"}}"#);
    wait_policy(deployed, &anita, "8h").await;
    assert_eq!(space.field("ws/anita", ".spec.policy"), r#"{"idleTimeout":"8h"}"#);
    for workspace in [&anita, &frances] {
        run_cli(deployed, &["rm", "--discard", workspace]).await;
    }
}

/// Returns a template of a plain Debian with these overrides, whose image has no user of the pod's uid.
fn shaped_template(name: &str, overrides: &str) -> String {
    let image = image("debian:bookworm-slim");
    format!(
        r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate",
            "metadata": {{"name": "{name}"}},
            "spec": {{"image": "{image}", "inject": true, "command": ["sleep", "infinity"],
            "resources": {{"cpu": "100m", "memory": "128Mi"}}, "storage": {{"size": "1Gi"}},
            "podOverrides": {overrides}}}}}"#
    )
}

async fn wait_template_ready(deployed: &Deployed, expected: &str) -> String {
    let condition = r#".status.conditions[?(@.type=="Ready")]"#;
    let status = |field: &str| deployed.namespace().field("wst/shaped", &format!("{condition}.{field}"));
    wait_for(&format!("the template to be Ready={expected}"), async || {
        (status("status") == expected).then(|| status("message"))
    })
    .await
}

#[tokio::test]
async fn template_shapes_pods_and_invalid_overrides_are_named() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    let image = image("debian:bookworm-slim");
    let overrides = format!(
        r#"{{"metadata": {{"labels": {{"team": "vision"}}}}, "spec": {{
            "hostAliases": [{{"ip": "192.0.2.7", "hostnames": ["registry.test"]}}],
            "volumes": [{{"name": "shared", "emptyDir": {{}}}}],
            "initContainers": [{{"name": "prepare", "image": "{image}",
                "command": ["sh", "-c", "echo prepared >/shared/file"],
                "volumeMounts": [{{"name": "shared", "mountPath": "/shared"}}]}}],
            "containers": [
                {{"name": "workspace", "env": [{{"name": "TEAM", "value": "vision"}}],
                  "volumeMounts": [{{"name": "shared", "mountPath": "/shared"}}]}},
                {{"name": "sidecar", "image": "{image}",
                  "command": ["sh", "-c", "trap exit TERM; sleep infinity & wait"]}}]}}}}"#
    );
    space.apply(&shaped_template("shaped", &overrides)).expect_success();
    wait_template_ready(deployed, "True").await;
    let flags = ["--template", "shaped", "--cpu", "150m", "--memory", "160MiB", "--storage", "2GiB"];
    let made = run_cli(deployed, &[&["create", "maryam", "--json"], &flags[..]].concat()).await.json();
    let id = made["id"].as_str().unwrap().to_owned();
    let pod = objects_of(deployed, "pods", &id).remove(0);
    assert_eq!(pod["metadata"]["labels"]["team"], "vision");
    assert_eq!(pod["metadata"]["labels"]["podling.dev/template"], "shaped");
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 2);
    let limits = &pod["spec"]["containers"][0]["resources"]["limits"];
    assert_eq!((&limits["cpu"], &limits["memory"]), (&Value::from("150m"), &Value::from("167772160")));
    assert_eq!(space.field("ws/maryam", ".spec.storage.size"), "2Gi");
    // Lookups of hosts must not be affected by the agent's answers to lookups of users.
    let script = "cat /shared/file; getent hosts registry.test | cut -d' ' -f1; echo $TEAM; \
                  whoami; id -gn; uname -n; getent passwd root | cut -d: -f1; \
                  echo | bash -i 2>&1 | grep -o podling@maryam | head -n1";
    let seen = run_cli(deployed, &["run", "maryam", "--", "sh", "-c", script]).await.out();
    assert_eq!(seen, "prepared\n192.0.2.7\nvision\npodling\npodling\nmaryam\nroot\npodling@maryam\n");

    // The agent's exit ends the pod although the sidecar runs on.
    let before = uid_of_only_pod(&objects_of(deployed, "pods", &id));
    let name = pod["metadata"]["name"].as_str().unwrap();
    space.kubectl(&["exec", name, "--", "sh", "-c", "kill 1"]).expect_success();
    wait_until("another pod to serve it", || {
        let pods = objects_of(deployed, "pods", &id);
        let awake = space.field("ws/maryam", ".status.state") == "awake";
        awake && pods.len() == 1 && uid_of_only_pod(&pods) != before
    })
    .await;

    space.apply(&shaped_template("shaped", r#"{"spec": {"hostNetwork": true}}"#)).expect_success();
    let message = wait_template_ready(deployed, "False").await;
    assert!(message.starts_with("podOverrides.spec.hostNetwork: "), "{message}");
    let refused = deployed.cli().run(&["create", "other", "--template", "shaped"]).await;
    assert_ne!(refused.code, Some(0));
    let refused = refused.err();
    assert!(refused.contains("template shaped is not valid: podOverrides.spec.hostNetwork"), "{refused}");
    assert_eq!(space.field("ws/maryam", ".status.state"), "awake", "running pods keep their shape");
    run_cli(deployed, &["rm", "--discard", &id]).await;
}

#[tokio::test]
async fn slow_pod_with_broken_container_says_so_and_can_be_drained() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    let image = image("debian:bookworm-slim");
    let overrides = format!(
        r#"{{"spec": {{
            "initContainers": [{{"name": "slow", "image": "{image}", "command": ["sleep", "25"]}}],
            "containers": [{{"name": "broken", "image": "{image}", "command": ["sh", "-c", "exit 3"]}}]}}}}"#
    );
    space.apply(&shaped_template("slow", &overrides)).expect_success();
    run_cli(deployed, &["create", "vera", "--template", "slow", "--no-wait"]).await;
    let said = async |reason: &str, message: &str| {
        wait_long(SLOW_DEADLINE, &format!("{reason}: {message}"), async || {
            let [now, text] = [".status.reason", ".status.message"].map(|of| space.field("ws/vera", of));
            (now == reason && text.contains(message)).then_some(())
        })
        .await;
    };
    said("InitContainerRunning", "slow runs and has not ended yet").await;
    said("ContainerNotReady", "broken failed: exit code 3").await;
    let id = workspace_id(deployed, "vera");
    let explained = run_cli(deployed, &["explain", "vera"]).await.out();
    assert!(explained.contains("broken failed: exit code 3"), "{explained}");
    assert_eq!(space.field("ws/vera", r#".status.conditions[?(@.type=="Ready")].status"#), "True");
    let served_by = uid_of_only_pod(&objects_of(deployed, "pods", &id));

    // Garbage collection must not delete the pod that archives, and a drain must evict it.
    space.kubectl(&["delete", "ws", "vera", "--cascade=foreground", "--wait=false"]).expect_success();
    let archives = wait_long(SLOW_DEADLINE, "the pod that archives", async || {
        let pods = objects_of(deployed, "pods", &id);
        let is_other = pods.len() == 1 && uid_of_only_pod(&pods) != served_by;
        (is_other && pods[0]["spec"]["nodeName"].is_string()).then(|| pods[0].clone())
    })
    .await;
    let node = archives["spec"]["nodeName"].as_str().unwrap();
    let selector = format!("--pod-selector=podling.dev/workspace={id}");
    let drain = ["drain", node, &selector, "--delete-emptydir-data", "--dry-run=server"];
    let drained = space.kubectl(&drain).expect_success();
    assert!(drained.contains("evict"), "{drained}");
    wait_long(SLOW_DEADLINE, "the archive", async || {
        let pods = objects_of(deployed, "pods", &id);
        let archiving = pods.iter().all(|pod| pod["metadata"]["uid"] == archives["metadata"]["uid"]);
        assert!(archiving, "the pod that archives was replaced");
        (!space.kubectl(&["get", "ws/vera"]).ok).then_some(())
    })
    .await;
    assert!(space.field(&format!("wsa/{id}"), ".spec.newestArchive").starts_with("workspace-"));
}

#[tokio::test]
async fn secret_of_an_owner_is_not_in_a_namesake_workspace() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    space.kubectl(&["create", "secret", "generic", "hers", "--from-literal=key=swordfish"]).expect_success();
    let hers = r#"{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "twin"},
        "spec": {"owner": "hertha", "template": "shell",
        "environment": [{"name": "KEY", "secret": {"name": "hers", "key": "key"}}]}}"#;
    space.apply(hers).expect_success();
    wait_state(deployed, "twin", "awake").await;
    let hers = workspace_id(deployed, "twin");
    let made = run_cli(deployed, &["create", "twin", "--template", "shell", "--json"]).await.json();
    let other = made["id"].as_str().unwrap();
    assert_ne!(hers, other);
    assert_eq!(variable_in_pod(deployed, &hers, "KEY").await, "swordfish");
    assert_eq!(variable_in_pod(deployed, other, "KEY").await, "");
    for workspace in [hers.as_str(), other] {
        run_cli(deployed, &["rm", "--discard", workspace]).await;
    }
}
