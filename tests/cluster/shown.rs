//! What kubectl shows of a workspace: how it is used, what serves it, what is next, what became of it; and that nothing is written when nothing
//! changes.

use std::{collections::BTreeMap, env, fs, time::Duration};

use podling_tests::{deployed::Deployed, report_skipped, wait_for, wait_long};
use serde_json::Value;

use crate::lives::{edit, id_of, of, podling, shared, uid};

/// Where the API server says what it was asked: the sandbox's node writes it.
const AUDIT_LOG: &str = "PODLING_AUDIT_LOG";
/// For as many of both as somebody wants to see.
const LONGEST: Duration = Duration::from_secs(20 * 60);
/// Writes of each until it shows all that is to be shown.
const SETTLING: usize = 3;
/// How many workspaces are idle, and for how many beats of each: more where somebody wants to see more.
const IDLE_WORKSPACES: &str = "PODLING_IDLE_WORKSPACES";
const IDLE_BEATS: &str = "PODLING_IDLE_BEATS";

fn status(deployed: &Deployed, name: &str) -> Value {
    let status = deployed.space().field(&format!("ws/{name}"), ".status");
    serde_json::from_str(&status).unwrap()
}

fn condition(status: &Value, kind: &str) -> String {
    let mut conditions = status["conditions"].as_array().unwrap().iter();
    let found = conditions.find(|condition| condition["type"] == kind);
    found.map(|found| found["status"].as_str().unwrap().to_owned()).unwrap_or_default()
}

