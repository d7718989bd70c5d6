//! The two-phase sleep and its cancellation.

use std::time::Duration;

use podling_control::driver::{AgentDirective, DriverError, NewWorkspace, SleepStep};
use podling_core::reason::{DeclineReason, NextStep, SleepCause, StateReason};
use podling_core::{
    id::WorkspaceId,
    observed::Failure,
    policy::{Policy, PolicyOverrides},
    status::Urgency,
    workspace::State,
};
use podling_proto::agent::v1::ActivityLevel;
use tokio::{sync::mpsc, time::timeout};

use crate::control_plane::{DEADLINE, TestControlPlane, new_workspace, next_sleep_step, wait_until_running};

/// Idle timeout of two driver ticks. The warning comes at the first tick, and the prepare directive
/// at the second.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Sends idle heartbeats until the agent is asked to prepare sleep, and agrees. Returns whether a
/// warning came first, and the step.
async fn idle(
    control: &TestControlPlane,
    id: &WorkspaceId,
    agent: &mut mpsc::Receiver<AgentDirective>,
) -> (bool, SleepStep) {
    let mut warned = false;
    let step = async {
        loop {
            assert!(control.heartbeat_with_idle(id, 1, ActivityLevel::Idle, TIMEOUT).await);
            match timeout(Duration::from_millis(50), agent.recv()).await {
                Err(_) => {}
                Ok(Some(AgentDirective::Warn(warning))) => warned |= warning.is_some(),
                Ok(Some(AgentDirective::Sleep(directive, step, _))) => {
                    control.answer_directive(id, 1, directive, Ok(())).await;
                    return step;
                }
                Ok(other) => panic!("neither a warning nor a sleep directive: {other:?}"),
            }
        }
    };
    let step = timeout(DEADLINE, step).await.expect("asked");
    (warned, step)
}

async fn short(control: &TestControlPlane) -> (WorkspaceId, mpsc::Receiver<AgentDirective>) {
    let policy = Policy { idle_timeout: TIMEOUT, ..Policy::default() };
    let id = control.create_with(NewWorkspace { policy, ..new_workspace("demo") }).await;
    let agent = control.serve(&id, 1, 1).await;
    control.wait(&id, |view| view.state == State::Awake).await;
    (id, agent)
}

fn declined(reason: DeclineReason) -> Failure {
    Failure::Declined { reason, detail: String::new() }
}

#[tokio::test]
async fn idle_workspace_is_warned_sleeps_in_two_phases_and_wakes() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = short(&control).await;
    assert_eq!(idle(&control, &id, &mut agent).await, (true, SleepStep::Prepare(Urgency::Idle)));
    let (directive, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Commit);
    assert_eq!(backend.state().calls, ["start 1"], "no process ends before the commit");
    control.answer_directive(&id, 1, directive, Ok(())).await;
    let asleep = control.wait(&id, |view| view.state == State::Asleep).await;
    assert_eq!(asleep.reason, StateReason::Idle);

    let policy = PolicyOverrides { idle_timeout: Some(DEADLINE), ..Default::default() };
    control.handle.set_policy(id.clone(), policy).await.unwrap();
    control.handle.wake(id.clone()).await.unwrap();
    wait_until_running(&backend, &id, 2).await;
    let _agent = control.serve(&id, 2, 2).await;
    let awake = control.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(backend.state().calls, ["start 1", "stop", "start 2"]);
    let words: Vec<_> = awake.log.iter().map(|entry| entry.state).collect();
    assert!(
        words.ends_with(&[State::FallingAsleep, State::Asleep, State::Queued, State::Starting, State::Awake])
            || words.ends_with(&[State::FallingAsleep, State::Asleep, State::Starting, State::Awake]),
        "{words:?}"
    );
}

