//! An exchange passes as it is: both ways at once, with trailers, and it ends on both sides when it ends on one.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use http_body_util::BodyExt;
use podling_core::workspace::State;
use podling_proto::{error::reason, v1::Reason};
use tonic::{Code, Status};

use crate::{
    agent::FakeAgent,
    demo,
    house::{House, fed, full, status, within},
};

const ECHO: &str = "/podling.agent.v1.Terminals/Attach";
const FLOOD: &str = "/podling.agent.v1.Terminals/Watch";
const HALF: &str = "/podling.agent.v1.Processes/Watch";
const LIST: &str = "/podling.agent.v1.Terminals/List";

async fn house_with(agent: &FakeAgent) -> House {
    let house = House::open().await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    house
}

#[tokio::test]
async fn both_directions_flow_at_once_and_end_with_trailers() {
    let agent = FakeAgent::start("one", 200).await;
    let house = house_with(&agent).await;
    let (feed, body) = fed();
    let request = house.grpc(ECHO, Some(&house.root_token), Some(&demo()), body);
    let mut response = within(house.h2().await.send_request(request)).await.expect("response");
    for n in 0..100u8 {
        feed.send(Bytes::copy_from_slice(&[n; 100])).await.expect("feed");
        let frame = within(response.frame()).await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), [n; 100][..], "answered before the next is sent");
    }
    drop(feed);
    let trailers = within(response.frame()).await.expect("a frame").expect("no error").into_trailers();
    assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
}

#[tokio::test]
async fn an_agent_learns_at_once_that_its_caller_is_gone() {
    let agent = FakeAgent::start("one", 200).await;
    let house = house_with(&agent).await;
    let mut open = agent.seen.open.subscribe();
    let mut h2 = house.h2().await;
    for path in [ECHO, FLOOD, HALF] {
        let (feed, body) = fed();
        let request = house.grpc(path, Some(&house.root_token), Some(&demo()), body);
        let mut response = within(h2.send_request(request)).await.expect("response");
        feed.send(Bytes::from_static(b"\0\0\0\0\0")).await.expect("feed");
        within(response.frame()).await.expect("a frame").expect("no error");
        within(open.wait_for(|n| *n == 1)).await.expect("under way");
        // hyper resets a stream when neither of its directions is held any more.
        drop((response, feed));
        within(open.wait_for(|n| *n == 0)).await.unwrap_or_else(|_| panic!("{path}: cancelled at the agent"));
    }
    // A caller whose whole connection is gone.
    let (feed, body) = fed();
    let request = house.grpc(ECHO, Some(&house.root_token), Some(&demo()), body);
    let mut other = house.h2().await;
    let response = within(other.send_request(request)).await.expect("response");
    within(open.wait_for(|n| *n == 1)).await.expect("under way");
    drop((feed, response, other));
    within(open.wait_for(|n| *n == 0)).await.expect("cancelled at the agent");
}

#[tokio::test]
async fn a_reader_that_stops_does_not_hold_up_another() {
    let agent = FakeAgent::start("one", 200).await;
    let house = house_with(&agent).await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let request = house.grpc(FLOOD, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
        let mut response = within(house.h2().await.send_request(request)).await.expect("response");
        within(response.frame()).await.expect("a frame").expect("no error");
        stalled.push(response);
    }
    let (feed, body) = fed();
    let request = house.grpc(ECHO, Some(&house.root_token), Some(&demo()), body);
    let mut response = within(house.h2().await.send_request(request)).await.expect("response");
    // More than any window: the echo only goes on if nobody has eaten its room.
    let mut received = 0;
    for _ in 0..400 {
        feed.send(Bytes::from(vec![1; 16 * 1024])).await.expect("feed");
        while received < 16 * 1024 {
            let frame = within(response.frame()).await.expect("a frame").expect("no error");
            received += frame.into_data().expect("data").len();
        }
        received -= 16 * 1024;
    }
    assert_eq!(agent.seen.connections.load(SeqCst), 1, "all of it over one connection");
}

