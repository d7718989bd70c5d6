//! Two replicas of the control plane. The standby replica forwards connections to the leader, and
//! takes over when the leader is killed, stopped or suspended.

use std::{fs, net::TcpStream};

use futures_util::future::join_all;
use podling_tests::{
    Deployed, InteractiveClient, cluster::free_node_address, report_skipped, wait_blocking_every_ms,
    wait_for, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    lifecycle::{
        control_pods, lock_control_plane, objects_of, patch_spec, run_cli, uid_of_only_pod, wait_state,
        workspace_id,
    },
    status_display::audit_log,
};

/// Upper bound of the descriptors that a replica needs in these tests.
const MOST_DESCRIPTORS: usize = 500;
/// Commands that run at once while the leader changes.
const COMMANDS: usize = 10;

/// Returns the leader's IP address, from the annotation of the Lease.
fn leader_address(deployed: &Deployed) -> String {
    deployed.namespace().field("lease/podling-control", r".metadata.annotations.podling\.dev/address")
}

/// Returns the holder of the Lease, or an empty string.
fn lease_holder(deployed: &Deployed) -> String {
    deployed.namespace().field("lease/podling-control", ".spec.holderIdentity")
}

/// Returns the name of the leader's pod.
fn leader_pod(deployed: &Deployed) -> String {
    let address = leader_address(deployed);
    let pods = control_pods(deployed);
    let pod = pods.iter().find(|pod| pod["status"]["podIP"] == address.as_str());
    pod.unwrap_or_else(|| panic!("no pod has {address}: {pods:#?}"))["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Returns the number of restarts of all containers of the control plane.
fn container_restarts(deployed: &Deployed) -> u64 {
    let count = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    control_pods(deployed).iter().filter_map(count).sum()
}

async fn wait_another_leader(deployed: &Deployed, old: &str) {
    wait_until("another leader", || leader_address(deployed) != old).await;
}

/// How a leader is lost.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Pod,
    /// The pod and its address stay, and the kubelet restarts the container.
    Process,
}

/// Causes the loss as soon as the workspace has left `state`, and waits until another process leads.
async fn lose_leader_after(deployed: &Deployed, loss: Loss, name: &str, state: &str) {
    let (old, address, pod) = (lease_holder(deployed), leader_address(deployed), leader_pod(deployed));
    // kubectl prints nothing if the workspace is deleted already.
    let object = format!("ws/{name}");
    let now = || deployed.namespace().kubectl(&["get", &object, "--output", "jsonpath={.status.state}"]).out;
    assert!(wait_blocking_every_ms(|| now() != state), "{name} leaves {state:?}");
    match loss {
        Loss::Pod => {
            let delete = ["delete", "pod", &pod, "--grace-period=0", "--force"];
            deployed.namespace().kubectl(&delete).expect_success();
        }
        Loss::Process => kill_process(process_of(&address), Signal::KILL).unwrap(),
    }
    wait_until("another leader", || {
        let now = lease_holder(deployed);
        !now.is_empty() && now != old
    })
    .await;
}

fn workspace(name: &str, more: &str) -> String {
    format!(
        r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
            "spec": {{"owner": "barbara", "template": "shell"{more}}}}}"#
    )
}

#[tokio::test]
async fn deleted_leader_pod_is_replaced_in_each_transition() {
    let (_control, deployed) = lock_control_plane().await;
    replace_leader_in_each_transition(deployed, Loss::Pod).await;
}

