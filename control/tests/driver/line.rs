//! Room: who may be awake, and who waits.

use podling_control::driver::DriverError;
use podling_core::{
    quota::{Quota, Quotas},
    workspace::{Resources, State},
};

use crate::{
    fake::Fake,
    fake_keeper::FakeKeeper,
    plane::{Plane, runs},
};

#[tokio::test]
async fn one_too_many_waits_in_line_and_a_place_that_is_given_back_goes_to_the_first() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let owner = Quota { awake: Some(1), ..Quota::default() };
    let quotas = Quotas { owner, ..Quotas::default() };
    let plane = Plane::with(folder.path(), &backend, &FakeKeeper::default(), quotas).await;
    let (first, mut agent) = plane.awake("first").await;
    let second = plane.create("second").await.spec.id.clone();
    plane.wait(&second, |view| view.queue_position == Some(1) && view.state == State::Queued).await;
    let third = plane.create("third").await.spec.id.clone();
    plane.wait(&third, |view| view.queue_position == Some(2) && view.state == State::Queued).await;

    plane.put_to_sleep(&first, &mut agent).await;
    runs(&backend, &second, 1).await;
    plane.wait(&third, |view| view.queue_position == Some(1)).await;
    plane.handle.wake(first.clone()).await.unwrap();
    plane.wait(&first, |view| view.queue_position == Some(2)).await;
    assert!(!backend.state().running.contains_key(&third));

    // Also after a crash nobody jumps the line.
    drop(plane);
    let plane = Plane::with(folder.path(), &backend, &FakeKeeper::default(), quotas).await;
    plane.wait(&third, |view| view.queue_position == Some(1)).await;
    plane.wait(&first, |view| view.queue_position == Some(2)).await;
    plane.handle.delete(second.clone(), true).await.unwrap();
    runs(&backend, &third, 1).await;
    plane.wait(&first, |view| view.queue_position == Some(1)).await;
}

#[tokio::test]
async fn who_wants_more_waits_for_it_in_line_and_goes_on_with_what_it_has() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let owner = Quota { cpu_millis: Some(3000), ..Quota::default() };
    let quotas = Quotas { owner, ..Quotas::default() };
    let cpu = |cpu_millis| Resources { cpu_millis, ..Resources::default() };
    let plane = Plane::with(folder.path(), &backend, &FakeKeeper::default(), quotas).await;
    let (first, _agent) = plane.awake("first").await;
    let (second, mut agent) = plane.awake("second").await;
    let refused = plane.handle.resize(first.clone(), cpu(4000)).await.unwrap_err();
    assert_eq!(refused, DriverError::TooLarge);
    let grown = plane.handle.resize(first.clone(), cpu(2000)).await.unwrap();
    assert_eq!(
        (grown.state, grown.allocated, grown.queue_position),
        (State::Awake, Some(cpu(2000)), None),
        "there was room"
    );
    plane.wait(&first, |view| view.actual == Some(cpu(2000))).await;
    assert_eq!(
        backend.state().calls.last().map(String::as_str),
        Some("resize"),
        "and what runs was given it"
    );
    plane.handle.resize(second.clone(), cpu(3000)).await.unwrap();
    plane.wait(&second, |view| view.queue_position == Some(1) && view.allocated == Some(cpu(1000))).await;
    let third = plane.create("third").await.spec.id.clone();
    plane.wait(&third, |view| view.queue_position == Some(2)).await;
    // What is given back goes to the first in line, and not to a smaller one behind it.
    plane.handle.resize(first.clone(), cpu(1000)).await.unwrap();
    plane.wait(&first, |view| view.allocated == Some(cpu(1000))).await;
    plane.wait(&second, |view| view.queue_position == Some(1)).await;
    plane.wait(&third, |view| view.queue_position == Some(2)).await;
    // It is content with what it has: the one behind it is next.
    plane.handle.resize(second.clone(), cpu(1000)).await.unwrap();
    runs(&backend, &third, 1).await;

    // Asleep it has nothing; what it wants then it is given when it wakes.
    plane.put_to_sleep(&second, &mut agent).await;
    plane.wait(&second, |view| view.allocated.is_none()).await;
    let asleep = plane.handle.resize(second.clone(), cpu(2000)).await.unwrap();
    assert_eq!((asleep.state, asleep.queue_position), (State::Asleep, None));
    plane.handle.wake(second.clone()).await.unwrap();
    plane.wait(&second, |view| view.state == State::Queued && view.queue_position == Some(1)).await;
    drop(plane);
    let plane = Plane::with(folder.path(), &backend, &FakeKeeper::default(), quotas).await;
    plane.wait(&second, |view| view.state == State::Queued && view.queue_position == Some(1)).await;
    plane.handle.delete(third, true).await.unwrap();
    runs(&backend, &second, 2).await;
    plane.wait(&second, |view| view.allocated == Some(cpu(2000))).await;
}