#[tokio::test]
async fn keystroke_between_the_phases_keeps_the_workspace_awake() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = short(&control).await;
    idle(&control, &id, &mut agent).await;
    let (directive, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Commit);
    let detail = "a keystroke is held".to_owned();
    let declined = Failure::Declined { reason: DeclineReason::RequestHeld, detail: detail.clone() };
    assert!(control.heartbeat(&id, 1, ActivityLevel::Active).await);
    control.answer_directive(&id, 1, directive, Err(declined)).await;
    let awake = control.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(awake.reason, StateReason::SleepDeclined { reason: DeclineReason::RequestHeld, detail });
    assert_eq!(backend.state().calls, ["start 1"]);
}

#[tokio::test]
async fn wake_during_prepare_cancels_the_sleep() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.handle.sleep(id.clone(), true).await.unwrap();
    let (prepare, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Prepare(Urgency::Forced));
    let awake = control.handle.wake(id.clone()).await.unwrap();
    assert_eq!(awake.state, State::Awake);
    let (cancel, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Cancel);
    // The answer to the abandoned directive arrives late and is ignored.
    control.answer_directive(&id, 1, prepare, Ok(())).await;
    control.answer_directive(&id, 1, cancel, Ok(())).await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Active).await);
    assert_eq!(control.handle.snapshots().borrow().get(&id).unwrap().state, State::Awake);
    assert_eq!(backend.state().calls, ["start 1"]);
}

#[tokio::test]
async fn commit_is_repeated_after_a_lost_connection() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = short(&control).await;
    idle(&control, &id, &mut agent).await;
    let (_, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Commit, "a commit cannot be cancelled and is repeated");
    control.handle.disconnected(id.clone(), podling_control::driver::ConnectionId(1)).await.unwrap();
    let mut agent = control.serve(&id, 1, 2).await;
    let (directive, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Commit);
    assert_eq!(backend.state().calls, ["start 1"], "the agent was not stopped without a commit");
    control.answer_directive(&id, 2, directive, Err(declined(DeclineReason::NotPrepared))).await;
    control.wait(&id, |view| view.state == State::Awake).await;
}

#[tokio::test]
async fn used_workspace_sleeps_only_when_forced() {
    let (dir, backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Busy).await);
    let refused = control.handle.sleep(id.clone(), false).await.unwrap_err();
    assert!(matches!(refused, DriverError::Busy(_)), "{refused}");
    control.put_to_sleep(&id, &mut agent).await;
    drop(control);
    let control = TestControlPlane::start(dir.path(), &backend).await;
    let asleep = control.wait(&id, |view| view.state == State::Asleep).await;
    assert_eq!(asleep.reason, StateReason::SleepRequested, "the reason survives a crash");
    assert_eq!(backend.state().calls.iter().filter(|call| call.starts_with("start")).count(), 1);
}

#[tokio::test]
async fn activity_since_the_last_heartbeat_prevents_sleep() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    control.handle.sleep(id.clone(), false).await.expect("no activity is known");
    let (directive, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Prepare(Urgency::Requested), "the agent decides");
    control.answer_directive(&id, 1, directive, Err(declined(DeclineReason::InUse))).await;
    let stays = control.wait(&id, |view| view.state == State::Awake).await;
    let detail = String::new();
    assert_eq!(stays.reason, StateReason::SleepDeclined { reason: DeclineReason::InUse, detail });
    let asked_again = stays.next.is_some_and(|(_, step)| step == NextStep::Sleep(SleepCause::Requested));
    assert!(!asked_again, "a declined sleep request is not repeated");
}

#[tokio::test]
async fn changed_policy_reaches_the_agent() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = control.create_awake("demo").await;
    let policy = PolicyOverrides { idle_timeout: Some(Duration::from_secs(77)), ..Default::default() };
    control.handle.set_policy(id.clone(), policy).await.unwrap();
    match timeout(DEADLINE, agent.recv()).await.unwrap() {
        Some(AgentDirective::Claim(claim)) => assert_eq!(claim.spec.policy.idle_timeout.as_secs(), 77),
        other => panic!("no claim: {other:?}"),
    }
}
