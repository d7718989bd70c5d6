//! Malicious requests: smuggling, two workspaces, tunnels, huge headers. Also secrets in logs.

use std::{
    io,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

use crate::{
    demo,
    harness::{GatewayHarness, full_body, status, within},
};

/// Sends bytes and returns all that the server sends until it closes the connection.
async fn exchange_raw(harness: &GatewayHarness, request: &str) -> String {
    let mut tcp = TcpStream::connect(&harness.address).await.expect("connect");
    // The server may close the connection early.
    let _closed = tcp.write_all(request.as_bytes()).await;
    let mut response = Vec::new();
    let _reset = within(tcp.read_to_end(&mut response)).await;
    String::from_utf8_lossy(&response).into_owned()
}

#[tokio::test]
async fn smuggled_request_is_rejected_and_never_forwarded() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let head = format!(
        "PUT /files/a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\npodling-workspace: {}\r\n",
        harness.root_token,
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
        let response = exchange_raw(&harness, &request).await;
        assert!(response.starts_with("HTTP/1.1 400"), "{request}\n{response}");
        assert_eq!(response.matches("HTTP/1.1").count(), 1, "exactly one response:\n{response}");
    }
    assert!(agent.requests().is_empty(), "no request reaches the agent");
    // The chunked length wins. Bytes behind the last chunk are not a request.
    for lengths in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    ] {
        let response = exchange_raw(&harness, &format!("{head}{lengths}\r\n0\r\n\r\n{hidden}")).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert_eq!(response.matches("HTTP/1.1").count(), 1, "exactly one response:\n{response}");
        let received = agent.requests().pop().expect("a request");
        assert!(
            received.uri.path() == "/files/a" && !received.headers.contains_key("content-length"),
            "{received:?}"
        );
    }
}

#[tokio::test]
async fn request_for_two_workspaces_or_a_tunnel_is_rejected() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let list = "/podling.agent.v1.Terminals/List";
    let mut twice = harness.grpc(list, Some(&harness.root_token), Some(&demo()), full_body(&[0; 5]));
    twice.headers_mut().append("podling-workspace", "abcdefghijkl".parse().expect("value"));
    let refused = status(within(harness.h2().await.send_request(twice)).await.expect("response")).await;
    assert!(refused.message().contains("podling-workspace"), "{refused}");

    let root = &harness.root_token;
    let tunnel = format!(
        "CONNECT agent:1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {root}\r\n\r\n"
    );
    let tunnel = exchange_raw(&harness, &tunnel).await;
    assert!(tunnel.starts_with("HTTP/1.1 400"), "{tunnel}");
    let long = "y".repeat(40 * 1024);
    let long = exchange_raw(
        &harness,
        &format!("GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-long: {long}\r\n\r\n"),
    )
    .await;
    assert!(long.starts_with("HTTP/1.1 400"), "{}", &long[..long.len().min(200)]);
    assert!(agent.requests().is_empty());
}

#[tokio::test]
async fn upgrade_header_is_dropped_and_the_request_is_served() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    for upgrade in ["websocket", "h2c"] {
        let request = format!(
            "GET /files/a/3 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\npodling-workspace: {}\r\n\
             connection: upgrade, close\r\nupgrade: {upgrade}\r\n\r\n",
            harness.root_token,
            demo()
        );
        let response = exchange_raw(&harness, &request).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    let received = agent.requests();
    assert!(
        received.iter().all(|r| !r.headers.contains_key("upgrade") && !r.headers.contains_key("connection"))
    );
}

/// A writer that collects log lines in memory.
#[derive(Clone, Default)]
struct MemoryLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for MemoryLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for MemoryLog {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn log_at_trace_level_contains_no_secret() {
    let log = MemoryLog::default();
    // Without a second dispatcher, a callsite that another test's thread logs first would be cached
    // as disabled.
    let _other = tracing::Dispatch::new(tracing_subscriber::registry());
    let subscriber =
        tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(log.clone()).finish();
    // The subscriber is set for this thread only, which runs the whole test.
    let logging = tracing::subscriber::set_default(subscriber);
    let (harness, agent) = GatewayHarness::with_agent().await;
    let ada = harness.token("read,terminal,token", "ada");
    let list = "/podling.agent.v1.Terminals/List";
    assert_eq!(harness.call(list, Some(&ada), Some(&demo())).await.code(), tonic::Code::Ok);
    let wrong = format!("{}x", harness.root_token);
    for token in [&ada, &wrong] {
        harness.call("/podling.control.v1.Tokens/Create", Some(token), None).await;
        harness.call("/podling.agent.v1.Files/Write", Some(token), Some(&demo())).await;
    }
    let request = format!(
        "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {ada}\r\n\r\n"
    );
    exchange_raw(&harness, &request).await;
    drop(logging);
    let text = String::from_utf8_lossy(&log.0.lock().expect("lock")).into_owned();
    assert!(text.contains("TRACE"), "the log has TRACE events: {} bytes", text.len());
    let forwarded =
        agent.requests()[0].headers["authorization"].to_str().expect("ascii").replace("Bearer ", "");
    let keys: serde_json::Value =
        serde_json::from_slice(&std::fs::read(harness.data().join("control/token-keys.json")).expect("keys"))
            .expect("json");
    let key = keys[0]["pkcs8"].as_str().expect("key").to_owned();
    for secret in [&harness.root_token, &ada, &forwarded, &key] {
        // The secret appears neither as text nor in the debug format of a byte slice.
        let bytes: Vec<_> = secret.bytes().take(16).map(|byte| byte.to_string()).collect();
        assert!(!text.contains(&secret[..24]), "{}", &secret[..12]);
        assert!(!text.contains(&bytes.join(", ")), "{}", &secret[..12]);
    }
}
