//! Faults of a cluster, and their effect on users of workspaces. Each test kills programs of the
//! node, or uses up its resources. The tests run one after the other, together with those of leader
//! election, on a node of their own (`cargo xtask cluster faults`).

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use podling_tests::{Deployed, wait_long, wait_until};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;

use crate::lifecycle::{
    lock_control_plane, objects_of, patch_spec, run_cli, uid_of_only_pod, wait_state, workspace_id,
};

/// Time limit for a recovery by the node, such as the restart of a pod.
const RECOVERY_DEADLINE: std::time::Duration = std::time::Duration::from_secs(240);
/// Number of heartbeats that one workspace sends in two minutes.
const HEARTBEATS: usize = 8;

/// A running program of the node, with the command and environment that started it.
struct NodeProgram {
    pid: i32,
    command: Vec<String>,
    environment: Vec<(String, String)>,
}

impl NodeProgram {
    /// Finds the program by its name. Panics if it does not run.
    fn named(name: &str) -> Self {
        let read = |pid: i32, what: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let has_name = |pid: &i32| read(*pid, "cmdline").first().is_some_and(|word| word == name);
        let pid = pids
            .find(has_name)
            .unwrap_or_else(|| panic!("{name} does not run; only a sandbox runs it as a process"));
        let pairs = read(pid, "environ").into_iter();
        let environment = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Self { pid, command: read(pid, "cmdline"), environment: environment.collect() }
    }

    /// Kills the program and waits until its process is gone, because its successor needs its
    /// ports.
    async fn kill(&self) {
        let (pid, own) = (Pid::from_raw(self.pid).unwrap(), format!("/proc/{}", self.pid));
        kill_process(pid, Signal::KILL).expect("KILL");
        wait_until("the end of the killed program", || {
            // A program that a test has restarted is a child of this process and must be reaped.
            let _reaped = waitpid(Some(pid), WaitOptions::NOHANG);
            !Path::new(&own).exists()
        })
        .await;
    }

    /// Starts the program with its original command and environment.
    fn start(&self) -> Child {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).env_clear().envs(self.environment.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts")
    }
}

/// Creates an awake workspace with a file and a background job. Returns its id and its pod's uid.
async fn create_busy_workspace(deployed: &Deployed, name: &str) -> (String, String) {
    run_cli(deployed, &["create", name]).await;
    let script =
        "echo kept >file; (while :; do date +%s%N >tick; sleep 0.2; done) >/dev/null 2>&1 & echo $! >job";
    run_cli(deployed, &["run", name, "--", "sh", "-c", script]).await;
    let id = workspace_id(deployed, name);
    let pod = uid_of_only_pod(&objects_of(deployed, "pods", &id));
    (id, pod)
}

/// Asserts that the same job still runs in the same pod.
async fn assert_job_runs_on(deployed: &Deployed, name: &str, pod: &str) {
    wait_long(RECOVERY_DEADLINE, "the workspace to answer", async || {
        let done =
            deployed.cli().run(&["run", name, "--", "sh", "-c", "kill -0 $(cat job) && cat tick"]).await;
        (done.code == Some(0)).then_some(())
    })
    .await;
    let id = workspace_id(deployed, name);
    assert_eq!(uid_of_only_pod(&objects_of(deployed, "pods", &id)), pod);
    let explained = run_cli(deployed, &["explain", name]).await.out();
    let (_, decisions) = explained.split_once("Latest decisions").expect("a log of decisions");
    assert!(!decisions.contains("asleep"), "the workspace did not sleep: {explained}");
}

async fn heartbeats(deployed: &Deployed) -> usize {
    let metrics = deployed.metrics().await;
    let total = metrics.lines().find_map(|line| line.strip_prefix("podling_heartbeats_total "));
    total.map_or(0, |total| total.trim().parse::<f64>().unwrap() as usize)
}

fn api_answers(deployed: &Deployed) -> Option<()> {
    deployed.namespace().kubectl(&["get", "--raw", "/readyz"]).ok.then_some(())
}

#[tokio::test]
#[ignore = "ends programs of the node"]
async fn api_server_outage_does_not_interrupt_sessions() {
    let (_control, deployed) = lock_control_plane().await;
    let (_, pod) = create_busy_workspace(deployed, "leslie").await;
    let api = NodeProgram::named("kube-apiserver");
    let before = heartbeats(deployed).await;
    api.kill().await;
    // During the outage, the workspace is usable through the control plane.
    wait_long(RECOVERY_DEADLINE, "the heartbeats of two minutes", async || {
        let done = deployed.cli().run(&["run", "leslie", "--", "cat", "file"]).await;
        assert_eq!(done.out(), "kept\n", "{done:?}");
        (heartbeats(deployed).await >= before + HEARTBEATS).then_some(())
    })
    .await;
    let mut programs = vec![api.start()];
    wait_long(RECOVERY_DEADLINE, "the API server", async || api_answers(deployed)).await;
    // After such a long outage, these programs would wait for a minute or more before they
    // reconnect.
    for name in ["kube-controller-manager", "kube-scheduler", "kubelet", "local-path-provisioner"] {
        let program = NodeProgram::named(name);
        program.kill().await;
        programs.push(program.start());
    }
    assert_job_runs_on(deployed, "leslie", &pod).await;
    run_cli(deployed, &["create", "barbara", "--no-wait"]).await;
    wait_state(deployed, "barbara", "awake").await;
    for name in ["leslie", "barbara"] {
        run_cli(deployed, &["rm", "--discard", name]).await;
    }
    for program in &mut programs {
        assert!(program.try_wait().unwrap().is_none(), "restarted programs keep running for the next tests");
    }
}

