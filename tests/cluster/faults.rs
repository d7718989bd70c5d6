//! What breaks in a cluster, and what of it the person inside notices. Each ends programs of the node, so they are a run of their own, one after the
//! other (`--ignored --test-threads 1`), and only in a sandbox.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use podling_tests::{deployed::Deployed, wait_for, wait_long};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;

use crate::lives::{alone, edit, id_of, is, of, podling, uid};

/// For what a node sees to by itself: leases of nodes, restarts, a control plane that comes back.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(240);
/// Heartbeats of one workspace in two minutes.
const BEATS: usize = 8;

/// A program of the node.
struct Program {
    pid: i32,
    command: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Program {
    /// The one that is called so.
    fn named(name: &str) -> Self {
        let read = |pid: i32, what: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_it = |pid: &i32| read(*pid, "cmdline").first().is_some_and(|word| word == name);
        let pid = pids.find(is_it).unwrap_or_else(|| panic!("no {name} runs: only a sandbox has one"));
        let pairs = read(pid, "environ").into_iter();
        let environment = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Self { pid, command: read(pid, "cmdline"), environment: environment.collect() }
    }

    /// When this returns its node has seen that it ended: what takes its place wants its ports.
    async fn kill(&self) {
        let (pid, own) = (Pid::from_raw(self.pid).unwrap(), format!("/proc/{}", self.pid));
        kill_process(pid, Signal::KILL).expect("it can be killed");
        wait_for("what was killed is gone", async || {
            // One that a story has started again is our child.
            let _another_s = waitpid(Some(pid), WaitOptions::NOHANG);
            (!Path::new(&own).exists()).then_some(())
        })
        .await;
    }

    /// As it was started.
    fn start(&self) -> Child {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).env_clear().envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
    }
}

/// Awake, with a job that runs on and a file.
async fn at_work(deployed: &Deployed, name: &str) -> (String, String) {
    podling(deployed, &["create", name]).await;
    let script =
        "echo kept >file; (while :; do date +%s%N >tick; sleep 0.2; done) >/dev/null 2>&1 & echo $! >job";
    podling(deployed, &["run", name, "--", "sh", "-c", script]).await;
    let id = id_of(deployed, name);
    let pod = uid(&of(deployed, "pods", &id));
    (id, pod)
}

/// The same job still runs, in the same pod.
async fn works_on(deployed: &Deployed, name: &str, pod: &str) {
    wait_long(PATIENCE, "it answers again", async || {
        let done =
            deployed.cli().run(&["run", name, "--", "sh", "-c", "kill -0 $(cat job) && cat tick"]).await;
        (done.code == Some(0)).then_some(())
    })
    .await;
    let id = id_of(deployed, name);
    assert_eq!(uid(&of(deployed, "pods", &id)), pod);
    let explained = podling(deployed, &["explain", name]).await.out();
    assert!(!explained.contains("asleep"), "nobody slept for it: {explained}");
}

async fn beats(deployed: &Deployed) -> usize {
    let metrics = deployed.metrics().await;
    let beats = metrics.lines().find_map(|line| line.strip_prefix("podling_heartbeats_total "));
    beats.map_or(0, |beats| beats.trim().parse::<f64>().unwrap() as usize)
}

fn api_answers(deployed: &Deployed) -> Option<()> {
    deployed.space().kubectl(&["get", "--raw", "/readyz"]).ok.then_some(())
}

#[tokio::test]
#[ignore = "ends programs of the node"]
async fn the_api_server_is_gone_for_two_minutes_and_sessions_go_on() {
    let (_control, deployed) = alone().await;
    let (_, pod) = at_work(deployed, "leslie").await;
    let api = Program::named("kube-apiserver");
    let before = beats(deployed).await;
    api.kill().await;
    // All the while one can work in it, by way of the control plane.
    wait_long(PATIENCE, "two minutes of heartbeats", async || {
        let done = deployed.cli().run(&["run", "leslie", "--", "cat", "file"]).await;
        assert_eq!(done.out(), "kept\n", "{done:?}");
        (beats(deployed).await >= before + BEATS).then_some(())
    })
    .await;
    let mut again = api.start();
    wait_long(PATIENCE, "the API server is back", async || api_answers(deployed)).await;
    works_on(deployed, "leslie", &pod).await;
    // The cluster itself needs a while until it starts pods again.
    podling(deployed, &["create", "barbara", "--no-wait"]).await;
    is(deployed, "barbara", "awake").await;
    for name in ["leslie", "barbara"] {
        podling(deployed, &["rm", "--discard", name]).await;
    }
    assert!(again.try_wait().unwrap().is_none(), "it runs on for those who come next");
}

