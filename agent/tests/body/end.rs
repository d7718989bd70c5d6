//! The end: by signal, by the control plane, and what is left behind (nothing but a record).

use podling_proto::{
    agent::v1::{WatchActivityRequest, activity_client::ActivityClient},
    control::v1::{self as wire, control_message::Message, directive::Directive},
    error,
    v1::Reason,
};
use rustix::process::Signal;
use tokio::time::timeout;

use crate::{
    agent::{Agent, is_running, until},
    claimed::claimed,
    client::{Client, token, with_token},
    plane::{DEADLINE, claim, words},
};

/// Obeys nothing but KILL, and leaves an orphan in a session of its own that does neither.
const STUBBORN: &str = "trap '' HUP TERM; setsid sh -c 'trap \"\" HUP TERM; echo $$ > orphan; while :; do sleep 1; done' & \
                        echo $$ > stubborn; while :; do sleep 1; done";

async fn pid(agent: &Agent, file: &str) -> String {
    let path = agent.path("home").join(file);
    until("a pid", || {
        std::fs::read_to_string(&path).ok().map(|pid| pid.trim().to_owned()).filter(|pid| !pid.is_empty())
    })
    .await
}

#[tokio::test]
async fn sigterm_tells_streams_ends_everything_and_leaves_a_record() {
    let (mut agent, key, _plane, _session) =
        claimed(|claim| claim.command = words(&["sh", "-c", "sleep 1000 & wait"])).await;
    let mut client = ActivityClient::with_origin(Client::of(&agent).await.service(), Client::origin());
    let watch = client.watch(with_token(WatchActivityRequest {}, &token(&key, "read"))).await;
    let mut watch = watch.expect("watch").into_inner();
    watch.message().await.expect("first").expect("first");
    agent.signal(Signal::TERM);
    let told = async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a word"),
                Err(status) => return status,
            }
        }
    };
    let told = timeout(DEADLINE, told).await.expect("in time");
    assert_eq!(error::reason(&told), Some(Reason::ShuttingDown), "{told:?}");
    let status = agent.ended().await;
    assert!(status.success(), "{status:?}");
    let record = agent.exit_record();
    assert_eq!((record.reason.as_str(), record.code), ("SIGTERM", 0));
}

#[tokio::test]
async fn drain_ends_even_the_stubborn_and_orphans_and_says_done() {
    let (mut agent, _key, _plane, mut session) =
        claimed(|claim| claim.command = words(&["sh", "-c", STUBBORN])).await;
    let (stubborn, orphan) = (pid(&agent, "stubborn").await, pid(&agent, "orphan").await);
    assert!(is_running(&stubborn) && is_running(&orphan));
    let grace = Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 });
    session.direct(5, Directive::Drain(wire::Drain { grace })).await;
    assert_eq!(session.result(5).await, wire::directive_result::Result::Done(wire::Done {}));
    assert!(!is_running(&stubborn) && !is_running(&orphan), "done means done");
    drop(session);
    assert!(agent.ended().await.success());
    assert_eq!(agent.exit_record().reason, "drained by the control plane");
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_the_stubborn() {
    let (mut agent, _key, _plane, session) =
        claimed(|claim| claim.command = words(&["sh", "-c", STUBBORN])).await;
    let stubborn = pid(&agent, "stubborn").await;
    drop(session);
    agent.signal(Signal::TERM);
    until("the first signal", || agent.log().contains("shutting down").then_some(())).await;
    let asked = std::time::Instant::now();
    agent.signal(Signal::INT);
    agent.ended().await;
    assert!(asked.elapsed() < podling_agent::shutdown::DEFAULT_GRACE, "{:?}", asked.elapsed());
    assert!(!is_running(&stubborn));
}

#[tokio::test]
async fn an_agent_serves_one_workspace_in_its_life() {
    let (mut agent, key, _plane, session) = claimed(|_| ()).await;
    let mut other = claim(&key);
    other.id = Some(wire::ClaimId { workspace_id: "another".into(), epoch: 1 });
    session.send(Message::Claim(other)).await;
    drop(session);
    assert!(agent.ended().await.success());
    assert!(agent.exit_record().reason.contains("another workspace"), "{:?}", agent.exit_record());
}

#[tokio::test]
async fn a_dismissed_agent_goes_and_says_why_in_its_record() {
    let (mut agent, _key, _plane, session) = claimed(|claim| claim.command = words(&["sleep", "1000"])).await;
    let dismiss = wire::Dismiss { reason: "WORKSPACE_NOT_FOUND".into(), message: "it was deleted".into() };
    session.send(Message::Dismiss(dismiss)).await;
    drop(session);
    assert!(agent.ended().await.success());
    assert!(agent.exit_record().reason.contains("it was deleted"), "{:?}", agent.exit_record());
}
