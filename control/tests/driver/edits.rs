//! Edits of workspaces in the store, outside the API.

use std::{sync::Arc, time::Duration};

use podling_control::{
    driver::{AgentDirective, CannotUndeleteCause, DriverError, NewWorkspace, SleepStep},
    store::{Store, StoreChange, StoredSpec, WorkspaceRecord},
};
use podling_core::{
    archive::{Archive, ArchiveKey},
    id::WorkspaceId,
    policy::{Policy, PolicyOverrides},
    quota::Quotas,
    reason::StateReason,
    status::{Phase, Status, Urgency},
    time::Timestamp,
    workspace::{AgentConnection, DesiredSpec, DesiredState, ResourceOverrides, Spec, State},
};
use podling_proto::agent::v1::ActivityLevel;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    control_plane::{DEADLINE, TestControlPlane, new_workspace, next_sleep_step, wait_until_running},
    fake_archiver::FakeArchiver,
    fake_backend::FakeBackend,
    fake_store::FakeStore,
};

async fn control_plane(store: &FakeStore) -> (TestControlPlane, FakeBackend) {
    let (backend, archiver) = (FakeBackend::default(), FakeArchiver::default());
    let store = Arc::new(store.clone());
    let control = TestControlPlane::with_store(store, &backend, &archiver, Quotas::default()).await;
    (control, backend)
}

#[tokio::test]
async fn edit_survives_failed_store_write() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, _agent) = control.create_awake("demo").await;
    let policy = Policy { idle_timeout: Duration::from_secs(3 * 3600), ..Policy::default() };
    store.refuse(2);
    store.edit_and_report(&control.handle, &id, |desired| desired.policy = policy.clone()).await.unwrap();
    control.wait(&id, |view| view.spec.policy == policy).await;
    let written = async {
        while store.refusals() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, written).await.expect("the status is written again");

    store.refuse(1);
    let discard = |desired: &mut DesiredSpec| desired.desired_state = DesiredState::Discarded;
    store.edit_and_report(&control.handle, &id, discard).await.unwrap();
    control.wait_until_gone(&id).await;
    assert!(store.load().await.unwrap().records.is_empty());
}

#[tokio::test]
async fn request_survives_failed_status_write() {
    let store = FakeStore::default();
    let (control, backend) = control_plane(&store).await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    control.wait(&id, |view| view.state == State::Asleep).await;
    store.refuse(2);
    let woken = control.handle.wake(id.clone()).await.expect("the request is durable");
    assert_ne!(woken.state, State::Asleep, "the answer comes with the durable status");
    assert_eq!(store.refusals(), 0);
    wait_until_running(&backend, &id, 2).await;
}

#[tokio::test(start_paused = true)]
async fn request_is_answered_though_the_status_cannot_be_written() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    control.wait(&id, |view| view.state == State::Asleep).await;
    store.refuse(usize::MAX);
    let woken = timeout(DEADLINE, control.handle.wake(id.clone())).await.expect("answered in time");
    assert_eq!(woken.expect("the request is durable").spec.desired_state, DesiredState::Awake);
}

#[tokio::test]
async fn wake_whose_change_waits_during_a_sleep_is_not_lost() {
    let store = FakeStore::default();
    let (control, backend) = control_plane(&store).await;
    let idle = Duration::from_secs(1);
    let policy = Policy { idle_timeout: idle, ..Policy::default() };
    let id = control.create_with(NewWorkspace { policy, ..new_workspace("demo") }).await;
    let mut agent = control.serve(&id, 1, 1).await;
    control.wait(&id, |view| view.state == State::Awake).await;
    assert!(control.heartbeat_with_idle(&id, 1, ActivityLevel::Idle, idle).await);
    let (prepare, _) = next_sleep_step(&mut agent).await;
    let delayed = store.delay_spec_changes().await;
    let wake = control.handle.wake(id.clone());
    let sleep = async {
        control.answer_directive(&id, 1, prepare, Ok(())).await;
        let (commit, _) = next_sleep_step(&mut agent).await;
        control.answer_directive(&id, 1, commit, Ok(())).await;
        control.wait(&id, |view| view.state == State::Asleep).await;
        drop(delayed);
    };
    let (woken, ()) = tokio::join!(wake, sleep);
    woken.expect("the request is durable");
    wait_until_running(&backend, &id, 2).await;
}

