//! The server: authorization of clients, and errors in the client's protocol.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use podling_proto::{
    agent::v1::{GetActivityRequest, KeepAwakeRequest},
    error,
    token::{Audience, SigningKey, TokenClaims},
    v1::{Reason, Verb},
    verb::Verbs,
};
use podling_testkit::{
    AgentProcess,
    agent_client::{self, CERTIFICATE_NAME},
    agent_process::{claimed, unclaimed},
    control_plane::{self, claims, now, token},
    http::exchange,
    reason, tls, within,
};
use tokio::{io::AsyncReadExt, time::timeout};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

/// Sends a request over HTTP/1.1. Returns the status, the content type followed by the gRPC status,
/// and the body.
async fn http1(agent: &AgentProcess, request: Request<Bytes>) -> (u16, String, Bytes) {
    let mut config = tls::pinned(Some(&agent.info().await.fingerprint));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = agent_client::connect(&agent.socket(), config).await.expect("TLS");
    let (parts, body) = exchange(Box::new(stream), request).await;
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    // A gRPC error without a message carries its status in the headers.
    let content_type = format!("{} {}", header("content-type"), header("grpc-status"));
    (parts.status.as_u16(), content_type.trim().to_owned(), body.expect("body"))
}

/// Builds a GET request, with a bearer token if `token` is set.
fn get(path: &str, token: Option<&str>) -> Request<Bytes> {
    let mut request = Request::get(path).header("host", CERTIFICATE_NAME);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(Bytes::new()).expect("a request")
}

#[tokio::test]
async fn only_health_and_readiness_need_no_token() {
    let (agent, control_plane, _authority) = unclaimed(&[]).await;
    drop(control_plane);
    let client = agent.client().await;
    let mut health = HealthClient::new(client.channel());
    let answer = health.check(HealthCheckRequest::default()).await.expect("healthy without a token");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let request = HealthCheckRequest { service: "podling.agent.v1.Terminals".into() };
    let answer = health.check(request).await.expect("known service");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let flood = HealthCheckRequest { service: "x".repeat(1 << 20) };
    let refused = health.check(flood).await.expect_err("a large request without a token is refused");
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    assert_eq!(http1(&agent, get("/healthz", None)).await.0, 200);
    assert_eq!(http1(&agent, get("/readyz", None)).await.0, 503, "no workspace yet");

    let refused = client.activity().get(GetActivityRequest {}).await.expect_err("refused");
    assert_eq!(reason(&refused), Reason::Unclaimed);
    let (_, content_type, body) = http1(&agent, get("/metrics", None)).await;
    assert!(content_type.starts_with("application/problem+json"), "{content_type}");
    assert!(String::from_utf8_lossy(&body).contains("UNCLAIMED"), "{body:?}");
}

#[tokio::test]
async fn token_allows_only_its_verbs_audience_and_lifetime() {
    let (agent, key, _control_plane, _session) =
        claimed(|claim| (claim.policy, claim.settings) = (None, None)).await;
    let client = agent.client().await;
    let activity = |token: &str| client.clone().token(token).activity();
    let good = claims(Verbs::only([Verb::Read]));
    activity(&key.sign(&good)).get(GetActivityRequest {}).await.expect("allowed");
    let missing = client.activity().get(GetActivityRequest {}).await.expect_err("refused");
    assert_eq!((missing.code(), reason(&missing)), (Code::Unauthenticated, Reason::TokenMissing));

    let other_key = control_plane::key();
    let elsewhere = |aud| TokenClaims { aud, ..good.clone() };
    let narrowed = TokenClaims { workspaces: Some(vec!["another".into()]), ..good.clone() };
    let expired = TokenClaims { iat: now() - 100, exp: now() - 1, ..good.clone() };
    for (token, expected) in [
        ("nonsense".to_owned(), Reason::TokenInvalid),
        (other_key.sign(&good), Reason::TokenInvalid),
        (key.sign(&expired), Reason::TokenExpired),
        (key.sign(&elsewhere(Audience::Control)), Reason::TokenForeign),
        (key.sign(&elsewhere(Audience::Agent("another".into()))), Reason::TokenForeign),
        (key.sign(&narrowed), Reason::WorkspaceDenied),
        (token_of(&key, Verb::FilesRead), Reason::VerbMissing),
    ] {
        let refused = activity(&token).get(GetActivityRequest {}).await.expect_err("refused");
        assert_eq!(reason(&refused), expected);
    }
    let keep = activity(&key.sign(&good)).keep_awake(KeepAwakeRequest::default()).await;
    let keep = keep.expect_err("the read verb does not allow keep-awake");
    assert_eq!(error::detail(&keep, "verb").as_deref(), Some("keep-awake"));
}

fn token_of(key: &SigningKey, verb: Verb) -> String {
    key.sign(&claims(Verbs::only([verb])))
}

