//! Archived, let go, restored, kept and discarded.

use std::time::Duration;

use podling_control::driver::{DriverError, NewWorkspace, ToAgent};
use podling_core::reason::{Operation, StateReason};
use podling_core::{
    id::WorkspaceId,
    policy::{Policy, PolicyOverrides},
    quota::Quotas,
    workspace::State,
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    fake::Fake,
    fake_keeper::FakeKeeper,
    plane::{DEADLINE, Plane, new, runs},
};

/// An agent of this epoch comes, on the connection of the same number, and is claimed.
pub(crate) async fn serve(
    plane: &Plane,
    backend: &Fake,
    id: &WorkspaceId,
    epoch: u64,
) -> mpsc::Receiver<ToAgent> {
    runs(backend, id, epoch).await;
    plane.serve(id, epoch, epoch).await
}

async fn house() -> (tempfile::TempDir, Fake, FakeKeeper, Plane) {
    let (folder, backend, keeper) = (tempfile::tempdir().unwrap(), Fake::default(), FakeKeeper::default());
    let plane = Plane::with(folder.path(), &backend, &keeper, Quotas::default()).await;
    (folder, backend, keeper, plane)
}

#[tokio::test]
async fn what_sleeps_for_long_is_archived_let_go_and_restored_for_whoever_comes() {
    let (folder, backend, keeper, plane) = house().await;
    let policy = Policy { archive_after: Duration::ZERO, ..Policy::default() };
    let id = plane.handle.create(NewWorkspace { policy, ..new("demo") }).await.unwrap().0.spec.id.clone();
    let mut agent = serve(&plane, &backend, &id, 1).await;
    plane.put_to_sleep_then_anything(&id, &mut agent).await;
    let _maintenance = serve(&plane, &backend, &id, 2).await;
    let archived = plane.wait(&id, |view| view.state == State::Archived).await;
    assert_eq!((archived.archives.len(), archived.archives[0].generation), (1, 1));
    assert_eq!(backend.state().calls, ["start 1", "stop", "start 2", "stop", "remove"]);

    drop(plane);
    let plane = Plane::with(folder.path(), &backend, &keeper, Quotas::default()).await;
    plane.handle.wake(id.clone()).await.unwrap();
    let _maintenance = serve(&plane, &backend, &id, 3).await;
    let _agent = serve(&plane, &backend, &id, 4).await;
    let awake = plane.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(awake.archives.len(), 1, "it is kept as long as the policy says");
    assert_eq!(keeper.state().calls, ["archive 1", "restore 1"]);
}

#[tokio::test]
async fn what_cannot_be_archived_is_kept_and_tried_again() {
    let (_folder, backend, keeper, plane) = house().await;
    let (id, mut agent) = plane.awake("demo").await;
    keeper.state().failures = 1;
    plane.put_to_sleep(&id, &mut agent).await;
    plane.handle.delete(id.clone(), false).await.unwrap();
    let _maintenance = serve(&plane, &backend, &id, 2).await;
    let kept = plane.wait(&id, |view| matches!(view.reason, StateReason::ArchiveFailed { .. })).await;
    let StateReason::ArchiveFailed { cause } = &kept.reason else { unreachable!() };
    assert!(
        matches!(&**cause, StateReason::ActionFailed { detail, .. } if detail.contains("a file could not be read")),
        "{cause:?}"
    );
    assert!(!backend.state().calls.contains(&"remove".to_owned()));
    let _maintenance = serve(&plane, &backend, &id, 3).await;
    let gone = plane.wait(&id, |view| view.is_gone()).await;
    assert_eq!(gone.archives.len(), 1);
    assert_eq!(keeper.state().calls, ["archive 1", "archive 1"]);

    // Its name is free, and it comes back under it only while nobody else has it.
    let other = plane.create("demo").await.spec.id.clone();
    let taken = plane.handle.restore(id.clone()).await.unwrap_err();
    assert!(matches!(taken, DriverError::NameTaken { .. }), "{taken}");
    plane.handle.delete(other.clone(), true).await.unwrap();
    plane.gone(&other).await;
    plane.handle.restore(id.clone()).await.unwrap();
    let _maintenance = serve(&plane, &backend, &id, 4).await;
    let _agent = serve(&plane, &backend, &id, 5).await;
    plane.wait(&id, |view| view.state == State::Awake).await;
}

#[tokio::test]
async fn who_comes_while_it_is_archived_does_not_wait_for_that() {
    let (_folder, backend, keeper, plane) = house().await;
    let policy = Policy { archive_after: Duration::ZERO, ..Policy::default() };
    let id = plane.handle.create(NewWorkspace { policy, ..new("demo") }).await.unwrap().0.spec.id.clone();
    let mut agent = serve(&plane, &backend, &id, 1).await;
    keeper.hold(true);
    plane.put_to_sleep_then_anything(&id, &mut agent).await;
    let _maintenance = serve(&plane, &backend, &id, 2).await;
    plane.wait(&id, |view| view.state == State::Archiving && view.agent.is_some()).await;
    plane.handle.wake(id.clone()).await.unwrap();
    let _agent = serve(&plane, &backend, &id, 3).await;
    let awake = plane.wait(&id, |view| view.state == State::Awake).await;
    assert!(awake.archives.is_empty());
    assert!(!backend.state().calls.contains(&"remove".to_owned()));
}