#[tokio::test]
async fn killed_leader_process_is_replaced_in_each_transition() {
    if free_node_address().is_none() {
        return report_skipped("a killed leader", "the cluster's node is not this machine");
    }
    let (_control, deployed) = lock_control_plane().await;
    replace_leader_in_each_transition(deployed, Loss::Process).await;
    // A replica that forwarded connections to itself would open them without end.
    for pod in control_pods(deployed) {
        let process = process_of(pod["status"]["podIP"].as_str().unwrap());
        let open = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).unwrap().count();
        assert!(open < MOST_DESCRIPTORS, "{open} descriptors are open in {}", pod["metadata"]["name"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_during_a_change_of_leader_succeed() {
    if free_node_address().is_none() {
        return report_skipped("a killed leader", "the cluster's node is not this machine");
    }
    let (_control, deployed) = lock_control_plane().await;
    let (old, address) = (lease_holder(deployed), leader_address(deployed));
    let commands = || (0..COMMANDS).map(|_| run_cli(deployed, &["ls", "--json"]));
    let (before, (), after) = tokio::join!(
        join_all(commands()),
        async { kill_process(process_of(&address), Signal::KILL).unwrap() },
        async {
            wait_until("an unreachable leader", || TcpStream::connect((&*address, 7411)).is_err()).await;
            join_all(commands()).await
        },
    );
    assert_eq!(before.len() + after.len(), 2 * COMMANDS);
    assert_ne!(lease_holder(deployed), old);
    deployed.wait_ready();
}

async fn replace_leader_in_each_transition(deployed: &Deployed, loss: Loss) {
    let space = deployed.namespace();
    space.apply(&workspace("barbara", "")).expect_success();
    lose_leader_after(deployed, loss, "barbara", "").await;
    wait_state(deployed, "barbara", "awake").await;
    deployed.wait_ready();
    let id = workspace_id(deployed, "barbara");
    let pods = objects_of(deployed, "pods", &id);
    assert_eq!(pods.len(), 1, "the workspace has one pod: {pods:#?}");
    run_cli(deployed, &["run", &id, "--", "sh", "-c", "echo here >file"]).await;

    patch_spec(deployed, "barbara", r#"{"desiredState": "Asleep"}"#);
    lose_leader_after(deployed, loss, "barbara", "awake").await;
    wait_state(deployed, "barbara", "asleep").await;
    assert!(objects_of(deployed, "pods", &id).is_empty());

    patch_spec(deployed, "barbara", r#"{"desiredState": "Awake"}"#);
    lose_leader_after(deployed, loss, "barbara", "asleep").await;
    wait_state(deployed, "barbara", "awake").await;
    deployed.wait_ready();
    assert_eq!(run_cli(deployed, &["run", &id, "--", "cat", "file"]).await.out(), "here\n");

    space.kubectl(&["delete", "ws", "barbara", "--wait=false"]).expect_success();
    lose_leader_after(deployed, loss, "barbara", "awake").await;
    space.wait("delete", "ws/barbara").expect_success();
    let archive = space.field(&format!("wsa/{id}"), ".spec.newestArchive");
    assert!(objects_of(deployed, "pvc", &id).is_empty());

    space.apply(&workspace("again", &format!(r#", "source": "{archive}""#))).expect_success();
    lose_leader_after(deployed, loss, "again", "").await;
    wait_state(deployed, "again", "awake").await;
    deployed.wait_ready();
    let id = workspace_id(deployed, "again");
    assert_eq!(run_cli(deployed, &["run", &id, "--", "cat", "file"]).await.out(), "here\n");
    run_cli(deployed, &["rm", "--discard", &id]).await;
}

/// Returns the calls of the control plane that the API server has logged after `since` bytes, and
/// that a leader should not make: reads of templates, which it watches, and creations of Events that
/// exist.
fn repeated_calls(log: &str, since: usize) -> Vec<String> {
    let log = fs::read(log).expect("the audit log");
    let calls =
        log[since..].split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let is_repeated = |call: &Value| {
        let by_control = call["user"]["username"] == "system:serviceaccount:podling:podling-control";
        let reads_template = call["verb"] == "get" && call["objectRef"]["resource"] == "workspacetemplates";
        let repeats_event =
            call["objectRef"]["resource"] == "events" && call["responseStatus"]["code"] == 409;
        by_control && (reads_template || repeats_event)
    };
    calls.filter(is_repeated).map(|call: Value| format!("{} {}", call["verb"], call["requestURI"])).collect()
}

/// Creates a workspace that sleeps from the start, and waits until its Event exists.
async fn create_asleep(deployed: &Deployed, name: &str) {
    deployed.namespace().apply(&workspace(name, r#", "desiredState": "Asleep""#)).expect_success();
    wait_until("an Event of the workspace", || {
        let events =
            ["get", "events", "--field-selector", &format!("involvedObject.name={name}"), "--output=name"];
        !deployed.namespace().kubectl(&events).out.is_empty()
    })
    .await;
}

#[tokio::test]
async fn new_leader_repeats_no_calls() {
    let Some(log) = audit_log("calls of a new leader") else { return };
    let (_control, deployed) = lock_control_plane().await;
    let since = fs::metadata(&log).unwrap().len() as usize;
    create_asleep(deployed, "edith").await;
    let (old, pod) = (lease_holder(deployed), leader_pod(deployed));
    deployed.namespace().kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]).expect_success();
    wait_until("another leader", || {
        let now = lease_holder(deployed);
        !now.is_empty() && now != old
    })
    .await;
    deployed.wait_ready();
    // The Events of all other workspaces were handled before those of a new one.
    create_asleep(deployed, "clarke").await;
    assert_eq!(repeated_calls(&log, since), [] as [String; 0]);
    for name in ["edith", "clarke"] {
        run_cli(deployed, &["rm", "--discard", &workspace_id(deployed, name)]).await;
    }
}

#[tokio::test]
async fn terminated_leader_releases_its_lease() {
    let (_control, deployed) = lock_control_plane().await;
    // The holder is compared instead of the leader's address, because the standby replica may not
    // have taken the Lease yet when the pod is gone.
    let (old, pod) = (lease_holder(deployed), leader_pod(deployed));
    deployed.namespace().kubectl(&["delete", "pod", &pod]).expect_success();
    assert_ne!(lease_holder(deployed), old, "the Lease is released before the pod is gone");
    deployed.wait_ready();
}

#[tokio::test]
async fn copied_manifest_does_not_take_over_the_original() {
    let (_control, deployed) = lock_control_plane().await;
    let space = deployed.namespace();
    run_cli(deployed, &["create", "grace"]).await;
    run_cli(deployed, &["run", "grace", "--", "sh", "-c", "echo kept >file"]).await;
    let mut copy = space.kubectl(&["get", "ws", "grace", "--output", "json"]).json();
    let metadata = &copy["metadata"];
    copy["metadata"] = serde_json::json!({"name": "admiral", "finalizers": metadata["finalizers"]});
    space.apply(&copy.to_string()).expect_success();
    wait_until("a reason why it is not served", || {
        space.field("ws/admiral", ".status.message").contains("belongs to the workspace grace")
    })
    .await;
    // The next leader does not serve the copy either.
    space
        .kubectl(&["delete", "pod", "--selector", "app.kubernetes.io/name=podling-control"])
        .expect_success();
    deployed.wait_ready();
    assert_eq!(run_cli(deployed, &["run", "grace", "--", "cat", "file"]).await.out(), "kept\n");
    space.kubectl(&["delete", "ws", "admiral"]).expect_success();
    run_cli(deployed, &["sleep", "--force", "grace"]).await;
    assert_eq!(run_cli(deployed, &["run", "grace", "--", "cat", "file"]).await.out(), "kept\n");

    // The copy does not restore the deleted workspace either.
    run_cli(deployed, &["rm", "grace"]).await;
    space.wait("delete", "ws/grace").expect_success();
    copy["metadata"]["name"] = "grace".into();
    space.apply(&copy.to_string()).expect_success();
    wait_until("a reason that names the way to restore it", || {
        space.field("ws/grace", ".status.message").contains("with the archive as spec.source")
    })
    .await;
    space.kubectl(&["delete", "ws", "grace"]).expect_success();
    let archive =
        space.field(&format!("wsa/{}", copy["spec"]["id"].as_str().unwrap()), ".spec.newestArchive");
    run_cli(deployed, &["restore", &archive]).await;
    assert_eq!(run_cli(deployed, &["run", "grace", "--", "cat", "file"]).await.out(), "kept\n");
    run_cli(deployed, &["rm", "--discard", "grace"]).await;
}

#[tokio::test]
async fn deleted_lease_is_recreated_by_its_holder() {
    let (_control, deployed) = lock_control_plane().await;
    let before = lease_holder(deployed);
    deployed.namespace().kubectl(&["delete", "lease", "podling-control"]).expect_success();
    let lease = ["get", "lease", "podling-control", "--output", "jsonpath={.spec.holderIdentity}"];
    let after = wait_for("a new lease", async || {
        let result = deployed.namespace().kubectl(&lease);
        result.ok.then_some(result.out)
    });
    assert_eq!(after.await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_update_costs_a_terminal_only_a_reconnect() {
    let (_control, deployed) = lock_control_plane().await;
    run_cli(deployed, &["create", "frances"]).await;
    let id = workspace_id(deployed, "frances");
    let pod = uid_of_only_pod(&objects_of(deployed, "pods", &id));
    let inside = deployed.client().for_workspace(&id);
    let terminal = inside.open(vec![]).await;
    let mut writer = InteractiveClient::new(inside.clone(), "frances", &terminal.id);
    writer.type_text("set -u; n=0\r").await;

    let space = deployed.namespace();
    let old: Vec<_> = control_pods(deployed).iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    space.kubectl(&["rollout", "restart", "deployment/podling-control"]).expect_success();
    let mut lines = 0;
    wait_for("new replicas", async || {
        // The shell counts the lines, so the log shows if a new shell was started.
        writer.type_text("n=$((n+1)); echo $n >>log\r").await;
        lines += 1;
        let now = control_pods(deployed);
        let is_new = |pod: &Value| !old.contains(&pod["metadata"]["uid"]) && is_ready(pod);
        (now.len() == old.len() && now.iter().all(is_new)).then_some(())
    })
    .await;
    deployed.wait_ready();
    writer.type_text("n=$((n+1)); echo $n >>log\r").await;
    let expected: String = (1..=lines + 1).map(|line| format!("{line}\n")).collect();
    let inside = deployed.client().for_workspace(&id);
    wait_for("the execution of all typed lines", async || {
        (inside.sh("cat log").await == expected).then_some(())
    })
    .await;
    assert_eq!(writer.counts.epoch_changes, 0, "the terminal was not restarted: {:?}", writer.counts);
    assert_eq!(uid_of_only_pod(&objects_of(deployed, "pods", &id)), pod);
    run_cli(deployed, &["rm", "--discard", "frances"]).await;
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

#[tokio::test]
async fn resumed_stale_leader_changes_nothing() {
    if free_node_address().is_none() {
        return report_skipped("a stopped leader", "the cluster's node is not this machine");
    }
    let (_control, deployed) = lock_control_plane().await;
    run_cli(deployed, &["create", "donald"]).await;
    let id = workspace_id(deployed, "donald");
    let (old, restarted) = (leader_address(deployed), container_restarts(deployed));
    let process = process_of(&old);
    kill_process(process, Signal::STOP).unwrap();
    wait_another_leader(deployed, &old).await;
    patch_spec(deployed, "donald", r#"{"desiredState": "Asleep"}"#);
    wait_state(deployed, "donald", "asleep").await;
    patch_spec(deployed, "donald", r#"{"desiredState": "Awake"}"#);
    wait_state(deployed, "donald", "awake").await;
    // Only the record is compared, because the new leader continues to update the displayed fields.
    let (pod, record) = (
        uid_of_only_pod(&objects_of(deployed, "pods", &id)),
        deployed.namespace().field("ws/donald", ".status.record"),
    );

    kill_process(process, Signal::CONT).unwrap();
    wait_until("the stale leader's exit", || container_restarts(deployed) > restarted).await;
    assert_eq!(
        uid_of_only_pod(&objects_of(deployed, "pods", &id)),
        pod,
        "the stale leader does not replace the pod"
    );
    assert_eq!(
        deployed.namespace().field("ws/donald", ".status.record"),
        record,
        "the stale leader does not write the record"
    );
    assert_ne!(leader_address(deployed), old);
    deployed.wait_ready();
    run_cli(deployed, &["rm", "--discard", "donald"]).await;
}

/// Finds the process of the replica with this address. The node must be this machine.
fn process_of(address: &str) -> Pid {
    let variable_of_replica = format!("PODLING_ADVERTISE={address}");
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == variable_of_replica.as_bytes())
            .then_some(pid)
    });
    let found: Vec<_> = processes.collect();
    assert_eq!(found.len(), 1, "the node's processes are visible only if the node is this machine");
    Pid::from_raw(found[0]).unwrap()
}
