//! Archiving, releasing, restoring and discarding storage.

use std::{sync::Arc, time::Duration};

use podling_control::driver::{AgentDirective, DriverError, NewWorkspace};
use podling_core::reason::{NextStep, Operation, StateReason};
use podling_core::{
    id::WorkspaceId,
    policy::{Policy, PolicyOverrides},
    quota::Quotas,
    workspace::{Resources, State},
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    control_plane::{DEADLINE, TestControlPlane, expect_claim, new_workspace, wait_until_running},
    fake_archiver::FakeArchiver,
    fake_backend::FakeBackend,
    fake_store::FakeStore,
};

/// Serves the workspace with an agent of this epoch, on the connection of the same number.
pub(crate) async fn serve(
    control: &TestControlPlane,
    backend: &FakeBackend,
    id: &WorkspaceId,
    epoch: u64,
) -> mpsc::Receiver<AgentDirective> {
    wait_until_running(backend, id, epoch).await;
    control.serve(id, epoch, epoch).await
}

async fn fixture() -> (tempfile::TempDir, FakeBackend, FakeArchiver, TestControlPlane) {
    let (dir, backend, archiver) =
        (tempfile::tempdir().unwrap(), FakeBackend::default(), FakeArchiver::default());
    let control = TestControlPlane::with_archiver(dir.path(), &backend, &archiver, Quotas::default()).await;
    (dir, backend, archiver, control)
}

#[tokio::test]
async fn sleeping_workspace_is_archived_released_and_restored_on_wake() {
    let (dir, backend, archiver, control) = fixture().await;
    let policy = Policy { archive_after: Duration::ZERO, ..Policy::default() };
    let id = control.create_with(NewWorkspace { policy, ..new_workspace("demo") }).await;
    let mut agent = serve(&control, &backend, &id, 1).await;
    control.complete_sleep(&id, &mut agent).await;
    let _maintenance = serve(&control, &backend, &id, 2).await;
    let archived = control.wait(&id, |view| view.state == State::Archived).await;
    assert_eq!((archived.archives.len(), archived.archives[0].generation), (1, 1));
    assert_eq!(backend.state().calls, ["start 1", "stop", "start 2", "stop", "remove"]);

    drop(control);
    let control = TestControlPlane::with_archiver(dir.path(), &backend, &archiver, Quotas::default()).await;
    control.handle.wake(id.clone()).await.unwrap();
    let _maintenance = serve(&control, &backend, &id, 3).await;
    let _agent = serve(&control, &backend, &id, 4).await;
    let awake = control.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(awake.archives.len(), 1, "the archive is retained as long as the policy says");
    assert_eq!(archiver.state().calls, ["archive 1", "restore 1"]);
}

#[tokio::test]
async fn workspace_that_never_ran_is_deleted_without_archive() {
    let (_dir, backend, archiver, control) = fixture().await;
    backend.state().fail_starts = true;
    let failing = control.create("failing").await.spec.id.clone();
    control.wait(&failing, |view| view.restarts > 0).await;
    control.handle.delete(failing.clone(), false).await.unwrap();
    control.wait_until_gone(&failing).await;

    // The backend waits for a place that the start never gets.
    backend.state().fail_starts = false;
    backend.hold(true);
    let waiting = control.create("waiting").await.spec.id.clone();
    control.wait(&waiting, |view| view.state == State::Starting).await;
    control.handle.delete(waiting.clone(), false).await.unwrap();
    backend.hold(false);
    control.wait_until_gone(&waiting).await;

    // The agent runs, but has not asked for its claim.
    let unclaimed = control.create("unclaimed").await.spec.id.clone();
    wait_until_running(&backend, &unclaimed, 1).await;
    control.handle.delete(unclaimed.clone(), false).await.unwrap();
    control.wait_until_gone(&unclaimed).await;
    assert!(archiver.state().calls.is_empty(), "nothing is archived: {:?}", archiver.state().calls);
}