#[tokio::test]
async fn awake_workspace_is_woken_without_the_store() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, _agent) = control.create_awake("demo").await;
    store.hang(&id);
    let woken = timeout(DEADLINE, control.handle.wake(id)).await.expect("it does not wait");
    assert_eq!(woken.expect("nothing is to be done").state, State::Awake);
}

#[tokio::test]
async fn sleep_that_is_requested_after_a_wake_is_not_lost() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, mut agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    control.handle.sleep(id.clone(), false).await.expect("the agent is asked");
    let (first, _) = next_sleep_step(&mut agent).await;
    let delayed = store.delay_spec_changes().await;
    let wake = control.handle.wake(id.clone());
    let sleep = async {
        // The driver handles its events in their order.
        tokio::task::yield_now().await;
        control.handle.sleep(id.clone(), false).await.expect("the request is accepted");
        drop(delayed);
    };
    let (woken, ()) = tokio::join!(wake, sleep);
    assert_eq!(woken.expect("the request is durable").spec.request_seq, 2);
    control.answer_directive(&id, 1, first, Ok(())).await;
    let agent_agrees = async {
        while let Some(directive) = agent.recv().await {
            if let AgentDirective::Sleep(directive, ..) = directive {
                control.answer_directive(&id, 1, directive, Ok(())).await;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        () = agent_agrees => unreachable!("it waits for the state"),
        _ = control.wait(&id, |view| view.state == State::Asleep) => {}
    }
}

#[tokio::test]
async fn slow_wake_delays_no_other_workspace() {
    let store = FakeStore::default();
    let (control, backend) = control_plane(&store).await;
    let mut ids = Vec::new();
    for name in ["slow", "other"] {
        let (id, mut agent) = control.create_awake(name).await;
        control.put_to_sleep(&id, &mut agent).await;
        control.wait(&id, |view| view.state == State::Asleep).await;
        ids.push(id);
    }
    store.hang(&ids[0]);
    // Each held call repeats its request.
    let (requests, receiver) = mpsc::channel(256);
    for id in std::iter::repeat_n(&ids[0], 200).chain([&ids[1]]) {
        requests.try_send(id.clone()).unwrap();
    }
    tokio::select! {
        () = control.handle.wake_each(receiver) => panic!("the slow request waits"),
        () = wait_until_running(&backend, &ids[1], 2) => {}
    }
}

#[tokio::test]
async fn requests_of_one_workspace_leave_slots_to_others() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (busy, _agent) = control.create_awake("busy").await;
    let (other, _agent) = control.create_awake("other").await;
    store.hang(&busy);
    let policy = |seconds| PolicyOverrides {
        idle_timeout: Some(Duration::from_secs(seconds)),
        ..PolicyOverrides::default()
    };
    let changes = (60..160).map(|seconds| control.handle.set_policy(busy.clone(), policy(seconds)));
    let refused = futures_util::future::select_all(changes.map(Box::pin));
    let (refused, _, waiting) = timeout(DEADLINE, refused).await.expect("the queue is bounded");
    assert!(matches!(refused, Err(DriverError::TooManyChanges { .. })), "{refused:?}");
    let slept = timeout(DEADLINE, control.handle.sleep(other.clone(), true)).await;
    slept.expect("answered in time").expect("the request is durable");
    drop(waiting);
}

#[tokio::test]
async fn spec_is_read_again_after_an_unconfirmed_change() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, _agent) = control.create_awake("demo").await;
    store.lose_spec_results(1);
    let unconfirmed = control.handle.sleep(id.clone(), true).await.unwrap_err();
    assert!(matches!(unconfirmed, DriverError::NotSaved { .. }), "{unconfirmed}");
    control.wait(&id, |view| view.spec.desired_state == DesiredState::Asleep).await;
}

#[tokio::test]
async fn spec_is_read_again_after_a_conflict() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, _agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    // The watch does not report this edit.
    store.edit(&id, |desired| desired.resources.cpu_millis = 1500);
    store.refuse(1);
    let _conflict = control.handle.sleep(id.clone(), false).await;
    control.wait(&id, |view| view.spec.resources.cpu_millis == 1500).await;
}

