//! Control planes for tests of the agent as a process. [`FakeControlPlane`] accepts agents through
//! the real gRPC service, and the tests send its messages. [`RecordingListener`] only records the
//! bytes that it receives.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use podling_proto::{
    control::v1::{
        AgentMessage, AgentSettings, Claim, ClaimId, ControlMessage, Directive, Heartbeat, HeartbeatAck,
        Hello, Policy, TokenKey,
        agent_message::Message as FromAgent,
        agents_server::{Agents, AgentsServer},
        control_message::Message,
        directive, directive_result,
    },
    token::{Audience, SigningKey, TokenClaims},
    verb::Verbs,
};
use rustls::ServerConfig;
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, service::Routes};

use crate::{
    client_helpers::wire_duration,
    http::serve_stream,
    net::{BoxedStream, DialAddress, FREE_PORT, TestServer},
    wait::within,
};

/// Id of the workspace that [`claim`] names.
pub const WORKSPACE: &str = "abcdefghijkl";
/// DNS name in the certificate of a control plane.
pub const CERTIFICATE_NAME: &str = "podling-control";

/// A listener for agents. Dropping it closes all connections without a message.
#[derive(Debug)]
pub struct FakeControlPlane {
    sessions: mpsc::Receiver<AgentSession>,
    server: TestServer,
}

/// The stream of one agent after its hello.
#[derive(Debug)]
pub struct AgentSession {
    /// The `authorization` value that the agent sent.
    pub credential: String,
    pub hello: Hello,
    to: mpsc::Sender<Result<ControlMessage, Status>>,
    from: Streaming<AgentMessage>,
}

/// A server that accepts connections and records all bytes, but never responds.
#[derive(Debug)]
pub struct RecordingListener {
    pub address: SocketAddr,
    recorded: Arc<Mutex<Vec<RecordedConnection>>>,
    _server: TestServer,
}

/// A connection to a [`RecordingListener`].
#[derive(Debug, Clone, Default)]
pub struct RecordedConnection {
    /// Bytes that were received without TLS or after a successful handshake.
    pub bytes: Vec<u8>,
    /// Whether the client accepted the server's certificate.
    pub trusted: bool,
}

struct AgentsService(mpsc::Sender<AgentSession>);

// === impl FakeControlPlane ===

impl FakeControlPlane {
    /// Listens at `at` with this certificate.
    pub async fn start(at: &DialAddress, tls: Arc<ServerConfig>) -> Self {
        Self::start_silent(at, tls, 0).await
    }

    /// Listens like [`Self::start`], but never responds on the first `ignored` connections.
    pub async fn start_silent(at: &DialAddress, tls: Arc<ServerConfig>, ignored: usize) -> Self {
        let (sender, sessions) = mpsc::channel(8);
        let router = Routes::new(AgentsServer::new(AgentsService(sender))).into_axum_router();
        let (tls, accepted) = (TlsAcceptor::from(tls), AtomicUsize::new(0));
        let serve = move |stream| {
            let is_ignored = accepted.fetch_add(1, Ordering::Relaxed) < ignored;
            let (tls, router) = (tls.clone(), router.clone());
            async move {
                if is_ignored {
                    let _open: BoxedStream = stream;
                    return std::future::pending().await;
                }
                let Ok(stream) = tls.accept(stream).await else { return };
                serve_stream(Box::new(stream), router).await;
            }
        };
        Self { sessions, server: TestServer::start(at, serve).await }
    }

    /// Returns the TCP address that the control plane listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address.tcp()
    }

    /// Waits for the next agent's hello.
    pub async fn session(&mut self) -> AgentSession {
        within("an agent connects", self.sessions.recv()).await.expect("the server runs")
    }

    /// Returns whether no agent has said hello since the last session.
    pub fn has_no_session(&mut self) -> bool {
        self.sessions.try_recv().is_err()
    }
}

#[tonic::async_trait]
impl Agents for AgentsService {
    type ConnectStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let credential = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let credential = credential.unwrap_or_default().to_owned();
        let mut from = request.into_inner();
        let Some(FromAgent::Hello(hello)) = from.message().await?.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (to, stream) = mpsc::channel(16);
        let session = AgentSession { credential, hello, to, from };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

// === impl AgentSession ===

impl AgentSession {
    pub async fn send(&self, message: Message) {
        self.to.send(Ok(ControlMessage { message: Some(message) })).await.expect("connected");
    }

    pub async fn send_directive(&self, id: u64, directive: directive::Directive) {
        self.send(Message::Directive(Directive { id, directive: Some(directive) })).await;
    }

    pub async fn acknowledge(&self, heartbeat: &Heartbeat) {
        self.send(Message::HeartbeatAck(HeartbeatAck { sequence: heartbeat.sequence })).await;
    }

    /// Waits for the next message. Returns `None` at the end of the stream.
    pub async fn receive(&mut self) -> Option<FromAgent> {
        let received = within("a message of the agent", self.from.message()).await;
        received.ok().flatten().and_then(|received| received.message)
    }

