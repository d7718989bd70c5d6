//! Responses in the client's protocol: gRPC, gRPC-web and plain HTTP. Also CORS.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::{Request, header::ORIGIN};
use podling_core::workspace::State;
use podling_proto::{agent::v1::WatchActivityResponse, error::reason, v1::Reason};
use prost::Message;
use tonic::Status;

use crate::{
    demo,
    harness::{GatewayHarness, full_body, next_frame, read_body, within},
};

#[tokio::test]
async fn grpc_web_streams_over_http_1() {
    let (harness, _agent) = GatewayHarness::with_agent().await;
    for (content_type, text) in [("application/grpc-web+proto", false), ("application/grpc-web-text", true)] {
        let body = if text { BASE64.encode([0; 5]).into_bytes() } else { vec![0; 5] };
        let request = Request::post("/podling.agent.v1.Activity/Watch")
            .header("host", &harness.address)
            .header("content-type", content_type)
            .header("accept", content_type)
            .header("x-grpc-web", "1")
            .header("authorization", format!("Bearer {}", harness.root_token))
            .header("podling-workspace", demo().as_str())
            .body(full_body(&body))
            .expect("request");
        let response = harness.send_h1(request).await;
        assert_eq!(response.status(), 200);
        let body = read_body(response).await;
        let frames = if text { decode_text(&body) } else { body.to_vec() };
        let (messages, trailers) = web_frames(&frames);
        assert_eq!(messages.len(), 2);
        let message = WatchActivityResponse::decode(messages[0].as_slice()).expect("message");
        assert_eq!(message.activity.expect("activity").level, 2);
        assert!(trailers.expect("trailers").contains("grpc-status:0"), "trailers as tonic-web writes them");
    }
}

#[tokio::test]
async fn broken_grpc_web_stream_ends_with_a_status() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let request = Request::post("/podling.agent.v1.Processes/Watch")
        .header("host", &harness.address)
        .header("content-type", "application/grpc-web")
        .header("authorization", format!("Bearer {}", harness.root_token))
        .header("podling-workspace", demo().as_str())
        .body(full_body(&[0; 5]))
        .expect("request");
    let mut response = harness.send_h1(request).await;
    let first = next_frame(&mut response).await.into_data().expect("data");
    drop(agent);
    let rest = read_body(response).await;
    let (messages, trailers) = web_frames(&[&first[..], &rest].concat());
    assert_eq!(messages, [b"x"]);
    assert!(trailers.expect("trailers").contains("grpc-status: 14"));
}

#[tokio::test]
async fn refusal_is_the_same_in_three_protocols() {
    let harness = GatewayHarness::start().await;
    for workspace in [true, false] {
        for content_type in ["application/grpc", "application/grpc-web+proto", "application/json"] {
            let mut request =
                Request::post(format!("http://{}/podling.agent.v1.Terminals/List", harness.address))
                    .header("content-type", content_type);
            if workspace {
                request = request.header("podling-workspace", demo().as_str());
            }
            let request = request.body(full_body(&[0; 5])).expect("request");
            let response = within(harness.h2().await.send_request(request)).await.expect("response");
            if content_type.contains("grpc") {
                assert_eq!(response.status(), 200);
                let status = Status::from_header_map(response.headers()).expect("status");
                assert_eq!(reason(&status), Some(Reason::TokenMissing));
                let response_type = response.headers()["content-type"].to_str().expect("ascii");
                assert_eq!(response_type.contains("web"), content_type.contains("web"));
            } else {
                assert_eq!(response.status(), 401);
                assert_eq!(response.headers()["content-type"], "application/problem+json");
                let body = read_body(response).await;
                let body: serde_json::Value = serde_json::from_slice(&body).expect("json");
                assert_eq!(body["reason"], "TOKEN_MISSING");
            }
        }
    }
}