#[tokio::test]
async fn an_archive_goes_when_its_time_is_over_and_with_the_last_the_record() {
    let (_folder, backend, keeper, plane) = house().await;
    let (id, mut agent) = plane.awake("demo").await;
    plane.put_to_sleep(&id, &mut agent).await;
    plane.handle.delete(id.clone(), false).await.unwrap();
    let _maintenance = serve(&plane, &backend, &id, 2).await;
    plane.wait(&id, |view| view.is_gone()).await;
    let kept = timeout(Duration::from_millis(100), plane.gone(&id)).await;
    assert!(kept.is_err(), "it is kept for thirty days");
    let policy = PolicyOverrides { keep_archives: Some(Duration::ZERO), ..Default::default() };
    plane.handle.restore(id.clone()).await.unwrap();
    plane.handle.set_policy(id.clone(), policy).await.unwrap();
    plane.handle.delete(id.clone(), true).await.unwrap();
    plane.gone(&id).await;
    assert!(keeper.state().calls.contains(&"expire 1".to_owned()), "{:?}", keeper.state().calls);
}

#[tokio::test]
async fn a_new_workspace_begins_with_what_an_archive_holds() {
    let (_folder, backend, keeper, plane) = house().await;
    let (id, mut agent) = plane.awake("old").await;
    plane.put_to_sleep(&id, &mut agent).await;
    plane.handle.delete(id.clone(), false).await.unwrap();
    let _maintenance = serve(&plane, &backend, &id, 2).await;
    let gone = plane.wait(&id, |view| view.is_gone()).await;
    let source = Some(gone.archives[0].key.clone());
    let fresh = plane.handle.create(NewWorkspace { source, ..new("fresh") }).await.unwrap().0.spec.id.clone();
    let _maintenance = serve(&plane, &backend, &fresh, 1).await;
    let _agent = serve(&plane, &backend, &fresh, 2).await;
    let awake = plane.wait(&fresh, |view| view.state == State::Awake).await;
    assert_eq!(
        (awake.archives.len(), keeper.state().calls.last().map(String::as_str)),
        (0, Some("restore 1"))
    );
    timeout(DEADLINE, plane.wait(&id, |view| view.is_gone())).await.expect("the old one stays as it is");
}

/// Restored and discarded at once, with archives that are kept for no time: they go.
async fn discard_with_archives(plane: &Plane, id: &WorkspaceId) {
    let policy = PolicyOverrides { keep_archives: Some(Duration::ZERO), ..Default::default() };
    plane.handle.restore(id.clone()).await.unwrap();
    plane.handle.set_policy(id.clone(), policy).await.unwrap();
    plane.handle.delete(id.clone(), true).await.unwrap();
}

#[tokio::test]
async fn an_archive_goes_although_others_are_being_written_for_hours() {
    let (_folder, backend, keeper, plane) = house().await;
    let (old, mut agent) = plane.awake("old").await;
    plane.put_to_sleep(&old, &mut agent).await;
    plane.handle.delete(old.clone(), false).await.unwrap();
    let _maintenance = serve(&plane, &backend, &old, 2).await;
    plane.wait(&old, |view| view.is_gone()).await;

    keeper.hold(true);
    let mut agents = Vec::new();
    for name in ["a", "b", "c"] {
        let policy = Policy { archive_after: Duration::ZERO, ..Policy::default() };
        let new = NewWorkspace { policy, ..new(name) };
        let id = plane.handle.create(new).await.unwrap().0.spec.id.clone();
        let mut agent = serve(&plane, &backend, &id, 1).await;
        plane.put_to_sleep_then_anything(&id, &mut agent).await;
        agents.push(serve(&plane, &backend, &id, 2).await);
    }
    keeper.asked("archive 1", 3).await;
    discard_with_archives(&plane, &old).await;
    keeper.asked("expire 1", 1).await;
    keeper.hold(false);
    plane.gone(&old).await;
}

#[tokio::test]
async fn an_archive_that_another_workspace_is_being_made_of_stays_until_that_is_done() {
    let (_folder, backend, keeper, plane) = house().await;
    let (old, mut agent) = plane.awake("old").await;
    plane.put_to_sleep(&old, &mut agent).await;
    plane.handle.delete(old.clone(), false).await.unwrap();
    let _maintenance = serve(&plane, &backend, &old, 2).await;
    let gone = plane.wait(&old, |view| view.is_gone()).await;
    let source = Some(gone.archives[0].key.clone());
    let fresh = plane.handle.create(NewWorkspace { source, ..new("fresh") }).await.unwrap().0.spec.id.clone();
    discard_with_archives(&plane, &old).await;
    plane
        .wait(&old, |view| {
            matches!(view.reason, StateReason::ActionFailed { operation: Operation::ExpireArchive, .. })
        })
        .await;
    assert!(!keeper.state().calls.contains(&"expire 1".to_owned()), "{:?}", keeper.state().calls);

    let _maintenance = serve(&plane, &backend, &fresh, 1).await;
    let _agent = serve(&plane, &backend, &fresh, 2).await;
    plane.wait(&fresh, |view| view.state == State::Awake).await;
    plane.gone(&old).await;
    assert!(keeper.state().calls.ends_with(&["restore 1".into(), "expire 1".into()]));
}
