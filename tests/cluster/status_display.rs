//! The status and the Events of a workspace as kubectl shows them. An unchanged workspace causes no
//! writes.

use std::{collections::BTreeMap, env, fs, time::Duration};

use podling_tests::{Deployed, report_skipped, wait_for, wait_long, wait_until};
use serde_json::Value;

use crate::{
    kubectl_golden::assert_golden,
    lifecycle::{objects_of, patch_spec, run_cli, share_control_plane, uid_of_only_pod, workspace_id},
};

/// Environment variable with the path of the API server's audit log. Only the sandbox sets it.
const AUDIT_LOG: &str = "PODLING_AUDIT_LOG";
/// Time limit that is long enough for large values of [`IDLE_WORKSPACES`] and [`IDLE_HEARTBEATS`].
const LONG_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// Largest number of writes for each workspace, on average, until its status is complete.
const SETTLING_WRITES: usize = 3;
/// Environment variables with the number of idle workspaces (default 4), and the number of
/// heartbeats of each during which nothing may be written (default 5).
const IDLE_WORKSPACES: &str = "PODLING_IDLE_WORKSPACES";
const IDLE_HEARTBEATS: &str = "PODLING_IDLE_HEARTBEATS";

fn status(deployed: &Deployed, name: &str) -> Value {
    let status = deployed.namespace().field(&format!("ws/{name}"), ".status");
    serde_json::from_str(&status).unwrap()
}

fn condition(status: &Value, kind: &str) -> String {
    let mut conditions = status["conditions"].as_array().unwrap().iter();
    let found = conditions.find(|condition| condition["type"] == kind);
    found.map(|found| found["status"].as_str().unwrap().to_owned()).unwrap_or_default()
}

