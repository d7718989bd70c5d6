//! Stories of agents and their streams: who is claimed, and what their silence means.

use std::time::Duration;

use podling_control::driver::ConnectionId;
use podling_core::reason::NextStep;
use podling_core::workspace::{AgentConnection, State};
use podling_proto::agent::v1::ActivityLevel;
use tokio::time::Instant;

use crate::{
    fake::Fake,
    plane::{Plane, claimed, dismissed, runs},
};

#[tokio::test]
async fn an_agent_serves_only_when_it_has_said_so() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let id = plane.create("demo").await.spec.id.clone();
    let mut agent = plane.dial(&id, 1, "boot-1", 1).await;
    claimed(&mut agent, 1).await;
    // The driver takes events one after the other: what the claim changed has been published when this is answered.
    plane.handle.wake(id.clone()).await.unwrap();
    let view = plane.handle.snapshots().borrow().get(&id).unwrap().clone();
    assert_eq!(
        (view.state, view.connection),
        (State::Starting, AgentConnection::Unknown),
        "it may not have read its claim yet"
    );
    assert!(plane.beat(&id, 1, ActivityLevel::Idle).await);
    plane.wait(&id, |view| view.state == State::Awake && view.connection == AgentConnection::Connected).await;
}

#[tokio::test]
async fn only_the_agent_that_was_started_is_claimed() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, mut agent) = plane.awake("demo").await;
    let mut stranger = plane.dial(&id, 17, "boot-17", 2).await;
    dismissed(&mut stranger).await;
    let mut pretender = plane.dial(&id, 1, "another-boot", 3).await;
    dismissed(&mut pretender).await;
    assert!(
        !plane.beat(&id, 2, ActivityLevel::Active).await,
        "a beat of one that is not claimed is not taken"
    );
    assert!(plane.beat(&id, 1, ActivityLevel::Idle).await, "the one that serves goes on");

    let mut again = plane.dial(&id, 1, "boot-1", 4).await;
    claimed(&mut again, 1).await;
    assert!(agent.recv().await.is_none(), "the stream it gave up is let go");
    plane.handle.gone(id.clone(), ConnectionId(1)).await.unwrap();
    assert!(plane.beat(&id, 4, ActivityLevel::Idle).await);
    plane.handle.gone(id.clone(), ConnectionId(4)).await.unwrap();
    let view = plane.wait(&id, |view| view.connection == AgentConnection::Unknown).await;
    assert_eq!(view.state, State::Awake, "a silent agent is unknown, not idle and not asleep");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_falls_silent_is_unknown_and_after_ten_minutes_started_anew() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    assert!(plane.beat(&id, 1, ActivityLevel::Idle).await);
    let began = Instant::now();
    let mut snapshots = plane.handle.snapshots();
    // No deadline: a paused clock would run to it at once if nothing else were to come.
    let unknown = snapshots
        .wait_for(|s| s.get(&id).unwrap().connection == AgentConnection::Unknown)
        .await
        .unwrap()
        .clone();
    assert!((50..60).contains(&began.elapsed().as_secs()), "three beats and a half: {:?}", began.elapsed());
    assert_eq!(unknown.get(&id).unwrap().state, State::Awake, "never idle, never asleep");
    let (_, next) = unknown.get(&id).unwrap().next.unwrap();
    assert_eq!(next, NextStep::RestartSilentAgent);
    snapshots.wait_for(|s| s.get(&id).unwrap().restarts == 1).await.unwrap();
    assert!((650..670).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    runs(&backend, &id, 2).await;
    assert_eq!(backend.state().calls, ["start 1", "stop", "start 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_suspended_holds_nothing_against_its_agents() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    for _ in 0..5 {
        // One leap: the driver was not there to see it.
        tokio::time::advance(Duration::from_secs(20 * 60)).await;
        assert!(plane.beat(&id, 1, ActivityLevel::Idle).await);
    }
    plane.handle.gone(id.clone(), ConnectionId(1)).await.unwrap();
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(20 * 60)).await;
        plane.handle.wake(id.clone()).await.unwrap();
    }
    let view = plane.handle.snapshots().borrow().get(&id).unwrap().clone();
    assert_eq!((view.state, view.connection, view.restarts), (State::Awake, AgentConnection::Unknown, 0));
    assert_eq!(backend.state().calls, ["start 1"]);
}
