//! Quotas and the admission queue.

use podling_control::driver::DriverError;
use podling_core::{
    quota::{Quota, Quotas},
    workspace::{ResourceOverrides, Resources, State},
};

use crate::{
    control_plane::{TestControlPlane, wait_until_running},
    fake_archiver::FakeArchiver,
    fake_backend::FakeBackend,
};

#[tokio::test]
async fn freed_quota_goes_to_the_first_in_the_queue() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), FakeBackend::default());
    let owner = Quota { awake: Some(1), ..Quota::default() };
    let quotas = Quotas { owner, ..Quotas::default() };
    let control =
        TestControlPlane::with_archiver(dir.path(), &backend, &FakeArchiver::default(), quotas).await;
    let (first, mut agent) = control.create_awake("first").await;
    let second = control.create("second").await.spec.id.clone();
    control.wait(&second, |view| view.queue_position == Some(1) && view.state == State::Queued).await;
    let third = control.create("third").await.spec.id.clone();
    control.wait(&third, |view| view.queue_position == Some(2) && view.state == State::Queued).await;

    control.put_to_sleep(&first, &mut agent).await;
    wait_until_running(&backend, &second, 1).await;
    control.wait(&third, |view| view.queue_position == Some(1)).await;
    control.handle.wake(first.clone()).await.unwrap();
    control.wait(&first, |view| view.queue_position == Some(2)).await;
    assert!(!backend.state().running.contains_key(&third));

    // The order of the queue survives a crash.
    drop(control);
    let control =
        TestControlPlane::with_archiver(dir.path(), &backend, &FakeArchiver::default(), quotas).await;
    control.wait(&third, |view| view.queue_position == Some(1)).await;
    control.wait(&first, |view| view.queue_position == Some(2)).await;
    control.handle.delete(second.clone(), true).await.unwrap();
    wait_until_running(&backend, &third, 1).await;
    control.wait(&first, |view| view.queue_position == Some(1)).await;
}

#[tokio::test]
async fn increase_waits_in_the_queue_and_keeps_what_is_allocated() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), FakeBackend::default());
    let owner = Quota { cpu_millis: Some(3000), ..Quota::default() };
    let quotas = Quotas { owner, ..Quotas::default() };
    let cpu = |cpu_millis| Resources { cpu_millis, ..Resources::default() };
    let to = |cpu_millis| ResourceOverrides { cpu_millis: Some(cpu_millis), memory_bytes: None };
    let control =
        TestControlPlane::with_archiver(dir.path(), &backend, &FakeArchiver::default(), quotas).await;
    let (first, _agent) = control.create_awake("first").await;
    let (second, mut agent) = control.create_awake("second").await;
    let refused = control.handle.resize(first.clone(), to(4000)).await.unwrap_err();
    assert_eq!(refused, DriverError::TooLarge);
    let grown = control.handle.resize(first.clone(), to(2000)).await.unwrap();
    assert_eq!(
        (grown.state, grown.allocated, grown.queue_position),
        (State::Awake, Some(cpu(2000)), None),
        "the increase fits the quota"
    );
    control.wait(&first, |view| view.actual == Some(cpu(2000))).await;
    assert_eq!(
        backend.state().calls.last().map(String::as_str),
        Some("resize"),
        "the running agent was resized"
    );
    control.handle.resize(second.clone(), to(3000)).await.unwrap();
    control.wait(&second, |view| view.queue_position == Some(1) && view.allocated == Some(cpu(1000))).await;
    let third = control.create("third").await.spec.id.clone();
    control.wait(&third, |view| view.queue_position == Some(2)).await;
    // Freed quota waits for the first in the queue, and is not used by a smaller request behind it.
    control.handle.resize(first.clone(), to(1000)).await.unwrap();
    control.wait(&first, |view| view.allocated == Some(cpu(1000))).await;
    control.wait(&second, |view| view.queue_position == Some(1)).await;
    control.wait(&third, |view| view.queue_position == Some(2)).await;
    // The first withdraws its request, so the next in the queue is admitted.
    control.handle.resize(second.clone(), to(1000)).await.unwrap();
    wait_until_running(&backend, &third, 1).await;

    // A sleeping workspace has nothing allocated. It gets the new size when it wakes.
    control.put_to_sleep(&second, &mut agent).await;
    control.wait(&second, |view| view.allocated.is_none()).await;
    let asleep = control.handle.resize(second.clone(), to(2000)).await.unwrap();
    assert_eq!((asleep.state, asleep.queue_position), (State::Asleep, None));
    control.handle.wake(second.clone()).await.unwrap();
    control.wait(&second, |view| view.state == State::Queued && view.queue_position == Some(1)).await;
    drop(control);
    let control =
        TestControlPlane::with_archiver(dir.path(), &backend, &FakeArchiver::default(), quotas).await;
    control.wait(&second, |view| view.state == State::Queued && view.queue_position == Some(1)).await;
    control.handle.delete(third, true).await.unwrap();
    wait_until_running(&backend, &second, 2).await;
    control.wait(&second, |view| view.allocated == Some(cpu(2000))).await;
}