#[tokio::test]
async fn refusals_use_the_callers_protocol() {
    let (agent, key, _control_plane, _session) =
        claimed(|claim| (claim.policy, claim.settings) = (None, None)).await;
    let (status, content_type, body) = http1(&agent, get("/metrics", None)).await;
    assert_eq!((status, content_type.as_str()), (401, "application/problem+json"));
    assert!(String::from_utf8_lossy(&body).contains("TOKEN_MISSING"), "{body:?}");
    let (status, _, body) = http1(&agent, get("/metrics", Some(&token(&key, "read")))).await;
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&body).contains("podling_agent_claimed 1"), "{body:?}");

    let web = |token: Option<&str>| {
        let mut request = get("/podling.agent.v1.Activity/Get", token).map(|_| Bytes::from_static(&[0; 5]));
        *request.method_mut() = http::Method::POST;
        request.headers_mut().insert("content-type", "application/grpc-web+proto".parse().expect("header"));
        request
    };
    let (status, content_type, _) = http1(&agent, web(None)).await;
    assert_eq!((status, content_type.as_str()), (200, "application/grpc-web+proto 16"));
    let (status, content_type, body) = http1(&agent, web(Some(&token(&key, "read")))).await;
    assert_eq!((status, content_type.as_str()), (200, "application/grpc-web+proto"));
    assert!(String::from_utf8_lossy(&body).contains("grpc-status:0"), "trailers in the body: {body:?}");

    let json: Request<_> = get("/podling.agent.v1.Activity/Get", Some(&token(&key, "read")));
    let (status, content_type, body) = http1(&agent, json).await;
    assert_eq!((status, content_type.as_str()), (400, "application/problem+json"));
    assert!(String::from_utf8_lossy(&body).contains("gRPC"), "{body:?}");
    let (status, _, body) = http1(&agent, get("/nowhere", Some(&token(&key, "admin")))).await;
    assert_eq!(status, 404);
    assert!(String::from_utf8_lossy(&body).contains("UNKNOWN_METHOD"), "{body:?}");
    let mut delete = get("/export.zip", Some(&token(&key, "admin")));
    *delete.method_mut() = http::Method::DELETE;
    assert_eq!(http1(&agent, delete).await.0, 405);
    assert_eq!(http1(&agent, get("/nowhere", Some(&token(&key, "read")))).await.0, 403);
    assert_eq!(http1(&agent, get("/readyz", None)).await.0, 200);
}

#[tokio::test]
async fn reflection_lists_agent_services_only() {
    let (agent, key, _control_plane, _session) =
        claimed(|claim| (claim.policy, claim.settings) = (None, None)).await;
    let channel = agent.client().await.token(&token(&key, "read")).channel();
    let expected = ["grpc.health.v1.Health", "podling.agent.v1.Activity", "podling.agent.v1.Files"];

    let request = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(stream::iter([request])).await.expect("v1").into_inner();
    let answer = answers.message().await.expect("answer").and_then(|a| a.message_response);
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("no list");
    };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    assert!(expected.iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("podling.control")), "{names:?}");

    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "podling.agent.v1.Activity".into(),
        )),
        ..Default::default()
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(stream::iter([request])).await;
    let answer = answers.expect("v1alpha").into_inner().message().await.expect("answer");
    assert!(matches!(
        answer.and_then(|a| a.message_response),
        Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
    ));
}

#[tokio::test]
async fn thousand_unauthenticated_connections_keep_memory_flat() {
    let (agent, key, _control_plane, _session) =
        claimed(|claim| (claim.policy, claim.settings) = (None, None)).await;
    let mut authenticated = agent.client().await.token(&token(&key, "read")).activity();
    authenticated.get(GetActivityRequest {}).await.expect("served");
    let (tls, socket) = (tls::pinned(Some(&agent.info().await.fingerprint)), agent.socket());
    let connect = async || agent_client::connect(&socket, tls.clone()).await.expect("TLS");
    let mut unauthenticated = Vec::new();
    for _ in 0..50 {
        unauthenticated.push(connect().await);
    }
    let before = agent.resident_kib();
    for _ in 0..1000 {
        unauthenticated.push(connect().await);
    }
    let growth = agent.resident_kib().saturating_sub(before);
    assert!(growth < 2048, "grew by {growth} KiB");
    // The agent has closed the oldest unauthenticated connections. It still serves the
    // authenticated one and accepts new ones.
    let mut rest = Vec::new();
    let end = within("the end of the oldest", unauthenticated[0].read_to_end(&mut rest)).await;
    end.ok();
    authenticated.get(GetActivityRequest {}).await.expect("still served");
    let mut late = HealthClient::new(agent.client().await.channel());
    timeout(Duration::from_secs(10), late.check(HealthCheckRequest::default()))
        .await
        .expect("in time")
        .expect("healthy");
    println!("1,000 idle connections without a token: {before} KiB before, {growth} KiB more");
}