#[tokio::test]
#[ignore = "ends programs of the node"]
async fn restart_of_etcd_and_kubelet_keeps_workspaces() {
    let (_control, deployed) = lock_control_plane().await;
    let (_, pod) = create_busy_workspace(deployed, "tony").await;
    for name in ["etcd", "kubelet"] {
        let program = NodeProgram::named(name);
        program.kill().await;
        let mut again = program.start();
        wait_long(RECOVERY_DEADLINE, "the API server", async || api_answers(deployed)).await;
        assert_job_runs_on(deployed, "tony", &pod).await;
        assert!(again.try_wait().unwrap().is_none(), "{name} keeps running for the next tests");
    }
    wait_long(RECOVERY_DEADLINE, "a ready node", async || {
        let ready = ["wait", "--for=condition=Ready", "node/node0", "--timeout=1s"];
        deployed.namespace().kubectl(&ready).ok.then_some(())
    })
    .await;
    run_cli(deployed, &["sleep", "--force", "tony"]).await;
    assert_eq!(run_cli(deployed, &["run", "tony", "--", "cat", "file"]).await.out(), "kept\n");
    run_cli(deployed, &["rm", "--discard", "tony"]).await;
}

#[tokio::test]
#[ignore = "ends programs of the node"]
async fn silent_node_keeps_its_pod_and_no_second_pod_starts() {
    let (_control, deployed) = lock_control_plane().await;
    let space = deployed.namespace();
    let (id, pod) = create_busy_workspace(deployed, "dennis").await;
    let kubelet = NodeProgram::named("kubelet");
    kubelet.kill().await;
    // Without its kubelet, no program ends the pod.
    patch_spec(deployed, "dennis", r#"{"desiredState": "Asleep"}"#);
    wait_long(RECOVERY_DEADLINE, "a reason that names the cause", async || {
        let [reason, message] = [".status.reason", ".status.message"].map(|of| space.field("ws/dennis", of));
        (reason == "ActionFailed"
            && message.contains("the node node0 does not answer and may still run the pod"))
        .then_some(())
    })
    .await;
    // No second pod starts either when a user requests wake.
    patch_spec(deployed, "dennis", r#"{"desiredState": "Awake"}"#);
    wait_until("the edit to be observed", || {
        let [observed, written] = [".status.observedGeneration", ".metadata.generation"];
        space.field("ws/dennis", observed) == space.field("ws/dennis", written)
    })
    .await;
    assert_eq!(uid_of_only_pod(&objects_of(deployed, "pods", &id)), pod, "the old pod is the only one");

    let mut again = kubelet.start();
    wait_long(RECOVERY_DEADLINE, "another pod to serve it", async || {
        let pods = objects_of(deployed, "pods", &id);
        (space.field("ws/dennis", ".status.state") == "awake"
            && pods.len() == 1
            && uid_of_only_pod(&pods) != pod)
            .then_some(())
    })
    .await;
    assert_eq!(run_cli(deployed, &["run", "dennis", "--", "cat", "file"]).await.out(), "kept\n");
    run_cli(deployed, &["rm", "--discard", "dennis"]).await;
    assert!(again.try_wait().unwrap().is_none(), "the kubelet keeps running for the next tests");
}

#[tokio::test]
#[ignore = "drains the node"]
async fn drained_node_returns_workspaces_with_their_files() {
    let (_control, deployed) = lock_control_plane().await;
    let space = deployed.namespace();
    let (id, pod) = create_busy_workspace(deployed, "margaret").await;
    let of_workspaces = "--pod-selector=podling.dev/workspace";
    space
        .kubectl(&["drain", "node0", of_workspaces, "--delete-emptydir-data", "--timeout=120s"])
        .expect_success();
    wait_until("a reason that names the cause", || {
        space.field("ws/margaret", ".status.reason") == "Unschedulable"
    })
    .await;
    space.kubectl(&["uncordon", "node0"]).expect_success();
    wait_state(deployed, "margaret", "awake").await;
    assert_ne!(uid_of_only_pod(&objects_of(deployed, "pods", &id)), pod);
    assert_eq!(run_cli(deployed, &["run", "margaret", "--", "cat", "file"]).await.out(), "kept\n");
    assert!(
        run_cli(deployed, &["explain", "margaret"])
            .await
            .out()
            .contains("for example by a drain of its node")
    );
    run_cli(deployed, &["rm", "--discard", "margaret"]).await;
}

#[tokio::test]
#[ignore = "uses all memory of a pod"]
async fn memory_hog_is_killed_and_the_workspace_survives() {
    let (_control, deployed) = lock_control_plane().await;
    let (id, _) = create_busy_workspace(deployed, "grete").await;
    // The string doubles until the kernel kills the shell.
    let hog = "x=a; while :; do x=$x$x; done";
    let done = deployed.cli().run(&["run", "grete", "--", "sh", "-c", hog]).await;
    assert_ne!(done.code, Some(0), "{done:?}");
    wait_long(RECOVERY_DEADLINE, "a usable workspace", async || {
        let read = deployed.cli().run(&["run", "grete", "--", "cat", "file"]).await;
        (read.code == Some(0) && read.out() == "kept\n").then_some(())
    })
    .await;
    let pods = objects_of(deployed, "pods", &id);
    let restarts = &pods[0]["status"]["containerStatuses"][0]["restartCount"];
    assert_eq!(restarts, &Value::from(0), "the container of the pod was not restarted");
    run_cli(deployed, &["rm", "--discard", "grete"]).await;
}

#[tokio::test]
#[ignore = "uses up the namespace's quota"]
async fn exhausted_namespace_quota_queues_the_workspace() {
    let (_control, deployed) = lock_control_plane().await;
    let space = deployed.namespace();
    let workspaces = ["get", "pods", "--selector", "podling.dev/workspace", "--output", "name"];
    let pods = space.kubectl(&workspaces).expect_success().lines().count();
    let hard = format!(r#"{{"spec": {{"hard": {{"pods": "{pods}"}}}}}}"#);
    let quota = |hard: &str| {
        space.kubectl(&["patch", "quota", "podling", "--type=merge", "--patch", hard]).expect_success()
    };
    quota(&hard);
    run_cli(deployed, &["create", "radia", "--no-wait"]).await;
    wait_state(deployed, "radia", "queued").await;
    assert_eq!(space.field("ws/radia", ".status.reason"), "QuotaExceeded");
    quota(r#"{"spec": {"hard": {"pods": "200"}}}"#);
    wait_state(deployed, "radia", "awake").await;
    run_cli(deployed, &["rm", "--discard", "radia"]).await;
}

#[tokio::test]
#[ignore = "removes the validation rules of a CRD"]
async fn invalid_spec_affects_only_its_workspace_until_repaired() {
    const CRD: &str = "crd/workspaces.podling.dev";
    const SCHEMA: &str = "/spec/versions/0/schema/openAPIV3Schema";
    let (_control, deployed) = lock_control_plane().await;
    let space = deployed.namespace();
    let (id, pod) = create_busy_workspace(deployed, "niklaus").await;
    run_cli(deployed, &["create", "ole"]).await;
    let rules = space.field(CRD, ".spec.versions[0].schema.openAPIV3Schema");
    let replace = |rules: &str| {
        let patch = format!(r#"[{{"op": "replace", "path": "{SCHEMA}", "value": {rules}}}]"#);
        space.kubectl(&["patch", CRD, "--type=json", "--patch", &patch]).expect_success();
    };
    let edited = async |spec: &str| {
        let patch = ["patch", "ws", "niklaus", "--type=merge", "--patch", spec];
        wait_until("the edit to be accepted", || space.kubectl(&patch).ok).await;
    };
    // With these rules removed, the CRD accepts the invalid spec, as an older CRD would.
    replace(r#"{"type": "object", "x-kubernetes-preserve-unknown-fields": true}"#);
    edited(r#"{"spec": {"desiredState": ["nonsense"], "policy": 7}}"#).await;

    // Other workspaces and the start of a control plane are not affected.
    run_cli(deployed, &["sleep", "--force", "ole"]).await;
    assert_eq!(run_cli(deployed, &["run", "ole", "--", "echo", "here"]).await.out(), "here\n");
    space
        .kubectl(&["delete", "pod", "--selector", "app.kubernetes.io/name=podling-control"])
        .expect_success();
    deployed.wait_ready();
    assert_eq!(run_cli(deployed, &["run", "ole", "--", "echo", "here"]).await.out(), "here\n");
    run_cli(deployed, &["rm", "--discard", "ole"]).await;
    assert_eq!(
        uid_of_only_pod(&objects_of(deployed, "pods", &id)),
        pod,
        "a workspace with an invalid spec keeps its pod"
    );
    let refused = deployed.cli().run(&["create", "niklaus"]).await;
    assert!(refused.err().contains("a workspace named niklaus exists in this namespace"), "{refused:?}");

    edited(r#"{"spec": {"desiredState": "Awake", "policy": null}}"#).await;
    replace(&rules);
    assert_job_runs_on(deployed, "niklaus", &pod).await;
    run_cli(deployed, &["rm", "--discard", "niklaus"]).await;
}
