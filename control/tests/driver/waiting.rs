//! Starts that wait for something: what is said of them, and how they are given up.

use podling_core::{
    reason::{StateReason, Wait, WaitReason},
    workspace::State,
};

use crate::{
    fake::Fake,
    plane::{Plane, runs},
};

/// What a backend reports while the namespace is full.
fn full(reason: WaitReason) -> Wait {
    Wait { reason, detail: "exceeded quota: team".into() }
}

#[tokio::test]
async fn a_start_that_waits_says_for_what_and_whoever_wants_something_else_does_not_wait_for_it() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    backend.hold(true);
    let id = plane.create("demo").await.spec.id.clone();
    plane.wait(&id, |view| view.state == State::Starting).await;
    let waits = |reason| Some(full(reason));
    let because = |reason| StateReason::Waiting(full(reason));
    let (quota, node) = (WaitReason::QuotaExceeded, WaitReason::Unschedulable);
    backend.tell_waits(&id, 7, waits(quota));
    backend.tell_waits(&id, 1, waits(quota));
    plane.wait(&id, |view| view.state == State::Queued && view.reason == because(quota)).await;
    backend.tell_waits(&id, 1, waits(node));
    plane.wait(&id, |view| view.state == State::Starting && view.reason == because(node)).await;
    backend.tell_waits(&id, 1, None);
    plane.wait(&id, |view| view.state == State::Starting && view.reason == StateReason::AgentStarting).await;

    // Somebody lets it be: the start that waits is given up, and what it may have left is ended.
    backend.tell_waits(&id, 1, waits(node));
    plane.handle.sleep(id.clone(), false).await.unwrap();
    plane.wait(&id, |view| view.state == State::FallingAsleep).await;
    backend.hold(false);
    plane.wait(&id, |view| view.state == State::Asleep).await;
    let calls = backend.state().calls.clone();
    assert_eq!(calls, ["start 1", "stop"]);
    plane.handle.wake(id.clone()).await.unwrap();
    runs(&backend, &id, 2).await;
}
