//! The JSON API: the same behaviour as over gRPC.

use podling_core::workspace::State;
use podling_proto::{agent::v1::ActivityLevel, v1::Verb};
use serde_json::json;

use crate::{control_plane::TestControlPlane, json_client::Client};

async fn fixture() -> (tempfile::TempDir, TestControlPlane, Client) {
    let (dir, _backend, control) = TestControlPlane::fresh().await;
    let client = Client::user(&control);
    (dir, control, client)
}

#[tokio::test]
async fn workspace_is_created_once_and_found_at_its_location() {
    let (_dir, _control, client) = fixture().await;
    let body = json!({ "name": "demo", "request_id": "r1", "policy": { "idle_timeout": 1.5 } });
    let made = client.send("POST", "/v1/workspaces", Some(&body)).await;
    let location = made.headers["location"].to_str().unwrap().to_owned();
    let made = made.is(201);
    assert_eq!(
        (&made["name"], &made["owner"], &made["state"]),
        (&json!("demo"), &json!("me"), &json!("starting"))
    );
    assert_eq!(made["policy"]["idle_timeout"], 1.5);
    assert_eq!(made["policy"]["presence_cap"], 3600, "whole seconds are an integer");
    assert!(made.get("activity").is_none() && made["policy"].get("max_awake").is_none(), "absent, not null");
    assert!(made["created"].as_str().unwrap().ends_with('Z'), "{}", made["created"]);
    assert_eq!(client.get(&location).await.is(200)["id"], made["id"]);

    let again = client.send("POST", "/v1/workspaces", Some(&body)).await;
    assert!(!again.headers.contains_key("location"));
    assert_eq!(again.is(200)["id"], made["id"]);
    let taken = client.send("POST", "/v1/workspaces", Some(&json!({ "name": "demo" }))).await;
    assert_eq!(taken.refuses(409, "NAME_TAKEN")["id"], made["id"]);
}