/// The reasons of the Events about it, in their order.
fn events(deployed: &Deployed, name: &str) -> Vec<String> {
    let about = format!("involvedObject.kind=Workspace,involvedObject.name={name}");
    let list = ["get", "events", "--field-selector", &about, "--output", "json"];
    let list: Value = serde_json::from_str(&deployed.space().kubectl(&list).good()).unwrap();
    let mut events = list["items"].as_array().unwrap().clone();
    events.sort_by_key(|event| event["eventTime"].as_str().unwrap().to_owned());
    events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn kubectl_shows_how_a_workspace_is_used_and_tells_what_became_of_it() {
    let (_control, deployed) = shared().await;
    podling(deployed, &["create", "mary"]).await;
    let id = id_of(deployed, "mary");
    let shown = wait_for("what is seen of it shows", async || {
        let status = status(deployed, "mary");
        (status["activity"] == "idle" && status["next"].is_object()).then_some(status)
    })
    .await;
    let pod = &of(deployed, "pods", &id)[0];
    assert_eq!(shown["podUid"], pod["metadata"]["uid"]);
    assert_eq!(shown["imageDigest"], pod["status"]["containerStatuses"][0]["imageID"]);
    assert_eq!(shown["keyFingerprint"].as_str().unwrap().len(), 64);
    assert!(shown["bootId"].is_string() && shown["idleSince"].is_string(), "{shown:#}");
    for kind in ["Ready", "AgentConnected", "StorageReady", "Resized"] {
        assert_eq!(condition(&shown, kind), "True", "{kind}");
    }
    let line = deployed.space().kubectl(&["get", "ws", "mary"]).good();
    assert!(line.contains("idle") && line.contains("WarnOfSleep"), "{line}");

    podling(deployed, &["sleep", "--force", "mary"]).await;
    let asleep = wait_for("it shows that nothing serves it", async || {
        let status = status(deployed, "mary");
        (status["podUid"].is_null() && status["state"] == "asleep").then_some(status)
    })
    .await;
    assert!(asleep["activity"].is_null() && condition(&asleep, "AgentConnected") == "False", "{asleep:#}");
    assert_eq!(asleep["imageDigest"], shown["imageDigest"], "what ran last");
    let mut told = wait_for("all of it was told", async || {
        let told = events(deployed, "mary");
        told.contains(&"Asleep".to_owned()).then_some(told)
    })
    .await;
    told.dedup();
    assert_eq!(told, ["Queued", "Starting", "Awake", "FallingAsleep", "Asleep"]);
    podling(deployed, &["rm", "--discard", "mary"]).await;
}

#[tokio::test]
async fn autoscalers_leave_a_pod_alone_while_it_is_used() {
    let (_control, deployed) = shared().await;
    podling(deployed, &["create", "hedy"]).await;
    let id = id_of(deployed, "hedy");
    let shielded = || {
        let annotations = of(deployed, "pods", &id)[0]["metadata"]["annotations"].clone();
        let both = ["cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt"];
        both.iter().filter(|name| annotations[**name].is_string()).count()
    };
    podling(deployed, &["run", "hedy", "--", "true"]).await;
    wait_for("it is shielded", async || (shielded() == 2).then_some(())).await;
    wait_long(LONGEST, "it is not used any more", async || (shielded() == 0).then_some(())).await;
    podling(deployed, &["rm", "--discard", "hedy"]).await;
}

#[tokio::test]
async fn a_status_that_somebody_changed_is_written_anew() {
    let (_control, deployed) = shared().await;
    let space = deployed.space();
    podling(deployed, &["create", "eve"]).await;
    let before = wait_for("it is shown", async || {
        let status = status(deployed, "eve");
        (status["activity"] == "idle").then_some(status)
    })
    .await;
    let pod = uid(&of(deployed, "pods", &id_of(deployed, "eve")));
    let lie = r#"{"status": {"state": "asleep", "storageGeneration": 99, "record": {"schema": 7}}}"#;
    space.kubectl(&["patch", "ws", "eve", "--subresource=status", "--type=merge", "--patch", lie]).good();
    let after = wait_for("it says again what is so", async || {
        let status = status(deployed, "eve");
        (status["record"] == before["record"]).then_some(status)
    })
    .await;
    assert_eq!(after["state"], "awake");
    assert_eq!(after["storageGeneration"], before["storageGeneration"]);
    assert_eq!(uid(&of(deployed, "pods", &id_of(deployed, "eve"))), pod, "nothing was decided by it");
    podling(deployed, &["rm", "--discard", "eve"]).await;
}

/// As `is`, for many that begin at once.
fn comes_to(deployed: &Deployed, name: &str, state: &str) {
    let (state, timeout) =
        (format!("--for=jsonpath={{.status.state}}={state}"), format!("--timeout={}s", LONGEST.as_secs()));
    deployed.space().kubectl(&["wait", &state, &timeout, &format!("ws/{name}")]).good();
}

/// What was written of Workspaces, pods and claims that names one of these, since this byte of the audit log.
fn written(log: &str, since: usize, ids: &BTreeMap<String, String>) -> Vec<String> {
    let log = fs::read(log).unwrap();
    let lines = String::from_utf8_lossy(&log[since..]).into_owned();
    let requests = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_ours = |request: &Value| {
        let name = request["objectRef"]["name"].as_str().unwrap_or_default();
        ids.iter().any(|(workspace, id)| name == workspace || name.starts_with(&format!("workspace-{id}")))
    };
    let said = |request: Value| {
        format!("{} {} by {}", request["verb"], request["requestURI"], request["user"]["username"])
    };
    requests.filter(is_ours).map(said).collect()
}

/// The API server's audit log, where this cluster shows it; else `what` is left out.
fn audit_log(what: &str) -> Option<String> {
    let log = env::var(AUDIT_LOG).ok();
    if log.is_none() {
        report_skipped(what, &format!("{AUDIT_LOG} does not say where the API server's audit log is"));
    }
    log
}

#[tokio::test]
async fn when_its_last_archive_goes_it_is_not_made_a_workspace_again() {
    let Some(log) = audit_log("writes while archives go") else { return };
    let (_control, deployed) = shared().await;
    podling(deployed, &["create", "kathleen"]).await;
    let ids = BTreeMap::from([("kathleen".to_owned(), id_of(deployed, "kathleen"))]);
    podling(deployed, &["rm", "kathleen"]).await;
    let (left, since) = (format!("wsa/{}", ids["kathleen"]), fs::metadata(&log).unwrap().len() as usize);
    podling(deployed, &["rm", "--discard", &ids["kathleen"]]).await;
    assert!(!deployed.space().kubectl(&["get", &left]).ok, "nothing is left of it");
    let made: Vec<_> =
        written(&log, since, &ids).into_iter().filter(|what| what.starts_with("\"create\"")).collect();
    assert_eq!(made, [] as [String; 0]);
}

#[tokio::test]
async fn nothing_is_written_while_nothing_changes() {
    let Some(log) = audit_log("writes while nothing changes") else { return };
    let number = |name, usual: usize| env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let (workspaces, beats) = (number(IDLE_WORKSPACES, 4), number(IDLE_BEATS, 5));
    let (_control, deployed) = shared().await;
    let small = r#"{"cpu": "30m", "memory": "64Mi"}"#;
    let names: Vec<_> = (0..workspaces).map(|n| format!("idle-{n}")).collect();
    for name in &names {
        let workspace = format!(
            r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
                "spec": {{"owner": "nobody", "template": "shell", "resources": {small}, "policy": {{"idleTimeout": "8h"}}}}}}"#
        );
        deployed.space().apply(&workspace).good();
    }
    let mut ids = BTreeMap::new();
    for (n, name) in names.iter().enumerate() {
        comes_to(deployed, name, "awake");
        // Half of them sleep.
        if n % 2 == 1 {
            edit(deployed, name, r#"{"desiredState": "Asleep"}"#);
            comes_to(deployed, name, "asleep");
        }
        ids.insert(name.clone(), id_of(deployed, name));
    }
    // What they have come to is shown at once, and once more half a minute later; then it stays.
    let (mut since, mut writes) = (fs::metadata(&log).unwrap().len() as usize, 0);
    let heard = async || {
        let metrics = deployed.metrics().await;
        let beats = metrics.lines().find_map(|line| line.strip_prefix("podling_heartbeats_total "));
        beats.map(|beats| beats.trim().parse::<f64>().unwrap() as usize)
    };
    let mut from = heard().await.expect("beats are counted");
    wait_long(LONGEST, "so many beats without a write", async || {
        let now = heard().await?;
        let (length, what) = (fs::metadata(&log).unwrap().len() as usize, written(&log, since, &ids));
        if !what.is_empty() {
            writes += what.len();
            assert!(writes <= workspaces * SETTLING, "they do not settle: {what:#?}");
            (since, from) = (length, now);
        }
        (now - from >= beats * workspaces.div_ceil(2)).then_some(())
    })
    .await;
    for name in &names {
        let workspace = format!("ws/{name}");
        deployed.space().kubectl(&["annotate", &workspace, "podling.dev/discard=true"]).good();
        deployed.space().kubectl(&["delete", &workspace, "--timeout=120s"]).good();
        assert!(
            !deployed.space().kubectl(&["get", &format!("wsa/{}", ids[name])]).ok,
            "nothing is left of it"
        );
    }
}
