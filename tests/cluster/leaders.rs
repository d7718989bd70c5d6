//! Two replicas of the control plane: one decides, the other passes on to it, and takes over when it is killed or stands still.

use std::fs;

use podling_tests::{
    cluster::free_node_address, deployed::Deployed, interactive_client::InteractiveClient, report_skipped,
    wait::wait_blocking_every_ms, wait_for,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::lives::{alone, controls, edit, id_of, is, of, podling, uid};

/// The address of the replica that decides.
fn leader(deployed: &Deployed) -> String {
    deployed.space().field("lease/podling-control", r".metadata.annotations.podling\.dev/address")
}

/// The run that holds the lease; nobody's, it is empty.
fn holder(deployed: &Deployed) -> String {
    deployed.space().field("lease/podling-control", ".spec.holderIdentity")
}

/// The pod of the replica that decides.
fn leading(deployed: &Deployed) -> String {
    let address = leader(deployed);
    let pods = controls(deployed);
    let pod = pods.iter().find(|pod| pod["status"]["podIP"] == address.as_str());
    pod.unwrap_or_else(|| panic!("no pod has {address}: {pods:#?}"))["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// How often the containers of the control plane were started again.
fn restarts(deployed: &Deployed) -> u64 {
    let of = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    controls(deployed).iter().filter_map(of).sum()
}

async fn another_leads(deployed: &Deployed, than: &str) {
    wait_for("another replica decides", async || (leader(deployed) != than).then_some(())).await;
}

/// Kills the leader as soon as the workspace is not in this state any more; another takes over.
async fn killed_after(deployed: &Deployed, name: &str, state: &str) {
    let (old, pod) = (leader(deployed), leading(deployed));
    // (Nothing, where it is gone already.)
    let shown = format!("ws/{name}");
    let now = || deployed.space().kubectl(&["get", &shown, "--output", "jsonpath={.status.state}"]).out;
    assert!(wait_blocking_every_ms(|| now() != state), "{name} is {state:?} and stays it");
    deployed.space().kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]).good();
    another_leads(deployed, &old).await;
}

fn workspace(name: &str, more: &str) -> String {
    format!(
        r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
            "spec": {{"owner": "barbara", "template": "shell"{more}}}}}"#
    )
}