#[tokio::test]
async fn agent_is_claimed_once_storage_is_recorded() {
    let (store, backend, archiver) = (FakeStore::default(), FakeBackend::default(), FakeArchiver::default());
    let quotas = Quotas::default();
    let control = TestControlPlane::with_store(Arc::new(store.clone()), &backend, &archiver, quotas).await;
    let id = control.create("demo").await.spec.id.clone();
    wait_until_running(&backend, &id, 1).await;
    assert!(!store.has_storage(&id), "no agent can have written yet");
    store.refuse(3);
    let mut agent = control.dial(&id, 1, "boot-1", 1).await;
    expect_claim(&mut agent, 1).await;
    assert!(store.has_storage(&id), "a crash after the claim must not lose that files may exist");
}

#[tokio::test]
async fn vanished_storage_fails_starts_until_it_is_back() {
    let (_dir, backend, archiver, control) = fixture().await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    assert!(backend.state().storage.remove(&id));
    control.handle.wake(id.clone()).await.unwrap();
    let failed = control.wait(&id, |view| view.restarts > 0).await;
    assert!(format!("{:?}", failed.reason).contains("does not exist"), "{:?}", failed.reason);
    assert_eq!(backend.state().storage.len(), 0, "no empty storage takes its place");
    // A deletion does not archive an empty storage.
    control.handle.delete(id.clone(), false).await.unwrap();
    let failed = control.wait(&id, |view| matches!(view.reason, StateReason::ArchiveFailed { .. })).await;
    assert!(format!("{:?}", failed.reason).contains("does not exist"), "{:?}", failed.reason);
    assert!(archiver.state().calls.is_empty());
    backend.state().storage.insert(id.clone());
    let archiving = async {
        while backend.state().running.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, archiving).await.expect("the next retry uses the storage that is back");
    control.handle.delete(id.clone(), true).await.unwrap();
    control.wait_until_gone(&id).await;
}

#[tokio::test]
async fn maintenance_agent_gets_no_more_than_default_resources() {
    let (_dir, backend, _archiver, control) = fixture().await;
    let large = Resources { cpu_millis: 64_000, memory_bytes: 64 << 20 };
    let created = control.handle.create(NewWorkspace { resources: large, ..new_workspace("demo") }).await;
    let id = created.unwrap().0.spec.id.clone();
    let has = || backend.state().running.get(&id).and_then(|instance| instance.resources);
    let mut agent = serve(&control, &backend, &id, 1).await;
    assert_eq!(has(), Some(large));
    control.wait(&id, |view| view.state == State::Awake).await;
    control.put_to_sleep(&id, &mut agent).await;
    control.handle.delete(id.clone(), false).await.unwrap();
    wait_until_running(&backend, &id, 2).await;
    assert_eq!(has(), Some(Resources { cpu_millis: 1000, memory_bytes: 64 << 20 }));
}

#[tokio::test]
async fn failed_archive_keeps_the_storage_and_is_retried() {
    let (_dir, backend, archiver, control) = fixture().await;
    let (id, mut agent) = control.create_awake("demo").await;
    archiver.state().failures = 1;
    control.put_to_sleep(&id, &mut agent).await;
    control.handle.delete(id.clone(), false).await.unwrap();
    let _maintenance = serve(&control, &backend, &id, 2).await;
    let kept = control.wait(&id, |view| matches!(view.reason, StateReason::ArchiveFailed { .. })).await;
    let StateReason::ArchiveFailed { cause } = &kept.reason else { unreachable!() };
    assert!(
        matches!(
            &**cause,
            StateReason::ActionFailed { detail, .. } if detail.contains("a file could not be read")
        ),
        "{cause:?}"
    );
    assert!(!backend.state().calls.contains(&"remove".to_owned()));
    let _maintenance = serve(&control, &backend, &id, 3).await;
    let gone = control.wait(&id, |view| view.is_gone()).await;
    assert_eq!(gone.archives.len(), 1);
    assert_eq!(archiver.state().calls, ["archive 1", "archive 1"]);

    // The name is free. The workspace is restored only while no other workspace has the name.
    let other = control.create("demo").await.spec.id.clone();
    let taken = control.handle.restore(id.clone()).await.unwrap_err();
    assert!(matches!(taken, DriverError::NameTaken { .. }), "{taken}");
    control.handle.delete(other.clone(), true).await.unwrap();
    control.wait_until_gone(&other).await;
    control.handle.restore(id.clone()).await.unwrap();
    let _maintenance = serve(&control, &backend, &id, 4).await;
    let _agent = serve(&control, &backend, &id, 5).await;
    control.wait(&id, |view| view.state == State::Awake).await;
}

