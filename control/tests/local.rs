//! The local backend with real processes. Most tests run real agents. Tests of processes alone run
//! scripts in place of agents.

#[path = "local/control_plane.rs"]
mod control_plane;

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, ExitCode, Stdio},
};

use control_plane::{DEADLINE, DataDir, LocalControlPlane, marked_processes};
use podling_core::reason::StateReason;
use podling_core::workspace::{AgentConnection, State};
use podling_testkit::processes::{pids, read_proc, signal};
use rustix::process::Signal;
use tokio::time::timeout;

/// The entry point of the agents that the other tests start. Does nothing as a test.
#[test]
fn run_as_agent() {
    if let Ok(words) = std::env::var("AGENT_ARGS") {
        let ended = podling_agent::main_with(words.split(' ').map(Into::into));
        std::process::exit(if ended == ExitCode::SUCCESS { 0 } else { 1 });
    }
}

/// Returns the detail of the last failed start, also while the next start is in progress.
fn start_failure(reason: &StateReason) -> &str {
    match reason {
        StateReason::AgentStartFailed { detail } | StateReason::AgentEnded { detail: Some(detail) } => detail,
        StateReason::AgentRestarting { cause, .. } => start_failure(cause),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn workspace_inherits_nothing_and_deletion_leaves_nothing() {
    let data = DataDir::new();
    let control_plane = LocalControlPlane::start(&data, data.agent()).await;
    let id = control_plane.create("demo").await;
    let view = control_plane
        .wait(&id, |view| view.state == State::Awake && view.connection == AgentConnection::Connected)
        .await;
    assert_eq!(view.agent.as_ref().unwrap().epoch, 1);

    let mode = |name: &str| data.of(&id).join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("home"), mode("state"), mode("run/credential")), (0o700, 0o700, 0o700, 0o600));
    let pid = data.agent_pid(&id);
    let environ = read_proc(pid, "environ");
    for variable in environ.split(' ').filter_map(|v| v.split_once('=')).map(|(name, _)| name) {
        let known = ["PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PODLING_AGENT_LOG", "PODLING_WORKSPACE_ID"];
        // The script that runs this test program as an agent adds AGENT_ARGS and PWD.
        assert!(
            known.contains(&variable) || ["AGENT_ARGS", "PWD"].contains(&variable),
            "{variable} must not be inherited"
        );
    }
    let session = |pid| read_proc(pid, "stat").split(' ').nth(5).unwrap_or_default().to_owned();
    assert_eq!(session(pid), pid.to_string(), "the agent leads its own session");

    control_plane.handle.delete(id.clone(), true).await.unwrap();
    control_plane.gone(&id).await;
    assert!(!data.of(&id).exists());
    assert_eq!(marked_processes(&id), [0; 0]);
}

