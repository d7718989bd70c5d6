//! Shutdown by signal and by the control plane. The agent leaves no process, only an exit record.

use podling_proto::{
    agent::v1::{WatchActivityRequest, activity_client::ActivityClient},
    control::v1::{self as wire, control_message::Message, directive::Directive},
    error,
    v1::Reason,
};
use rustix::process::Signal;
use tokio::time::timeout;

use crate::{
    agent::{AgentProcess, is_running, wait_for},
    claimed::claimed,
    client::{AgentClient, token, with_token},
    control_plane::{DEADLINE, claim, to_argv},
};

/// A script that ignores HUP and TERM. It starts a process in a session of its own that does the
/// same.
const STUBBORN: &str = "trap '' HUP TERM; \
                        setsid sh -c 'trap \"\" HUP TERM; echo $$ > orphan; while :; do sleep 1; done' & \
                        echo $$ > stubborn; while :; do sleep 1; done";

async fn pid(agent: &AgentProcess, file: &str) -> String {
    let path = agent.path("home").join(file);
    wait_for("a pid", || {
        std::fs::read_to_string(&path).ok().map(|pid| pid.trim().to_owned()).filter(|pid| !pid.is_empty())
    })
    .await
}

#[tokio::test]
async fn sigterm_ends_streams_and_processes_and_leaves_a_record() {
    let (mut agent, key, _control_plane, _session) =
        claimed(|claim| claim.command = to_argv(&["sh", "-c", "sleep 1000 & wait"])).await;
    let mut client =
        ActivityClient::with_origin(AgentClient::connect(&agent).await.service(), AgentClient::origin());
    let watch = client.watch(with_token(WatchActivityRequest {}, &token(&key, "read"))).await;
    let mut watch = watch.expect("watch").into_inner();
    watch.message().await.expect("first").expect("first");
    agent.signal(Signal::TERM);
    let last_status = async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a status"),
                Err(status) => return status,
            }
        }
    };
    let status = timeout(DEADLINE, last_status).await.expect("in time");
    assert_eq!(error::reason(&status), Some(Reason::ShuttingDown), "{status:?}");
    let status = agent.wait_exit().await;
    assert!(status.success(), "{status:?}");
    let record = agent.exit_record();
    assert_eq!((record.reason.as_str(), record.code), ("SIGTERM", 0));
}

#[tokio::test]
async fn drain_ends_stubborn_processes_and_orphans_before_done() {
    let (mut agent, _key, _control_plane, mut session) =
        claimed(|claim| claim.command = to_argv(&["sh", "-c", STUBBORN])).await;
    let (stubborn, orphan) = (pid(&agent, "stubborn").await, pid(&agent, "orphan").await);
    assert!(is_running(&stubborn) && is_running(&orphan));
    let grace = Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 });
    session.send_directive(5, Directive::Drain(wire::Drain { grace })).await;
    assert_eq!(session.wait_result(5).await, wire::directive_result::Result::Done(wire::Done {}));
    assert!(!is_running(&stubborn) && !is_running(&orphan), "Done is sent after all processes have ended");
    drop(session);
    assert!(agent.wait_exit().await.success());
    assert_eq!(agent.exit_record().reason, "drained by the control plane");
}

#[tokio::test]
async fn second_signal_skips_the_grace_period() {
    let (mut agent, _key, _control_plane, session) =
        claimed(|claim| claim.command = to_argv(&["sh", "-c", STUBBORN])).await;
    let stubborn = pid(&agent, "stubborn").await;
    drop(session);
    agent.signal(Signal::TERM);
    wait_for("the first signal", || agent.log().contains("shutting down").then_some(())).await;
    let signalled_at = std::time::Instant::now();
    agent.signal(Signal::INT);
    agent.wait_exit().await;
    assert!(signalled_at.elapsed() < podling_agent::shutdown::DEFAULT_GRACE, "{:?}", signalled_at.elapsed());
    assert!(!is_running(&stubborn));
}

#[tokio::test]
async fn claim_for_another_workspace_ends_the_agent() {
    let (mut agent, key, _control_plane, session) = claimed(|_| ()).await;
    let mut other = claim(&key);
    other.id = Some(wire::ClaimId { workspace_id: "another".into(), epoch: 1 });
    session.send(Message::Claim(other)).await;
    drop(session);
    assert!(agent.wait_exit().await.success());
    assert!(agent.exit_record().reason.contains("another workspace"), "{:?}", agent.exit_record());
}

#[tokio::test]
async fn dismissed_agent_exits_and_records_the_reason() {
    let (mut agent, _key, _control_plane, session) =
        claimed(|claim| claim.command = to_argv(&["sleep", "1000"])).await;
    let dismiss = wire::Dismiss { reason: "WORKSPACE_NOT_FOUND".into(), message: "it was deleted".into() };
    session.send(Message::Dismiss(dismiss)).await;
    drop(session);
    assert!(agent.wait_exit().await.success());
    assert!(agent.exit_record().reason.contains("it was deleted"), "{:?}", agent.exit_record());
}