#[tokio::test]
async fn failed_restore_shows_why_until_it_is_retried() {
    let (_dir, backend, archiver, control) = fixture().await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    control.handle.delete(id.clone(), false).await.unwrap();
    let _maintenance = serve(&control, &backend, &id, 2).await;
    control.wait(&id, |view| view.is_gone()).await;
    archiver.state().failures = 1;
    control.handle.restore(id.clone()).await.unwrap();
    let _maintenance = serve(&control, &backend, &id, 3).await;
    let failed = control.wait(&id, |view| view.state == State::Archived && view.next.is_some()).await;
    let StateReason::RestoreFailed { cause } = &failed.reason else { panic!("{:?}", failed.reason) };
    assert!(matches!(&**cause, StateReason::ActionFailed { operation: Operation::Restore, .. }), "{cause:?}");
    assert_eq!(failed.next.map(|(_, step)| step), Some(NextStep::Restore));
    let _maintenance = serve(&control, &backend, &id, 4).await;
    let _agent = serve(&control, &backend, &id, 5).await;
    control.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(archiver.state().calls, ["archive 1", "restore 1", "restore 1"]);
}

#[tokio::test]
async fn wake_during_archiving_cancels_the_archive() {
    let (_dir, backend, archiver, control) = fixture().await;
    let policy = Policy { archive_after: Duration::ZERO, ..Policy::default() };
    let id = control.create_with(NewWorkspace { policy, ..new_workspace("demo") }).await;
    let mut agent = serve(&control, &backend, &id, 1).await;
    archiver.hold(true);
    control.complete_sleep(&id, &mut agent).await;
    let _maintenance = serve(&control, &backend, &id, 2).await;
    control.wait(&id, |view| view.state == State::Archiving && view.agent.is_some()).await;
    control.handle.wake(id.clone()).await.unwrap();
    let _agent = serve(&control, &backend, &id, 3).await;
    let awake = control.wait(&id, |view| view.state == State::Awake).await;
    assert!(awake.archives.is_empty());
    assert!(!backend.state().calls.contains(&"remove".to_owned()));
}

#[tokio::test]
async fn record_is_removed_when_its_last_archive_expires() {
    let (_dir, backend, archiver, control) = fixture().await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    control.handle.delete(id.clone(), false).await.unwrap();
    let _maintenance = serve(&control, &backend, &id, 2).await;
    control.wait(&id, |view| view.is_gone()).await;
    let kept = timeout(Duration::from_millis(100), control.wait_until_gone(&id)).await;
    assert!(kept.is_err(), "the archive is retained for thirty days");
    let policy = PolicyOverrides { keep_archives: Some(Duration::ZERO), ..Default::default() };
    control.handle.restore(id.clone()).await.unwrap();
    control.handle.set_policy(id.clone(), policy).await.unwrap();
    control.handle.delete(id.clone(), true).await.unwrap();
    control.wait_until_gone(&id).await;
    assert!(archiver.state().calls.contains(&"expire 1".to_owned()), "{:?}", archiver.state().calls);
}

