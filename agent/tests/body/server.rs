//! The server: who gets in, and what it says to those who do not.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body_util::Full;
use podling_agent::server::info::AgentInfo;
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
    agent::Agent,
    claimed::claimed,
    client::{Client, connect, connector, get, http1, token, with_token},
    plane::{Authority, DEADLINE, claims, now},
};

fn reason(status: &Status) -> Reason {
    error::reason(status).unwrap_or_else(|| panic!("no reason in {status:?}"))
}

#[tokio::test]
async fn health_and_readiness_are_for_everybody_and_nothing_else_is() {
    let agent = Agent::start(&Authority::new().pem);
    let client = Client::of(&agent).await;
    let mut health = HealthClient::with_origin(client.service(), Client::origin());
    let answer = health.check(HealthCheckRequest::default()).await.expect("healthy without a token");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let one = HealthCheckRequest { service: "podling.agent.v1.Terminals".into() };
    let answer = health.check(one).await.expect("known by name");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let flood = HealthCheckRequest { service: "x".repeat(1 << 20) };
    let refused = health.check(flood).await.expect_err("a stranger's megabyte is not taken in");
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    assert_eq!(http1(&agent, get("/healthz", None)).await.0, 200);
    assert_eq!(http1(&agent, get("/readyz", None)).await.0, 503, "no workspace yet");

    let mut activity = ActivityClient::with_origin(client.service(), Client::origin());
    let refused = activity.get(GetActivityRequest {}).await.expect_err("refused");
    assert_eq!(reason(&refused), Reason::Unclaimed);
    let (_, kind, body) = http1(&agent, get("/metrics", None)).await;
    assert!(kind.starts_with("application/problem+json"), "{kind}");
    assert!(String::from_utf8_lossy(&body).contains("UNCLAIMED"), "{body:?}");
}

#[tokio::test]
async fn a_token_opens_what_it_allows_here_and_now_and_nothing_more() {
    let (agent, key, _plane, _session) = claimed(|claim| claim.policy = None).await;
    let service = Client::of(&agent).await.service();
    let mut client = ActivityClient::with_origin(service, Client::origin());
    let good = claims(Verbs::only([Verb::Read]));
    client.get(with_token(GetActivityRequest {}, &key.sign(&good))).await.expect("allowed");
    let missing = client.get(GetActivityRequest {}).await.expect_err("refused");
    assert_eq!((missing.code(), reason(&missing)), (Code::Unauthenticated, Reason::TokenMissing));

    let elsewhere = |aud| TokenClaims { aud, ..good.clone() };
    let narrowed = TokenClaims { workspaces: Some(vec!["another".into()]), ..good.clone() };
    let expired = TokenClaims { iat: now() - 100, exp: now() - 1, ..good.clone() };
    for (token, expected) in [
        ("nonsense".to_owned(), Reason::TokenInvalid),
        (crate::plane::key().sign(&good), Reason::TokenInvalid),
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
    let keep = keep.expect_err("reading is not keeping awake");
    assert_eq!(error::detail(&keep, "verb").as_deref(), Some("keep-awake"));
}

fn token_of(key: &SigningKey, verb: Verb) -> String {
    key.sign(&claims(Verbs::only([verb])))
}

#[tokio::test]
async fn refusals_come_in_the_callers_protocol() {
    let (agent, key, _plane, _session) = claimed(|claim| claim.policy = None).await;
    let (status, kind, body) = http1(&agent, get("/metrics", None)).await;
    assert_eq!((status, kind.as_str()), (401, "application/problem+json"));
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
    let (status, kind, _) = http1(&agent, web(None)).await;
    assert_eq!((status, kind.as_str()), (200, "application/grpc-web+proto 16"));
    let (status, kind, body) = http1(&agent, web(Some(&token(&key, "read")))).await;
    assert_eq!((status, kind.as_str()), (200, "application/grpc-web+proto"));
    assert!(String::from_utf8_lossy(&body).contains("grpc-status:0"), "trailers in the body: {body:?}");

    let json: Request<_> = get("/podling.agent.v1.Activity/Get", Some(&token(&key, "read")));
    let (status, kind, body) = http1(&agent, json).await;
    assert_eq!((status, kind.as_str()), (400, "application/problem+json"));
    assert!(String::from_utf8_lossy(&body).contains("gRPC"), "{body:?}");
    let (status, _, body) = http1(&agent, get("/nowhere", Some(&token(&key, "admin")))).await;
    assert_eq!(status, 501);
    assert!(String::from_utf8_lossy(&body).contains("UNKNOWN_METHOD"), "{body:?}");
    assert_eq!(http1(&agent, get("/nowhere", Some(&token(&key, "read")))).await.0, 403);
    assert_eq!(http1(&agent, get("/readyz", None)).await.0, 200);
}

#[tokio::test]
async fn reflection_lists_what_is_served() {
    let (agent, key, _plane, _session) = claimed(|claim| claim.policy = None).await;
    let (service, token) = (Client::of(&agent).await.service(), token(&key, "read"));
    let expected = ["grpc.health.v1.Health", "podling.agent.v1.Activity", "podling.agent.v1.Files"];

    let ask = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::with_origin(service.clone(), Client::origin());
    let mut answers = client
        .server_reflection_info(with_token(stream::iter([ask]), &token))
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

    let ask = v1alpha::ServerReflectionRequest {
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "podling.agent.v1.Activity".into(),
        )),
        ..Default::default()
    };
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::with_origin(service, Client::origin());
    let answers = client.server_reflection_info(with_token(stream::iter([ask]), &token)).await;
    let answer = answers.expect("v1alpha").into_inner().message().await.expect("answer");
    assert!(matches!(
        answer.and_then(|a| a.message_response),
        Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
    ));
}

#[tokio::test]
async fn a_thousand_connections_without_a_token_leave_memory_flat() {
    let (agent, key, _plane, _session) = claimed(|claim| claim.policy = None).await;
    let mut known = ActivityClient::with_origin(Client::of(&agent).await.service(), Client::origin());
    let get = || with_token(GetActivityRequest {}, &token(&key, "read"));
    known.get(get()).await.expect("served");
    let AgentInfo { fingerprint, .. } = agent.info().await;
    let (tls, socket) = (connector(&fingerprint, "h2"), agent.path("agent.sock"));
    let mut strangers = Vec::new();
    for _ in 0..50 {
        strangers.push(connect(&socket, &tls).await.expect("TLS"));
    }
    let before = agent.resident();
    for _ in 0..1000 {
        strangers.push(connect(&socket, &tls).await.expect("TLS"));
    }
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 2048, "grew by {grown} KiB");
    // The oldest were cut; who had shown a token was not, and who comes now gets in.
    let mut rest = Vec::new();
    let end = timeout(DEADLINE, strangers[0].read_to_end(&mut rest)).await;
    end.expect("cut in time").ok();
    known.get(get()).await.expect("still served");
    let mut late = HealthClient::with_origin(Client::of(&agent).await.service(), Client::origin());
    timeout(Duration::from_secs(10), late.check(HealthCheckRequest::default()))
        .await
        .expect("in time")
        .expect("healthy");
    println!("1,000 idle connections without a token: {before} KiB before, {grown} KiB more");
}