#[tokio::test]
async fn invalid_body_is_rejected_with_the_field() {
    let (_dir, control, client) = fixture().await;
    let create = async |body: &str| {
        client.raw("POST", "/v1/workspaces", "application/json; charset=utf-8", body.into()).await
    };
    for (field, body) in [
        ("body", ""),
        ("body", "{}"),
        ("body", "{\"name\": \"demo\""),
        ("body", "{\"name\": \"demo\"} {}"),
        ("body", "[]"),
        ("name", "{\"name\": \"No Name\"}"),
        ("name", "{\"name\": \"demo\", \"name\": \"demo\"}"),
        ("name", "{\"name\": null}"),
        ("policy", "{\"name\": \"demo\", \"policy\": null}"),
        ("policy.idle_timeout", "{\"name\": \"demo\", \"policy\": {\"idle_timeout\": null}}"),
        ("policy.idle_timeout", "{\"name\": \"demo\", \"policy\": {\"idle_timeout\": \"15m\"}}"),
        ("policy.idle_timeout", "{\"name\": \"demo\", \"policy\": {\"idle_timeout\": -1}}"),
        ("policy.idle_timeout", "{\"name\": \"demo\", \"policy\": {\"idle_timeout\": 0}}"),
        ("policy.warning", "{\"name\": \"demo\", \"policy\": {\"idle_timeout\": 10, \"warning\": 9}}"),
        ("policy.idle_time", "{\"name\": \"demo\", \"policy\": {\"idle_time\": 5}}"),
        ("env.KEY", "{\"name\": \"demo\", \"env\": {\"KEY\": 5}}"),
    ] {
        assert_eq!(create(body).await.refuses(400, "BAD_FIELD")["field"], field, "{body}");
    }
    create(&"[".repeat(100_000)).await.refuses(400, "BAD_FIELD");
    // Serde would read an array as an object whose fields come in order.
    for (path, body) in [
        ("/v1/workspaces", r#"["demo"]"#),
        ("/v1/workspaces", r#"{"name": "demo", "policy": [900]}"#),
        ("/v1/workspaces/demo/wake", "[]"),
        ("/v1/workspaces/demo/sleep", "[true]"),
    ] {
        client.raw("POST", path, "application/json", body.into()).await.refuses(400, "BAD_FIELD");
    }
    for archive in ["none", "workspace-abcdefghijkl-20260102-030405"] {
        let restore = client.send("POST", &format!("/v1/archives/{archive}/restore"), None).await;
        restore.refuses(404, "ARCHIVE_NOT_FOUND");
    }
    assert!(control.handle.snapshots().borrow().workspaces.is_empty());
}

#[tokio::test]
async fn query_flag_accepts_only_true_or_false() {
    let (_dir, control, client) = fixture().await;
    control.create("demo").await;
    for query in ["discard", "discard=", "discard=1", "discard=yes", "discard=true&discard=false"] {
        client.send("DELETE", &format!("/v1/workspaces/demo?{query}"), None).await.refuses(400, "BAD_FIELD");
    }
    assert_eq!(
        client.get("/v1/workspaces/demo").await.is(200)["state"],
        "starting",
        "the workspace still exists"
    );
    let deleted = client.send("DELETE", "/v1/workspaces/demo", None).await.is(202);
    assert_ne!(deleted["state"], "deleting", "without the flag the workspace is archived first");
    client.get("/v1/workspaces/%ff").await.refuses(400, "BAD_FIELD");
}

#[tokio::test]
async fn workspace_in_use_sleeps_only_when_forced() {
    let (_dir, control, client) = fixture().await;
    let (id, _agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Active).await);
    control.wait(&id, |view| view.activity.is_some()).await;
    let shown = client.get(&format!("/v1/workspaces/{id}")).await.is(200);
    assert_eq!((&shown["activity"]["level"], &shown["connection"]), (&json!("active"), &json!("connected")));
    let busy = client.send("POST", "/v1/workspaces/demo/sleep", None).await;
    assert_eq!(busy.refuses(409, "BUSY")["workspaces"], "demo");
    let forced = client.send("POST", "/v1/workspaces/demo/sleep", Some(&json!({ "force": true }))).await;
    assert_eq!(forced.is(202)["state"], "falling-asleep");
    control.wait(&id, |view| view.state == State::FallingAsleep).await;
    let explained = client.get("/v1/workspaces/demo/explanation").await.is(200);
    assert_eq!(explained["log"].as_array().unwrap().last().unwrap()["state"], "falling-asleep");
}

#[tokio::test]
async fn policy_patch_changes_only_the_given_fields() {
    let (_dir, control, client) = fixture().await;
    let before = control.create("demo").await;
    let policy = json!({ "idle_timeout": 60, "max_awake": 7200 });
    let changed = client.send("PATCH", "/v1/workspaces/demo/policy", Some(&policy)).await.is(200);
    assert_eq!(changed["policy"]["idle_timeout"], 60);
    assert_eq!(changed["policy"]["max_awake"], 7200);
    let endless = json!({ "max_awake": 0 });
    let endless = client.send("PATCH", "/v1/workspaces/demo/policy", Some(&endless)).await.is(200);
    assert!(endless["policy"].get("max_awake").is_none(), "0 removes the limit");
    assert_eq!(endless["policy"]["idle_timeout"], 60, "other fields are unchanged");
    assert_eq!(changed["policy"]["archive_after"], before.spec.policy.archive_after.as_secs());
}

#[tokio::test]
async fn other_owners_are_hidden_and_all_owners_needs_admin() {
    let (_dir, control, client) = fixture().await;
    let mine = control.create("demo").await.spec.id.clone();
    let mut you = client.clone();
    you.caller.owner = "you".parse().unwrap();
    you.get(&format!("/v1/workspaces/{mine}")).await.refuses(404, "WORKSPACE_NOT_FOUND");
    assert_eq!(you.get("/v1/workspaces").await.is(200), json!({ "workspaces": [] }));
    for path in ["/v1/workspaces", "/v1/archives", "/v1/watch"] {
        let all = format!("{path}?all_owners=true");
        assert_eq!(you.get(&all).await.refuses(403, "VERB_MISSING")["verb"], "admin");
    }
    let all = you.with([Verb::Admin]).get("/v1/workspaces?all_owners=true").await.is(200);
    assert_eq!(all["workspaces"][0]["id"], json!(mine.to_string()));
}

#[tokio::test]
async fn watch_reports_workspaces_deletions_and_its_end() {
    let (_dir, control, client) = fixture().await;
    let id = control.create("demo").await.spec.id.clone();
    let mut watch = client.follow("/v1/watch?workspace=demo").await;
    let there = watch.until("synced").await;
    assert_eq!((there[0].0.as_str(), &there[0].1["name"]), ("workspace", &json!("demo")));
    control.handle.delete(id.clone(), true).await.unwrap();
    let (_, deleted) = watch.until("deleted").await.pop().unwrap();
    assert_eq!(deleted, json!({ "id": id.to_string() }));
    control.shutdown.cancel();
    let (_, problem) = watch.until("problem").await.pop().unwrap();
    assert_eq!((&problem["reason"], &problem["status"]), (&json!("SHUTTING_DOWN"), &json!(503)));
    assert!(watch.is_over().await);
}
