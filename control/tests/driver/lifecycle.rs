//! Creating, waking, restarting and deleting workspaces, also across crashes of the control plane.

use std::sync::Arc;

use podling_control::{
    driver::{AgentDirective, DriverError, MAX_WORKSPACES_PER_OWNER, NewWorkspace},
    snapshot::Fingerprint,
};
use podling_core::reason::{Operation, StateReason};
use podling_core::workspace::{AgentConnection, State};
use podling_proto::agent::v1::ActivityLevel;
use tokio::time::timeout;

use crate::{
    control_plane::{DEADLINE, TestControlPlane, expect_dismissal, new_workspace, wait_until_running},
    fake_backend::FakeBackend,
};

#[tokio::test]
async fn workspace_is_created_served_and_deleted() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Active).await);
    let view = control.wait(&id, |view| view.activity.is_some()).await;
    assert_eq!((view.connection, view.agent.as_ref().unwrap().epoch), (AgentConnection::Connected, 1));
    assert_eq!(view.credential, Some(Fingerprint::of(backend.state().secrets[&id].as_bytes())));

    let view = control.handle.delete(id.clone(), true).await.unwrap();
    assert_eq!(view.state, State::Deleting);
    control.wait_until_gone(&id).await;
    assert_eq!(backend.state().calls, ["start 1", "stop", "remove"]);
    assert!(
        matches!(agent.recv().await, Some(AgentDirective::Drain { .. })),
        "the agent was asked to drain first"
    );
    expect_dismissal(&mut agent).await;
}

#[tokio::test]
async fn repeated_create_finds_the_first_workspace() {
    let (dir, backend, control) = TestControlPlane::fresh().await;
    let first = NewWorkspace { request_id: "r1".into(), ..new_workspace("demo") };
    let (made, created) = control.handle.create(first.clone()).await.unwrap();
    assert!(created);
    drop(control);
    let control = TestControlPlane::start(dir.path(), &backend).await;
    let (found, created) = control.handle.create(first).await.unwrap();
    assert_eq!(
        (found.spec.id.clone(), created),
        (made.spec.id.clone(), false),
        "the request id survives a crash"
    );

    let taken = control.handle.create(new_workspace("demo")).await.unwrap_err();
    assert!(matches!(taken, DriverError::NameTaken { .. }), "{taken}");
    let (found, created) =
        control.handle.create(NewWorkspace { reconnect: true, ..new_workspace("demo") }).await.unwrap();
    assert_eq!((found.spec.id.clone(), created), (made.spec.id.clone(), false));
    let other = NewWorkspace { owner: "you".parse().unwrap(), ..new_workspace("demo") };
    assert!(control.handle.create(other).await.unwrap().1, "names are unique per owner");
}

#[tokio::test]
async fn workspaces_per_owner_are_limited() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    for i in 0..MAX_WORKSPACES_PER_OWNER {
        control.create(&format!("w{i}")).await;
    }
    let refused = control.handle.create(new_workspace("one-more")).await.unwrap_err();
    assert!(matches!(refused, DriverError::TooManyWorkspaces { limit: 100, .. }), "{refused}");
}

#[tokio::test]
async fn killed_agent_is_replaced_after_its_processes_ended() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    backend.kill(&id);
    wait_until_running(&backend, &id, 2).await;
    let _agent = control.serve(&id, 2, 2).await;
    let view = control.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!((view.agent.as_ref().unwrap().epoch, view.restarts), (2, 1), "{:?}", view.reason);
    assert_eq!(backend.state().calls, ["start 1", "stop", "start 2"]);
}

#[tokio::test]
async fn failing_starts_are_retried_until_failed_and_wake_retries_now() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    backend.state().fail_starts = true;
    let id = control.create("demo").await.spec.id.clone();
    let view = control.wait(&id, |view| view.restarts == 1 && view.next.is_some()).await;
    let no_program = StateReason::AgentStartFailed { detail: "cannot start it: no such program".into() };
    assert_eq!(view.reason, no_program);
    for failures in 2..=5 {
        control.handle.wake(id.clone()).await.unwrap();
        control.wait(&id, |view| view.restarts >= failures).await;
    }
    let view = control.wait(&id, |view| view.state == State::Failed).await;
    assert_eq!(view.reason, no_program);
    backend.state().fail_starts = false;
    control.handle.wake(id.clone()).await.unwrap();
    control
        .wait(&id, |view| {
            view.state == State::Starting && matches!(view.reason, StateReason::AgentRestarting { .. })
        })
        .await;
}

