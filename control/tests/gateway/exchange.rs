//! Forwarding of an exchange: both directions at once, trailers, cancellation and back-pressure.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use podling_core::workspace::State;
use podling_proto::{error::reason, v1::Reason};
use tonic::{Code, Status};

use crate::{
    demo,
    fake_agent::FakeAgent,
    harness::{GatewayHarness, full_body, next_frame, status, streamed_body, within},
};

const ECHO: &str = "/podling.agent.v1.Terminals/Attach";
const FLOOD: &str = "/podling.agent.v1.Terminals/Watch";
const STALL: &str = "/podling.agent.v1.Processes/Watch";
const LIST: &str = "/podling.agent.v1.Terminals/List";

#[tokio::test]
async fn both_directions_flow_at_once_and_end_with_trailers() {
    let (harness, _agent) = GatewayHarness::with_agent().await;
    let (feed, body) = streamed_body();
    let mut response = harness.open(ECHO, body).await;
    for n in 0..100u8 {
        feed.send(Bytes::copy_from_slice(&[n; 100])).await.expect("feed");
        let frame = next_frame(&mut response).await;
        assert_eq!(
            frame.into_data().expect("data"),
            [n; 100][..],
            "the echo arrives before the next frame is sent"
        );
    }
    drop(feed);
    let trailers = next_frame(&mut response).await.into_trailers();
    assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
}

#[tokio::test]
async fn cancellation_by_the_client_reaches_the_agent() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let mut open = agent.observed.open_exchanges.subscribe();
    let mut h2 = harness.h2().await;
    for path in [ECHO, FLOOD, STALL] {
        let (feed, body) = streamed_body();
        let request = harness.grpc(path, Some(&harness.root_token), Some(&demo()), body);
        let mut response = within(h2.send_request(request)).await.expect("response");
        feed.send(Bytes::from_static(b"\0\0\0\0\0")).await.expect("feed");
        next_frame(&mut response).await;
        within(open.wait_for(|n| *n == 1)).await.expect("in progress");
        // hyper resets a stream when both of its directions are dropped.
        drop((response, feed));
        within(open.wait_for(|n| *n == 0))
            .await
            .unwrap_or_else(|_| panic!("{path}: not cancelled at the agent"));
    }
    // Closing the client's whole connection cancels the exchange too.
    let (feed, body) = streamed_body();
    let request = harness.grpc(ECHO, Some(&harness.root_token), Some(&demo()), body);
    let mut other = harness.h2().await;
    let response = within(other.send_request(request)).await.expect("response");
    within(open.wait_for(|n| *n == 1)).await.expect("in progress");
    drop((feed, response, other));
    within(open.wait_for(|n| *n == 0)).await.expect("cancelled at the agent");
}

#[tokio::test]
async fn stalled_reader_does_not_delay_another() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut response = harness.open(FLOOD, full_body(&[0; 5])).await;
        next_frame(&mut response).await;
        stalled.push(response);
    }
    let (feed, body) = streamed_body();
    let mut response = harness.open(ECHO, body).await;
    // This is more data than any flow-control window. The echo continues only if the stalled
    // readers have not used up the connection's shared window.
    let mut received = 0;
    for _ in 0..400 {
        feed.send(Bytes::from(vec![1; 16 * 1024])).await.expect("feed");
        while received < 16 * 1024 {
            let frame = next_frame(&mut response).await;
            received += frame.into_data().expect("data").len();
        }
        received -= 16 * 1024;
    }
    assert_eq!(agent.observed.connections.load(SeqCst), 1, "all exchanges share one connection");
}

#[tokio::test]
async fn data_that_a_reader_does_not_take_stays_at_the_agent() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let mut response = harness.open(FLOOD, full_body(&[0; 5])).await;
    next_frame(&mut response).await;
    // Another client's echo gives a gateway without back-pressure the time to fetch too much.
    let (feed, body) = streamed_body();
    let mut echo = harness.open(ECHO, body).await;
    for _ in 0..1000 {
        feed.send(Bytes::from_static(b"x")).await.expect("feed");
        next_frame(&mut echo).await;
    }
    // 16 MiB is more than the flow-control windows on both sides of the gateway and the sockets'
    // buffers.
    let flooded = agent.observed.flooded.load(SeqCst);
    assert!(flooded < 16 * 1024 * 1024, "only the windows fill without a reader: {flooded} bytes");
}

