//! Calls that wait for a workspace, and calls that never do.

use std::sync::Arc;

use podling_control::snapshot::Snapshot;
use podling_core::workspace::State;
use podling_proto::{
    error::{detail, reason},
    v1::Reason,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    agent::FakeAgent,
    demo,
    house::{House, full, status, within},
};

/// Wakes.
const CREATE: &str = "/podling.agent.v1.Terminals/Create";
/// Does not.
const WRITE: &str = "/podling.agent.v1.Terminals/Write";

#[tokio::test]
async fn a_call_that_wakes_is_held_until_the_workspace_is_awake() {
    let mut house = House::open().await;
    house.set(&demo(), "ada", State::Starting, None);
    let mut calls = JoinSet::new();
    for _ in 0..5 {
        let request = house.grpc(CREATE, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
        let mut h2 = house.h2().await;
        calls.spawn(async move { status(h2.send_request(request).await.expect("response")).await });
    }
    assert_eq!(within(house.wakes.recv()).await, Some(demo()));
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Starting, Some(&agent.view));
    assert!(agent.requests().is_empty(), "it is not claimed yet");
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    while let Some(status) = within(calls.join_next()).await {
        assert_eq!(status.expect("task").code(), Code::Ok);
    }
    assert!(house.wakes.try_recv().is_err(), "one waker for all");
    assert!(house.metrics.text().contains("podling_held_requests 0"));
}

#[tokio::test]
async fn held_calls_go_on_in_the_order_in_which_they_came() {
    let house = House::open().await;
    house.set(&demo(), "ada", State::Asleep, None);
    let mut calls = JoinSet::new();
    for number in 0_u16..40 {
        let mut request = house.grpc(CREATE, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
        request.headers_mut().insert("x-number", number.into());
        let mut h2 = house.h2().await;
        calls.spawn(async move { status(h2.send_request(request).await.expect("response")).await });
        let held = format!("podling_held_requests {}", number + 1);
        within(async {
            while !house.metrics.text().contains(&held) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
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
async fn a_call_that_does_not_wake_is_answered_at_once() {
    let mut house = House::open().await;
    for (state, expected) in [
        (State::Starting, Reason::NotAwake),
        (State::Asleep, Reason::NotAwake),
        (State::Archived, Reason::NotAwake),
        (State::Awake, Reason::AgentUnreachable),
        (State::Deleting, Reason::Deleting),
        (State::Failed, Reason::WorkspaceFailed),
    ] {
        house.set(&demo(), "ada", state, None);
        let refused = house.call(WRITE, Some(&house.root_token), Some(&demo())).await;
        assert_eq!(reason(&refused), Some(expected), "{state:?}");
    }
    house.set(&demo(), "ada", State::Starting, None);
    let mut request = house.grpc(CREATE, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
    request.headers_mut().insert("podling-wake", "never".parse().expect("value"));
    let never = status(within(house.h2().await.send_request(request)).await.expect("response")).await;
    assert_eq!(
        (reason(&never), detail(&never, "state").as_deref()),
        (Some(Reason::NotAwake), Some("starting"))
    );
    assert!(house.wakes.try_recv().is_err(), "nobody was woken");
}

#[tokio::test]
async fn a_held_call_learns_that_its_workspace_will_not_come() {
    let mut house = House::open().await;
    for (state, expected) in
        [(Some(State::Failed), Reason::WorkspaceFailed), (None, Reason::WorkspaceNotFound)]
    {
        house.set(&demo(), "ada", State::Starting, None);
        let request = house.grpc(CREATE, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
        let mut h2 = house.h2().await;
        let mut calls = JoinSet::new();
        calls.spawn(async move { status(h2.send_request(request).await.expect("response")).await });
        assert_eq!(within(house.wakes.recv()).await, Some(demo()));
        match state {
            Some(state) => house.set(&demo(), "ada", state, None),
            None => drop(house.snapshots.send_replace(Arc::new(Snapshot::default()))),
        }
        let answer = within(calls.join_next()).await.expect("call").expect("task");
        assert_eq!(reason(&answer), Some(expected));
    }
}

#[tokio::test]
async fn a_start_that_failed_is_tried_again_for_whoever_comes() {
    let mut house = House::open().await;
    house.set(&demo(), "ada", State::Failed, None);
    let request = house.grpc(CREATE, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
    let mut h2 = house.h2().await;
    let mut calls = JoinSet::new();
    calls.spawn(async move { status(h2.send_request(request).await.expect("response")).await });
    assert_eq!(within(house.wakes.recv()).await, Some(demo()));
    // The next try is moved, nothing else: that is no second failure.
    house.set(&demo(), "ada", State::Failed, None);
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), calls.join_next()).await;
    assert!(early.is_err(), "it was answered with the failure of the start before: {early:?}");
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Starting, None);
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    assert_eq!(within(calls.join_next()).await.expect("call").expect("task").code(), Code::Ok);
}

#[tokio::test]
async fn too_many_held_calls_are_refused_and_those_given_up_make_room() {
    let house = House::open().await;
    house.set(&demo(), "ada", State::Starting, None);
    let mut h2 = house.h2().await;
    let held: Vec<_> = (0..64)
        .map(|_| h2.send_request(house.grpc(CREATE, Some(&house.root_token), Some(&demo()), full(&[0; 5]))))
        .collect();
    let mut pending = Box::pin(futures_util::future::join_all(held));
    let full_house = async {
        // Each is refused as soon as the 64 are there; until then it would be held itself, so it is given up and tried again.
        loop {
            let id = demo();
            let call = house.call(CREATE, Some(&house.root_token), Some(&id));
            if let Ok(status) = tokio::time::timeout(std::time::Duration::from_millis(300), call).await {
                return status;
            }
        }
    };
    let refused: Status = tokio::select! {
        status = within(full_house) => status,
        _ = &mut pending => panic!("a held call was answered"),
    };
    assert_eq!((refused.code(), reason(&refused)), (Code::ResourceExhausted, Some(Reason::TooManyWaiting)));
    assert_eq!(detail(&refused, "limit").as_deref(), Some("64"));
    drop(pending);
    within(async {
        while !house.metrics.text().contains("podling_held_requests 0") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_name_is_no_id() {
    let house = House::open().await;
    house.set(&demo(), "ada", State::Starting, None);
    let mut request = house.grpc(WRITE, Some(&house.root_token), None, full(&[0; 5]));
    request.headers_mut().insert("podling-workspace", "demo".parse().expect("value"));
    let response = within(house.h2().await.send_request(request)).await.expect("response");
    let refused = Status::from_header_map(response.headers()).expect("status");
    assert_eq!(reason(&refused), Some(Reason::WorkspaceNotFound));
    assert!(refused.message().contains("takes a workspace's id"), "{refused}");
}