#[tokio::test]
async fn request_is_made_although_a_stale_view_fulfils_it() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    control.wait(&id, |view| view.state == State::Asleep).await;
    // The watch does not report this edit.
    store.edit(&id, |desired| desired.desired_state = DesiredState::Awake);
    control.handle.sleep(id.clone(), true).await.unwrap();
    assert_eq!(store.spec(&id).desired.desired_state, DesiredState::Asleep);
    store.edit(&id, |desired| desired.desired_state = DesiredState::Deleted);
    control.handle.undelete(id.clone()).await.unwrap();
    assert_eq!(store.spec(&id).desired.desired_state, DesiredState::Asleep);
}

#[tokio::test]
async fn failed_spec_change_is_reported_and_changes_nothing() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, _agent) = control.create_awake("demo").await;
    let before = store.spec(&id);
    store.refuse_spec_changes(1);
    let refused = control.handle.sleep(id.clone(), true).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    assert_eq!(store.spec(&id), before);
    let view = control.handle.snapshots().borrow().get(&id).cloned().unwrap();
    assert_eq!((view.state, view.spec.desired_state), (State::Awake, DesiredState::Awake));
}

fn spec_of(bits: u64) -> Spec {
    let NewWorkspace { owner, name, template, command, env, policy, resources, .. } = new_workspace("demo");
    Spec {
        id: WorkspaceId::from_bits(bits),
        name,
        owner,
        template,
        command,
        env,
        policy,
        resources,
        storage_bytes: None,
        desired_state: DesiredState::Awake,
        request_seq: 1,
        source: None,
        created: Timestamp(1),
        request_id: String::new(),
    }
}

fn archive() -> Archive {
    Archive {
        key: ArchiveKey("workspace-abcdefgh2345-20261130-120000".into()),
        generation: 0,
        at: Timestamp(1),
        observed_time: Duration::ZERO,
        entries: 1,
        left_out: 0,
        bytes: 1,
        archive_bytes: 1,
    }
}

/// Returns the record of a deleted workspace of which an archive is left.
fn gone(bits: u64) -> WorkspaceRecord {
    let spec = Spec { desired_state: DesiredState::Deleted, ..spec_of(bits) };
    let status = Status { phase: Phase::Archived, archives: vec![archive()], ..Status::new(spec.created) };
    WorkspaceRecord { spec: Arc::new(spec), status, credential: None, log: Arc::default(), generation: 0 }
}

/// Puts the workspace to sleep by its policy, while changes of specs wait.
async fn fall_asleep(
    control: &TestControlPlane,
    id: &WorkspaceId,
    agent: &mut mpsc::Receiver<AgentDirective>,
) {
    control.handle.sleep(id.clone(), false).await.expect("the agent is asked");
    for _ in 0..2 {
        let (directive, _) = next_sleep_step(agent).await;
        control.answer_directive(id, 1, directive, Ok(())).await;
    }
    control.wait(id, |view| view.state == State::Asleep).await;
}

#[tokio::test]
async fn automatic_sleep_is_recorded_in_the_spec() {
    let store = FakeStore::default();
    let (control, backend) = control_plane(&store).await;
    let (id, mut agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    store.refuse_spec_changes(1);
    fall_asleep(&control, &id, &mut agent).await;
    // The first change fails, and is retried.
    control.wait(&id, |view| view.spec.desired_state == DesiredState::Asleep).await;
    let wake = |desired: &mut DesiredSpec| desired.desired_state = DesiredState::Awake;
    store.edit_and_report(&control.handle, &id, wake).await.unwrap();
    wait_until_running(&backend, &id, 2).await;
}

#[tokio::test]
async fn recorded_sleep_overwrites_no_newer_edit() {
    let store = FakeStore::default();
    let (control, backend) = control_plane(&store).await;
    let (id, mut agent) = control.create_awake("demo").await;
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    let delayed = store.delay_spec_changes().await;
    fall_asleep(&control, &id, &mut agent).await;
    // A client asks for sleep and for a wake, before the recorded sleep reaches the store.
    store.edit(&id, |desired| desired.desired_state = DesiredState::Asleep);
    let awake = store.edit(&id, |desired| {
        desired.desired_state = DesiredState::Awake;
        desired.request_seq += 1;
    });
    drop(delayed);
    wait_until_running(&backend, &id, 2).await;
    assert_eq!(store.spec(&id), awake, "the newest edit stands");
}

#[tokio::test]
async fn late_report_of_an_older_spec_is_ignored() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, mut agent) = control.create_awake("demo").await;
    let late = store.edit(&id, |desired| desired.resources.cpu_millis = 1500);
    control.put_to_sleep(&id, &mut agent).await;
    control.wait(&id, |view| view.state == State::Asleep).await;
    let before = control.wait(&id, |view| view.spec.desired_state == DesiredState::Asleep).await;
    control.handle.observe_spec(id.clone(), late).await.unwrap();
    // The driver handles this event after the report.
    control.create("other").await;
    let view = control.handle.snapshots().borrow().get(&id).cloned().unwrap();
    assert_eq!((view.state, &view.spec), (State::Asleep, &before.spec));
}

