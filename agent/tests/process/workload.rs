//! The workspace's command, and work that counts as activity without a client.

use podling_proto::{
    agent::v1::{ActivityLevel, ActivityState, CommandFailureKind, Signal},
    control::v1::{self as wire, control_message::Message},
};
use podling_testkit::{
    AgentProcess, AgentSession, FakeControlPlane,
    agent_process::{claimed, unclaimed},
    argv,
    control_plane::{claim, key, token},
    wait_for,
};
use rustix::process::{Resource, getrlimit};

async fn claimed_with(command: &[&str]) -> (AgentProcess, FakeControlPlane, AgentSession) {
    let (agent, mut control_plane, _authority) =
        unclaimed(&["sh", "-c", "echo from the command line > which"]).await;
    let session = control_plane.session().await;
    session.send(Message::Claim(wire::Claim { command: argv(command), ..claim(&key()) })).await;
    (agent, control_plane, session)
}

#[tokio::test]
async fn claim_command_overrides_argv_and_is_restarted() {
    let script = "echo $GREETING from $PODLING_WORKSPACE >> which; ulimit -n >> files; exit 3";
    let (agent, _control_plane, mut session) = claimed_with(&["sh", "-c", script]).await;
    let twice = "hello from mine\nhello from mine\n";
    session.heartbeat_until(|_| agent.home_text("which").starts_with(twice)).await;
    assert!(agent.log().contains("Code(3)"), "the log has the command's exit");
    let files = std::fs::read_to_string(agent.path("home/files")).expect("ulimit");
    let initial_limit = getrlimit(Resource::Nofile).current.map_or("unlimited".to_owned(), |n| n.to_string());
    assert_eq!(
        files.lines().next(),
        Some(initial_limit.as_str()),
        "the command has the limit from before the agent raised its own"
    );
    assert_eq!(
        session.heartbeat().await.activity.expect("activity").level(),
        ActivityLevel::Idle,
        "the agent still reports activity"
    );
}

#[tokio::test]
async fn failing_command_is_reported_with_its_output() {
    let script = "echo starting; echo 'port 8888 is in use' >&2; exit 3";
    let (_agent, _control_plane, mut session) = claimed_with(&["sh", "-c", script]).await;
    let fails = |a: &ActivityState| a.command_failure.as_ref().is_some_and(|failure| failure.failures >= 2);
    let failing = session.heartbeat_until(|heartbeat| heartbeat.activity.as_ref().is_some_and(fails)).await;
    let failure = failing.activity.and_then(|activity| activity.command_failure).expect("a failure");
    assert_eq!((failure.program.as_str(), failure.kind()), ("sh", CommandFailureKind::Ended));
    assert_eq!(failure.detail, "sh ended: exit code 3");
    assert_eq!(failure.output, ["starting", "port 8888 is in use"]);

    let (agent, _control_plane, mut session) = claimed_with(&["no-such-ide", "--port=8888"]).await;
    let fails = |a: &ActivityState| a.command_failure.is_some();
    let missing = session.heartbeat_until(|heartbeat| heartbeat.activity.as_ref().is_some_and(fails)).await;
    let failure = missing.activity.and_then(|activity| activity.command_failure).expect("a failure");
    assert_eq!(failure.kind(), CommandFailureKind::NotStarted);
    assert!(failure.detail.starts_with("no-such-ide: no such program in PATH"), "{}", failure.detail);
    assert!(agent.log().contains("no-such-ide"), "the log has the failure too");
}

#[tokio::test]
async fn output_of_the_command_reaches_the_agents_log() {
    // A background process prints after the command itself has ended.
    let script = "(sleep 0.5; echo printed-late >&2) & echo printed-first >&2";
    let (agent, _control_plane, mut session) = claimed_with(&["sh", "-c", script]).await;
    let printed = || ["printed-first", "printed-late"].iter().all(|line| agent.log().contains(line));
    session.heartbeat_until(|_| printed()).await;
}

#[tokio::test]
async fn claim_without_command_runs_the_agents_argv() {
    let (agent, _control_plane, mut session) = claimed_with(&[]).await;
    session.heartbeat().await;
    wait_for("a start", async || Some(agent.home_text("which")).filter(|s| !s.is_empty())).await;
}

#[tokio::test]
async fn grandchild_computation_is_busy_and_named() {
    let (_agent, _control_plane, mut session) =
        claimed_with(&["sh", "-c", "sh -c 'while :; do :; done' & wait"]).await;
    let busy = session
        .heartbeat_until(|heartbeat| {
            // On a loaded machine, it takes some time until the computation is the busiest process.
            let named = |a: &ActivityState| a.evidence.iter().any(|e| e.detail.starts_with("sh (pid "));
            heartbeat.activity.as_ref().is_some_and(|a| a.level() == ActivityLevel::Busy && named(a))
        })
        .await;
    let activity = busy.activity.expect("activity");
    assert_eq!(activity.evidence[0].signal(), Signal::Cpu);
    assert!(activity.usage.expect("usage").processes >= 2);
}

#[tokio::test]
async fn short_lived_children_count_as_cpu_use() {
    let short_lived = "while :; do sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done'; done";
    let (_agent, _control_plane, mut session) = claimed_with(&["sh", "-c", short_lived]).await;
    let computes = |a: &ActivityState| a.evidence.iter().any(|e| e.signal() == Signal::Cpu && !e.capped);
    session.heartbeat_until(|heartbeat| heartbeat.activity.as_ref().is_some_and(computes)).await;
}

#[tokio::test]
async fn slow_copy_counts_as_io() {
    let slow_copy = "while :; do head -c 1000000 /dev/zero > copy; sleep 0.2; done";
    let (_agent, _control_plane, mut session) = claimed_with(&["sh", "-c", slow_copy]).await;
    session
        .heartbeat_until(|heartbeat| {
            heartbeat.activity.as_ref().is_some_and(|a| a.evidence.iter().any(|e| e.signal() == Signal::Io))
        })
        .await;
}

#[tokio::test]
async fn printing_terminal_does_not_count_as_io() {
    let (agent, key, _control_plane, mut session) = claimed(|claim| {
        let settings = claim.settings.as_mut().expect("settings");
        // Printed bytes that the agent has not read yet count as IO. In the short window of these
        // tests they are a large part.
        settings.io_bytes_per_second = 300.0 * 1024.0;
    })
    .await;
    // The shell's background job prints 500 kB/s while another job is in the foreground.
    let script = "x=$(printf %050000d 0); (while :; do printf %s $x; sleep 0.1; done) & sleep 1000";
    let client = agent.client().await.token(&token(&key, "terminal"));
    client.open(argv(&["bash", "-c", script])).await;
    let has = |heartbeat: &wire::Heartbeat, signal| {
        heartbeat.activity.as_ref().is_some_and(|a| a.evidence.iter().any(|e| e.signal() == signal))
    };
    session
        .heartbeat_until(|heartbeat| {
            heartbeat.activity.as_ref().is_some_and(|a| a.level() == ActivityLevel::Active)
        })
        .await;
    for _ in 0..4 {
        session.heartbeat().await;
    }
    for _ in 0..5 {
        let heartbeat = session.heartbeat().await;
        assert!(!has(&heartbeat, Signal::Io), "{:?}", heartbeat.activity.map(|a| a.evidence));
    }
}
