//! Shutdown by signal and by the control plane. The agent leaves no process, only an exit record.

use podling_proto::{
    agent::v1::WatchActivityRequest,
    control::v1::{self as wire, control_message::Message, directive::Directive},
    error,
    v1::Reason,
};
use podling_testkit::{
    AgentProcess,
    agent_process::claimed,
    argv,
    control_plane::{claim, token},
    processes::is_alive,
    script, wait_for, wait_until, within,
};
use rustix::process::Signal;

/// A script that ignores HUP and TERM. It starts a process in a session of its own that does the
/// same.
const STUBBORN: &str = "trap '' HUP TERM; \
                        setsid sh -c 'trap \"\" HUP TERM; echo $$ > orphan; while :; do sleep 1; done' & \
                        echo $$ > stubborn; while :; do sleep 1; done";

async fn pid(agent: &AgentProcess, file: &str) -> u32 {
    wait_for("a pid", async || agent.home_text(file).trim().parse().ok()).await
}

#[tokio::test]
async fn sigterm_ends_streams_and_processes_and_leaves_a_record() {
    let (mut agent, key, _control_plane, _session) =
        claimed(|claim| claim.command = script("sleep 1000 & wait")).await;
    let client = agent.client().await.token(&token(&key, "read"));
    let watch = client.activity().watch(WatchActivityRequest {}).await;
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
    let status = within("the last status", last_status).await;
    assert_eq!(error::reason(&status), Some(Reason::ShuttingDown), "{status:?}");
    let status = agent.wait_exit().await;
    assert!(status.success(), "{status:?}");
    let record = agent.exit_record();
    assert_eq!((record.reason.as_str(), record.code), ("SIGTERM", 0));
}

#[tokio::test]
async fn drain_ends_stubborn_processes_and_orphans_before_done() {
    let (mut agent, _key, _control_plane, mut session) =
        claimed(|claim| claim.command = script(STUBBORN)).await;
    let (stubborn, orphan) = (pid(&agent, "stubborn").await, pid(&agent, "orphan").await);
    assert!(is_alive(stubborn) && is_alive(orphan));
    let grace = Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 });
    session.send_directive(5, Directive::Drain(wire::Drain { grace })).await;
    assert_eq!(session.wait_result(5).await, wire::directive_result::Result::Done(wire::Done {}));
    assert!(!is_alive(stubborn) && !is_alive(orphan), "Done is sent after all processes have ended");
    drop(session);
    assert!(agent.wait_exit().await.success());
    assert_eq!(agent.exit_record().reason, "drained by the control plane");
}

#[tokio::test]
async fn second_signal_skips_the_grace_period() {
    let (mut agent, _key, _control_plane, session) = claimed(|claim| claim.command = script(STUBBORN)).await;
    let stubborn = pid(&agent, "stubborn").await;
    drop(session);
    agent.signal(Signal::TERM);
    wait_until("the first signal", || agent.log().contains("shutting down")).await;
    let signalled_at = std::time::Instant::now();
    agent.signal(Signal::INT);
    agent.wait_exit().await;
    assert!(signalled_at.elapsed() < podling_agent::shutdown::DEFAULT_GRACE, "{:?}", signalled_at.elapsed());
    assert!(!is_alive(stubborn));
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
        claimed(|claim| claim.command = argv(&["sleep", "1000"])).await;
    let dismiss = wire::Dismiss { reason: "WORKSPACE_NOT_FOUND".into(), message: "it was deleted".into() };
    session.send(Message::Dismiss(dismiss)).await;
    drop(session);
    assert!(agent.wait_exit().await.success());
    assert!(agent.exit_record().reason.contains("it was deleted"), "{:?}", agent.exit_record());
}
