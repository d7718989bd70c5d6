//! What a workspace has of its template and what is its own, when either changes; and of two owners' with one name.

use podling_tests::{cluster::image, deployed::Deployed, wait_for};
use serde_json::Value;

use crate::lives::{edit, id_of, is, of, podling, shared, uid};

/// A template of the story's own.
fn template(deployed: &Deployed, name: &str, idle: &str, greeting: &str, port: u16) {
    let image = image("debian:bookworm-slim");
    let template = format!(
        r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate", "metadata": {{"name": "{name}"}}, "spec": {{
            "image": "{image}", "inject": true, "command": ["sleep", "infinity"], "policy": {{"idleTimeout": "{idle}"}},
            "resources": {{"cpu": "100m", "memory": "128Mi"}}, "storage": {{"size": "1Gi"}},
            "environment": [{{"name": "GREETING", "value": "{greeting}"}}], "ports": [{{"name": "web", "port": {port}}}]}}}}"#
    );
    deployed.space().apply(&template).good();
}

async fn has_policy(deployed: &Deployed, name: &str, words: &str) {
    wait_for(&format!("it has a policy of {words}"), async || {
        podling(deployed, &["policy", "show", name]).await.out().contains(words).then_some(())
    })
    .await;
}

async fn says(deployed: &Deployed, workspace: &str, variable: &str) -> String {
    let script = format!("printf %s \"${variable}\"");
    podling(deployed, &["run", workspace, "--", "sh", "-c", &script]).await.out()
}

#[tokio::test]
async fn a_template_that_changes_reaches_whoever_leaves_it_to_it() {
    let (_control, deployed) = shared().await;
    let space = deployed.space();
    template(deployed, "changing", "5h", "hello", 3000);
    for (name, policy) in [("anita", "{}"), ("frances", r#"{"idleTimeout": "7h"}"#)] {
        let workspace = format!(
            r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
                "spec": {{"owner": "{name}", "template": "changing", "policy": {policy}}}}}"#
        );
        space.apply(&workspace).good();
    }
    is(deployed, "anita", "awake").await;
    is(deployed, "frances", "awake").await;
    let (anita, frances) = (id_of(deployed, "anita"), id_of(deployed, "frances"));
    assert_eq!(says(deployed, &anita, "GREETING").await, "hello");
    let pod = uid(&of(deployed, "pods", &anita));

    template(deployed, "changing", "6h", "good morning", 4000);
    has_policy(deployed, &anita, "6h").await;
    has_policy(deployed, &frances, "7h").await;
    assert_eq!(uid(&of(deployed, "pods", &anita)), pod, "nobody is disturbed by it");
    assert_eq!(
        space.field("ws/anita", ".spec.policy"),
        "{}",
        "what a template says is not written down as hers"
    );

    // The rest comes with the next pod.
    podling(deployed, &["sleep", "--force", &anita]).await;
    assert_eq!(says(deployed, &anita, "GREETING").await, "good morning");
    let ports = of(deployed, "pods", &anita)[0]["spec"]["containers"][0]["ports"].clone();
    assert_eq!((&ports[0]["name"], &ports[0]["containerPort"]), (&Value::from("web"), &Value::from(4000)));

    // What somebody writes stays as they wrote it.
    edit(deployed, "anita", r#"{"policy": {"idleTimeout": "8h"}}"#);
    has_policy(deployed, &anita, "8h").await;
    assert_eq!(space.field("ws/anita", ".spec.policy"), r#"{"idleTimeout":"8h"}"#);
    for workspace in [&anita, &frances] {
        podling(deployed, &["rm", "--discard", workspace]).await;
    }
}

#[tokio::test]
async fn what_another_owner_keeps_secret_is_not_in_a_workspace_of_the_same_name() {
    let (_control, deployed) = shared().await;
    let space = deployed.space();
    space.kubectl(&["create", "secret", "generic", "hers", "--from-literal=key=swordfish"]).good();
    let hers = r#"{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "twin"},
        "spec": {"owner": "hertha", "template": "shell", "environment": [{"name": "KEY", "secret": {"name": "hers", "key": "key"}}]}}"#;
    space.apply(hers).good();
    is(deployed, "twin", "awake").await;
    let hers = id_of(deployed, "twin");
    let made = podling(deployed, &["create", "twin", "--template", "shell", "--json"]).await.json();
    let other = made["id"].as_str().unwrap();
    assert_ne!(hers, other);
    assert_eq!(says(deployed, &hers, "KEY").await, "swordfish");
    assert_eq!(says(deployed, other, "KEY").await, "");
    for workspace in [hers.as_str(), other] {
        podling(deployed, &["rm", "--discard", workspace]).await;
    }
}