#[tokio::test]
async fn a_leader_that_is_killed_while_it_does_something_is_replaced_and_nothing_is_lost() {
    let (_control, deployed) = alone().await;
    let space = deployed.space();
    space.apply(&workspace("barbara", "")).good();
    killed_after(deployed, "barbara", "").await;
    is(deployed, "barbara", "awake").await;
    deployed.is_up();
    let id = id_of(deployed, "barbara");
    let one = of(deployed, "pods", &id);
    assert_eq!(one.len(), 1, "it was not started twice: {one:#?}");
    podling(deployed, &["run", &id, "--", "sh", "-c", "echo here >file"]).await;

    edit(deployed, "barbara", r#"{"desiredState": "Asleep"}"#);
    killed_after(deployed, "barbara", "awake").await;
    is(deployed, "barbara", "asleep").await;
    assert!(of(deployed, "pods", &id).is_empty());

    edit(deployed, "barbara", r#"{"desiredState": "Awake"}"#);
    killed_after(deployed, "barbara", "asleep").await;
    is(deployed, "barbara", "awake").await;
    deployed.is_up();
    assert_eq!(podling(deployed, &["run", &id, "--", "cat", "file"]).await.out(), "here\n");

    space.kubectl(&["delete", "ws", "barbara", "--wait=false"]).good();
    killed_after(deployed, "barbara", "awake").await;
    space.wait("delete", "ws/barbara").good();
    let archive = space.field(&format!("wsa/{id}"), ".spec.newest");
    assert!(of(deployed, "pvc", &id).is_empty());

    space.apply(&workspace("again", &format!(r#", "source": "{archive}""#))).good();
    killed_after(deployed, "again", "").await;
    is(deployed, "again", "awake").await;
    deployed.is_up();
    let id = id_of(deployed, "again");
    assert_eq!(podling(deployed, &["run", &id, "--", "cat", "file"]).await.out(), "here\n");
    podling(deployed, &["rm", "--discard", &id]).await;
}

#[tokio::test]
async fn a_leader_that_is_told_to_end_says_so_and_nobody_waits_for_its_lease() {
    let (_control, deployed) = alone().await;
    // (The other may not have seen it yet when the pod is gone.)
    let (old, pod) = (holder(deployed), leading(deployed));
    deployed.space().kubectl(&["delete", "pod", &pod]).good();
    assert_ne!(holder(deployed), old, "it was given up before its pod was gone");
    deployed.is_up();
}

#[tokio::test]
async fn a_manifest_that_somebody_copied_takes_nothing_from_whom_it_was_copied() {
    let (_control, deployed) = alone().await;
    let space = deployed.space();
    podling(deployed, &["create", "grace"]).await;
    podling(deployed, &["run", "grace", "--", "sh", "-c", "echo kept >file"]).await;
    let mut copy: Value =
        serde_json::from_str(&space.kubectl(&["get", "ws", "grace", "--output", "json"]).good()).unwrap();
    let metadata = &copy["metadata"];
    copy["metadata"] = serde_json::json!({"name": "admiral", "finalizers": metadata["finalizers"]});
    space.apply(&copy.to_string()).good();
    wait_for("it says why it is not served", async || {
        space.field("ws/admiral", ".status.message").contains("belongs to the workspace grace").then_some(())
    })
    .await;
    // Neither those that were there see it as hers, nor whoever comes next.
    space.kubectl(&["delete", "pod", "--selector", "app.kubernetes.io/name=podling-control"]).good();
    deployed.is_up();
    assert_eq!(podling(deployed, &["run", "grace", "--", "cat", "file"]).await.out(), "kept\n");
    space.kubectl(&["delete", "ws", "admiral"]).good();
    podling(deployed, &["sleep", "--force", "grace"]).await;
    assert_eq!(podling(deployed, &["run", "grace", "--", "cat", "file"]).await.out(), "kept\n");

    // Nor does it bring back what was deleted.
    podling(deployed, &["rm", "grace"]).await;
    space.wait("delete", "ws/grace").good();
    copy["metadata"]["name"] = "grace".into();
    space.apply(&copy.to_string()).good();
    wait_for("it says how it comes back", async || {
        space.field("ws/grace", ".status.message").contains("with the archive as spec.source").then_some(())
    })
    .await;
    space.kubectl(&["delete", "ws", "grace"]).good();
    let archive = space.field(&format!("wsa/{}", copy["spec"]["id"].as_str().unwrap()), ".spec.newest");
    podling(deployed, &["restore", &archive]).await;
    assert_eq!(podling(deployed, &["run", "grace", "--", "cat", "file"]).await.out(), "kept\n");
    podling(deployed, &["rm", "--discard", "grace"]).await;
}

#[tokio::test]
async fn a_lease_that_somebody_deletes_stays_with_whom_it_was() {
    let (_control, deployed) = alone().await;
    let before = holder(deployed);
    deployed.space().kubectl(&["delete", "lease", "podling-control"]).good();
    let lease = ["get", "lease", "podling-control", "--output", "jsonpath={.spec.holderIdentity}"];
    let after = wait_for("there is one again", async || {
        let said = deployed.space().kubectl(&lease);
        said.ok.then_some(said.out)
    });
    assert_eq!(after.await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_costs_a_terminal_no_more_than_a_reconnect() {
    let (_control, deployed) = alone().await;
    podling(deployed, &["create", "frances"]).await;
    let id = id_of(deployed, "frances");
    let pod = uid(&of(deployed, "pods", &id));
    let inside = deployed.client().for_workspace(&id);
    let terminal = inside.open(vec![]).await;
    let mut writer = InteractiveClient::new(inside.clone(), "frances", &terminal.id);
    writer.type_text("set -u; n=0\r").await;

    let space = deployed.space();
    let old: Vec<_> = controls(deployed).iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    space.kubectl(&["rollout", "restart", "deployment/podling-control"]).good();
    let mut lines = 0;
    wait_for("all replicas are others", async || {
        // The same shell all the while: it counts what is typed.
        writer.type_text("n=$((n+1)); echo $n >>log\r").await;
        lines += 1;
        let now = controls(deployed);
        let is_new = |pod: &Value| !old.contains(&pod["metadata"]["uid"]) && is_ready(pod);
        (now.len() == old.len() && now.iter().all(is_new)).then_some(())
    })
    .await;
    deployed.is_up();
    writer.type_text("n=$((n+1)); echo $n >>log\r").await;
    let expected: String = (1..=lines + 1).map(|line| format!("{line}\n")).collect();
    let inside = deployed.client().for_workspace(&id);
    wait_for("all that was typed was executed", async || {
        (inside.sh("cat log").await == expected).then_some(())
    })
    .await;
    assert_eq!(writer.counts.epoch_changes, 0, "its terminal began anew: {:?}", writer.counts);
    assert_eq!(uid(&of(deployed, "pods", &id)), pod);
    podling(deployed, &["rm", "--discard", "frances"]).await;
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

#[tokio::test]
async fn a_leader_that_stood_still_and_comes_back_changes_nothing_any_more() {
    if free_node_address().is_none() {
        return report_skipped("a leader that stands still", "the cluster's node is not this machine");
    }
    let (_control, deployed) = alone().await;
    podling(deployed, &["create", "donald"]).await;
    let id = id_of(deployed, "donald");
    let (old, restarted) = (leader(deployed), restarts(deployed));
    let process = process_of(&old);
    kill_process(process, Signal::STOP).unwrap();
    another_leads(deployed, &old).await;
    edit(deployed, "donald", r#"{"desiredState": "Asleep"}"#);
    is(deployed, "donald", "asleep").await;
    edit(deployed, "donald", r#"{"desiredState": "Awake"}"#);
    is(deployed, "donald", "awake").await;
    // (What is seen of it beside its record the new leader goes on showing.)
    let (pod, record) =
        (uid(&of(deployed, "pods", &id)), deployed.space().field("ws/donald", ".status.record"));

    kill_process(process, Signal::CONT).unwrap();
    wait_for("it ends when it finds out", async || (restarts(deployed) > restarted).then_some(())).await;
    assert_eq!(uid(&of(deployed, "pods", &id)), pod, "nobody has touched its pod");
    assert_eq!(deployed.space().field("ws/donald", ".status.record"), record, "nor what is known of it");
    assert_ne!(leader(deployed), old);
    deployed.is_up();
    podling(deployed, &["rm", "--discard", "donald"]).await;
}

/// The replica at this address, as its node sees it.
fn process_of(address: &str) -> Pid {
    let ours = format!("PODLING_ADVERTISE={address}");
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        environment.split(|byte| *byte == 0).any(|variable| variable == ours.as_bytes()).then_some(pid)
    });
    let found: Vec<_> = processes.collect();
    assert_eq!(found.len(), 1, "the node's processes are seen from here only beside a node of our own");
    Pid::from_raw(found[0]).unwrap()
}