#[tokio::test]
async fn what_a_reader_does_not_take_stays_at_the_agent() {
    let agent = FakeAgent::start("one", 200).await;
    let house = house_with(&agent).await;
    let request = house.grpc(FLOOD, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
    let mut response = within(house.h2().await.send_request(request)).await.expect("response");
    within(response.frame()).await.expect("a frame").expect("no error");
    // While the reader stands still another's call goes back and forth: time enough for a gateway that would not wait.
    let (feed, body) = fed();
    let request = house.grpc(ECHO, Some(&house.root_token), Some(&demo()), body);
    let mut echo = within(house.h2().await.send_request(request)).await.expect("response");
    for _ in 0..1000 {
        feed.send(Bytes::from_static(b"x")).await.expect("feed");
        within(echo.frame()).await.expect("a frame").expect("no error");
    }
    // A window on either side of the gateway, and what the sockets hold.
    let flooded = agent.seen.flooded.load(SeqCst);
    assert!(flooded < 16 * 1024 * 1024, "{flooded} bytes were fetched for nobody");
}

#[tokio::test]
async fn an_agent_that_dies_in_the_middle_is_unavailable_not_silent() {
    let agent = FakeAgent::start("one", 200).await;
    let house = house_with(&agent).await;
    let request = house.grpc(HALF, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
    let mut response = within(house.h2().await.send_request(request)).await.expect("response");
    let first = within(response.frame()).await.expect("a frame").expect("no error");
    assert_eq!(first.into_data().expect("data"), &b"\0\0\0\0\x01x"[..]);
    drop(agent);
    let last = within(response.frame()).await.expect("a frame").expect("no error");
    let status = Status::from_header_map(&last.into_trailers().expect("trailers")).expect("status");
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, Some(Reason::AgentUnreachable)));
    let next = house.call(LIST, Some(&house.root_token), Some(&demo())).await;
    assert_eq!((next.code(), reason(&next)), (Code::Unavailable, Some(Reason::AgentUnreachable)));
}

#[tokio::test]
async fn a_program_in_the_agents_place_is_told_nothing() {
    let agent = FakeAgent::start("one", 200).await;
    let impostor = FakeAgent::start("one", 200).await;
    let house = House::open().await;
    let mut view = agent.view.clone();
    view.address = impostor.view.address.clone();
    house.set(&demo(), "ada", State::Awake, Some(&view));
    let refused = house.call(LIST, Some(&house.root_token), Some(&demo())).await;
    assert_eq!(reason(&refused), Some(Reason::AgentUnreachable));
    assert_eq!(impostor.seen.connections.load(SeqCst), 1, "it was asked for its certificate");
    assert!(impostor.requests().is_empty(), "and for nothing else");
}

#[tokio::test]
async fn the_next_run_of_an_agent_is_reached_at_once() {
    let first = FakeAgent::start("one", 200).await;
    let house = house_with(&first).await;
    assert_eq!(house.call(LIST, Some(&house.root_token), Some(&demo())).await.code(), Code::Ok);
    let second = FakeAgent::start("two", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&second.view));
    assert_eq!(house.call(LIST, Some(&house.root_token), Some(&demo())).await.code(), Code::Ok);
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
}

#[tokio::test]
async fn many_calls_share_a_connection_until_the_agent_takes_no_more_on_it() {
    let agent = FakeAgent::start("one", 10).await;
    let house = house_with(&agent).await;
    let mut h2 = house.h2().await;
    let mut open = Vec::new();
    for n in 0..25 {
        let (feed, body) = fed();
        let request = house.grpc(ECHO, Some(&house.root_token), Some(&demo()), body);
        let response = within(h2.send_request(request)).await.unwrap_or_else(|e| panic!("call {n}: {e}"));
        open.push((feed, response));
    }
    assert_eq!(agent.seen.connections.load(SeqCst), 3);
    drop(open);
    for _ in 0..25 {
        let request = house.grpc(LIST, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
        let response = within(h2.send_request(request)).await.expect("response");
        assert_eq!(status(response).await.code(), Code::Ok);
    }
    assert_eq!(agent.seen.connections.load(SeqCst), 3, "places are given back");
}
