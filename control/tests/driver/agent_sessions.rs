//! Sessions of agents: claims, dismissals and silence.

use std::time::Duration;

use podling_control::{activity::ReportedActivity, backend::Observation, driver::ConnectionId};
use podling_core::reason::{NextStep, StateReason};
use podling_core::workspace::{AgentConnection, State};
use podling_proto::agent::v1::{ActivityLevel, ActivityState, CommandFailure};
use tokio::time::Instant;

use crate::control_plane::{TestControlPlane, expect_claim, expect_dismissal, wait_until_running};

#[tokio::test]
async fn agent_is_connected_only_after_its_first_heartbeat() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let id = control.create("demo").await.spec.id.clone();
    let mut agent = control.dial(&id, 1, "boot-1", 1).await;
    expect_claim(&mut agent, 1).await;
    // The driver handles one event at a time, so the effect of the claim is published before the
    // answer to this call.
    control.handle.wake(id.clone()).await.unwrap();
    let view = control.handle.snapshots().borrow().get(&id).unwrap().clone();
    assert_eq!(
        (view.state, view.connection),
        (State::Starting, AgentConnection::Unknown),
        "the agent may not have read its claim yet"
    );
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    control
        .wait(&id, |view| view.state == State::Awake && view.connection == AgentConnection::Connected)
        .await;
}

#[tokio::test]
async fn only_the_started_agent_is_claimed() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = control.create_awake("demo").await;
    let mut other_instance = control.dial(&id, 17, "boot-17", 2).await;
    expect_dismissal(&mut other_instance).await;
    let mut other_boot = control.dial(&id, 1, "another-boot", 3).await;
    expect_dismissal(&mut other_boot).await;
    assert!(
        !control.heartbeat(&id, 2, ActivityLevel::Active).await,
        "a heartbeat of an unclaimed session is not accepted"
    );
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await, "the claimed session continues");

    let mut again = control.dial(&id, 1, "boot-1", 4).await;
    expect_claim(&mut again, 1).await;
    assert!(agent.recv().await.is_none(), "the earlier stream is dropped");
    control.handle.disconnected(id.clone(), ConnectionId(1)).await.unwrap();
    assert!(control.heartbeat(&id, 4, ActivityLevel::Idle).await);
    control.handle.disconnected(id.clone(), ConnectionId(4)).await.unwrap();
    let view = control.wait(&id, |view| view.connection == AgentConnection::Unknown).await;
    assert_eq!(view.state, State::Awake, "a silent agent is unknown, not idle and not asleep");
}

#[tokio::test(start_paused = true)]
async fn silent_agent_is_unknown_and_restarted_after_ten_minutes() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    let began = Instant::now();
    let mut snapshots = control.handle.snapshots();
    // Without a deadline, because a paused clock would jump to it as soon as every task waits.
    let unknown = snapshots
        .wait_for(|s| s.get(&id).unwrap().connection == AgentConnection::Unknown)
        .await
        .unwrap()
        .clone();
    assert!(
        (50..60).contains(&began.elapsed().as_secs()),
        "three and a half heartbeat intervals: {:?}",
        began.elapsed()
    );
    assert_eq!(unknown.get(&id).unwrap().state, State::Awake, "an unknown connection changes no state");
    let (_, next) = unknown.get(&id).unwrap().next.unwrap();
    assert_eq!(next, NextStep::RestartSilentAgent);
    snapshots.wait_for(|s| s.get(&id).unwrap().restarts == 1).await.unwrap();
    assert!((650..670).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    wait_until_running(&backend, &id, 2).await;
    assert_eq!(backend.state().calls, ["start 1", "stop", "start 2"]);
}

#[tokio::test(start_paused = true)]
async fn suspended_machine_counts_no_silence() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    for _ in 0..5 {
        // The clock jumps, so the driver observes none of this time.
        tokio::time::advance(Duration::from_secs(20 * 60)).await;
        assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    }
    control.handle.disconnected(id.clone(), ConnectionId(1)).await.unwrap();
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(20 * 60)).await;
        control.handle.wake(id.clone()).await.unwrap();
    }
    let view = control.handle.snapshots().borrow().get(&id).unwrap().clone();
    assert_eq!((view.state, view.connection, view.restarts), (State::Awake, AgentConnection::Unknown, 0));
    assert_eq!(backend.state().calls, ["start 1"]);
}

#[tokio::test(start_paused = true)]
async fn text_of_failing_command_changes_at_most_every_10_s() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    let failed = |detail: &str| StateReason::CommandFailed { detail: detail.into() };
    let report = async |detail: Option<&str>| {
        let failure = |detail: &str| CommandFailure { detail: detail.into(), ..Default::default() };
        let details = ActivityState { command_failure: detail.map(failure), ..Default::default() };
        assert!(
            control.send_activity(&id, 1, ReportedActivity { details, ..ReportedActivity::default() }).await
        );
        // Answered once the record is durable, so the view shows what was stored.
        control.handle.wake(id.clone()).await.unwrap().reason.clone()
    };
    assert_eq!(report(Some("first")).await, failed("first"));
    for n in 0..20 {
        assert_eq!(report(Some(&format!("text {n}"))).await, failed("first"), "it changed just now");
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(report(Some("second")).await, failed("second"));
    for n in 0..20 {
        assert_eq!(report(None).await, StateReason::AgentConnected, "a recovery is stored at once");
        let text = format!("third {n}");
        assert_eq!(report(Some(&text)).await, StateReason::AgentConnected, "it failed just now");
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(report(Some("third")).await, failed("third"));
}

#[tokio::test(start_paused = true)]
async fn container_problem_of_the_current_epoch_is_the_reason() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    let mut snapshots = control.handle.snapshots();
    let mut report = async |epoch, problem: Option<&str>, expected: StateReason| {
        let (workspace, problem) = (id.clone(), problem.map(str::to_owned));
        backend.report(&Observation::ContainerProblem { workspace, epoch, problem });
        let told = snapshots.wait_for(|all| all.get(&id).is_some_and(|view| view.reason == expected));
        let told = tokio::time::timeout(Duration::from_secs(10), told).await;
        assert!(told.is_ok_and(|told| told.is_ok()), "the reason is {expected:?}");
    };
    let broken = |detail: &str| StateReason::ContainerNotReady { detail: detail.into() };
    report(1, Some("proxy: exit code 3"), broken("proxy: exit code 3")).await;
    report(0, None, broken("proxy: exit code 3")).await;
    report(1, None, StateReason::AgentConnected).await;
}