#[tokio::test]
#[ignore = "ends programs of the node"]
async fn etcd_and_the_kubelet_are_killed_and_come_back() {
    let (_control, deployed) = alone().await;
    let (_, pod) = at_work(deployed, "tony").await;
    for name in ["etcd", "kubelet"] {
        let program = Program::named(name);
        program.kill().await;
        let mut again = program.start();
        wait_long(PATIENCE, "the API server answers", async || api_answers(deployed)).await;
        works_on(deployed, "tony", &pod).await;
        assert!(again.try_wait().unwrap().is_none(), "{name} runs on for those who come next");
    }
    wait_long(PATIENCE, "its node is ready", async || {
        let ready = ["wait", "--for=condition=Ready", "node/node0", "--timeout=1s"];
        deployed.space().kubectl(&ready).ok.then_some(())
    })
    .await;
    podling(deployed, &["sleep", "--force", "tony"]).await;
    assert_eq!(podling(deployed, &["run", "tony", "--", "cat", "file"]).await.out(), "kept\n");
    podling(deployed, &["rm", "--discard", "tony"]).await;
}

#[tokio::test]
#[ignore = "ends programs of the node"]
async fn a_node_that_is_silent_keeps_its_pods_and_nothing_else_writes_to_their_volumes() {
    let (_control, deployed) = alone().await;
    let space = deployed.space();
    let (id, pod) = at_work(deployed, "dennis").await;
    let kubelet = Program::named("kubelet");
    kubelet.kill().await;
    // Nobody is there who would end its pod.
    edit(deployed, "dennis", r#"{"desiredState": "Asleep"}"#);
    wait_long(PATIENCE, "it says what it waits for", async || {
        let message = space.field("ws/dennis", ".status.message");
        message.contains("the node node0 does not answer, and may still run the pod").then_some(())
    })
    .await;
    // Also where somebody wants it back.
    edit(deployed, "dennis", r#"{"desiredState": "Awake"}"#);
    wait_for("that is seen", async || {
        let [seen, written] = [".status.observedGeneration", ".metadata.generation"];
        (space.field("ws/dennis", seen) == space.field("ws/dennis", written)).then_some(())
    })
    .await;
    assert_eq!(uid(&of(deployed, "pods", &id)), pod, "it has one pod, and that is the old one");

    let mut again = kubelet.start();
    wait_long(PATIENCE, "another pod serves it", async || {
        let pods = of(deployed, "pods", &id);
        (space.field("ws/dennis", ".status.state") == "awake" && pods.len() == 1 && uid(&pods) != pod)
            .then_some(())
    })
    .await;
    assert_eq!(podling(deployed, &["run", "dennis", "--", "cat", "file"]).await.out(), "kept\n");
    podling(deployed, &["rm", "--discard", "dennis"]).await;
    assert!(again.try_wait().unwrap().is_none(), "it runs on for those who come next");
}

#[tokio::test]
#[ignore = "empties the node"]
async fn a_drained_node_gives_its_workspaces_back_with_their_files() {
    let (_control, deployed) = alone().await;
    let space = deployed.space();
    let (id, pod) = at_work(deployed, "margaret").await;
    let of_workspaces = "--pod-selector=podling.dev/workspace";
    space
        .kubectl(&["drain", "node0", of_workspaces, "--force", "--delete-emptydir-data", "--timeout=120s"])
        .good();
    wait_for("it says what it waits for", async || {
        (space.field("ws/margaret", ".status.reason") == "Unschedulable").then_some(())
    })
    .await;
    space.kubectl(&["uncordon", "node0"]).good();
    is(deployed, "margaret", "awake").await;
    assert_ne!(uid(&of(deployed, "pods", &id)), pod);
    assert_eq!(podling(deployed, &["run", "margaret", "--", "cat", "file"]).await.out(), "kept\n");
    assert!(podling(deployed, &["explain", "margaret"]).await.out().contains("as a drain of its node does"));
    podling(deployed, &["rm", "--discard", "margaret"]).await;
}

#[tokio::test]
#[ignore = "takes its pod's memory"]
async fn a_program_that_takes_all_memory_ends_and_the_workspace_is_there() {
    let (_control, deployed) = alone().await;
    let (id, _) = at_work(deployed, "grete").await;
    // It doubles until the kernel has had enough.
    let hog = "x=a; while :; do x=$x$x; done";
    let done = deployed.cli().run(&["run", "grete", "--", "sh", "-c", hog]).await;
    assert_ne!(done.code, Some(0), "{done:?}");
    wait_long(PATIENCE, "one can work in it", async || {
        let read = deployed.cli().run(&["run", "grete", "--", "cat", "file"]).await;
        (read.code == Some(0) && read.out() == "kept\n").then_some(())
    })
    .await;
    let pods = of(deployed, "pods", &id);
    let restarts = &pods[0]["status"]["containerStatuses"][0]["restartCount"];
    assert_eq!(restarts, &Value::from(0), "a start is one pod");
    podling(deployed, &["rm", "--discard", "grete"]).await;
}

#[tokio::test]
#[ignore = "takes the namespace's quota"]
async fn a_quota_that_others_use_up_is_a_queue_and_no_error() {
    let (_control, deployed) = alone().await;
    let space = deployed.space();
    let workspaces = ["get", "pods", "--selector", "podling.dev/workspace", "--output", "name"];
    let pods = space.kubectl(&workspaces).good().lines().count();
    let hard = format!(r#"{{"spec": {{"hard": {{"pods": "{pods}"}}}}}}"#);
    let quota =
        |hard: &str| space.kubectl(&["patch", "quota", "podling", "--type=merge", "--patch", hard]).good();
    quota(&hard);
    podling(deployed, &["create", "radia", "--no-wait"]).await;
    is(deployed, "radia", "queued").await;
    assert_eq!(space.field("ws/radia", ".status.reason"), "QuotaExceeded");
    quota(r#"{"spec": {"hard": {"pods": "200"}}}"#);
    is(deployed, "radia", "awake").await;
    podling(deployed, &["rm", "--discard", "radia"]).await;
}

#[tokio::test]
#[ignore = "takes the rules out of a kind"]
async fn one_that_was_edited_into_nonsense_hides_nobody_and_is_served_again_when_it_is_mended() {
    const KIND: &str = "crd/workspaces.podling.dev";
    const SPEC: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let (_control, deployed) = alone().await;
    let space = deployed.space();
    let (id, pod) = at_work(deployed, "niklaus").await;
    podling(deployed, &["create", "ole"]).await;
    let rules = space.field(KIND, ".spec.versions[0].schema.openAPIV3Schema.properties.spec");
    let replace = |rules: &str| {
        let patch = format!(r#"[{{"op": "replace", "path": "{SPEC}", "value": {rules}}}]"#);
        space.kubectl(&["patch", KIND, "--type=json", "--patch", &patch]).good();
    };
    let edited = async |spec: &str| {
        let patch = ["patch", "ws", "niklaus", "--type=merge", "--patch", spec];
        wait_for("the edit is let in", async || space.kubectl(&patch).ok.then_some(())).await;
    };
    // As an older kind, which knew fewer rules, would have let it in.
    replace(r#"{"type": "object", "x-kubernetes-preserve-unknown-fields": true}"#);
    edited(r#"{"spec": {"desiredState": ["nonsense"], "policy": 7}}"#).await;

    // Nobody else notices, nor does a control plane that starts.
    podling(deployed, &["sleep", "--force", "ole"]).await;
    assert_eq!(podling(deployed, &["run", "ole", "--", "echo", "here"]).await.out(), "here\n");
    space.kubectl(&["delete", "pod", "--selector", "app.kubernetes.io/name=podling-control"]).good();
    deployed.is_up();
    assert_eq!(podling(deployed, &["run", "ole", "--", "echo", "here"]).await.out(), "here\n");
    podling(deployed, &["rm", "--discard", "ole"]).await;
    assert_eq!(uid(&of(deployed, "pods", &id)), pod, "nobody touches what cannot be read");
    let refused = deployed.cli().run(&["create", "niklaus"]).await;
    assert!(refused.err().contains("there is a workspace niklaus in this namespace already"), "{refused:?}");

    edited(r#"{"spec": {"desiredState": "Awake", "policy": null}}"#).await;
    replace(&rules);
    works_on(deployed, "niklaus", &pod).await;
    podling(deployed, &["rm", "--discard", "niklaus"]).await;
}
