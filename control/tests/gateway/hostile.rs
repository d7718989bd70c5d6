//! Requests that mean to deceive: two lengths, two workspaces, tunnels, headers without end; and what the log must not know.

use std::{
    io,
    sync::{Arc, Mutex},
};

use podling_core::workspace::State;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

use crate::{
    agent::FakeAgent,
    demo,
    house::{House, full, status, within},
};

/// What comes back for these bytes until the connection is closed or an answer is whole.
async fn raw(house: &House, request: &str) -> String {
    let mut tcp = TcpStream::connect(&house.address).await.expect("connect");
    // It may be closed before all is written.
    let _closed = tcp.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = within(tcp.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_that_hides_another_is_refused_and_the_hidden_one_is_not_answered() {
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let head = format!(
        "PUT /files/a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\npodling-workspace: {}\r\n",
        house.root_token,
        demo()
    );
    let hidden = "GET /files/hidden HTTP/1.1\r\nhost: x\r\n\r\n";
    let smuggled = [
        format!("{head}content-length: 0\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len()),
        format!("{head}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{head}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{head}content-length: +5\r\n\r\n{hidden}"),
    ];
    for request in smuggled {
        let answer = raw(&house, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{request}\n{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one answer and no more:\n{answer}");
    }
    assert!(agent.requests().is_empty(), "the agent sees nothing of it");
    // The chunks count, and nothing that comes behind them does.
    for lengths in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    ] {
        let answer = raw(&house, &format!("{head}{lengths}\r\n0\r\n\r\n{hidden}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one answer and no more:\n{answer}");
        let seen = agent.requests().pop().expect("a request");
        assert!(seen.uri.path() == "/files/a" && !seen.headers.contains_key("content-length"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_request_that_names_two_workspaces_or_a_tunnel_is_refused() {
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let mut twice =
        house.grpc("/podling.agent.v1.Terminals/List", Some(&house.root_token), Some(&demo()), full(&[0; 5]));
    twice.headers_mut().append("podling-workspace", "abcdefghijkl".parse().expect("value"));
    let refused = status(within(house.h2().await.send_request(twice)).await.expect("answer")).await;
    assert!(refused.message().contains("podling-workspace"), "{refused}");

    let root = &house.root_token;
    let tunnel = format!(
        "CONNECT agent:1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {root}\r\n\r\n"
    );
    let tunnel = raw(&house, &tunnel).await;
    assert!(tunnel.starts_with("HTTP/1.1 400"), "{tunnel}");
    let long = "y".repeat(40 * 1024);
    let long = raw(
        &house,
        &format!("GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-long: {long}\r\n\r\n"),
    )
    .await;
    assert!(long.starts_with("HTTP/1.1 400"), "{}", &long[..long.len().min(200)]);
    assert!(agent.requests().is_empty());
}

#[tokio::test]
async fn an_upgrade_is_answered_as_the_plain_request_it_also_is() {
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    for upgrade in ["websocket", "h2c"] {
        let request = format!(
            "GET /files/a/3 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\npodling-workspace: {}\r\n\
             connection: upgrade, close\r\nupgrade: {upgrade}\r\n\r\n",
            house.root_token,
            demo()
        );
        let answer = raw(&house, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let seen = agent.requests();
    assert!(seen.iter().all(|r| !r.headers.contains_key("upgrade") && !r.headers.contains_key("connection")));
}

/// A log that is kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn no_log_holds_a_token_however_loud() {
    let log = Log::default();
    // A second listener, however deaf: where there is only one, what another test's thread logs first counts as heard by nobody from then on.
    let _other = tracing::Dispatch::new(tracing_subscriber::registry());
    let loud = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(log.clone()).finish();
    // Of this thread alone, where all of the story runs.
    let logging = tracing::subscriber::set_default(loud);
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let ada = house.token("read,terminal,token", "ada");
    let list = "/podling.agent.v1.Terminals/List";
    assert_eq!(house.call(list, Some(&ada), Some(&demo())).await.code(), tonic::Code::Ok);
    let wrong = format!("{}x", house.root_token);
    for token in [&ada, &wrong] {
        house.call("/podling.control.v1.Tokens/Create", Some(token), None).await;
        house.call("/podling.agent.v1.Files/Write", Some(token), Some(&demo())).await;
    }
    let request = format!(
        "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {ada}\r\n\r\n"
    );
    raw(&house, &request).await;
    drop(logging);
    let text = String::from_utf8_lossy(&log.0.lock().expect("lock")).into_owned();
    assert!(text.contains("TRACE"), "it is loud: {} bytes", text.len());
    let passed_on =
        agent.requests()[0].headers["authorization"].to_str().expect("ascii").replace("Bearer ", "");
    let keys: serde_json::Value =
        serde_json::from_slice(&std::fs::read(house.data().join("control/token-keys.json")).expect("keys"))
            .expect("json");
    let key = keys[0]["pkcs8"].as_str().expect("key").to_owned();
    for secret in [&house.root_token, &ada, &passed_on, &key] {
        // As text, and as libraries write bytes.
        let bytes: Vec<_> = secret.bytes().take(16).map(|byte| byte.to_string()).collect();
        assert!(!text.contains(&secret[..24]), "{}", &secret[..12]);
        assert!(!text.contains(&bytes.join(", ")), "{}", &secret[..12]);
    }
}
