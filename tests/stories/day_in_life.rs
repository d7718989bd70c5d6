//! A day on one machine. Ctrl-C on `podling up` puts idle workspaces to sleep and leaves those in
//! use running. `podling down` stops all. The next `podling up` serves all workspaces again.

use std::{
    fs::{self, File},
    process::Stdio,
};

use podling_proto::{
    agent::v1::{ActivityLevel, GetActivityRequest},
    control::v1::{State, StateReasonCode},
    error::Reason,
};
use podling_tests::{
    Podling, ResumingClient, SuspendedProcess, program, refused, script, wait_for, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_sleeps_idle_workspaces_and_next_up_adopts_busy() {
    let mut podling = Podling::up().await;
    let (ada, bob) = (podling.workspace("ada").await, podling.workspace("bob").await);
    let inside = podling.client().for_workspace(&ada.id);
    let job = "echo begun; while sleep 0.1; do echo tick >> ticks; done & cat; kill $!; echo ended";
    let terminal = inside.open(script(job)).await;
    let mut viewer = ResumingClient::new("ada", &terminal.id);
    viewer.run_until("the job has begun", || inside.clone(), |p| p.text().contains("begun")).await;
    let before = [podling.wait_until_awake(&ada).await, podling.wait_until_awake(&bob).await]
        .map(|now| now.agent.expect("an agent"));
    let agent = podling.agent_pid(&ada);

    let status = podling.ctrl_c().await;
    assert!(status.success(), "{status}: {}", podling.log());
    let left: Vec<_> = podling.running_agents().iter().map(|left| left.pid).collect();
    assert_eq!(left, [agent], "only the busy workspace's agent runs");
    let ticks = || fs::read(podling.home_dir(&ada).join("ticks")).map_or(0, |ticks| ticks.len());
    let ticks_before = ticks();
    wait_until("the job continues without a control plane", || ticks() > ticks_before).await;

    podling.restart().await;
    let after = podling.wait_until_awake(&ada).await.agent.expect("an agent");
    assert_eq!((&after.boot_id, after.epoch), (&before[0].boot_id, before[0].epoch), "the agent is adopted");
    let inside = podling.client().for_workspace(&ada.id);
    viewer.typed = b"good morning\r\x04".to_vec();
    viewer.run_until("the terminal continues", || inside.clone(), |p| p.exit.is_some()).await;
    assert!(viewer.text().contains("good morning") && viewer.text().contains("ended"), "{:?}", viewer.text());

    let asleep = podling.get(&bob).await;
    assert_eq!(asleep.state(), State::Asleep, "an idle workspace sleeps until the next request");
    let code = asleep.reason.as_ref().map(|reason| reason.code());
    assert!(matches!(code, Some(StateReasonCode::Idle | StateReasonCode::IdleAtShutdown)), "{code:?}");
    assert_eq!(podling.client().for_workspace(&bob.id).sh("echo here").await, "here\n");
    assert_eq!(podling.wait_until_awake(&bob).await.agent.expect("an agent").epoch, before[1].epoch + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hangup_stops_podling_up() {
    let dir = tempfile::tempdir().expect("a directory");
    // Writes to stderr fail, as on a closed terminal.
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let mut up = Command::new(program("podling"))
        .args(["up", "--listen", "127.0.0.1:0", "--json", "--data"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(full)
        .kill_on_drop(true)
        .spawn()
        .expect("podling up");
    let is_up = dir.path().join("run/up.json");
    wait_until("podling up is ready", || is_up.exists()).await;
    kill_process(Pid::from_raw(up.id().expect("podling up runs") as i32).expect("a pid"), Signal::HUP)
        .expect("a signal");
    let status = wait_for("podling up has ended", async || up.try_wait().expect("wait for podling up")).await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_ctrl_c_exits_at_once() {
    let mut podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let before = podling.wait_until_awake(&ada).await.agent.expect("an agent");
    // The workspace is idle, but its suspended agent cannot answer the prepare directive.
    let suspended = SuspendedProcess::new(podling.agent_pid(&ada));
    podling.interrupt();
    podling.wait_for_state(&ada, State::FallingAsleep).await;
    let status = podling.ctrl_c().await;
    assert_eq!(status.code(), Some(130), "{status}: {}", podling.log());
    drop(suspended);
    podling.restart().await;
    let after = podling.wait_until_awake(&ada).await.agent.expect("an agent");
    assert_eq!((after.boot_id, after.epoch), (before.boot_id, before.epoch), "the agent is adopted");
}

#[tokio::test(flavor = "multi_thread")]
async fn down_stops_all_and_workspaces_sleep_after_next_up() {
    let mut podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    inside.sh("echo kept > file").await;
    inside.open(script("setsid nohup sleep 5001 >/dev/null 2>&1 & sleep 5002")).await;
    let epoch = podling.wait_until_awake(&ada).await.agent.expect("an agent").epoch;
    cli.run(&["create", "gone"]).await.ok();
    cli.run(&["rm", "gone"]).await.ok();
    wait_for("ada's activity is reported", async || {
        let now = podling.get(&ada).await;
        now.activity.is_some_and(|a| a.level() != ActivityLevel::Idle).then_some(())
    })
    .await;

    // A workspace is busy, so `down` requires --force.
    let error = cli.run(&["down"]).await.exits(4).err();
    assert!(error.contains("ada"), "the error names the busy workspace: {error}");
    let down = cli.run(&["down", "--force"]).await.ok().out();
    assert!(
        down.contains("stopped the control plane and 1 workspace;"),
        "a deleted workspace must not be counted: {down}"
    );
    assert!(podling.wait_exit().await.success());
    assert_eq!(podling.running_processes(), [], "no process survives podling down");

    podling.restart().await;
    let asleep = podling.wait_for_state(&ada, State::Asleep).await;
    assert!(
        asleep.agent.is_none() && podling.running_agents().is_empty(),
        "no agent runs before the first request"
    );
    let read = podling.client().for_workspace(&ada.id).activity().get(GetActivityRequest {}).await;
    assert_eq!(refused(read), Reason::NotAwake);
    assert_eq!(
        podling.client().for_workspace(&ada.id).sh("cat file").await,
        "kept\n",
        "the file is unchanged"
    );
    let again = podling.wait_until_awake(&ada).await;
    assert!(again.agent.expect("an agent").epoch > epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_keeps_workspace_awake_and_explain_shows_it() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    cli.run(&["keep-awake", "ada", "30m", "--lease", "backup", "--reason", "nightly"]).await.ok();
    let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
    let leases = explained["workspace"]["activity"]["leases"].as_array().expect("leases").clone();
    assert_eq!(leases.len(), 1);
    assert_eq!((&leases[0]["name"], &leases[0]["reason"]), (&"backup".into(), &"nightly".into()));
    let printed = cli.run(&["explain", "ada"]).await.ok().out();
    assert!(printed.contains("backup") && printed.contains("nightly"), "{printed}");
    cli.run(&["keep-awake", "ada", "--lease", "backup", "--release"]).await.ok();

    // With a command, the lease exists while the command runs and is released when it ends.
    let watch = format!("until [ -e {}/seen ]; do sleep 0.05; done; exit 6", podling.dir().display());
    let child =
        cli.command(&["keep-awake", "ada", "--", "sh", "-c", &watch]).spawn().expect("program starts");
    let count = async || {
        let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
        explained["workspace"]["activity"]["leases"].as_array().map_or(0, Vec::len)
    };
    wait_for("the lease exists", async || (count().await == 1).then_some(())).await;
    std::fs::write(podling.dir().join("seen"), "").expect("a file");
    let output = podling_tests::within("the command ends", child.wait_with_output()).await.expect("output");
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(count().await, 0);
    drop(ada);
}
