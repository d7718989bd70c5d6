//! The control plane takes its leave: what is idle is put to sleep, what is used runs on.

use std::time::Duration;

use podling_control::driver::{DriverError, SleepStep};
use podling_core::reason::DeclineReason;
use podling_core::{
    observed::Failure,
    quota::{Quota, Quotas},
    status::Urgency,
    workspace::State,
};
use podling_proto::agent::v1::ActivityLevel;
use tokio::time::timeout;

use crate::{
    fake::Fake,
    fake_keeper::FakeKeeper,
    plane::{DEADLINE, Plane, asked, runs},
};

const IF_IDLE: SleepStep = SleepStep::Prepare(Urgency::Requested);

#[tokio::test]
async fn what_is_idle_falls_asleep_and_stays_so_until_somebody_comes() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let owner = Quota { awake: Some(1), ..Quota::default() };
    let quotas = Quotas { owner, ..Quotas::default() };
    let plane = Plane::with(folder.path(), &backend, &FakeKeeper::default(), quotas).await;
    let (id, mut agent) = plane.awake("demo").await;
    let queued = plane.create("queued").await.spec.id.clone();
    assert!(plane.idle_beat(&id, 1, ActivityLevel::Idle, Duration::ZERO).await);
    let leave = plane.handle.leave();
    let work = async {
        for expected in [IF_IDLE, SleepStep::Commit] {
            let (directive, step) = asked(&mut agent).await;
            assert_eq!(step, expected);
            let refused = plane.handle.wake(id.clone()).await.unwrap_err();
            assert_eq!(refused, DriverError::ShuttingDown);
            plane.answer(&id, 1, directive, Ok(())).await;
        }
    };
    let (left, ()) = timeout(DEADLINE, async { tokio::join!(leave, work) }).await.expect("in time");
    left.expect("it sleeps");
    assert_eq!(plane.handle.snapshots().borrow().get(&id).unwrap().state, State::Asleep);
    assert_eq!(backend.state().calls, ["start 1", "stop"], "nobody takes its room now");
    drop(plane);

    let plane = Plane::with(folder.path(), &backend, &FakeKeeper::default(), quotas).await;
    runs(&backend, &queued, 1).await;
    plane.wait(&id, |view| view.state == State::Asleep).await;
    let woken = plane.handle.wake(id.clone()).await.unwrap();
    assert_ne!(woken.state, State::Asleep);
}

#[tokio::test]
async fn what_is_used_or_not_heard_of_or_declines_runs_on() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, mut agent) = plane.awake("demo").await;
    let leave = async || timeout(DEADLINE, plane.handle.leave()).await.expect("in time").expect("it may go");
    leave().await;
    for level in [ActivityLevel::Active, ActivityLevel::Busy] {
        assert!(plane.beat(&id, 1, level).await);
        leave().await;
    }
    assert!(agent.try_recv().is_err(), "it is not even asked");
    assert!(plane.beat(&id, 1, ActivityLevel::Idle).await);
    let declines = async {
        let (directive, step) = asked(&mut agent).await;
        assert_eq!(step, IF_IDLE);
        plane
            .answer(
                &id,
                1,
                directive,
                Err(Failure::Declined { reason: DeclineReason::InUse, detail: String::new() }),
            )
            .await;
    };
    tokio::join!(leave(), declines);
    assert_eq!(plane.handle.snapshots().borrow().get(&id).unwrap().state, State::Awake);
    assert_eq!(backend.state().calls, ["start 1"]);
}
