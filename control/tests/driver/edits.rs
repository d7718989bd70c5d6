//! Edits of workspaces in the store, outside the API.

use std::{sync::Arc, time::Duration};

use podling_control::{
    driver::{CannotUndeleteCause, DriverError, SleepStep, SpecEdit},
    store::Store,
};
use podling_core::{
    policy::Policy,
    quota::Quotas,
    reason::StateReason,
    status::Urgency,
    workspace::{AgentConnection, DesiredState, State},
};

use crate::{
    control_plane::{TestControlPlane, next_sleep_step, wait_until_running},
    fake_archiver::FakeArchiver,
    fake_backend::FakeBackend,
    fake_store::FakeStore,
};

#[tokio::test]
async fn edit_survives_failed_store_write() {
    let (store, backend) = (FakeStore::default(), FakeBackend::default());
    let control = TestControlPlane::with_store(
        Arc::new(store.clone()),
        &backend,
        &FakeArchiver::default(),
        Quotas::default(),
    )
    .await;
    let (id, _agent) = control.create_awake("demo").await;
    let policy = Policy { idle_timeout: Duration::from_secs(3 * 3600), ..Policy::default() };
    store.refuse(2);
    control
        .handle
        .apply_edit(
            id.clone(),
            SpecEdit { generation: 2, policy: Some(policy.clone()), ..SpecEdit::default() },
        )
        .await
        .unwrap();
    control.wait(&id, |view| view.spec.policy == policy).await;
    assert_eq!(store.refusals(), 0);

    store.refuse(1);
    control
        .handle
        .apply_edit(id.clone(), SpecEdit { generation: 3, deleted: Some(true), ..SpecEdit::default() })
        .await
        .unwrap();
    control.wait_until_gone(&id).await;
    assert!(store.load().await.unwrap().records.is_empty());
}

#[tokio::test]
async fn workspace_created_in_the_store_follows_its_desired_state() {
    let (store, backend) = (FakeStore::default(), FakeBackend::default());
    let control = TestControlPlane::with_store(
        Arc::new(store.clone()),
        &backend,
        &FakeArchiver::default(),
        Quotas::default(),
    )
    .await;
    let made = control.create("template").await;
    let mut record = store.load().await.unwrap().records.remove(0);
    assert_eq!(record.spec.id, made.spec.id);
    let spec = Arc::make_mut(&mut record.spec);
    spec.id = podling_core::id::WorkspaceId::from_bits(77);
    spec.name = "found".parse().unwrap();
    let id = record.spec.id.clone();
    record.status = podling_core::status::Status::new(record.spec.created);
    control.handle.add_stored(record).await.unwrap();
    wait_until_running(&backend, &id, 1).await;
    assert!(
        backend.state().calls.contains(&"stop".to_owned()),
        "processes of an earlier workspace with this id are stopped first"
    );
    control
        .handle
        .apply_edit(id.clone(), SpecEdit { generation: 2, awake: Some(false), ..SpecEdit::default() })
        .await
        .unwrap();
    control.wait(&id, |view| view.state == State::Asleep).await;
    control
        .handle
        .apply_edit(id.clone(), SpecEdit { generation: 3, awake: Some(true), ..SpecEdit::default() })
        .await
        .unwrap();
    wait_until_running(&backend, &id, 2).await;
}

#[tokio::test]
async fn record_readable_again_is_served_by_its_running_agent() {
    let (store, backend) = (FakeStore::default(), FakeBackend::default());
    let archiver = FakeArchiver::default();
    let control =
        TestControlPlane::with_store(Arc::new(store.clone()), &backend, &archiver, Quotas::default()).await;
    let (id, _agent) = control.create_awake("demo").await;
    let record = store.load().await.unwrap().records.remove(0);
    drop(control);

    // The next control plane cannot read the record, and leaves its agent running.
    let control =
        TestControlPlane::with_store(Arc::new(FakeStore::default()), &backend, &archiver, Quotas::default())
            .await;
    control.create("other").await;
    backend.state().calls.clear();
    control.handle.add_stored(record).await.unwrap();
    let _agent = control.serve(&id, 1, 2).await;
    control
        .wait(&id, |view| view.state == State::Awake && view.connection == AgentConnection::Connected)
        .await;
    let calls = backend.state().calls.clone();
    assert!(!calls.contains(&"stop".to_owned()), "{calls:?}");
    wait_until_running(&backend, &id, 1).await;
}

#[tokio::test]
async fn deletion_is_taken_back_unless_kubernetes_began_it() {
    let (store, backend) = (FakeStore::default(), FakeBackend::default());
    let archiver = FakeArchiver::default();
    let control = TestControlPlane::with_store(Arc::new(store), &backend, &archiver, Quotas::default()).await;
    let (id, mut agent) = control.create_awake("demo").await;
    let handle = &control.handle;
    let idle = handle.undelete(id.clone()).await.unwrap();
    assert_eq!(idle.spec.desired_state, DesiredState::Awake, "there is nothing to take back");

    // The agent is asked to prepare, and serves on.
    handle.delete(id.clone(), false).await.unwrap();
    let (directive, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Prepare(Urgency::Forced));
    let refused = handle.wake(id.clone()).await.unwrap_err();
    assert_eq!(refused, DriverError::Deleting { id: id.clone(), undelete: true });
    handle.undelete(id.clone()).await.unwrap();
    control.answer_directive(&id, 1, directive, Ok(())).await;
    let (_, step) = next_sleep_step(&mut agent).await;
    assert_eq!(step, SleepStep::Cancel);
    control.wait(&id, |view| view.reason == StateReason::DeletionCancelled).await;

    let edit = SpecEdit { generation: 2, deleted: Some(false), ..SpecEdit::default() };
    handle.apply_edit(id.clone(), edit).await.unwrap();
    control.wait(&id, |view| view.spec.desired_state == DesiredState::Deleted && !view.undelete).await;
    let refused = handle.undelete(id.clone()).await.unwrap_err();
    let cause = CannotUndeleteCause::Kubernetes;
    assert_eq!(refused, DriverError::CannotUndelete { id: id.clone(), cause });
    handle.delete(id.clone(), true).await.unwrap();
    control.wait_until_gone(&id).await;
}

#[tokio::test]
async fn undelete_does_not_wake_a_sleeping_workspace() {
    let (store, backend) = (FakeStore::default(), FakeBackend::default());
    let archiver = FakeArchiver::default();
    let control = TestControlPlane::with_store(Arc::new(store), &backend, &archiver, Quotas::default()).await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    control.wait(&id, |view| view.state == State::Asleep).await;
    let log = control.wait(&id, |view| view.state == State::Asleep).await.log.len();

    // The agent that archives does not connect, so the deletion waits for it.
    control.handle.delete(id.clone(), false).await.unwrap();
    control.wait(&id, |view| view.state == State::Archiving).await;
    control.handle.undelete(id.clone()).await.unwrap();
    let asleep = control.wait(&id, |view| view.state == State::Asleep).await;
    assert_eq!(asleep.reason, StateReason::DeletionCancelled);
    // A start would be decided at once.
    let again = control.handle.undelete(id.clone()).await.unwrap();
    assert_eq!((again.state, again.log.len() - log), (State::Asleep, 2), "{:?}", again.log);
}
