//! Control planes for tests of a standalone agent. [`FakeControlPlane`] follows the protocol, and
//! [`RecordingListener`] only records the bytes that it receives.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use podling_proto::{
    control::v1::{
        AgentMessage, Claim, ClaimId, ControlMessage, HeartbeatAck, TokenKey,
        agent_message::Message as FromAgent,
        agents_server::{Agents, AgentsServer},
        control_message::Message as ToAgent,
    },
    token::SigningKey,
};
use rustls::ServerConfig;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, service::Routes};

/// Capacity of the queue of messages to an agent.
const QUEUED_MESSAGES: usize = 8;

/// A control plane that claims each agent that connects.
#[derive(Debug)]
pub struct FakeControlPlane {
    pub address: SocketAddr,
    /// Key for tokens that the claimed agent accepts.
    pub key: Arc<SigningKey>,
    shared: FakeControlState,
    _tasks: JoinSet<()>,
}

/// A server that accepts connections and records all bytes, but never responds.
#[derive(Debug)]
pub struct RecordingListener {
    pub address: SocketAddr,
    recorded: Arc<Mutex<Vec<RecordedConnection>>>,
    _tasks: JoinSet<()>,
}

/// A connection to a [`RecordingListener`].
#[derive(Debug, Clone, Default)]
pub struct RecordedConnection {
    /// Bytes that were received without TLS or after a successful handshake.
    pub bytes: Vec<u8>,
    /// Whether the client accepted the server's certificate.
    pub trusted: bool,
}

type ReceivedCredentials = Arc<Mutex<Vec<String>>>;
type Messages = ReceiverStream<Result<ControlMessage, Status>>;

#[derive(Debug, Clone)]
struct FakeControlState {
    claim: Claim,
    credentials: ReceivedCredentials,
}

// === impl FakeControlPlane ===

impl FakeControlPlane {
    /// Starts a control plane with this certificate, which claims each agent for this workspace. It
    /// accepts the first `ignored_connections` connections and never responds on them.
    pub async fn start(tls: Arc<ServerConfig>, workspace: &str, ignored_connections: usize) -> Self {
        let (listener, address) = bind().await;
        let (key, _) = SigningKey::generate().expect("a key");
        let token_key = TokenKey { id: key.id().to_owned(), public_key: key.public_key().to_vec() };
        let claim = Claim {
            id: Some(ClaimId { workspace_id: workspace.to_owned(), epoch: 1 }),
            protocol: 1,
            token_keys: vec![token_key],
            workspace_name: "lone".into(),
            ..Default::default()
        };
        let shared = FakeControlState { claim, credentials: Arc::default() };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, TlsAcceptor::from(tls), shared.clone(), ignored_connections));
        Self { address, key: Arc::new(key), shared, _tasks: tasks }
    }

    /// Returns the `authorization` values that agents have sent, one for each call of `Connect`.
    pub fn credentials(&self) -> Vec<String> {
        self.shared.credentials.lock().expect("lock is not poisoned").clone()
    }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: FakeControlState,
    ignored_connections: usize,
) {
    let routes = Routes::new(AgentsServer::new(shared));
    let mut connections = JoinSet::new();
    let mut ignored = Vec::new();
    while let Ok((stream, _)) = listener.accept().await {
        if ignored.len() < ignored_connections {
            ignored.push(stream);
            continue;
        }
        let (tls, routes) = (tls.clone(), routes.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let server = auto::Builder::new(TokioExecutor::new()).http2_only();
            let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)).await;
        });
    }
}

#[tonic::async_trait]
impl Agents for FakeControlState {
    type ConnectStream = Messages;

    async fn connect(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Messages>, Status> {
        let credential =
            request.metadata().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
        self.credentials.lock().expect("lock is not poisoned").push(credential.to_owned());
        let mut messages = request.into_inner();
        let (sender, responses) = mpsc::channel(QUEUED_MESSAGES);
        let claim = self.claim.clone();
        let serve_agent = async move {
            while let Ok(Some(AgentMessage { message: Some(message) })) = messages.message().await {
                let response = match message {
                    FromAgent::Hello(_) => ToAgent::Claim(claim.clone()),
                    FromAgent::Heartbeat(heartbeat) => {
                        ToAgent::HeartbeatAck(HeartbeatAck { sequence: heartbeat.sequence })
                    }
                    FromAgent::DirectiveResult(_) => continue,
                };
                if sender.send(Ok(ControlMessage { message: Some(response) })).await.is_err() {
                    return;
                }
            }
        };
        // The task ends with the connection, at the latest with the test's runtime.
        #[expect(clippy::disallowed_methods, reason = "a gRPC handler has no JoinSet for its task")]
        tokio::spawn(serve_agent);
        Ok(Response::new(ReceiverStream::new(responses)))
    }
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
        let (listener, address) = bind().await;
        let recorded = Arc::<Mutex<Vec<RecordedConnection>>>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, tls, recorded.clone()));
        Self { address, recorded, _tasks: tasks }
    }

    /// Returns all connections so far, with their received bytes.
    pub fn connections(&self) -> Vec<RecordedConnection> {
        self.recorded.lock().expect("lock is not poisoned").clone()
    }
}

async fn listen(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    recorded: Arc<Mutex<Vec<RecordedConnection>>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, recorded) = (tls.clone(), recorded.clone());
        connections.spawn(async move {
            let number = {
                let mut recorded = recorded.lock().expect("lock is not poisoned");
                recorded.push(RecordedConnection::default());
                recorded.len() - 1
            };
            let _ = record_bytes(stream, tls, |bytes| {
                let mut recorded = recorded.lock().expect("lock is not poisoned");
                match bytes {
                    Some(bytes) => recorded[number].bytes.extend_from_slice(bytes),
                    None => recorded[number].trusted = true,
                }
            })
            .await;
        });
    }
}

/// Passes received bytes to `note`, and `None` once the client has accepted the certificate.
async fn record_bytes(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    note: impl Fn(Option<&[u8]>),
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    match tls {
        Some(tls) => {
            let mut stream = tls.accept(stream).await?;
            // In TLS 1.3 the server's handshake ends first. Only the client's next bytes, or its
            // alert, show whether it accepted the certificate.
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    read => {
                        note(None);
                        note(Some(&buffer[..read]));
                    }
                }
            }
        }
        None => {
            let mut stream = stream;
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    read => note(Some(&buffer[..read])),
                }
            }
        }
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}
