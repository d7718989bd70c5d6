//! The local backend with real processes: the agent where the agent matters, a script where only its process does.

#[path = "local/plane.rs"]
mod plane;

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, ExitCode, Stdio},
};

use plane::{DEADLINE, Data, Plane, kill, marked, pids, reads};
use podling_core::workspace::{AgentConnection, State};
use tokio::time::timeout;

/// Not a test of its own: what the agents of the others run.
#[test]
fn be_an_agent() {
    if let Ok(words) = std::env::var("AGENT_WORDS") {
        let ended = podling_agent::main_with(words.split(' ').map(Into::into));
        std::process::exit(if ended == ExitCode::SUCCESS { 0 } else { 1 });
    }
}

#[tokio::test]
async fn a_workspace_starts_with_nothing_of_ours_and_goes_with_all_of_it() {
    let data = Data::new();
    let plane = Plane::up(&data, data.agent()).await;
    let id = plane.create("demo").await;
    let view = plane
        .wait(&id, |view| view.state == State::Awake && view.connection == AgentConnection::Connected)
        .await;
    assert_eq!(view.agent.as_ref().unwrap().epoch, 1);

    let mode = |name: &str| data.of(&id).join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("home"), mode("state"), mode("run/credential")), (0o700, 0o700, 0o700, 0o600));
    let pid = data.agent_pid(&id);
    let environ = reads(pid, "environ");
    for variable in environ.split(' ').filter_map(|v| v.split_once('=')).map(|(name, _)| name) {
        let known = ["PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PODLING_AGENT_LOG", "PODLING_WORKSPACE_ID"];
        // The script that makes this test program an agent adds the last two.
        assert!(
            known.contains(&variable) || ["AGENT_WORDS", "PWD"].contains(&variable),
            "{variable} came along"
        );
    }
    let session = |pid| reads(pid, "stat").split(' ').nth(5).unwrap_or_default().to_owned();
    assert_eq!(session(pid), pid.to_string(), "it leads a session of its own");

    plane.handle.delete(id.clone(), true).await.unwrap();
    plane.gone(&id).await;
    assert!(!data.of(&id).exists());
    assert_eq!(marked(&id), [0; 0]);
}

