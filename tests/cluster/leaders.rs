//! Two replicas of the control plane: one decides, the other passes on to it, and takes over when it is killed or stands still.

use std::fs;

use podling_tests::{deployed::Deployed, wait_for};
use rustix::process::{Pid, Signal, kill_process};

use crate::lives::{alone, controls, edit, id_of, is, of, podling, uid};

/// The address of the replica that decides.
fn leader(deployed: &Deployed) -> String {
    deployed.space().field("lease/podling-control", r".metadata.annotations.podling\.dev/address")
}

/// Its pod.
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
    let of = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    controls(deployed).iter().filter_map(of).sum()
}

async fn another_leads(deployed: &Deployed, than: &str) {
    wait_for("another replica decides", async || (leader(deployed) != than).then_some(())).await;
}

#[tokio::test]
async fn a_leader_that_is_killed_while_it_does_something_is_replaced_and_nothing_is_lost() {
    let (_control, deployed) = alone().await;
    podling(deployed, &["create", "barbara"]).await;
    podling(deployed, &["run", "barbara", "--", "sh", "-c", "echo here >file"]).await;
    let id = id_of(deployed, "barbara");
    let (old, pod) = (leader(deployed), leading(deployed));
    edit(deployed, "barbara", r#"{"wanted": "Asleep"}"#);
    is(deployed, "barbara", "falling-asleep").await;
    deployed.space().kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]).good();
    another_leads(deployed, &old).await;
    is(deployed, "barbara", "asleep").await;
    assert!(of(deployed, "pods", &id).is_empty());
    deployed.is_up();
    assert_eq!(podling(deployed, &["run", "barbara", "--", "cat", "file"]).await.out(), "here\n");

    // One that is told to end says so: nobody waits for its lease.
    let (old, pod) = (leader(deployed), leading(deployed));
    deployed.space().kubectl(&["delete", "pod", &pod]).good();
    assert_ne!(leader(deployed), old, "it was given up before its pod was gone");
    deployed.is_up();
    podling(deployed, &["rm", "--discard", "barbara"]).await;
}

#[tokio::test]
async fn a_leader_that_stood_still_and_comes_back_changes_nothing_any_more() {
    let (_control, deployed) = alone().await;
    podling(deployed, &["create", "donald"]).await;
    let id = id_of(deployed, "donald");
    let (old, restarted) = (leader(deployed), restarts(deployed));
    let process = process_of(&old);
    kill_process(process, Signal::STOP).unwrap();
    another_leads(deployed, &old).await;
    edit(deployed, "donald", r#"{"wanted": "Asleep"}"#);
    is(deployed, "donald", "asleep").await;
    edit(deployed, "donald", r#"{"wanted": "Awake"}"#);
    is(deployed, "donald", "awake").await;
    let (pod, version) =
        (uid(&of(deployed, "pods", &id)), deployed.space().field("ws/donald", ".metadata.resourceVersion"));

    kill_process(process, Signal::CONT).unwrap();
    wait_for("it ends when it finds out", async || (restarts(deployed) > restarted).then_some(())).await;
    assert_eq!(uid(&of(deployed, "pods", &id)), pod, "nobody has touched its pod");
    assert_eq!(
        deployed.space().field("ws/donald", ".metadata.resourceVersion"),
        version,
        "nor what is known of it"
    );
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