#[tokio::test]
async fn new_workspace_is_restored_from_an_archive() {
    let (_dir, backend, archiver, control) = fixture().await;
    let (id, mut agent) = control.create_awake("old").await;
    control.put_to_sleep(&id, &mut agent).await;
    control.handle.delete(id.clone(), false).await.unwrap();
    let _maintenance = serve(&control, &backend, &id, 2).await;
    let gone = control.wait(&id, |view| view.is_gone()).await;
    let source = Some(gone.archives[0].key.clone());
    let fresh = control.create_with(NewWorkspace { source, ..new_workspace("fresh") }).await;
    let _maintenance = serve(&control, &backend, &fresh, 1).await;
    let _agent = serve(&control, &backend, &fresh, 2).await;
    let awake = control.wait(&fresh, |view| view.state == State::Awake).await;
    assert_eq!(
        (awake.archives.len(), archiver.state().calls.last().map(String::as_str)),
        (0, Some("restore 1"))
    );
    timeout(DEADLINE, control.wait(&id, |view| view.is_gone()))
        .await
        .expect("the old workspace is unchanged");
}

/// Restores and discards the workspace with a retention of zero, so that its archives expire.
async fn discard_with_archives(control: &TestControlPlane, id: &WorkspaceId) {
    let policy = PolicyOverrides { keep_archives: Some(Duration::ZERO), ..Default::default() };
    control.handle.restore(id.clone()).await.unwrap();
    control.handle.set_policy(id.clone(), policy).await.unwrap();
    control.handle.delete(id.clone(), true).await.unwrap();
}

#[tokio::test]
async fn archive_expires_while_others_are_being_written() {
    let (_dir, backend, archiver, control) = fixture().await;
    let (old, mut agent) = control.create_awake("old").await;
    control.put_to_sleep(&old, &mut agent).await;
    control.handle.delete(old.clone(), false).await.unwrap();
    let _maintenance = serve(&control, &backend, &old, 2).await;
    control.wait(&old, |view| view.is_gone()).await;

    archiver.hold(true);
    let mut agents = Vec::new();
    for name in ["a", "b", "c"] {
        let policy = Policy { archive_after: Duration::ZERO, ..Policy::default() };
        let new = NewWorkspace { policy, ..new_workspace(name) };
        let id = control.handle.create(new).await.unwrap().0.spec.id.clone();
        let mut agent = serve(&control, &backend, &id, 1).await;
        control.complete_sleep(&id, &mut agent).await;
        agents.push(serve(&control, &backend, &id, 2).await);
    }
    archiver.wait_for_calls("archive 1", 3).await;
    discard_with_archives(&control, &old).await;
    archiver.wait_for_calls("expire 1", 1).await;
    archiver.hold(false);
    control.wait_until_gone(&old).await;
}

#[tokio::test]
async fn archive_in_use_as_a_source_expires_after_the_restore() {
    let (_dir, backend, archiver, control) = fixture().await;
    let (old, mut agent) = control.create_awake("old").await;
    control.put_to_sleep(&old, &mut agent).await;
    control.handle.delete(old.clone(), false).await.unwrap();
    let _maintenance = serve(&control, &backend, &old, 2).await;
    let gone = control.wait(&old, |view| view.is_gone()).await;
    let source = Some(gone.archives[0].key.clone());
    let fresh = control.create_with(NewWorkspace { source, ..new_workspace("fresh") }).await;
    discard_with_archives(&control, &old).await;
    control
        .wait(&old, |view| {
            matches!(view.reason, StateReason::ActionFailed { operation: Operation::ExpireArchive, .. })
        })
        .await;
    assert!(!archiver.state().calls.contains(&"expire 1".to_owned()), "{:?}", archiver.state().calls);

    let _maintenance = serve(&control, &backend, &fresh, 1).await;
    let _agent = serve(&control, &backend, &fresh, 2).await;
    control.wait(&fresh, |view| view.state == State::Awake).await;
    control.wait_until_gone(&old).await;
    assert!(archiver.state().calls.ends_with(&["restore 1".into(), "expire 1".into()]));
}
