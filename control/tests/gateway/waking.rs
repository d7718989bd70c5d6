//! Requests that wake a workspace and are held, and requests that are rejected at once.

use std::sync::Arc;

use podling_control::snapshot::{Snapshot, WorkspaceView};
use podling_core::{
    reason::StateReason,
    workspace::{DesiredState, State},
};
use podling_proto::{
    error::{detail, reason},
    v1::Reason,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    demo,
    fake_agent::FakeAgent,
    harness::{GatewayHarness, full_body, status, within},
};

/// A method that wakes the workspace.
const CREATE: &str = "/podling.agent.v1.Terminals/Create";
/// A method that does not wake the workspace.
const WRITE: &str = "/podling.agent.v1.Terminals/Write";

#[tokio::test]
async fn waking_call_is_held_until_the_workspace_is_awake() {
    let mut harness = GatewayHarness::start().await;
    harness.set_workspace(&demo(), "ada", State::Starting, None);
    let mut calls = JoinSet::new();
    for _ in 0..5 {
        harness.call_in(&mut calls, CREATE).await;
    }
    assert_eq!(within(harness.wakes.recv()).await, Some(demo()));
    let agent = FakeAgent::start("one", 200).await;
    harness.set_workspace(&demo(), "ada", State::Starting, Some(&agent.view));
    assert!(agent.requests().is_empty(), "no request is forwarded to an unclaimed agent");
    harness.set_workspace(&demo(), "ada", State::Awake, Some(&agent.view));
    while let Some(status) = within(calls.join_next()).await {
        assert_eq!(status.expect("task").code(), Code::Ok);
    }
    assert!(harness.wakes.try_recv().is_err(), "five calls send one wake request");
    assert!(harness.metrics.text().contains("podling_held_requests 0"));
}

