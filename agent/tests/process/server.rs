//! The server: authorization of clients, and errors in the client's protocol.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body_util::Full;
use podling_agent::state_file::AgentInfoFile;
use podling_proto::{
    agent::v1::{GetActivityRequest, KeepAwakeRequest, activity_client::ActivityClient},
    error,
    token::{Audience, SigningKey, TokenClaims},
    v1::{Reason, Verb},
    verb::Verbs,
};
use tokio::{io::AsyncReadExt, time::timeout};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::{
    agent::AgentProcess,
    claimed::claimed,
    client::{AgentClient, connect, connector, get, http1, token, with_token},
    control_plane::{Authority, DEADLINE, claims, now},
};

fn reason(status: &Status) -> Reason {
    error::reason(status).unwrap_or_else(|| panic!("no reason in {status:?}"))
}

#[tokio::test]
async fn only_health_and_readiness_need_no_token() {
    let agent = AgentProcess::start(&Authority::new().pem);
    let client = AgentClient::connect(&agent).await;
    let mut health = HealthClient::with_origin(client.service(), AgentClient::origin());
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

    let mut activity = ActivityClient::with_origin(client.service(), AgentClient::origin());
    let refused = activity.get(GetActivityRequest {}).await.expect_err("refused");
    assert_eq!(reason(&refused), Reason::Unclaimed);
    let (_, content_type, body) = http1(&agent, get("/metrics", None)).await;
    assert!(content_type.starts_with("application/problem+json"), "{content_type}");
    assert!(String::from_utf8_lossy(&body).contains("UNCLAIMED"), "{body:?}");
}

#[tokio::test]
async fn token_allows_only_its_verbs_audience_and_lifetime() {
    let (agent, key, _control_plane, _session) =
        claimed(|claim| (claim.policy, claim.settings) = (None, None)).await;
    let service = AgentClient::connect(&agent).await.service();
    let mut client = ActivityClient::with_origin(service, AgentClient::origin());
    let good = claims(Verbs::only([Verb::Read]));
    client.get(with_token(GetActivityRequest {}, &key.sign(&good))).await.expect("allowed");
    let missing = client.get(GetActivityRequest {}).await.expect_err("refused");
    assert_eq!((missing.code(), reason(&missing)), (Code::Unauthenticated, Reason::TokenMissing));

    let elsewhere = |aud| TokenClaims { aud, ..good.clone() };
    let narrowed = TokenClaims { workspaces: Some(vec!["another".into()]), ..good.clone() };
    let expired = TokenClaims { iat: now() - 100, exp: now() - 1, ..good.clone() };
    for (token, expected) in [
        ("nonsense".to_owned(), Reason::TokenInvalid),
        (crate::control_plane::key().sign(&good), Reason::TokenInvalid),
        (key.sign(&expired), Reason::TokenExpired),
        (key.sign(&elsewhere(Audience::Control)), Reason::TokenForeign),
        (key.sign(&elsewhere(Audience::Agent("another".into()))), Reason::TokenForeign),
        (key.sign(&narrowed), Reason::WorkspaceDenied),
        (token_of(&key, Verb::FilesRead), Reason::VerbMissing),
    ] {
        let refused = client.get(with_token(GetActivityRequest {}, &token)).await.expect_err("refused");
        assert_eq!(reason(&refused), expected);
    }
    let keep = client.keep_awake(with_token(KeepAwakeRequest::default(), &key.sign(&good))).await;
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
        let mut request =
            get("/podling.agent.v1.Activity/Get", token).map(|_| Full::new(Bytes::from_static(&[0; 5])));
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
    let (service, token) = (AgentClient::connect(&agent).await.service(), token(&key, "read"));
    let expected = ["grpc.health.v1.Health", "podling.agent.v1.Activity", "podling.agent.v1.Files"];

    let request = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::with_origin(
        service.clone(),
        AgentClient::origin(),
    );
    let mut answers = client
        .server_reflection_info(with_token(stream::iter([request]), &token))
        .await
        .expect("v1")
        .into_inner();
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
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::with_origin(
        service,
        AgentClient::origin(),
    );
    let answers = client.server_reflection_info(with_token(stream::iter([request]), &token)).await;
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
    let mut authenticated =
        ActivityClient::with_origin(AgentClient::connect(&agent).await.service(), AgentClient::origin());
    let get = || with_token(GetActivityRequest {}, &token(&key, "read"));
    authenticated.get(get()).await.expect("served");
    let AgentInfoFile { fingerprint, .. } = agent.info().await;
    let (tls, socket) = (connector(&fingerprint, "h2"), agent.path("agent.sock"));
    let mut unauthenticated = Vec::new();
    for _ in 0..50 {
        unauthenticated.push(connect(&socket, &tls).await.expect("TLS"));
    }
    let before = agent.resident_kib();
    for _ in 0..1000 {
        unauthenticated.push(connect(&socket, &tls).await.expect("TLS"));
    }
    let growth = agent.resident_kib().saturating_sub(before);
    assert!(growth < 2048, "grew by {growth} KiB");
    // The agent has closed the oldest unauthenticated connections. It still serves the
    // authenticated one and accepts new ones.
    let mut rest = Vec::new();
    let end = timeout(DEADLINE, unauthenticated[0].read_to_end(&mut rest)).await;
    end.expect("closed in time").ok();
    authenticated.get(get()).await.expect("still served");
    let mut late =
        HealthClient::with_origin(AgentClient::connect(&agent).await.service(), AgentClient::origin());
    timeout(Duration::from_secs(10), late.check(HealthCheckRequest::default()))
        .await
        .expect("in time")
        .expect("healthy");
    println!("1,000 idle connections without a token: {before} KiB before, {growth} KiB more");
}
