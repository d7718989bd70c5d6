//! The end, and those who would bring it about: shutdown in order, and a thousand strangers.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use podling_core::workspace::State;
use podling_proto::{error::reason, v1::Reason};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tonic::Status;

use crate::{
    agent::FakeAgent,
    demo,
    house::{House, full, within},
};

#[tokio::test]
async fn streams_are_told_and_then_the_door_is_shut() {
    let mut house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let mut h2 = house.h2().await;
    let path = "/podling.agent.v1.Processes/Watch";
    let request = house.grpc(path, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
    let mut response = within(h2.send_request(request)).await.expect("response");
    within(response.frame()).await.expect("frame").expect("no error");
    house.stopping.draining.cancel();
    let last = within(response.frame()).await.expect("a frame").expect("no error");
    let status = Status::from_header_map(&last.into_trailers().expect("trailers")).expect("status");
    assert_eq!(reason(&status), Some(Reason::ShuttingDown));
    within(&mut house.serving).await.expect("served to the end");
    assert!(TcpStream::connect(&house.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_client_that_does_not_let_go_is_cut_off() {
    let mut house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let mut h2 = house.h2().await;
    // A flood that is never read: its last words find no room.
    let path = "/podling.agent.v1.Terminals/Watch";
    let request = house.grpc(path, Some(&house.root_token), Some(&demo()), full(&[0; 5]));
    let response = within(h2.send_request(request)).await.expect("response");
    house.stopping.draining.cancel();
    within(&mut house.serving).await.expect("served to the end");
    drop(response);
}

#[tokio::test]
async fn a_thousand_strangers_are_shown_out_and_who_has_a_token_is_served() {
    let house = House::open().await;
    let mut known = house.h2().await;
    let describe = |house: &House| {
        house.grpc("/podling.control.v1.Tokens/Describe", Some(&house.root_token), None, full(&[0; 5]))
    };
    let first = within(known.send_request(describe(&house))).await.expect("response");
    assert_eq!(first.status(), 200);
    let mut strangers = Vec::new();
    for _ in 0..400 {
        strangers.push(TcpStream::connect(&house.address).await.expect("connect"));
    }
    // The first ones are told to go for those who came after.
    let mut byte = [0; 1];
    assert_eq!(within(strangers[0].read(&mut byte)).await.unwrap_or(0), 0);
    let again = within(known.send_request(describe(&house))).await.expect("response");
    assert_eq!(again.status(), 200, "whoever has shown a token stays");
    within(async {
        loop {
            let text = house.metrics.text();
            let open = text.lines().find_map(|l| l.strip_prefix("podling_connections ")).expect("gauge");
            if open.parse::<u32>().expect("number") <= 129 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // A stranger that says nothing is closed after a while even if nobody needs its place.
    let last = strangers.last_mut().expect("stranger");
    assert_eq!(within(last.read(&mut byte)).await.unwrap_or(0), 0);
    let request = Request::get("/healthz").header("host", &house.address).body(full(b"")).expect("request");
    let health = within(house.h1().await.send_request(request)).await.expect("answer");
    assert_eq!(health.status(), 200);
}