#[tokio::test]
async fn an_agent_that_is_killed_is_recovered_and_nothing_of_the_old_one_runs() {
    let data = Data::new();
    let plane = Plane::up(&data, data.agent()).await;
    let id = plane.create("demo").await;
    let before = plane.wait(&id, |view| view.state == State::Awake).await;
    let old = data.agent_pid(&id);
    // What terminals and commands start carries the mark; one of them made a session of its own and hears neither HUP nor TERM.
    let stubborn = "trap '' HUP TERM; echo up; while :; do sleep 1; done";
    let mut orphan = Command::new("setsid")
        .args(["sh", "-c", stubborn])
        .env("PODLING_WORKSPACE_ID", id.as_str())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(orphan.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    kill(old);
    let after = plane
        .wait(&id, |view| {
            view.state == State::Awake && view.agent.as_ref().is_some_and(|agent| agent.epoch == 2)
        })
        .await;
    let boot = |view: &podling_control::snapshot::WorkspaceView| view.agent.as_ref().unwrap().boot_id.clone();
    assert_ne!(boot(&before), boot(&after));
    assert_eq!(after.restarts, 1);
    assert!(orphan.try_wait().unwrap().is_some(), "it ended before the new agent was started");
    assert!(
        !reads(old, "stat").contains('R') && pids().all(|pid| pid != old),
        "nor is the old agent a zombie"
    );
}

#[tokio::test]
async fn a_control_plane_that_is_killed_finds_its_agents_again() {
    let data = Data::new();
    let plane = Plane::up(&data, data.agent()).await;
    let id = plane.create("demo").await;
    let before = plane.wait(&id, |view| view.state == State::Awake).await;
    let pid = data.agent_pid(&id);
    drop(plane);
    let plane = Plane::up(&data, data.agent_again()).await;
    let after = plane.wait(&id, |view| view.connection == AgentConnection::Connected).await;
    assert_eq!(before.agent, after.agent, "the same run of the same agent");
    assert_eq!((data.agent_pid(&id), after.restarts), (pid, 0));
    // Adopted, so not our child any more in real life; its death is seen all the same.
    kill(pid);
    plane.wait(&id, |view| view.agent.as_ref().is_some_and(|agent| agent.epoch == 2)).await;
}

#[tokio::test]
async fn a_workspace_that_cannot_be_looked_at_waits_and_holds_up_nobody() {
    let data = Data::new();
    let plane = Plane::up(&data, data.agent()).await;
    let (broken, whole) = (plane.create("broken").await, plane.create("whole").await);
    for id in [&broken, &whole] {
        plane.wait(id, |view| view.state == State::Awake).await;
    }
    let pid = data.agent_pid(&broken);
    drop(plane);
    let record = data.of(&broken).join("run/agent.json");
    std::fs::rename(&record, record.with_extension("aside")).unwrap();
    // It leads in a circle: an error that root meets too.
    std::os::unix::fs::symlink(&record, &record).unwrap();
    let plane = Plane::up(&data, data.agent_again()).await;
    plane.wait(&whole, |view| view.connection == AgentConnection::Connected).await;
    let view = plane.wait(&broken, |_| true).await;
    assert_eq!(
        (view.state, view.connection),
        (State::Awake, AgentConnection::Unknown),
        "nothing is concluded"
    );
    std::fs::rename(record.with_extension("aside"), &record).unwrap();
    let view = plane.wait(&broken, |view| view.connection == AgentConnection::Connected).await;
    assert_eq!((data.agent_pid(&broken), view.restarts), (pid, 0), "it lived all the time");
}

#[tokio::test]
async fn an_agent_that_died_while_nobody_looked_is_replaced_at_the_next_start() {
    let data = Data::new();
    let plane = Plane::up(&data, data.agent()).await;
    let id = plane.create("demo").await;
    plane.wait(&id, |view| view.state == State::Awake).await;
    drop(plane);
    kill(data.agent_pid(&id));
    let plane = Plane::up(&data, data.agent_again()).await;
    plane.wait(&id, |view| view.agent.as_ref().is_some_and(|agent| agent.epoch == 2)).await;
}

#[tokio::test]
async fn down_leaves_no_process_and_all_files_and_after_the_next_up_it_wakes() {
    let data = Data::new();
    let plane = Plane::up(&data, data.agent()).await;
    let id = plane.create("demo").await;
    plane.wait(&id, |view| view.state == State::Awake).await;
    std::fs::write(data.of(&id).join("home/kept"), "kept").unwrap();
    plane.handle.down(true).await.unwrap();
    timeout(DEADLINE, plane.shutdown.cancelled()).await.expect("it went down");
    assert_eq!(marked(&id), [0; 0]);
    drop(plane);
    let plane = Plane::up(&data, data.agent_again()).await;
    plane.handle.wake(id.clone()).await.unwrap();
    plane.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(std::fs::read_to_string(data.of(&id).join("home/kept")).unwrap(), "kept");
}

#[tokio::test]
async fn a_program_that_is_no_agent_says_why_in_the_reason() {
    let data = Data::new();
    let plane = Plane::up(&data, vec!["/no/such/agent".into()]).await;
    let id = plane.create("demo").await;
    let view = plane.wait(&id, |view| view.restarts > 0).await;
    assert!(view.reason.contains("/no/such/agent"), "{}", view.reason);

    let data = Data::new();
    let plane = Plane::up(&data, data.script("fails", "exit 3")).await;
    let id = plane.create("demo").await;
    let view = plane.wait(&id, |view| view.restarts > 0).await;
    assert!(view.reason.contains("exit code 3") || view.reason.contains("at once"), "{}", view.reason);
}

#[tokio::test]
async fn an_agent_that_will_not_end_is_ended() {
    let data = Data::new();
    let stubborn = "trap '' HUP INT TERM; while :; do sleep 1; done";
    let plane = Plane::up(&data, data.script("stubborn", stubborn)).await;
    let id = plane.create("demo").await;
    plane.wait(&id, |view| view.reason.contains("being started")).await;
    plane.handle.delete(id.clone(), true).await.unwrap();
    plane.gone(&id).await;
    assert_eq!(marked(&id), [0; 0]);
}
