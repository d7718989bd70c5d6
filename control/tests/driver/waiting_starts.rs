//! Starts that wait for capacity: what they report, and how they are cancelled.

use podling_core::{
    reason::{StateReason, Wait, WaitReason},
    workspace::State,
};

use crate::control_plane::{TestControlPlane, wait_until_running};

/// Returns the wait that a backend reports while the namespace is full.
fn full(reason: WaitReason) -> Wait {
    Wait { reason, detail: "exceeded quota: team".into() }
}

#[tokio::test]
async fn waiting_start_reports_its_reason_and_can_be_cancelled() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    backend.hold(true);
    let id = control.create("demo").await.spec.id.clone();
    control.wait(&id, |view| view.state == State::Starting).await;
    let waits = |reason| Some(full(reason));
    let because = |reason| StateReason::Waiting(full(reason));
    let (quota, node) = (WaitReason::QuotaExceeded, WaitReason::Unschedulable);
    backend.report_wait(&id, 7, waits(quota));
    backend.report_wait(&id, 1, waits(quota));
    control.wait(&id, |view| view.state == State::Queued && view.reason == because(quota)).await;
    backend.report_wait(&id, 1, waits(node));
    control.wait(&id, |view| view.state == State::Starting && view.reason == because(node)).await;
    backend.report_wait(&id, 1, None);
    control
        .wait(&id, |view| view.state == State::Starting && view.reason == StateReason::AgentStarting)
        .await;

    // A sleep request cancels the waiting start, and stops what it may have started.
    backend.report_wait(&id, 1, waits(node));
    control.handle.sleep(id.clone(), false).await.unwrap();
    control.wait(&id, |view| view.state == State::FallingAsleep).await;
    backend.hold(false);
    control.wait(&id, |view| view.state == State::Asleep).await;
    let calls = backend.state().calls.clone();
    assert_eq!(calls, ["start 1", "stop"]);
    control.handle.wake(id.clone()).await.unwrap();
    wait_until_running(&backend, &id, 2).await;
}
