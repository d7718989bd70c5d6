//! What a backup of Podling must hold, and what happens without one. The control plane runs outside
//! of the cluster, so that its loss disturbs no other test.

use std::fs;

use podling_proto::control::v1::State;
use podling_tests::{
    Namespace, Podling, PodlingOptions, cluster::free_node_address, report_skipped, wait_until,
};
use serde_json::{Value, json};

/// Objects that docs/backup.md names, in the order in which they are restored.
const KINDS: [&str; 5] = [
    "secret/podling-control",
    "lease/podling-control",
    "workspacetemplates",
    "workspacearchives",
    "workspaces",
];

/// Returns the objects without the metadata that the API server sets, which it refuses at a creation.
fn backed_up(space: &Namespace, kind: &str) -> Vec<Value> {
    let printed = space.kubectl(&["get", kind, "--output", "json"]).json();
    let objects = printed["items"].as_array().cloned().unwrap_or_else(|| vec![printed]);
    let strip = |mut object: Value| {
        let metadata = object["metadata"].as_object_mut().expect("an object has metadata");
        metadata.retain(|key, _| ["name", "annotations", "labels", "finalizers"].contains(&key.as_str()));
        object
    };
    objects.into_iter().map(strip).collect()
}

fn secret_data(space: &Namespace) -> Option<Value> {
    let printed = space.kubectl(&["get", "secret", "podling-control", "--output", "json"]);
    serde_json::from_str::<Value>(&printed.out).ok().map(|secret| secret["data"].clone())
}

fn lose_secrets(podling: &Podling) {
    podling.namespace().kubectl(&["delete", "secret", "podling-control"]).expect_success();
    // As in a new pod of the Deployment, whose directory is empty.
    fs::remove_dir_all(podling.data().join("control")).expect("removed");
    fs::remove_file(podling.data().join("root-token")).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_restores_secrets_workspaces_and_archives() {
    if free_node_address().is_none() {
        return report_skipped("a restore of a backup", "the cluster's node is not this machine");
    }
    let mut podling = Podling::up_with(PodlingOptions { force_pods: true, ..Default::default() }).await;
    let namespace = podling.namespace().name().to_owned();
    let space = &Namespace::existing(&namespace);
    let secret = secret_data(space).expect("the Secret exists");

    // A running leader restores what is deleted from the Secret.
    space.kubectl(&["delete", "secret", "podling-control"]).expect_success();
    wait_until("the deleted Secret", || secret_data(space).as_ref() == Some(&secret)).await;
    let patch = r#"[{"op": "remove", "path": "/data/ca.key"}]"#;
    space.kubectl(&["patch", "secret", "podling-control", "--type=json", "--patch", patch]).expect_success();
    wait_until("the deleted key", || secret_data(space).as_ref() == Some(&secret)).await;
    // "Z2FyYmFnZQ==" is "garbage" in base64. No replica remembers it.
    let garbage = secret.as_object().expect("keys").keys().map(|key| (key.clone(), "Z2FyYmFnZQ==".into()));
    let garbage = json!({ "data": Value::Object(garbage.collect()) });
    for data in [json!({"data": {"root-token": ""}}), json!({"data": {"token-keys.json": "e30="}}), garbage] {
        let patch = ["patch", "secret", "podling-control", "--type=merge", "--patch", &data.to_string()];
        space.kubectl(&patch).expect_success();
        wait_until("usable values", || secret_data(space).as_ref() == Some(&secret)).await;
    }

    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    podling.client().for_workspace(&ada.id).sh("echo kept >file").await;
    cli.run(&["create", "bob"]).await.ok();
    cli.run(&["run", "bob", "--", "sh", "-c", "echo archived >file"]).await.ok();
    cli.run(&["rm", "bob"]).await.ok();
    space.wait("delete", "ws/bob").expect_success();
    let agent = podling.wait_until_awake(&ada).await.agent.expect("an agent");
    let token = podling.token().to_owned();
    let secrets = backed_up(space, KINDS[0]);

    // Without its Secret, no control plane takes over the workspaces with new keys.
    podling.kill_control();
    lose_secrets(&podling);
    let printed = podling.failing_start().await;
    let commands = format!("kubectl -n {namespace} create secret generic podling-control && kubectl -n");
    for expected in ["the Secret podling-control", "does not exist", "restore it from a backup", &*commands] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    assert_eq!(secret_data(space), None, "no other Secret takes its place");
    space.apply(&secrets[0].to_string()).expect_success();
    // Nor does one with a damaged Secret.
    let patch = ["patch", "secret", "podling-control", "--type=merge"];
    let damage = r#"{"data": {"ca.key": "Z2FyYmFnZQ=="}}"#;
    space.kubectl(&[&patch[..], &["--patch", damage]].concat()).expect_success();
    let printed = podling.failing_start().await;
    for expected in ["is damaged (ca.key is not a private key in PEM form)", r#""path":"/data/ca.key""#] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    space.apply(&secrets[0].to_string()).expect_success();
    podling.restart().await;
    assert_eq!(podling.token(), token);
    assert_eq!(podling.wait_until_awake(&ada).await.agent.expect("an agent").boot_id, agent.boot_id);

    // A whole backup, taken while the workspace sleeps. Its volume is not lost.
    let cli = podling.cli();
    cli.run(&["sleep", "--force", "ada"]).await.ok();
    podling.wait_for_state(&ada, State::Asleep).await;
    let backup = KINDS.map(|kind| backed_up(space, kind));
    podling.kill_control();
    lose_secrets(&podling);
    let no_finalizers = r#"{"metadata": {"finalizers": null}}"#;
    space.kubectl(&["patch", "ws/ada", "--type=merge", "--patch", no_finalizers]).expect_success();
    space.kubectl(&["delete", "lease", "podling-control"]).expect_success();
    space.kubectl(&["delete", "ws,wsa,wst", "--all"]).expect_success();

    for objects in backup {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        space.apply(&list).expect_success();
        if objects[0]["kind"] == "Workspace" {
            space.apply_status(&list).expect_success();
        }
    }
    podling.restart().await;
    assert_eq!(podling.token(), token);
    let cli = podling.cli();
    assert_eq!(cli.run(&["run", "ada", "--", "cat", "file"]).await.ok().out(), "kept\n");
    assert_eq!(podling.get(&ada).await.id, ada.id, "the id does not change");
    cli.run(&["restore", "bob"]).await.ok();
    assert_eq!(cli.run(&["run", "bob", "--", "cat", "file"]).await.ok().out(), "archived\n");

    // An operator who has no backup asks for new secrets.
    podling.kill_control();
    lose_secrets(&podling);
    space.kubectl(&["create", "secret", "generic", "podling-control"]).expect_success();
    let request = "podling.dev/create-missing-secrets=true";
    space.kubectl(&["annotate", "secret", "podling-control", request]).expect_success();
    podling.restart().await;
    assert_ne!(podling.token(), token);
    let annotations = space.field("secret/podling-control", ".metadata.annotations");
    assert!(!annotations.contains("create-missing-secrets"), "the request is answered once: {annotations}");
}
