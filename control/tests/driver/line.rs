//! Room: who may be awake, and who waits.

use podling_core::{
    quota::{Quota, Quotas},
    workspace::State,
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
    plane.wait(&second, |view| view.place == Some(1) && view.state == State::Queued).await;
    let third = plane.create("third").await.spec.id.clone();
    plane.wait(&third, |view| view.place == Some(2) && view.state == State::Queued).await;

    plane.put_to_sleep(&first, &mut agent).await;
    runs(&backend, &second, 1).await;
    plane.wait(&third, |view| view.place == Some(1)).await;
    plane.handle.wake(first.clone()).await.unwrap();
    plane.wait(&first, |view| view.place == Some(2)).await;
    assert!(!backend.state().running.contains_key(&third));

    // Also after a crash nobody jumps the line.
    drop(plane);
    let plane = Plane::with(folder.path(), &backend, &FakeKeeper::default(), quotas).await;
    plane.wait(&third, |view| view.place == Some(1)).await;
    plane.wait(&first, |view| view.place == Some(2)).await;
    plane.handle.delete(second.clone(), true).await.unwrap();
    runs(&backend, &third, 1).await;
    plane.wait(&first, |view| view.place == Some(1)).await;
}
