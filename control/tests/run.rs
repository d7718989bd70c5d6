//! The whole control plane, started and shut down as by `podling up`.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use http::{Request as HttpRequest, Response, request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use podling_control::{
    args::ControlArgs,
    config::{BackendKind, ControlConfig, LogFormat, ProgramDefaults},
    run::{ControlPlaneError, ServingInfo, run},
};
use podling_proto::{
    DESCRIPTOR_SET,
    control::v1::{DescribeTokenRequest, tokens_client::TokensClient},
    error::{detail, reason},
    v1::Reason,
};
use podling_testkit::tls::{self_signed, trusting};
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Upper bound of each wait.
const DEADLINE: Duration = Duration::from_secs(15);

fn config(data: &Path) -> ControlConfig {
    ControlConfig {
        scratch: data.join("scratch"),
        backend: BackendKind::Local,
        data: data.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        cors_origins: Vec::new(),
        log_format: LogFormat::Text,
        templates: Vec::new(),
        default_template: "shell".to_owned(),
        backups: format!("file://{}", data.join("backups").display()),
        sleep_idle_on_shutdown: true,
        create_missing_secrets: false,
        quotas: Default::default(),
        agent_command: vec!["/bin/false".to_owned()],
    }
}

async fn start(
    config: ControlConfig,
) -> (ServingInfo, CancellationToken, JoinHandle<Result<(), ControlPlaneError>>) {
    let shutdown = CancellationToken::new();
    let (notify, ready) = oneshot::channel();
    let ended = TaskTracker::new().spawn(run(config, shutdown.clone(), |ready| drop(notify.send(ready))));
    let ready = timeout(DEADLINE, ready).await.expect("in time").expect("ready");
    (ready, shutdown, ended)
}

async fn end(shutdown: CancellationToken, ended: JoinHandle<Result<(), ControlPlaneError>>) {
    shutdown.cancel();
    timeout(DEADLINE, ended).await.expect("in time").expect("no panic").expect("a clean shutdown");
}

async fn get(address: &str, path: &str) -> String {
    send(address, &format!("GET {path} HTTP/1.1\r\n")).await
}

