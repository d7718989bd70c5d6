//! A call that a client waits for keeps a workspace awake, up to a cap. A client whose call a sleep
//! ends all the same is told why.

use std::{process::Stdio, time::Duration};

use podling_proto::{
    agent::v1::{Signal, StartProcessRequest},
    control::v1::{Policy, State},
};
use podling_tests::{
    Podling, Workspace, argv, command, idle_timeout_policy, script, wait_for, wire_duration, within,
};
use tokio::io::AsyncReadExt;

const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Exit code of `podling run` if the workspace fell asleep.
const FELL_ASLEEP: i32 = 123;

async fn wait_for_call(podling: &Podling, workspace: &Workspace) {
    wait_for("a call under way is reported", async || {
        let activity = podling.get(workspace).await.activity?;
        activity.evidence.iter().any(|e| e.signal() == Signal::ClientCall && !e.capped).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followed_command_keeps_workspace_awake_until_it_ends() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(IDLE_TIMEOUT)).await;
    // The command neither prints nor computes while it sleeps.
    let ran = podling.cli().run(&["run", "ada", "--", "sh", "-c", "echo a; sleep 8; echo b"]).await.ok();
    assert_eq!((ran.out().as_str(), ran.err().as_str()), ("a\nb\n", ""));
    podling.wait_for_state(&ada, State::Asleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn command_ended_by_sleep_says_why() {
    let podling = Podling::up().await;
    let capped = Policy { call_cap: wire_duration(IDLE_TIMEOUT), ..idle_timeout_policy(IDLE_TIMEOUT) };
    let (ada, bob) = (podling.workspace("ada").await, podling.workspace_with_policy("bob", capped).await);
    let cli = podling.cli();
    let forced = async {
        wait_for_call(&podling, &ada).await;
        cli.run(&["sleep", "ada"]).await.exits(4);
        cli.run(&["sleep", "ada", "--force"]).await.ok();
    };
    let (asked, (), capped) = tokio::join!(
        cli.run(&["run", "ada", "--", "sleep", "1000"]),
        forced,
        cli.run(&["run", "bob", "--", "sleep", "1000"]),
    );
    let said = asked.exits(FELL_ASLEEP).err();
    assert!(said.contains("a request asked it to sleep"), "{said}");
    let said = capped.exits(FELL_ASLEEP).err();
    assert!(said.contains("idle for its whole idle timeout"), "a call holds no workspace for ever: {said}");
    podling.wait_for_state(&bob, State::Asleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_or_dead_call_does_not_keep_awake() {
    let podling = Podling::up().await;
    let policy = idle_timeout_policy(IDLE_TIMEOUT);
    let (ada, bob) = (
        podling.workspace_with_policy("ada", policy).await,
        podling.workspace_with_policy("bob", policy).await,
    );
    // A client that stays connected, but reads only the first byte of an endless output.
    let inside = podling.client().for_workspace(&ada.id);
    let request = StartProcessRequest { command: Some(command(argv(&["yes"]))), ..Default::default() };
    let unread = within("Processes.Start", inside.processes().start(request)).await.expect("started");
    // A client that dies.
    let mut run = podling.cli().command(&["run", "bob", "--", "sh", "-c", "echo a; sleep 1000"]);
    let mut run = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("podling run starts");
    let mut first = [0];
    let mut stdout = run.stdout.take().expect("stdout is a pipe");
    within("the command runs", stdout.read_exact(&mut first)).await.expect("output");
    wait_for_call(&podling, &bob).await;
    run.kill().await.expect("the client is killed");
    podling.wait_for_state(&bob, State::Asleep).await;
    podling.wait_for_state(&ada, State::Asleep).await;
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_export_is_completed() {
    const MEGABYTES: usize = 24;
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(IDLE_TIMEOUT)).await;
    let inside = podling.client().for_workspace(&ada.id);
    let random = format!("head -c {MEGABYTES}000000 /dev/urandom > random");
    within("a file is made", inside.run(script(&random))).await;
    let mut export = podling.cli().command(&["export", "ada", "-"]);
    let mut export = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("export starts");
    let mut zip = export.stdout.take().expect("stdout is a pipe");
    let (mut size, mut buffer) = (0, vec![0; 1_000_000]);
    loop {
        let read = within("the zip continues", zip.read(&mut buffer)).await.expect("output");
        if read == 0 {
            break;
        }
        size += read;
        // The pace of a slow client.
        tokio::time::sleep(Duration::from_secs_f64(8.0 * read as f64 / (MEGABYTES * 1_000_000) as f64)).await;
    }
    let ended = within("the export ends", export.wait_with_output()).await.expect("status");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(size > MEGABYTES * 1_000_000);
}
