//! Resizes of a workspace, by kubectl, while its programs run.

use podling_tests::{cluster::MEMORY_LIMIT, wait_for, wait_until};
use serde_json::Value;

use crate::lifecycle::{objects_of, patch_spec, run_cli, share_control_plane, uid_of_only_pod, workspace_id};

#[tokio::test]
async fn running_job_survives_resize_up_and_down() {
    let (_control, deployed) = share_control_plane().await;
    run_cli(deployed, &["create", "ken"]).await;
    let id = workspace_id(deployed, "ken");
    let served_by = uid_of_only_pod(&objects_of(deployed, "pods", &id));
    run_cli(deployed, &["run", "ken", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >job"]).await;
    for (resources, bytes) in [
        (r#"{"cpu": "200m", "memory": "256Mi"}"#, "268435456"),
        // The API server returns these 250 MiB as 262144k.
        (r#"{"cpu": "0.15", "memory": "262144000"}"#, "262144000"),
        (r#"{"cpu": "100m", "memory": "128Mi"}"#, "134217728"),
    ] {
        patch_spec(deployed, "ken", &format!("{{\"resources\": {resources}}}"));
        wait_for("the new limit in the kernel", async || {
            let limit = run_cli(deployed, &["run", "ken", "--", "sh", "-c", MEMORY_LIMIT]).await.out();
            (limit.trim() == bytes).then_some(())
        })
        .await;
        let resized = ".status.conditions[?(@.type=='Resized')].status";
        wait_until("a condition that says Resized", || {
            deployed.namespace().field("ws/ken", resized) == "True"
        })
        .await;
    }
    let pods = objects_of(deployed, "pods", &id);
    assert_eq!(uid_of_only_pod(&pods), served_by, "the pod was not replaced");
    assert_eq!(pods[0]["status"]["containerStatuses"][0]["restartCount"], 0);
    run_cli(deployed, &["run", "ken", "--", "sh", "-c", "kill -0 $(cat job)"]).await;
    run_cli(deployed, &["rm", "--discard", "ken"]).await;
}

#[tokio::test]
async fn impossible_resize_is_reported_and_the_workspace_runs_on() {
    let (_control, deployed) = share_control_plane().await;
    let space = deployed.namespace();
    run_cli(deployed, &["create", "dennis"]).await;
    let id = workspace_id(deployed, "dennis");
    let node = space.kubectl(&["get", "nodes", "--output", "json"]).json();
    let cores: u64 = node["items"][0]["status"]["capacity"]["cpu"].as_str().unwrap().parse().unwrap();
    let resize = async |cpu: String, reason: &'static str, message: &'static str| {
        patch_spec(
            deployed,
            "dennis",
            &format!("{{\"resources\": {{\"cpu\": \"{cpu}\", \"memory\": \"128Mi\"}}}}"),
        );
        wait_until(reason, || {
            let status = [".status.reason", ".status.message"].map(|field| space.field("ws/dennis", field));
            status[0] == reason && status[1].contains(message)
        })
        .await;
    };
    // Not all cores of the node are free, because other pods already request a part of them.
    resize(cores.to_string(), "ResizeDeferred", "waiting for free resources on its node").await;
    resize((cores * 4).to_string(), "ActionFailed", "its node can never provide these resources").await;
    let condition = ".status.conditions[?(@.type=='Resized')]";
    wait_for("a condition that says the same", async || {
        let resized: Value = serde_json::from_str(&space.field("ws/dennis", condition)).ok()?;
        (resized["status"] == "False" && resized["message"].as_str()?.contains("never")).then_some(())
    })
    .await;
    assert_eq!(run_cli(deployed, &["run", "dennis", "--", "echo", "here"]).await.out(), "here\n");
    resize("100m".into(), "AgentConnected", "the agent is connected").await;
    assert_eq!(objects_of(deployed, "pods", &id).len(), 1);
    run_cli(deployed, &["rm", "--discard", "dennis"]).await;
}
