//! What people change where workspaces are stored.

use std::{sync::Arc, time::Duration};

use podling_control::{driver::Edit, store::Store};
use podling_core::{
    policy::Policy,
    quota::Quotas,
    workspace::{AgentConnection, State},
};

use crate::{
    fake::Fake,
    fake_keeper::FakeKeeper,
    fake_store::FakeStore,
    plane::{Plane, runs},
};

#[tokio::test]
async fn what_is_changed_where_it_is_stored_holds_though_the_store_refuses_to_write_at_first() {
    let (store, backend) = (FakeStore::default(), Fake::default());
    let plane = Plane::on(Arc::new(store.clone()), &backend, &FakeKeeper::default(), Quotas::default()).await;
    let (id, _agent) = plane.awake("demo").await;
    let policy = Policy { idle_timeout: Duration::from_secs(3 * 3600), ..Policy::default() };
    store.refuse(2);
    plane
        .handle
        .edited(id.clone(), Edit { generation: 2, policy: Some(policy.clone()), ..Edit::default() })
        .await
        .unwrap();
    plane.wait(&id, |view| view.spec.policy == policy).await;
    assert_eq!(store.refusals(), 0);

    store.refuse(1);
    plane
        .handle
        .edited(id.clone(), Edit { generation: 3, deleted: Some(true), ..Edit::default() })
        .await
        .unwrap();
    plane.gone(&id).await;
    assert!(store.load().await.unwrap().records.is_empty());
}

#[tokio::test]
async fn what_is_made_where_it_is_stored_is_served_and_follows_what_is_wanted_of_it() {
    let (store, backend) = (FakeStore::default(), Fake::default());
    let plane = Plane::on(Arc::new(store.clone()), &backend, &FakeKeeper::default(), Quotas::default()).await;
    let made = plane.create("template").await;
    let mut record = store.load().await.unwrap().records.remove(0);
    assert_eq!(record.spec.id, made.spec.id);
    let spec = Arc::make_mut(&mut record.spec);
    spec.id = podling_core::id::WorkspaceId::from_bits(77);
    spec.name = "found".parse().unwrap();
    let id = record.spec.id.clone();
    record.status = podling_core::status::Status::new(record.spec.created);
    plane.handle.found(record).await.unwrap();
    runs(&backend, &id, 1).await;
    assert!(backend.state().calls.contains(&"stop".to_owned()), "whatever its id was before is ended first");
    plane
        .handle
        .edited(id.clone(), Edit { generation: 2, awake: Some(false), ..Edit::default() })
        .await
        .unwrap();
    plane.wait(&id, |view| view.state == State::Asleep).await;
    plane
        .handle
        .edited(id.clone(), Edit { generation: 3, awake: Some(true), ..Edit::default() })
        .await
        .unwrap();
    runs(&backend, &id, 2).await;
}

#[tokio::test]
async fn one_that_can_be_read_again_is_served_by_the_agent_that_it_had() {
    let (store, backend) = (FakeStore::default(), Fake::default());
    let keeper = FakeKeeper::default();
    let plane = Plane::on(Arc::new(store.clone()), &backend, &keeper, Quotas::default()).await;
    let (id, _agent) = plane.awake("demo").await;
    let record = store.load().await.unwrap().records.remove(0);
    drop(plane);

    // The next one does not find it, and leaves what runs of it alone.
    let plane = Plane::on(Arc::new(FakeStore::default()), &backend, &keeper, Quotas::default()).await;
    plane.create("other").await;
    backend.state().calls.clear();
    plane.handle.found(record).await.unwrap();
    let _agent = plane.serve(&id, 1, 2).await;
    plane.wait(&id, |view| view.state == State::Awake && view.connection == AgentConnection::Connected).await;
    let calls = backend.state().calls.clone();
    assert!(!calls.contains(&"stop".to_owned()), "{calls:?}");
    runs(&backend, &id, 1).await;
}