#[tokio::test]
async fn agent_death_mid_stream_ends_with_unavailable() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let mut response = harness.open(STALL, full_body(&[0; 5])).await;
    let first = next_frame(&mut response).await;
    assert_eq!(first.into_data().expect("data"), &b"\0\0\0\0\x01x"[..]);
    drop(agent);
    let last = next_frame(&mut response).await;
    let status = Status::from_header_map(&last.into_trailers().expect("trailers")).expect("status");
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, Some(Reason::AgentUnreachable)));
    let next = harness.call(LIST, Some(&harness.root_token), Some(&demo())).await;
    assert_eq!((next.code(), reason(&next)), (Code::Unavailable, Some(Reason::AgentUnreachable)));
}

#[tokio::test]
async fn sleep_explains_the_end_of_calls_in_use_only() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let mut calls = Vec::new();
    for path in [STALL, ECHO] {
        let (feed, body) = streamed_body();
        let mut response = harness.open(path, body).await;
        feed.send(Bytes::from_static(&[0; 5])).await.expect("feed");
        next_frame(&mut response).await;
        calls.push((feed, response));
    }
    harness.set_workspace(&demo(), "ada", State::Asleep, None);
    drop(agent);
    let mut reasons = Vec::new();
    for (_feed, mut response) in calls {
        let last = next_frame(&mut response).await;
        let trailers = last.into_trailers().expect("trailers");
        reasons.push(reason(&Status::from_header_map(&trailers).expect("status")));
    }
    assert_eq!(reasons, [Some(Reason::FellAsleep), Some(Reason::AgentUnreachable)]);
}

#[tokio::test]
async fn impostor_at_the_agents_address_receives_no_request() {
    let agent = FakeAgent::start("one", 200).await;
    let impostor = FakeAgent::start("one", 200).await;
    let harness = GatewayHarness::start().await;
    let mut view = agent.view.clone();
    view.address = impostor.view.address.clone();
    harness.set_workspace(&demo(), "ada", State::Awake, Some(&view));
    let refused = harness.call(LIST, Some(&harness.root_token), Some(&demo())).await;
    assert_eq!(reason(&refused), Some(Reason::AgentUnreachable));
    assert_eq!(impostor.observed.connections.load(SeqCst), 1, "the gateway reads the impostor's certificate");
    assert!(impostor.requests().is_empty(), "no request is sent to the impostor");
}

#[tokio::test]
async fn restarted_agent_is_reached_at_once() {
    let (harness, first) = GatewayHarness::with_agent().await;
    assert_eq!(harness.call(LIST, Some(&harness.root_token), Some(&demo())).await.code(), Code::Ok);
    let second = FakeAgent::start("two", 200).await;
    harness.set_workspace(&demo(), "ada", State::Awake, Some(&second.view));
    assert_eq!(harness.call(LIST, Some(&harness.root_token), Some(&demo())).await.code(), Code::Ok);
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
}

#[tokio::test]
async fn calls_share_a_connection_up_to_the_agents_stream_limit() {
    let (harness, agent) = (GatewayHarness::start().await, FakeAgent::start("one", 10).await);
    harness.set_workspace(&demo(), "ada", State::Awake, Some(&agent.view));
    let mut h2 = harness.h2().await;
    let mut open = Vec::new();
    for n in 0..25 {
        let (feed, body) = streamed_body();
        let request = harness.grpc(ECHO, Some(&harness.root_token), Some(&demo()), body);
        let response = within(h2.send_request(request)).await.unwrap_or_else(|e| panic!("call {n}: {e}"));
        open.push((feed, response));
    }
    assert_eq!(agent.observed.connections.load(SeqCst), 3);
    drop(open);
    for _ in 0..25 {
        let request = harness.grpc(LIST, Some(&harness.root_token), Some(&demo()), full_body(&[0; 5]));
        let response = within(h2.send_request(request)).await.expect("response");
        assert_eq!(status(response).await.code(), Code::Ok);
    }
    assert_eq!(agent.observed.connections.load(SeqCst), 3, "stream permits are released");
}