/// Sends `head` (a request line and headers, each with CRLF) and returns the whole response.
async fn send(address: &str, head: &str) -> String {
    let mut tcp = TcpStream::connect(address).await.expect("connect");
    let request = format!("{head}host: x\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.expect("write");
    let mut response = String::new();
    timeout(DEADLINE, tcp.read_to_string(&mut response)).await.expect("in time").expect("read");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn control_plane_starts_serves_shuts_down_and_restarts() {
    // Longer than a unix socket's address allows.
    let data = tempfile::tempdir().expect("directory");
    let data = data.path().join("x".repeat(150));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = rustix::process::Rlimit { current: Some(512), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("a lower limit");
    for _ in 0..2 {
        let (ready, shutdown, ended) = start(config(&data)).await;
        let address = ready.url.strip_prefix("http://").expect("plain");
        let up = std::fs::read_to_string(data.join("run/up.json")).expect("up.json");
        let up: serde_json::Value = serde_json::from_str(&up).expect("json");
        assert_eq!(
            (up["url"].as_str(), up["pid"].as_u64()),
            (Some(ready.url.as_str()), Some(std::process::id().into()))
        );
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(files.current, files.maximum, "the soft limit of open files is raised to the hard limit");
        assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 401"));
        let token = std::fs::read_to_string(&ready.root_token).expect("root token");
        let bearer: MetadataValue<_> = format!("Bearer {}", token.trim()).parse().expect("ascii");
        let channel = Channel::from_shared(ready.url.clone()).expect("url").connect().await.expect("connect");
        let mut health = HealthClient::new(channel.clone());
        for service in ["", "podling.control.v1.Workspaces", "podling.agent.v1.Terminals"] {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = health.check(request).await.expect("a known service").into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
        }
        let unknown = HealthCheckRequest { service: "podling.control.v1.Nothing".to_owned() };
        assert_eq!(health.check(unknown).await.expect_err("unknown").code(), tonic::Code::NotFound);
        let mut tokens = TokensClient::with_interceptor(channel, move |mut request: Request<()>| {
            request.metadata_mut().insert("authorization", bearer.clone());
            Ok(request)
        });
        let info = tokens.describe(DescribeTokenRequest {}).await.expect("root").into_inner().info;
        assert_eq!(info.expect("info").verbs, ["admin"]);
        end(shutdown, ended).await;
        assert!(!data.join("run/up.json").exists());
        assert!(TcpStream::connect(address).await.is_err(), "the address accepts no connections");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_api_needs_a_token_and_counts_requests() {
    let data = tempfile::tempdir().expect("directory");
    let (ready, shutdown, ended) = start(config(data.path())).await;
    let address = ready.url.strip_prefix("http://").expect("plain");
    let token = std::fs::read_to_string(&ready.root_token).expect("root token");
    let token = format!("authorization: Bearer {}\r\n", token.trim());
    for path in ["/v1/workspaces", "/v1/openapi.json", "/v1/nothing"] {
        let refused = get(address, path).await;
        assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("TOKEN_MISSING"), "{refused}");
    }
    let list = send(address, &format!("GET /v1/workspaces HTTP/1.1\r\n{token}")).await;
    assert!(list.starts_with("HTTP/1.1 200") && list.contains("{\"workspaces\":[]}"), "{list}");
    // The control plane answers its own methods also if the request names a workspace.
    let named = format!("GET /v1/archives HTTP/1.1\r\npodling-workspace: aaaaaaaaaaaa\r\n{token}");
    let named = send(address, &named).await;
    assert!(named.starts_with("HTTP/1.1 200") && named.contains("{\"archives\":[]}"), "{named}");
    let missing = send(address, &format!("GET /v1/nothing HTTP/1.1\r\n{token}")).await;
    assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("problem+json"), "{missing}");
    let metrics = send(address, &format!("GET /metrics HTTP/1.1\r\n{token}")).await;
    for series in ["code=\"200\"} 2", "code=\"404\"} 1", "code=\"Unauthenticated\"} 3"] {
        let series = format!("podling_requests_total{{surface=\"control\",{series}");
        assert!(metrics.contains(&series), "the metrics contain {series}: {metrics}");
    }
    end(shutdown, ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_directory_is_locked_by_one_control_plane() {
    let data = tempfile::tempdir().expect("directory");
    let (_, shutdown, ended) = start(config(data.path())).await;
    let refused = run(config(data.path()), CancellationToken::new(), |_| {}).await.expect_err("in use");
    assert!(
        refused.to_string().contains("in use") && refused.to_string().contains("podling down"),
        "{refused}"
    );
    assert!(data.path().join("run/up.json").exists(), "the first control plane continues to serve");
    end(shutdown, ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn address_in_use_is_named_in_the_error() {
    let data = tempfile::tempdir().expect("directory");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let listen = listener.local_addr().expect("address");
    let config = ControlConfig { listen, ..config(data.path()) };
    let refused = run(config, CancellationToken::new(), |_| {}).await.expect_err("taken");
    assert!(refused.to_string().contains(&listen.to_string()), "{refused}");
    assert!(!data.path().join("run/up.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn public_address_serves_tls_with_the_given_certificate() {
    let data = tempfile::tempdir().expect("directory");
    let (certificate, key) = self_signed("podling.example");
    let (cert_file, key_file) = (data.path().join("cert.pem"), data.path().join("key.pem"));
    std::fs::write(&cert_file, certificate.pem()).expect("write");
    std::fs::write(&key_file, key.serialize_pem()).expect("write");
    let args = ControlArgs {
        listen: Some("0.0.0.0:0".to_owned()),
        tls_cert: Some(cert_file.display().to_string()),
        tls_key: Some(key_file.display().to_string()),
        ..ControlArgs::default()
    };
    let directory = data.path().join("data");
    let defaults =
        ProgramDefaults { agent_command: vec!["/bin/false".to_owned()], sleep_idle_on_shutdown: true };
    let config = ControlConfig::load(Some(&directory), &args, &|_| None, defaults).expect("config");
    let (ready, shutdown, ended) = start(config).await;
    assert!(ready.url.starts_with("https://127.0.0.1:"), "{}", ready.url);
    let up = std::fs::read_to_string(directory.join("run/up.json")).expect("up.json");
    let up: serde_json::Value = serde_json::from_str(&up).expect("json");
    assert_eq!(up["certificate"].as_str(), cert_file.to_str(), "local commands trust this certificate");
    let port = ready.url.rsplit(':').next().expect("port");
    let tcp = TcpStream::connect(format!("127.0.0.1:{port}")).await.expect("connect");
    let name = rustls::pki_types::ServerName::try_from("podling.example").expect("name");
    let mut tls = trusting(certificate.der().clone());
    tls.alpn_protocols.clear();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
    let mut io = connector.connect(name, tcp).await.expect("TLS");
    io.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("write");
    let mut response = String::new();
    timeout(DEADLINE, io.read_to_string(&mut response)).await.expect("in time").expect("read");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    end(shutdown, ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_backup_store_fails_the_start() {
    let data = tempfile::tempdir().expect("directory");
    for (url, problem) in [("ftp://host/x", "scheme is not supported"), ("file:///nowhere/at/all", "parent")]
    {
        let config = ControlConfig { backups: url.to_owned(), ..config(data.path()) };
        let error = run(config, CancellationToken::new(), |_| panic!("the control plane started"))
            .await
            .expect_err("refused");
        assert!(
            matches!(error, ControlPlaneError::Backups(_)) && error.to_string().contains(problem),
            "{error}"
        );
    }
}

/// An RPC of the .proto files, and whether its requests are streams.
type Rpc = (String, bool);

/// Returns all RPCs of the public address by their paths: those of this project that agents do not
/// serve, health and reflection.
fn own_rpcs() -> Vec<Rpc> {
    let sets = [
        DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut rpcs = Vec::new();
    for file in sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).expect("descriptors").file) {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            rpcs.extend(
                service.method.iter().map(|rpc| (format!("/{name}/{}", rpc.name()), rpc.client_streaming())),
            );
        }
    }
    // The listener for agents serves this one; see the test of that endpoint.
    rpcs.retain(|(path, _)| !path.starts_with("/podling.agent.") && !path.contains("control.v1.Agents/"));
    rpcs
}

/// Returns a body that has these bytes and does not end.
fn unfinished(bytes: &[u8]) -> BoxBody<Bytes, std::io::Error> {
    use futures_util::{StreamExt, stream};
    let first = stream::iter([Ok(Frame::data(Bytes::copy_from_slice(bytes)))]);
    BodyExt::boxed(StreamBody::new(first.chain(stream::pending())))
}

fn post(address: &str, path: &str, content_type: &str, token: &str) -> request::Builder {
    HttpRequest::post(format!("http://{address}{path}"))
        .header("host", address)
        .header("content-type", content_type)
        .header("authorization", format!("Bearer {token}"))
}

/// Returns the status of a response, from its headers or its trailers.
async fn status(response: Response<Incoming>) -> Status {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let body = timeout(DEADLINE, response.into_body().collect()).await.expect("in time").expect("body");
    body.trailers().and_then(Status::from_header_map).expect("grpc-status")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_refuses_long_messages_when_announced() {
    let data = tempfile::tempdir().expect("directory");
    let (ready, shutdown, ended) = start(config(data.path())).await;
    let address = ready.url.strip_prefix("http://").expect("plain");
    let token = std::fs::read_to_string(&ready.root_token).expect("root token");
    let tcp = TcpStream::connect(address).await.expect("connect");
    let (mut h2, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(tcp)).await.expect("h2");
    let tasks = TaskTracker::new();
    tasks.spawn(connection);
    let mut services = BTreeSet::new();
    for (path, is_streaming) in own_rpcs() {
        let limit = if path.starts_with("/podling.") { 128 * 1024 } else { 1024 };
        let announced = [&[0][..], &(limit + 1_u32).to_be_bytes()].concat();
        let request = post(address, &path, "application/grpc", token.trim());
        let request = request.header("te", "trailers").body(unfinished(&announced)).expect("request");
        let response = timeout(DEADLINE, h2.send_request(request)).await.expect("in time").expect("response");
        let status = status(response).await;
        services.insert(path.split('/').nth(1).map(str::to_owned));
        // Reflection ends its stream without a status.
        if is_streaming {
            assert_eq!(status.code(), Code::Ok, "{path}: {status}");
        } else {
            assert_eq!(reason(&status), Some(Reason::TooLarge), "{path}: {status}");
            assert_eq!(detail(&status, "limit"), Some(limit.to_string()), "{path}");
        }
    }
    assert!(services.len() >= 6, "all services were called: {services:?}");
    let long = format!(
        "POST /v1/workspaces HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 131073\r\n\
         authorization: Bearer {}\r\n",
        token.trim()
    );
    let long = send(address, &long).await;
    assert!(long.starts_with("HTTP/1.1 413") && long.contains("TOO_LARGE"), "{long}");
    end(shutdown, ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_body_ends_with_request_timeout() {
    let data = tempfile::tempdir().expect("directory");
    let (ready, shutdown, ended) = start(config(data.path())).await;
    let address = ready.url.strip_prefix("http://").expect("plain");
    let token = std::fs::read_to_string(&ready.root_token).expect("root token");
    let get = "/podling.control.v1.Workspaces/Get";
    let half = b"\0\0\0\0\x0a\x0a\x08ha";
    let tasks = TaskTracker::new();
    let connect = async || TokioIo::new(TcpStream::connect(address).await.expect("connect"));
    let grpc = async {
        let (mut h2, connection) =
            http2::Builder::new(TokioExecutor::new()).handshake(connect().await).await.expect("h2");
        tasks.spawn(connection);
        let request = post(address, get, "application/grpc", token.trim());
        let request = request.header("te", "trailers").body(unfinished(half)).expect("request");
        h2.send_request(request).await.expect("response")
    };
    let http1 = async |path, content_type, half: &[u8]| {
        let (mut h1, connection) = http1::handshake(connect().await).await.expect("h1");
        tasks.spawn(connection);
        let request = post(address, path, content_type, token.trim()).body(unfinished(half));
        h1.send_request(request.expect("request")).await.expect("response")
    };
    let all = async {
        tokio::join!(
            grpc,
            http1(get, "application/grpc-web+proto", half),
            http1("/v1/workspaces", "application/json", b"{\"name\":"),
        )
    };
    let (grpc, web, json) = timeout(DEADLINE, all).await.expect("in time");
    let status = status(grpc).await;
    assert_eq!((status.code(), reason(&status)), (Code::DeadlineExceeded, Some(Reason::RequestTimeout)));
    assert_eq!(web.headers()["grpc-status"], "4");
    assert_eq!(json.status(), 408);
    let problem = timeout(DEADLINE, json.into_body().collect()).await.expect("in time").expect("body");
    let problem: serde_json::Value = serde_json::from_slice(&problem.to_bytes()).expect("JSON");
    assert_eq!(
        (&problem["reason"], &problem["metadata"]["limit_seconds"]),
        (&"REQUEST_TIMEOUT".into(), &"10".into())
    );
    end(shutdown, ended).await;
}