#[tokio::test]
async fn killed_agent_is_replaced_and_its_processes_are_ended() {
    let data = DataDir::new();
    let control_plane = LocalControlPlane::start(&data, data.agent()).await;
    let id = control_plane.create("demo").await;
    let before = control_plane.wait(&id, |view| view.state == State::Awake).await;
    let old = data.agent_pid(&id);
    // Processes of terminals and commands carry the marker variable. This process leads its own
    // session and ignores HUP and TERM.
    let stubborn = "trap '' HUP TERM; echo up; while :; do sleep 1; done";
    let mut orphan = Command::new("setsid")
        .args(["sh", "-c", stubborn])
        .env("PODLING_WORKSPACE_ID", id.as_str())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(orphan.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    signal(old, Signal::KILL);
    let after = control_plane
        .wait(&id, |view| {
            view.state == State::Awake && view.agent.as_ref().is_some_and(|agent| agent.epoch == 2)
        })
        .await;
    let boot = |view: &podling_control::snapshot::WorkspaceView| view.agent.as_ref().unwrap().boot_id.clone();
    assert_ne!(boot(&before), boot(&after));
    assert_eq!(after.restarts, 1);
    assert!(orphan.try_wait().unwrap().is_some(), "the process ended before the new agent started");
    assert!(
        !read_proc(old, "stat").contains('R') && pids().all(|pid| pid != old),
        "the old agent is not a zombie either"
    );
}

#[tokio::test]
async fn restarted_control_plane_adopts_running_agents() {
    let data = DataDir::new();
    let control_plane = LocalControlPlane::start(&data, data.agent()).await;
    let id = control_plane.create("demo").await;
    let before = control_plane.wait(&id, |view| view.state == State::Awake).await;
    let pid = data.agent_pid(&id);
    drop(control_plane);
    let control_plane = LocalControlPlane::start(&data, data.agent_again()).await;
    let after = control_plane.wait(&id, |view| view.connection == AgentConnection::Connected).await;
    assert_eq!(before.agent, after.agent, "the same run of the same agent");
    assert_eq!((data.agent_pid(&id), after.restarts), (pid, 0));
    // In production the control plane is not the parent of an adopted agent, and must notice its
    // end all the same.
    signal(pid, Signal::KILL);
    control_plane.wait(&id, |view| view.agent.as_ref().is_some_and(|agent| agent.epoch == 2)).await;
}

#[tokio::test]
async fn unreadable_workspace_waits_and_delays_no_other() {
    let data = DataDir::new();
    let control_plane = LocalControlPlane::start(&data, data.agent()).await;
    let (broken, whole) = (control_plane.create("broken").await, control_plane.create("whole").await);
    for id in [&broken, &whole] {
        control_plane.wait(id, |view| view.state == State::Awake).await;
    }
    let pid = data.agent_pid(&broken);
    drop(control_plane);
    let record = data.of(&broken).join("run/agent.json");
    std::fs::rename(&record, record.with_extension("aside")).unwrap();
    // A symlink loop cannot be read by root either.
    std::os::unix::fs::symlink(&record, &record).unwrap();
    let control_plane = LocalControlPlane::start(&data, data.agent_again()).await;
    control_plane.wait(&whole, |view| view.connection == AgentConnection::Connected).await;
    let view = control_plane.wait(&broken, |_| true).await;
    assert_eq!(
        (view.state, view.connection),
        (State::Awake, AgentConnection::Unknown),
        "the state stays as it was"
    );
    std::fs::rename(record.with_extension("aside"), &record).unwrap();
    let view = control_plane.wait(&broken, |view| view.connection == AgentConnection::Connected).await;
    assert_eq!((data.agent_pid(&broken), view.restarts), (pid, 0), "the agent ran all the time");
}

#[tokio::test]
async fn agent_killed_while_control_plane_was_down_is_replaced() {
    let data = DataDir::new();
    let control_plane = LocalControlPlane::start(&data, data.agent()).await;
    let id = control_plane.create("demo").await;
    control_plane.wait(&id, |view| view.state == State::Awake).await;
    drop(control_plane);
    signal(data.agent_pid(&id), Signal::KILL);
    let control_plane = LocalControlPlane::start(&data, data.agent_again()).await;
    control_plane.wait(&id, |view| view.agent.as_ref().is_some_and(|agent| agent.epoch == 2)).await;
}

#[tokio::test]
async fn down_ends_all_processes_keeps_files_and_allows_wake() {
    let data = DataDir::new();
    let control_plane = LocalControlPlane::start(&data, data.agent()).await;
    let id = control_plane.create("demo").await;
    control_plane.wait(&id, |view| view.state == State::Awake).await;
    std::fs::write(data.of(&id).join("home/kept"), "kept").unwrap();
    control_plane.handle.down(true).await.unwrap();
    timeout(DEADLINE, control_plane.shutdown.cancelled()).await.expect("the control plane shuts down");
    assert_eq!(marked_processes(&id), [0; 0]);
    drop(control_plane);
    let control_plane = LocalControlPlane::start(&data, data.agent_again()).await;
    control_plane.handle.wake(id.clone()).await.unwrap();
    control_plane.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(std::fs::read_to_string(data.of(&id).join("home/kept")).unwrap(), "kept");
}

#[tokio::test]
async fn broken_agent_command_is_explained_in_the_reason() {
    let data = DataDir::new();
    let control_plane = LocalControlPlane::start(&data, vec!["/no/such/agent".into()]).await;
    let id = control_plane.create("demo").await;
    let view = control_plane.wait(&id, |view| view.restarts > 0).await;
    assert!(start_failure(&view.reason).contains("/no/such/agent"), "{:?}", view.reason);

    let data = DataDir::new();
    let control_plane = LocalControlPlane::start(&data, data.script("fails", "exit 3")).await;
    let id = control_plane.create("demo").await;
    let view = control_plane.wait(&id, |view| view.restarts > 0).await;
    let detail = start_failure(&view.reason);
    assert!(detail.contains("exit code 3") || detail.contains("at once"), "{detail}");
}

#[tokio::test]
async fn agent_that_ignores_term_is_killed() {
    let data = DataDir::new();
    let stubborn = "trap '' HUP INT TERM; while :; do sleep 1; done";
    let control_plane = LocalControlPlane::start(&data, data.script("stubborn", stubborn)).await;
    let id = control_plane.create("demo").await;
    control_plane.wait(&id, |view| view.reason == StateReason::AgentStarting).await;
    control_plane.handle.delete(id.clone(), true).await.unwrap();
    control_plane.gone(&id).await;
    assert_eq!(marked_processes(&id), [0; 0]);
}