#[tokio::test]
async fn files_are_read_and_written_over_plain_http() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let request = |method: &str, path: &str, verbs: &str, body: &[u8]| {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", &harness.address)
            .header("cookie", "secret=1")
            .header("authorization", format!("bearer {}", harness.token(verbs, "ada")))
            .header("podling-workspace", demo().as_str())
            .body(full_body(body))
            .expect("request")
    };
    let got = harness
        .h1()
        .await
        .send_request(request("GET", "/files/a/5000000", "files-read", b""))
        .await
        .expect("get");
    assert_eq!(
        (got.status().as_u16(), &got.headers()["content-length"]),
        (200, &"5000000".parse().expect("value"))
    );
    assert!(!got.headers().contains_key("set-cookie") && got.headers().contains_key("etag"));
    let body = read_body(got).await;
    assert_eq!((body.len(), body.iter().all(|b| *b == 5)), (5_000_000, true));
    assert!(agent.requests().iter().all(|r| !r.headers.contains_key("cookie")));
    let put = request("PUT", "/files/b", "files-write", &vec![1; 3_000_000]);
    let put = harness.send_h1(put).await;
    let body = read_body(put).await;
    assert_eq!(body, "3000000");
    let refused =
        within(harness.h1().await.send_request(request("PUT", "/files/b", "files-read", b"x"))).await;
    let refused = refused.expect("response");
    assert_eq!(refused.status(), 403);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
}

#[tokio::test]
async fn cors_allows_only_listed_origins() {
    let harness = GatewayHarness::start().await;
    let preflight = |origin: &str| {
        Request::options("/podling.agent.v1.Terminals/Watch")
            .header("host", &harness.address)
            .header(ORIGIN, origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,podling-workspace,x-grpc-web")
            .body(full_body(b""))
            .expect("request")
    };
    let allowed = harness.send_h1(preflight("https://console.example")).await;
    assert_eq!(allowed.status(), 200);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://console.example");
    let headers = allowed.headers()["access-control-allow-headers"].to_str().expect("ascii");
    assert!(headers.contains("podling-workspace") && headers.contains("authorization"));
    let methods = allowed.headers()["access-control-allow-methods"].to_str().expect("ascii");
    assert!(["GET", "POST", "PUT", "PATCH", "DELETE"].iter().all(|m| methods.contains(m)), "{methods}");
    assert!(!allowed.headers().contains_key("access-control-allow-credentials"), "never with cookies");
    let other = harness.send_h1(preflight("https://evil.example")).await;
    assert!(!other.headers().contains_key("access-control-allow-origin"));
    // The response, here a refusal, lists the headers that the page may read.
    let call = Request::post("/podling.agent.v1.Terminals/Watch")
        .header("host", &harness.address)
        .header(ORIGIN, "https://console.example")
        .header("content-type", "application/grpc-web+proto")
        .body(full_body(&[0; 5]))
        .expect("request");
    let response = harness.send_h1(call).await;
    let exposed = response.headers()["access-control-expose-headers"].to_str().expect("ascii");
    for header in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        assert!(exposed.contains(header), "{exposed}");
    }
}

#[tokio::test]
async fn health_and_readiness_need_no_token_and_metrics_do() {
    let harness = GatewayHarness::start().await;
    let get = |path: &str, token: Option<&str>| {
        let mut request = Request::get(path).header("host", &harness.address);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(full_body(b"")).expect("request")
    };
    for path in ["/healthz", "/readyz"] {
        let response = harness.send_h1(get(path, None)).await;
        assert_eq!(response.status(), 200, "{path}");
    }
    let refused = harness.send_h1(get("/metrics", None)).await;
    assert_eq!(refused.status(), 401);
    harness.set_workspace(&demo(), "ada", State::Awake, None);
    let read = harness.token("read", "ada");
    let response = harness.send_h1(get("/metrics", Some(&read))).await;
    let body = read_body(response).await;
    let text = String::from_utf8(body.to_vec()).expect("text");
    assert!(text.contains("podling_workspaces{state=\"awake\"} 1"), "{text}");
    assert!(text.contains("code=\"Unauthenticated\"} 1"), "{text}");
    harness.stopping.draining.cancel();
}

/// Splits a gRPC-web body into its messages and its trailers.
fn web_frames(mut bytes: &[u8]) -> (Vec<Vec<u8>>, Option<String>) {
    let (mut messages, mut trailers) = (Vec::new(), None);
    while !bytes.is_empty() {
        let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        let content = bytes[5..5 + length].to_vec();
        if bytes[0] & 0x80 == 0 {
            messages.push(content);
        } else {
            trailers = Some(String::from_utf8(content).expect("ascii"));
        }
        bytes = &bytes[5 + length..];
    }
    (messages, trailers)
}

/// Decodes base64 that consists of several pieces, each with its own padding.
fn decode_text(text: &[u8]) -> Vec<u8> {
    text.chunks(4).flat_map(|four| BASE64.decode(four).expect("base64")).collect()
}