    /// Waits for the next heartbeat and acknowledges it.
    pub async fn heartbeat(&mut self) -> Heartbeat {
        let heartbeat = self.unacknowledged_heartbeat().await;
        self.acknowledge(&heartbeat).await;
        heartbeat
    }

    pub async fn unacknowledged_heartbeat(&mut self) -> Heartbeat {
        loop {
            match self.receive().await.expect("the stream goes on") {
                FromAgent::Heartbeat(heartbeat) => return heartbeat,
                FromAgent::Hello(_) => panic!("a second hello"),
                FromAgent::DirectiveResult(_) => {}
            }
        }
    }

    /// Acknowledges heartbeats until one satisfies the condition, and returns that one.
    pub async fn heartbeat_until(&mut self, mut condition: impl FnMut(&Heartbeat) -> bool) -> Heartbeat {
        let found = async {
            loop {
                let heartbeat = self.heartbeat().await;
                if condition(&heartbeat) {
                    return heartbeat;
                }
            }
        };
        within("such a heartbeat", found).await
    }

    /// Acknowledges heartbeats until `done` completes.
    pub async fn with_heartbeats<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return done,
                _ = self.heartbeat() => {}
            }
        }
    }

    /// Waits for the result of a directive and acknowledges heartbeats meanwhile.
    pub async fn wait_result(&mut self, id: u64) -> directive_result::Result {
        loop {
            match self.receive().await.expect("the stream goes on") {
                FromAgent::DirectiveResult(result) if result.id == id => {
                    return result.result.expect("a result");
                }
                FromAgent::Heartbeat(heartbeat) => self.acknowledge(&heartbeat).await,
                _ => {}
            }
        }
    }
}

/// Returns a claim for [`WORKSPACE`] that accepts tokens signed by `key`. Its policy and settings
/// have much shorter times than the default, so that tests are fast.
pub fn claim(key: &SigningKey) -> Claim {
    let short = wire_duration(Duration::from_millis(600));
    Claim {
        id: Some(ClaimId { workspace_id: WORKSPACE.into(), epoch: 1 }),
        protocol: 1,
        policy: Some(Policy { idle_timeout: wire_duration(Duration::from_secs(5)), ..Default::default() }),
        settings: Some(AgentSettings {
            active_for: short,
            work_window: short,
            heartbeat_interval: wire_duration(Duration::from_millis(300)),
            // Low, because a busy machine may give the program little CPU time.
            cpu_cores: 0.01,
            ..Default::default()
        }),
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        token_keys: vec![TokenKey { id: key.id().into(), public_key: key.public_key().into() }],
        workspace_name: "mine".into(),
        ..Default::default()
    }
}

/// Returns a key for tokens.
pub fn key() -> SigningKey {
    SigningKey::generate().expect("a key").0
}

/// Returns the claims of a valid token for the agent of [`WORKSPACE`]. Tests change single fields.
pub fn claims(verbs: Verbs) -> TokenClaims {
    TokenClaims {
        sub: "ada".into(),
        aud: Audience::Agent(WORKSPACE.into()),
        iat: now(),
        exp: now() + 60,
        jti: "1".into(),
        verbs,
        workspaces: None,
    }
}

/// Returns a valid token with these verbs, signed by `key`.
pub fn token(key: &SigningKey, verbs: &str) -> String {
    key.sign(&claims(verbs.parse().expect("verbs")))
}

/// Returns the seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

// === impl RecordingListener ===

impl RecordingListener {
    pub async fn plaintext() -> Self {
        Self::start(None).await
    }

    /// Starts a listener with TLS and this certificate.
    pub async fn with_tls(tls: Arc<ServerConfig>) -> Self {
        Self::start(Some(TlsAcceptor::from(tls))).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let recorded = Arc::<Mutex<Vec<RecordedConnection>>>::default();
        let shared = recorded.clone();
        let serve = move |stream| {
            let number = {
                let mut recorded = shared.lock().expect("lock is not poisoned");
                recorded.push(RecordedConnection::default());
                recorded.len() - 1
            };
            record_bytes(stream, tls.clone(), shared.clone(), number)
        };
        let server = TestServer::start(&FREE_PORT, serve).await;
        Self { address: server.address.tcp(), recorded, _server: server }
    }

    /// Returns all connections so far, with their received bytes.
    pub fn connections(&self) -> Vec<RecordedConnection> {
        self.recorded.lock().expect("lock is not poisoned").clone()
    }
}

async fn record_bytes(
    stream: BoxedStream,
    tls: Option<TlsAcceptor>,
    recorded: Arc<Mutex<Vec<RecordedConnection>>>,
    number: usize,
) {
    let has_tls = tls.is_some();
    let mut stream: BoxedStream = match tls {
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => Box::new(stream),
            Err(_) => return,
        },
        None => stream,
    };
    let mut buffer = [0; 4096];
    // In TLS 1.3 the server's handshake ends first. Only the client's next bytes, or its alert, show
    // whether it accepted the certificate.
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let connection = &mut recorded.lock().expect("lock is not poisoned")[number];
        connection.bytes.extend_from_slice(&buffer[..read]);
        connection.trusted = has_tls;
    }
}
