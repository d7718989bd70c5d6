//! Starts that wait for something: what is said of them, and how they are given up.

use podling_core::{status::Waits, workspace::State};

use crate::{
    fake::Fake,
    plane::{Plane, runs},
};

const FULL: &str = "the quota of its namespace leaves no room: team";

#[tokio::test]
async fn a_start_that_waits_says_for_what_and_whoever_wants_something_else_does_not_wait_for_it() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    backend.hold(true);
    let id = plane.create("demo").await.spec.id.clone();
    plane.wait(&id, |view| view.state == State::Starting).await;
    let waits = |for_room| Some(Waits { why: FULL.into(), for_room });
    backend.tell_waits(&id, 7, waits(true));
    backend.tell_waits(&id, 1, waits(true));
    plane.wait(&id, |view| view.state == State::Queued && view.reason == FULL).await;
    backend.tell_waits(&id, 1, waits(false));
    plane.wait(&id, |view| view.state == State::Starting && view.reason == FULL).await;
    backend.tell_waits(&id, 1, None);
    plane.wait(&id, |view| view.state == State::Starting && view.reason != FULL).await;

    // Somebody lets it be: the start that waits is given up, and what it may have left is ended.
    backend.tell_waits(&id, 1, waits(false));
    plane.handle.sleep(id.clone(), false).await.unwrap();
    plane.wait(&id, |view| view.state == State::FallingAsleep).await;
    backend.hold(false);
    plane.wait(&id, |view| view.state == State::Asleep).await;
    let calls = backend.state().calls.clone();
    assert_eq!(calls, ["start 1", "stop"]);
    plane.handle.wake(id.clone()).await.unwrap();
    runs(&backend, &id, 2).await;
}