/// Returns the reasons of the Events of a workspace, oldest first.
fn events(deployed: &Deployed, name: &str) -> Vec<String> {
    let about = format!("involvedObject.kind=Workspace,involvedObject.name={name}");
    let list = ["get", "events", "--field-selector", &about, "--output", "json"];
    let list = deployed.namespace().kubectl(&list).json();
    let mut events = list["items"].as_array().unwrap().clone();
    events.sort_by_key(|event| event["eventTime"].as_str().unwrap().to_owned());
    events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn status_and_events_show_activity_and_transitions() {
    let (_control, deployed) = share_control_plane().await;
    run_cli(deployed, &["create", "mary"]).await;
    let id = workspace_id(deployed, "mary");
    let idle_status = wait_for("a status with activity and next transition", async || {
        let status = status(deployed, "mary");
        (status["activity"] == "idle" && status["next"].is_object()).then_some(status)
    })
    .await;
    let pod = &objects_of(deployed, "pods", &id)[0];
    assert_eq!(idle_status["podUid"], pod["metadata"]["uid"]);
    assert_eq!(idle_status["imageDigest"], pod["status"]["containerStatuses"][0]["imageID"]);
    assert_eq!(idle_status["keyFingerprint"].as_str().unwrap().len(), 64);
    assert!(idle_status["bootId"].is_string() && idle_status["idleSince"].is_string(), "{idle_status:#}");
    for kind in ["Ready", "AgentConnected", "StorageReady", "Resized"] {
        assert_eq!(condition(&idle_status, kind), "True", "{kind}");
    }
    let kubectl = |args: &[&str]| deployed.namespace().kubectl(args).expect_success();
    let replaced = [(id.as_str(), "ID"), (idle_status["imageDigest"].as_str().unwrap(), "DIGEST")];
    assert_golden("get-ws-awake", &kubectl(&["get", "ws", "mary"]), &replaced);

    run_cli(deployed, &["sleep", "--force", "mary"]).await;
    let asleep = wait_for("a status without a pod", async || {
        let status = status(deployed, "mary");
        (status["podUid"].is_null() && status["state"] == "asleep").then_some(status)
    })
    .await;
    assert!(asleep["activity"].is_null() && condition(&asleep, "AgentConnected") == "False", "{asleep:#}");
    assert_eq!(
        asleep["imageDigest"], idle_status["imageDigest"],
        "the status keeps the digest of the last image"
    );
    let mut reasons = wait_for("an Event of each transition", async || {
        let reasons = events(deployed, "mary");
        reasons.contains(&"Asleep".to_owned()).then_some(reasons)
    })
    .await;
    reasons.dedup();
    assert_eq!(reasons, ["Queued", "Starting", "Awake", "FallingAsleep", "Asleep"]);
    assert_golden("get-ws-asleep", &kubectl(&["get", "ws", "mary"]), &replaced);
    let described = kubectl(&["describe", "ws", "mary", "--show-events=false"]);
    let (_, status) = described.split_once("\nStatus:\n").expect("a status");
    // The record is internal, so it is left out. Its lines are indented further than its name.
    let mut is_record = false;
    let status = status.lines().filter(|line| {
        if !line.starts_with("   ") {
            is_record = line.starts_with("  Record:");
        }
        !is_record
    });
    let status: Vec<_> = status.collect();
    assert_golden("describe-ws-asleep", &status.join("\n"), &replaced);
    run_cli(deployed, &["rm", "--discard", "mary"]).await;
}

#[tokio::test]
async fn workspace_that_cannot_start_says_why_and_is_deleted() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    let manifest = |name: &str, spec: &str| {
        format!(
            r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
                "spec": {{"owner": "joan", {spec}}}}}"#
        )
    };
    // Three that no agent can ever serve, for different reasons.
    let small = r#""resources": {"cpu": "10m", "memory": "64Mi"}"#;
    for (name, spec) in [
        ("no-template", format!(r#""template": "nothing", {small}"#)),
        ("no-node", r#""template": "shell", "resources": {"cpu": "900"}"#.to_owned()),
        ("no-class", format!(r#""template": "shell", {small}, "storage": {{"className": "nothing"}}"#)),
    ] {
        space.apply(&manifest(name, &spec)).expect_success();
    }
    let message = |name: &str, kind: &str, reason: &str| {
        let condition = format!(r#".status.conditions[?(@.type=="{kind}")]"#);
        let found = space.field(&format!("ws/{name}"), &condition);
        let found: Value = serde_json::from_str(&found).ok()?;
        (found["reason"] == reason).then(|| found["message"].as_str().unwrap_or_default().to_owned())
    };
    for (name, kind, reason, expected) in [
        ("no-template", "Stalled", "TemplateMissing", "there is no WorkspaceTemplate \"nothing\""),
        ("no-node", "Ready", "Starting", "Insufficient cpu"),
        ("no-class", "StorageReady", "ClaimPending", "storageclass.storage.k8s.io \"nothing\" not found"),
    ] {
        wait_long(LONG_DEADLINE, &format!("{expected} in {kind} of {name}"), async || {
            message(name, kind, reason).filter(|message| message.contains(expected)).map(drop)
        })
        .await;
        assert_eq!(condition(&status(deployed, name), "StorageReady"), "False", "{name}");
    }
    // Nothing was ever written, so there is nothing to archive.
    let names = ["ws/no-template", "ws/no-node", "ws/no-class"];
    space.kubectl(&[&["delete", "--timeout=60s"][..], &names].concat()).expect_success();
    let classes = space.field("pvc", ".items[*].spec.storageClassName");
    assert!(!classes.contains("nothing"), "the claim is removed: {classes}");
}

#[tokio::test]
async fn autoscalers_spare_a_pod_while_it_is_used() {
    let (_control, deployed) = share_control_plane().await;
    run_cli(deployed, &["create", "hedy"]).await;
    let id = workspace_id(deployed, "hedy");
    let eviction_guards = || {
        let annotations = objects_of(deployed, "pods", &id)[0]["metadata"]["annotations"].clone();
        let both = ["cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt"];
        both.iter().filter(|name| annotations[**name].is_string()).count()
    };
    run_cli(deployed, &["run", "hedy", "--", "true"]).await;
    wait_until("both annotations", || eviction_guards() == 2).await;
    wait_long(LONG_DEADLINE, "the removal of both annotations", async || {
        (eviction_guards() == 0).then_some(())
    })
    .await;
    run_cli(deployed, &["rm", "--discard", "hedy"]).await;
}

#[tokio::test]
async fn externally_modified_status_is_rewritten() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    run_cli(deployed, &["create", "eve"]).await;
    let before = wait_for("a complete status", async || {
        let status = status(deployed, "eve");
        (status["activity"] == "idle").then_some(status)
    })
    .await;
    let pod = uid_of_only_pod(&objects_of(deployed, "pods", &workspace_id(deployed, "eve")));
    let false_status = r#"{"status": {"state": "asleep", "storageGeneration": 99, "record": {"schema": 7}}}"#;
    space
        .kubectl(&["patch", "ws", "eve", "--subresource=status", "--type=merge", "--patch", false_status])
        .expect_success();
    let after = wait_for("the original record", async || {
        let status = status(deployed, "eve");
        (status["record"] == before["record"]).then_some(status)
    })
    .await;
    assert_eq!(after["state"], "awake");
    assert_eq!(after["storageGeneration"], before["storageGeneration"]);
    assert_eq!(
        uid_of_only_pod(&objects_of(deployed, "pods", &workspace_id(deployed, "eve"))),
        pod,
        "the pod was not replaced"
    );
    run_cli(deployed, &["rm", "--discard", "eve"]).await;
}

/// Waits until the `Workspace` resource has this state, for up to [`LONG_DEADLINE`], because many
/// workspaces start at once.
fn wait_state_long(deployed: &Deployed, name: &str, state: &str) {
    let (state, timeout) = (
        format!("--for=jsonpath={{.status.state}}={state}"),
        format!("--timeout={}s", LONG_DEADLINE.as_secs()),
    );
    deployed.namespace().kubectl(&["wait", &state, &timeout, &format!("ws/{name}")]).expect_success();
}

/// Returns the write requests since offset `since` in the audit log that concern resources, pods
/// and claims of these workspaces. `ids` has the id of each workspace by its name.
fn writes_since(log: &str, since: usize, ids: &BTreeMap<String, String>) -> Vec<String> {
    let log = fs::read(log).unwrap();
    let lines = String::from_utf8_lossy(&log[since..]).into_owned();
    let requests = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let concerns_ids = |request: &Value| {
        let name = request["objectRef"]["name"].as_str().unwrap_or_default();
        ids.iter().any(|(workspace, id)| name == workspace || name.starts_with(&format!("workspace-{id}")))
    };
    let describe = |request: Value| {
        format!("{} {} by {}", request["verb"], request["requestURI"], request["user"]["username"])
    };
    requests.filter(concerns_ids).map(describe).collect()
}

/// Returns the path of the API server's audit log. If there is none, reports that the test of
/// `what` is skipped.
pub(crate) fn audit_log(what: &str) -> Option<String> {
    let log = env::var(AUDIT_LOG).ok();
    if log.is_none() {
        report_skipped(what, &format!("{AUDIT_LOG} does not name the API server's audit log"));
    }
    log
}

#[tokio::test]
async fn discarding_the_last_archive_creates_no_workspace() {
    let Some(log) = audit_log("writes while archives go") else { return };
    let (_control, deployed) = share_control_plane().await;
    run_cli(deployed, &["create", "kathleen"]).await;
    let ids = BTreeMap::from([("kathleen".to_owned(), workspace_id(deployed, "kathleen"))]);
    run_cli(deployed, &["rm", "kathleen"]).await;
    let (archives, since) = (format!("wsa/{}", ids["kathleen"]), fs::metadata(&log).unwrap().len() as usize);
    run_cli(deployed, &["rm", "--discard", &ids["kathleen"]]).await;
    assert!(!deployed.namespace().kubectl(&["get", &archives]).ok, "the WorkspaceArchive is deleted");
    let created: Vec<_> =
        writes_since(&log, since, &ids).into_iter().filter(|what| what.starts_with("\"create\"")).collect();
    assert_eq!(created, [] as [String; 0]);
}

#[tokio::test]
async fn unchanged_workspaces_cause_no_writes() {
    let Some(log) = audit_log("writes while nothing changes") else { return };
    let number = |name, usual: usize| env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let (workspaces, heartbeats) = (number(IDLE_WORKSPACES, 4), number(IDLE_HEARTBEATS, 5));
    let (_control, deployed) = share_control_plane().await;
    let small = r#"{"cpu": "30m", "memory": "64Mi"}"#;
    let names: Vec<_> = (0..workspaces).map(|n| format!("idle-{n}")).collect();
    for name in &names {
        let workspace = format!(
            r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
                "spec": {{"owner": "ida", "template": "shell", "resources": {small},
                    "policy": {{"idleTimeout": "8h"}}}}}}"#
        );
        deployed.namespace().apply(&workspace).expect_success();
    }
    let mut ids = BTreeMap::new();
    for (n, name) in names.iter().enumerate() {
        wait_state_long(deployed, name, "awake");
        // Every second workspace sleeps.
        if n % 2 == 1 {
            patch_spec(deployed, name, r#"{"desiredState": "Asleep"}"#);
            wait_state_long(deployed, name, "asleep");
        }
        ids.insert(name.clone(), workspace_id(deployed, name));
    }
    // The status is written at once, and again after half a minute. After that it must not change.
    let (mut since, mut writes) = (fs::metadata(&log).unwrap().len() as usize, 0);
    let received = async || {
        let metrics = deployed.metrics().await;
        let total = metrics.lines().find_map(|line| line.strip_prefix("podling_heartbeats_total "));
        total.map(|total| total.trim().parse::<f64>().unwrap() as usize)
    };
    let mut from = received().await.expect("a count of heartbeats");
    wait_long(LONG_DEADLINE, "enough heartbeats without a write", async || {
        let now = received().await?;
        let (length, new_writes) =
            (fs::metadata(&log).unwrap().len() as usize, writes_since(&log, since, &ids));
        if !new_writes.is_empty() {
            writes += new_writes.len();
            assert!(
                writes <= workspaces * SETTLING_WRITES,
                "the status settles after a few writes: {new_writes:#?}"
            );
            (since, from) = (length, now);
        }
        (now - from >= heartbeats * workspaces.div_ceil(2)).then_some(())
    })
    .await;
    for name in &names {
        let workspace = format!("ws/{name}");
        deployed.namespace().kubectl(&["annotate", &workspace, "podling.dev/discard=true"]).expect_success();
        deployed.namespace().kubectl(&["delete", &workspace, "--timeout=120s"]).expect_success();
        assert!(
            !deployed.namespace().kubectl(&["get", &format!("wsa/{}", ids[name])]).ok,
            "the WorkspaceArchive is deleted"
        );
    }
}
