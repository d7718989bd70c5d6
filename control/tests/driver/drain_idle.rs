//! Before the control plane stops, idle workspaces fall asleep and the others keep running.

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
    control_plane::{DEADLINE, TestControlPlane, next_sleep_step, wait_until_running},
    fake_archiver::FakeArchiver,
    fake_backend::FakeBackend,
};

const IF_IDLE: SleepStep = SleepStep::Prepare(Urgency::Requested);

#[tokio::test]
async fn idle_workspaces_fall_asleep_and_stay_asleep_until_woken() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), FakeBackend::default());
    let owner = Quota { awake: Some(1), ..Quota::default() };
    let quotas = Quotas { owner, ..Quotas::default() };
    let control =
        TestControlPlane::with_archiver(dir.path(), &backend, &FakeArchiver::default(), quotas).await;
    let (id, mut agent) = control.create_awake("demo").await;
    let queued = control.create("queued").await.spec.id.clone();
    assert!(control.heartbeat_with_idle(&id, 1, ActivityLevel::Idle, Duration::ZERO).await);
    let drain = control.handle.drain_idle();
    let work = async {
        for expected in [IF_IDLE, SleepStep::Commit] {
            let (directive, step) = next_sleep_step(&mut agent).await;
            assert_eq!(step, expected);
            let refused = control.handle.wake(id.clone()).await.unwrap_err();
            assert_eq!(refused, DriverError::ShuttingDown);
            control.answer_directive(&id, 1, directive, Ok(())).await;
        }
    };
    let (drained, ()) = timeout(DEADLINE, async { tokio::join!(drain, work) }).await.expect("in time");
    drained.expect("the workspace sleeps");
    assert_eq!(control.handle.snapshots().borrow().get(&id).unwrap().state, State::Asleep);
    assert_eq!(backend.state().calls, ["start 1", "stop"], "no queued workspace starts during the drain");
    drop(control);

    let control =
        TestControlPlane::with_archiver(dir.path(), &backend, &FakeArchiver::default(), quotas).await;
    wait_until_running(&backend, &queued, 1).await;
    control.wait(&id, |view| view.state == State::Asleep).await;
    let woken = control.handle.wake(id.clone()).await.unwrap();
    assert_ne!(woken.state, State::Asleep);
}

#[tokio::test]
async fn used_unknown_or_declining_workspaces_keep_running() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let (id, mut agent) = control.create_awake("demo").await;
    let drain =
        async || timeout(DEADLINE, control.handle.drain_idle()).await.expect("in time").expect("drained");
    drain().await;
    for level in [ActivityLevel::Active, ActivityLevel::Busy] {
        assert!(control.heartbeat(&id, 1, level).await);
        drain().await;
    }
    assert!(agent.try_recv().is_err(), "an agent in use is not asked to sleep");
    assert!(control.heartbeat(&id, 1, ActivityLevel::Idle).await);
    let declines = async {
        let (directive, step) = next_sleep_step(&mut agent).await;
        assert_eq!(step, IF_IDLE);
        control
            .answer_directive(
                &id,
                1,
                directive,
                Err(Failure::Declined { reason: DeclineReason::InUse, detail: String::new() }),
            )
            .await;
    };
    tokio::join!(drain(), declines);
    assert_eq!(control.handle.snapshots().borrow().get(&id).unwrap().state, State::Awake);
    assert_eq!(backend.state().calls, ["start 1"]);
}
