//! A workspace that is given more, or less, while somebody works in it.

use podling_tests::{cluster::MEMORY_LIMIT, wait_for};
use serde_json::Value;

use crate::lives::{edit, id_of, of, podling, shared, uid};

#[tokio::test]
async fn a_running_job_is_given_more_and_less_and_goes_on() {
    let (_control, deployed) = shared().await;
    podling(deployed, &["create", "ken"]).await;
    let id = id_of(deployed, "ken");
    let served_by = uid(&of(deployed, "pods", &id));
    podling(deployed, &["run", "ken", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >job"]).await;
    for (resources, bytes) in [
        (r#"{"cpu": "200m", "memory": "256Mi"}"#, "268435456"),
        (r#"{"cpu": "100m", "memory": "128Mi"}"#, "134217728"),
    ] {
        edit(deployed, "ken", &format!("{{\"resources\": {resources}}}"));
        wait_for("the kernel has the new limit", async || {
            let limit = podling(deployed, &["run", "ken", "--", "sh", "-c", MEMORY_LIMIT]).await.out();
            (limit.trim() == bytes).then_some(())
        })
        .await;
        let resized = ".status.conditions[?(@.type=='Resized')].status";
        wait_for("it says so", async || (deployed.space().field("ws/ken", resized) == "True").then_some(()))
            .await;
    }
    let pods = of(deployed, "pods", &id);
    assert_eq!(uid(&pods), served_by, "it is the same pod");
    assert_eq!(pods[0]["status"]["containerStatuses"][0]["restartCount"], 0);
    podling(deployed, &["run", "ken", "--", "sh", "-c", "kill -0 $(cat job)"]).await;
    podling(deployed, &["rm", "--discard", "ken"]).await;
}

#[tokio::test]
async fn what_a_node_cannot_give_is_said_and_the_workspace_goes_on_with_what_it_has() {
    let (_control, deployed) = shared().await;
    let space = deployed.space();
    podling(deployed, &["create", "dennis"]).await;
    let id = id_of(deployed, "dennis");
    let node: Value =
        serde_json::from_str(&space.kubectl(&["get", "nodes", "--output", "json"]).good()).unwrap();
    let cores: u64 = node["items"][0]["status"]["capacity"]["cpu"].as_str().unwrap().parse().unwrap();
    let says = async |cpu: String, reason: &'static str, words: &'static str| {
        edit(
            deployed,
            "dennis",
            &format!("{{\"resources\": {{\"cpu\": \"{cpu}\", \"memory\": \"128Mi\"}}}}"),
        );
        wait_for(reason, async || {
            let shown = [".status.reason", ".status.message"].map(|field| space.field("ws/dennis", field));
            (shown[0] == reason && shown[1].contains(words)).then_some(())
        })
        .await;
    };
    // All that the node has is taken in part by others.
    says(cores.to_string(), "ResizeDeferred", "waiting for free resources on its node").await;
    says((cores * 4).to_string(), "ActionFailed", "its node can never provide that").await;
    let condition = ".status.conditions[?(@.type=='Resized')]";
    wait_for("it is said to tools as well", async || {
        let resized: Value = serde_json::from_str(&space.field("ws/dennis", condition)).ok()?;
        (resized["status"] == "False" && resized["message"].as_str()?.contains("never")).then_some(())
    })
    .await;
    assert_eq!(podling(deployed, &["run", "dennis", "--", "echo", "here"]).await.out(), "here\n");
    says("100m".into(), "AgentConnected", "the agent is connected").await;
    assert_eq!(of(deployed, "pods", &id).len(), 1);
    podling(deployed, &["rm", "--discard", "dennis"]).await;
}