#[tokio::test]
async fn repeated_wake_requests_wake_once() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    let first = control.handle.wake(id.clone()).await.unwrap();
    for _ in 0..3 {
        let again = control.handle.wake(id.clone()).await.unwrap();
        assert!(Arc::ptr_eq(&again.spec, &first.spec), "a repeated wake is no new request");
    }
    let _agent = control.serve(&id, 2, 2).await;
    let awake = control.wait(&id, |view| view.state == State::Awake).await;
    let again = control.handle.wake(id.clone()).await.unwrap();
    assert!(Arc::ptr_eq(&again.spec, &awake.spec), "waking an awake workspace changes nothing");
}

#[tokio::test]
async fn restarted_control_plane_adopts_running_agents() {
    let (dir, backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    drop(control);
    let control = TestControlPlane::start(dir.path(), &backend).await;
    let view = control.wait(&id, |_| true).await;
    assert_eq!(
        (view.state, view.connection),
        (State::Awake, AgentConnection::Unknown),
        "an unknown connection changes no state"
    );
    let _agent = control.serve(&id, 1, 9).await;
    control.wait(&id, |view| view.connection == AgentConnection::Connected).await;
    assert_eq!(backend.state().calls, ["start 1"], "no agent was started or stopped");
}

#[tokio::test]
async fn crash_during_a_start_uses_up_the_epoch() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), FakeBackend::default());
    backend.hold(true);
    let control = TestControlPlane::start(dir.path(), &backend).await;
    let id = control.create("demo").await.spec.id.clone();
    control.wait(&id, |view| view.reason == StateReason::AgentStarting).await;
    drop(control);
    backend.hold(false);
    let control = TestControlPlane::start(dir.path(), &backend).await;
    wait_until_running(&backend, &id, 2).await;
    let _agent = control.serve(&id, 2, 2).await;
    control.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(backend.state().running[&id].epoch, 2);
}

#[tokio::test]
async fn down_refuses_busy_workspaces_and_stopped_ones_wake_later() {
    let (dir, backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    control.heartbeat(&id, 1, ActivityLevel::Busy).await;
    let refused = control.handle.down(false).await.unwrap_err();
    assert!(matches!(&refused, DriverError::Busy(names) if names[0].as_str() == "demo"), "{refused}");
    control.handle.down(true).await.unwrap();
    timeout(DEADLINE, control.shutdown.cancelled()).await.expect("the control plane ends by itself");
    let snapshot = control.handle.snapshots().borrow().clone();
    assert_eq!(snapshot.get(&id).unwrap().state, State::Asleep);
    assert_eq!(snapshot.down.unwrap().remaining, 0);
    assert!(backend.state().running.is_empty());
    drop(control);
    let control = TestControlPlane::start(dir.path(), &backend).await;
    control.wait(&id, |view| view.state == State::Asleep).await;
    control.handle.wake(id.clone()).await.unwrap();
    wait_until_running(&backend, &id, 2).await;
    let _agent = control.serve(&id, 2, 1).await;
    control.wait(&id, |view| view.state == State::Awake).await;
}

#[tokio::test]
async fn processes_that_do_not_end_keep_the_storage() {
    let (dir, backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    backend.state().fail_stops = true;
    control.handle.delete(id.clone(), true).await.unwrap();
    let view = control
        .wait(&id, |view| {
            matches!(view.reason, StateReason::ActionFailed { operation: Operation::StopProcesses, .. })
        })
        .await;
    assert_eq!(view.state, State::Deleting);
    assert!(view.next.is_some(), "the stop is retried");
    backend.state().fail_stops = false;
    control.wait_until_gone(&id).await;
    let calls = backend.state().calls.clone();
    assert!(calls.iter().filter(|call| *call == "stop").count() >= 2 && calls.ends_with(&["remove".into()]));
    drop(control);
    let control = TestControlPlane::start(dir.path(), &backend).await;
    assert!(control.handle.snapshots().borrow().get(&id).is_none(), "the workspace stays deleted");
}

#[tokio::test]
async fn unchanged_workspace_keeps_its_view() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("still").await;
    let before = control.wait(&id, |_| true).await;
    let (_other, _agent2) = control.create_awake("other").await;
    let after = control.wait(&id, |_| true).await;
    assert!(Arc::ptr_eq(&before, &after));
}

#[tokio::test]
async fn cancelled_driver_ends_and_rejects_requests() {
    let (_dir, backend, mut control) = TestControlPlane::fresh().await;
    let (id, _agent) = control.create_awake("demo").await;
    control.shutdown.cancel();
    timeout(DEADLINE, control.tasks.join_next())
        .await
        .expect("the driver ends")
        .expect("a task")
        .expect("no panic");
    assert_eq!(control.handle.delete(id, true).await.unwrap_err(), DriverError::ShuttingDown);
    assert_eq!(backend.state().calls, ["start 1"], "agents keep running");
}