#[tokio::test]
async fn request_fails_if_another_client_deletes_the_workspace() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let (id, _agent) = control.create_awake("demo").await;
    let delayed = store.delay_spec_changes().await;
    let overrides = ResourceOverrides { cpu_millis: Some(500), memory_bytes: None };
    let resize = control.handle.resize(id.clone(), overrides);
    let delete = async {
        store.edit(&id, |desired| desired.desired_state = DesiredState::Deleted);
        drop(delayed);
    };
    let (refused, ()) = tokio::join!(resize, delete);
    assert_eq!(refused.unwrap_err(), DriverError::Deleting { id: id.clone(), undelete: true });
    assert_ne!(store.spec(&id).desired.resources.cpu_millis, 500);
}

#[tokio::test]
async fn name_is_reserved_while_a_restore_is_requested() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let ids: Vec<_> = [71, 72].into_iter().map(WorkspaceId::from_bits).collect();
    for bits in [71, 72] {
        store.commit(vec![StoreChange::Put(Arc::new(gone(bits)))]).await;
        control.handle.add_stored(gone(bits)).await.unwrap();
    }
    control.wait(&ids[1], |view| view.is_gone()).await;
    let delayed = store.delay_spec_changes().await;
    let first = control.handle.restore(ids[0].clone());
    let others = async {
        let second = control.handle.restore(ids[1].clone()).await;
        let created = control.handle.create(new_workspace("demo")).await;
        drop(delayed);
        (second, created)
    };
    let (first, (second, created)) = tokio::join!(first, others);
    assert_eq!(first.expect("restored").spec.desired_state, DesiredState::Awake);
    let taken = DriverError::NameTaken { name: "demo".parse().unwrap(), id: ids[0].clone() };
    assert_eq!((second.unwrap_err(), created.unwrap_err()), (taken.clone(), taken));
}

#[tokio::test]
async fn restore_is_refused_if_the_workspace_is_discarded_meanwhile() {
    let store = FakeStore::default();
    let (control, _backend) = control_plane(&store).await;
    let id = WorkspaceId::from_bits(71);
    store.commit(vec![StoreChange::Put(Arc::new(gone(71)))]).await;
    control.handle.add_stored(gone(71)).await.unwrap();
    control.wait(&id, |view| view.is_gone()).await;
    store.edit(&id, |desired| desired.desired_state = DesiredState::Discarded);
    let refused = control.handle.restore(id.clone()).await.unwrap_err();
    assert_eq!(refused, DriverError::Deleting { id, undelete: false });
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
    let desire = |state| move |desired: &mut DesiredSpec| desired.desired_state = state;
    store.edit_and_report(&control.handle, &id, desire(DesiredState::Asleep)).await.unwrap();
    control.wait(&id, |view| view.state == State::Asleep).await;
    store.edit_and_report(&control.handle, &id, desire(DesiredState::Awake)).await.unwrap();
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
    let control =
        TestControlPlane::with_store(Arc::new(store.clone()), &backend, &archiver, Quotas::default()).await;
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

    let deleted = store.edit(&id, |desired| desired.desired_state = DesiredState::Deleted);
    handle.observe_spec(id.clone(), StoredSpec { deleted_in_store: true, ..deleted }).await.unwrap();
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
