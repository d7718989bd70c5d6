//! Shutdown in order, and bounds of unauthenticated connections.

use std::time::Duration;

use http::Request;
use podling_proto::{error::reason, v1::Reason};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tonic::Status;

use crate::{
    demo,
    harness::{GatewayHarness, full_body, next_frame, within},
};

#[tokio::test]
async fn shutdown_ends_streams_with_a_status_and_closes_the_port() {
    let (mut harness, _agent) = GatewayHarness::with_agent().await;
    let mut h2 = harness.h2().await;
    let path = "/podling.agent.v1.Processes/Watch";
    let request = harness.grpc(path, Some(&harness.root_token), Some(&demo()), full_body(&[0; 5]));
    let mut response = within(h2.send_request(request)).await.expect("response");
    next_frame(&mut response).await;
    harness.stopping.draining.cancel();
    let last = next_frame(&mut response).await;
    let status = Status::from_header_map(&last.into_trailers().expect("trailers")).expect("status");
    assert_eq!(reason(&status), Some(Reason::ShuttingDown));
    within(&mut harness.serving).await.expect("the server task");
    assert!(TcpStream::connect(&harness.address).await.is_err(), "the address accepts no connections");
}

#[tokio::test]
async fn shutdown_cuts_off_a_client_that_does_not_read() {
    let (mut harness, _agent) = GatewayHarness::with_agent().await;
    let mut h2 = harness.h2().await;
    // The client never reads, so the final status does not fit into its flow-control window.
    let path = "/podling.agent.v1.Terminals/Watch";
    let request = harness.grpc(path, Some(&harness.root_token), Some(&demo()), full_body(&[0; 5]));
    let response = within(h2.send_request(request)).await.expect("response");
    harness.stopping.draining.cancel();
    within(&mut harness.serving).await.expect("the server task");
    drop(response);
}

#[tokio::test]
async fn unauthenticated_flood_is_closed_and_token_holder_is_served() {
    let harness = GatewayHarness::start().await;
    let mut authenticated = harness.h2().await;
    let describe = |harness: &GatewayHarness| {
        let path = "/podling.control.v1.Tokens/Describe";
        harness.grpc(path, Some(&harness.root_token), None, full_body(&[0; 5]))
    };
    let first = within(authenticated.send_request(describe(&harness))).await.expect("response");
    assert_eq!(first.status(), 200);
    let mut unauthenticated = Vec::new();
    for _ in 0..400 {
        unauthenticated.push(TcpStream::connect(&harness.address).await.expect("connect"));
    }
    // The server closes the oldest connections in favour of newer ones.
    let mut byte = [0; 1];
    assert_eq!(within(unauthenticated[0].read(&mut byte)).await.unwrap_or(0), 0);
    let again = within(authenticated.send_request(describe(&harness))).await.expect("response");
    assert_eq!(again.status(), 200, "an authenticated connection stays open");
    within(async {
        loop {
            let text = harness.metrics.text();
            let open = text.lines().find_map(|l| l.strip_prefix("podling_connections ")).expect("gauge");
            if open.parse::<u32>().expect("number") <= 129 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // A silent connection is closed after a timeout even below the limit.
    let last = unauthenticated.last_mut().expect("connection");
    assert_eq!(within(last.read(&mut byte)).await.unwrap_or(0), 0);
    let request =
        Request::get("/healthz").header("host", &harness.address).body(full_body(b"")).expect("request");
    let health = harness.send_h1(request).await;
    assert_eq!(health.status(), 200);
}
