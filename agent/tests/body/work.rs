//! What the workspace does by itself: its own command, and work that nobody watches.

use podling_proto::{
    agent::v1::{
        ActivityLevel, ActivityState, CreateTerminalRequest, Signal, terminals_client::TerminalsClient,
    },
    control::v1::{self as wire, control_message::Message},
};

use rustix::process::{Resource, getrlimit};

use crate::{
    agent::{Agent, until},
    claimed::claimed,
    client::{Client, token, with_token},
    plane::{Authority, Plane, Session, claim, key, words},
};

async fn claimed_with(command: &[&str]) -> (Agent, Plane, Session) {
    let authority = Authority::new();
    let dir = tempfile::tempdir().expect("dir");
    let mut plane = Plane::start(dir.path(), authority.server("podling-control")).await;
    let agent = Agent::start_in(dir, &authority.pem, &["sh", "-c", "echo from the command line > which"]);
    let session = plane.session().await;
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    session.send(Message::Claim(wire::Claim { command, ..claim(&key()) })).await;
    (agent, plane, session)
}

#[tokio::test]
async fn the_claims_command_wins_has_its_environment_and_is_started_again() {
    let script = "echo $GREETING from $PODLING_WORKSPACE >> which; ulimit -n >> files; exit 3";
    let (agent, _plane, mut session) = claimed_with(&["sh", "-c", script]).await;
    let twice = "hello from mine\nhello from mine\n";
    let said = || std::fs::read_to_string(agent.path("home/which")).unwrap_or_default();
    session.beat_until(|_| said().starts_with(twice)).await;
    assert!(agent.log().contains("Code(3)"), "says how it ended");
    let files = std::fs::read_to_string(agent.path("home/files")).expect("ulimit");
    let ours = getrlimit(Resource::Nofile).current.map_or("unlimited".to_owned(), |n| n.to_string());
    assert_eq!(files.lines().next(), Some(ours.as_str()), "the agent's own limit is not the workspace's");
    assert_eq!(session.beat().await.activity.expect("activity").level(), ActivityLevel::Idle, "goes on");
}

#[tokio::test]
async fn without_one_in_the_claim_it_is_that_of_the_command_line() {
    let (agent, _plane, mut session) = claimed_with(&[]).await;
    session.beat().await;
    until("a start", || std::fs::read_to_string(agent.path("home/which")).ok().filter(|s| !s.is_empty()))
        .await;
}

#[tokio::test]
async fn a_computation_of_a_grandchild_makes_it_busy_and_is_named() {
    let (_agent, _plane, mut session) =
        claimed_with(&["sh", "-c", "sh -c 'while :; do :; done' & wait"]).await;
    let busy = session
        .beat_until(|beat| beat.activity.as_ref().is_some_and(|a| a.level() == ActivityLevel::Busy))
        .await;
    let activity = busy.activity.expect("activity");
    assert_eq!(activity.evidence[0].signal(), Signal::Cpu);
    assert!(activity.evidence[0].detail.starts_with("sh (pid "), "{}", activity.evidence[0].detail);
    assert!(activity.usage.expect("usage").processes >= 2);
}

#[tokio::test]
async fn children_that_compute_and_are_gone_before_anybody_looks_count() {
    let brief = "while :; do sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done'; done";
    let (_agent, _plane, mut session) = claimed_with(&["sh", "-c", brief]).await;
    let computes = |a: &ActivityState| a.evidence.iter().any(|e| e.signal() == Signal::Cpu && !e.capped);
    session.beat_until(|beat| beat.activity.as_ref().is_some_and(computes)).await;
}

#[tokio::test]
async fn a_copy_that_computes_little_makes_it_busy() {
    let slow_copy = "while :; do head -c 1000000 /dev/zero > copy; sleep 0.2; done";
    let (_agent, _plane, mut session) = claimed_with(&["sh", "-c", slow_copy]).await;
    session
        .beat_until(|beat| {
            beat.activity.as_ref().is_some_and(|a| a.evidence.iter().any(|e| e.signal() == Signal::Io))
        })
        .await;
}

#[tokio::test]
async fn a_terminal_that_only_prints_is_presence_and_no_work() {
    let (agent, key, _plane, mut session) = claimed(|claim| {
        let policy = claim.policy.as_mut().expect("a policy");
        // What is printed and not yet read is work for a moment; within the tests' short window a moment is much.
        policy.io_bytes_per_second = 300.0 * 1024.0;
    })
    .await;
    let mut terminals = TerminalsClient::with_origin(Client::of(&agent).await.service(), Client::origin());
    // 500 kB a second, by the shell itself, beside a job in the foreground.
    let script = "x=$(printf %050000d 0); (while :; do printf %s $x; sleep 0.1; done) & sleep 1000";
    let create = CreateTerminalRequest { argv: words(&["bash", "-c", script]), ..Default::default() };
    terminals.create(with_token(create, &token(&key, "terminal"))).await.expect("opened");
    let has = |beat: &wire::Heartbeat, signal| {
        beat.activity.as_ref().is_some_and(|a| a.evidence.iter().any(|e| e.signal() == signal))
    };
    session
        .beat_until(|beat| beat.activity.as_ref().is_some_and(|a| a.level() == ActivityLevel::Active))
        .await;
    for _ in 0..4 {
        session.beat().await;
    }
    for _ in 0..5 {
        let beat = session.beat().await;
        assert!(!has(&beat, Signal::Io), "{:?}", beat.activity.map(|a| a.evidence));
    }
}