#[tokio::test]
async fn held_calls_are_forwarded_in_order_of_arrival() {
    let harness = GatewayHarness::start().await;
    harness.set_workspace(&demo(), "ada", State::Asleep, None);
    let mut calls = JoinSet::new();
    for number in 0_u16..40 {
        let mut request = harness.grpc(CREATE, Some(&harness.root_token), Some(&demo()), full_body(&[0; 5]));
        request.headers_mut().insert("x-number", number.into());
        let mut h2 = harness.h2().await;
        calls.spawn(async move { status(h2.send_request(request).await.expect("response")).await });
        let held = format!("podling_held_requests {}", number + 1);
        within(async {
            while !harness.metrics.text().contains(&held) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let agent = FakeAgent::start("one", 200).await;
    harness.set_workspace(&demo(), "ada", State::Awake, Some(&agent.view));
    while let Some(status) = within(calls.join_next()).await {
        assert_eq!(status.expect("task").code(), Code::Ok);
    }
    let arrived = agent
        .requests()
        .iter()
        .map(|request| request.headers["x-number"].to_str().unwrap().to_owned())
        .collect::<Vec<_>>();
    assert_eq!(arrived, (0..40).map(|number: u16| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn call_that_does_not_wake_is_rejected_at_once() {
    let mut harness = GatewayHarness::start().await;
    for (state, expected) in [
        (State::Starting, Reason::NotAwake),
        (State::Asleep, Reason::NotAwake),
        (State::Archived, Reason::NotAwake),
        (State::Awake, Reason::AgentUnreachable),
        (State::Deleting, Reason::Deleting),
        (State::Failed, Reason::WorkspaceFailed),
    ] {
        harness.set_workspace(&demo(), "ada", state, None);
        let refused = harness.call(WRITE, Some(&harness.root_token), Some(&demo())).await;
        assert_eq!(reason(&refused), Some(expected), "{state:?}");
    }
    harness.set_workspace(&demo(), "ada", State::Starting, None);
    let mut request = harness.grpc(CREATE, Some(&harness.root_token), Some(&demo()), full_body(&[0; 5]));
    request.headers_mut().insert("podling-wake", "never".parse().expect("value"));
    let never = status(within(harness.h2().await.send_request(request)).await.expect("response")).await;
    assert_eq!(
        (reason(&never), detail(&never, "state").as_deref()),
        (Some(Reason::NotAwake), Some("starting"))
    );
    assert!(harness.wakes.try_recv().is_err(), "a rejected call requests no wake");
}

#[tokio::test]
async fn failed_start_is_named_once_with_its_cause() {
    let harness = GatewayHarness::start().await;
    harness.set_workspace(&demo(), "ada", State::Failed, None);
    change(&harness, |view| view.reason = StateReason::AgentStartFailed { detail: "exit code 2".into() });
    let refused = harness.call(WRITE, Some(&harness.root_token), Some(&demo())).await;
    assert_eq!(refused.message(), "the workspace failed to start: exit code 2");
    assert_eq!(detail(&refused, "cause").as_deref(), Some("exit code 2"));
}

#[tokio::test]
async fn held_call_fails_with_its_workspace() {
    let mut harness = GatewayHarness::start().await;
    for (state, expected) in
        [(Some(State::Failed), Reason::WorkspaceFailed), (None, Reason::WorkspaceNotFound)]
    {
        harness.set_workspace(&demo(), "ada", State::Starting, None);
        let mut calls = JoinSet::new();
        harness.call_in(&mut calls, CREATE).await;
        assert_eq!(within(harness.wakes.recv()).await, Some(demo()));
        match state {
            Some(state) => harness.set_workspace(&demo(), "ada", state, None),
            None => drop(harness.snapshots.send_replace(Arc::new(Snapshot::default()))),
        }
        let response = within(calls.join_next()).await.expect("call").expect("task");
        assert_eq!(reason(&response), Some(expected));
    }
}

/// Changes the workspace in the published snapshot.
fn change(harness: &GatewayHarness, change: impl Fn(&mut WorkspaceView)) {
    harness.snapshots.send_modify(|snapshot| {
        let mut workspaces = snapshot.workspaces.clone();
        change(Arc::make_mut(workspaces.get_mut(&demo()).expect("workspace")));
        *snapshot = Arc::new(Snapshot { workspaces, ..Snapshot::default() });
    });
}

fn delete(view: &mut WorkspaceView) {
    Arc::make_mut(&mut view.spec).desired_state = DesiredState::Deleted;
}

#[tokio::test]
async fn no_call_waits_for_a_deleted_workspace() {
    let mut harness = GatewayHarness::start().await;
    let states = [State::Awake, State::FallingAsleep, State::Asleep, State::Archiving, State::Archived];
    for state in states {
        harness.set_workspace(&demo(), "ada", state, None);
        change(&harness, delete);
        let refused = harness.call(CREATE, Some(&harness.root_token), Some(&demo())).await;
        assert_eq!(reason(&refused), Some(Reason::Deleting), "{state:?}");
        let back = if state == State::Archived { "false" } else { "true" };
        assert_eq!(detail(&refused, "undelete").as_deref(), Some(back), "{state:?}");
    }
    assert!(harness.wakes.try_recv().is_err(), "a request would wake no deleted workspace");

    for (what, expected) in [(true, Reason::Deleting), (false, Reason::WorkspaceFailed)] {
        harness.set_workspace(&demo(), "ada", State::Starting, None);
        let mut calls = JoinSet::new();
        harness.call_in(&mut calls, CREATE).await;
        assert_eq!(within(harness.wakes.recv()).await, Some(demo()));
        change(&harness, |view| match what {
            true => delete(view),
            false => {
                view.state = State::Archived;
                let cause = Box::new(StateReason::MaintenanceAgentLost);
                view.reason = StateReason::RestoreFailed { cause };
            }
        });
        let ended = within(calls.join_next()).await.expect("call").expect("task");
        assert_eq!(reason(&ended), Some(expected), "a held call ends with what it waits for");
    }
}

#[tokio::test]
async fn call_to_a_failed_workspace_retries_the_start() {
    let mut harness = GatewayHarness::start().await;
    harness.set_workspace(&demo(), "ada", State::Failed, None);
    let mut calls = JoinSet::new();
    harness.call_in(&mut calls, CREATE).await;
    assert_eq!(within(harness.wakes.recv()).await, Some(demo()));
    // Only the time of the next retry changes, so this is not a second failure.
    harness.set_workspace(&demo(), "ada", State::Failed, None);
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), calls.join_next()).await;
    assert!(early.is_err(), "the earlier failure does not reject the call: {early:?}");
    let agent = FakeAgent::start("one", 200).await;
    harness.set_workspace(&demo(), "ada", State::Starting, None);
    harness.set_workspace(&demo(), "ada", State::Awake, Some(&agent.view));
    assert_eq!(within(calls.join_next()).await.expect("call").expect("task").code(), Code::Ok);
}

#[tokio::test]
async fn held_calls_are_limited_and_cancelled_ones_free_slots() {
    let harness = GatewayHarness::start().await;
    harness.set_workspace(&demo(), "ada", State::Starting, None);
    let mut h2 = harness.h2().await;
    let held: Vec<_> = (0..64)
        .map(|_| {
            h2.send_request(harness.grpc(
                CREATE,
                Some(&harness.root_token),
                Some(&demo()),
                full_body(&[0; 5]),
            ))
        })
        .collect();
    let mut pending = Box::pin(futures_util::future::join_all(held));
    let first_rejection = async {
        // A call is rejected once 64 are held. Before that it is held itself, so it is cancelled
        // and repeated.
        loop {
            let id = demo();
            let call = harness.call(CREATE, Some(&harness.root_token), Some(&id));
            if let Ok(status) = tokio::time::timeout(std::time::Duration::from_millis(300), call).await {
                return status;
            }
        }
    };
    let refused: Status = tokio::select! {
        status = within(first_rejection) => status,
        _ = &mut pending => panic!("a held call was answered"),
    };
    assert_eq!((refused.code(), reason(&refused)), (Code::ResourceExhausted, Some(Reason::TooManyHeldCalls)));
    assert_eq!(detail(&refused, "limit").as_deref(), Some("64"));
    drop(pending);
    within(async {
        while !harness.metrics.text().contains("podling_held_requests 0") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn workspace_name_is_not_accepted_as_id() {
    let harness = GatewayHarness::start().await;
    harness.set_workspace(&demo(), "ada", State::Starting, None);
    let mut request = harness.grpc(WRITE, Some(&harness.root_token), None, full_body(&[0; 5]));
    request.headers_mut().insert("podling-workspace", "demo".parse().expect("value"));
    let response = within(harness.h2().await.send_request(request)).await.expect("response");
    let refused = Status::from_header_map(response.headers()).expect("status");
    assert_eq!(reason(&refused), Some(Reason::WorkspaceNotFound));
    assert!(refused.message().contains("takes a workspace's id"), "{refused}");
}
