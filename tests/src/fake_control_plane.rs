//! FakeControlPlane planes that are not Podling's own: one that does what the protocol asks, to which stories attach a lone agent, and
//! false ones that only listen.

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

/// Messages under way to an agent.
const SAID: usize = 8;

/// A control plane that claims whoever comes.
#[derive(Debug)]
pub struct FakeControlPlane {
    /// Where it listens.
    pub address: SocketAddr,
    /// Signs tokens that the claimed agent accepts.
    pub key: Arc<SigningKey>,
    shared: FakeControlState,
    _tasks: JoinSet<()>,
}

/// Somebody who accepts connections and writes down all that is said, but never answers.
#[derive(Debug)]
pub struct RecordingListener {
    /// Where it listens.
    pub address: SocketAddr,
    recorded: Arc<Mutex<Vec<RecordedConnection>>>,
    _tasks: JoinSet<()>,
}

/// One connection that came to a [`RecordingListener`].
#[derive(Debug, Clone, Default)]
pub struct RecordedConnection {
    /// What came in the clear, or through TLS when the handshake succeeded.
    pub bytes: Vec<u8>,
    /// Whether the caller accepted our certificate.
    pub trusted: bool,
}

type Credentials = Arc<Mutex<Vec<String>>>;
type Messages = ReceiverStream<Result<ControlMessage, Status>>;

#[derive(Debug, Clone)]
struct FakeControlState {
    claim: Claim,
    credentials: Credentials,
}

// === impl FakeControlPlane ===

impl FakeControlPlane {
    /// Serves with this certificate and claims every agent for this workspace. The first `ignored_connections` connections are accepted and
    /// then never answered.
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

    /// The `authorization` values that agents have sent, each when it said hello.
    pub fn credentials(&self) -> Vec<String> {
        self.shared.credentials.lock().expect("nobody panics").clone()
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
        self.credentials.lock().expect("nobody panics").push(credential.to_owned());
        let mut said = request.into_inner();
        let (say, answers) = mpsc::channel(SAID);
        let claim = self.claim.clone();
        let talk = async move {
            while let Ok(Some(AgentMessage { message: Some(message) })) = said.message().await {
                let answer = match message {
                    FromAgent::Hello(_) => ToAgent::Claim(claim.clone()),
                    FromAgent::Heartbeat(beat) => {
                        ToAgent::HeartbeatAck(HeartbeatAck { sequence: beat.sequence })
                    }
                    FromAgent::DirectiveResult(_) => continue,
                };
                if say.send(Ok(ControlMessage { message: Some(answer) })).await.is_err() {
                    return;
                }
            }
        };
        // Ends with the connection, which ends with the runtime of the story.
        #[expect(clippy::disallowed_methods, reason = "a handler has no owner to give its task to")]
        tokio::spawn(talk);
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

// === impl RecordingListener ===

impl RecordingListener {
    /// Listens in the clear.
    pub async fn plaintext() -> Self {
        Self::start(None).await
    }

    /// Listens behind TLS with this certificate.
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

    /// All that was said so far, by connection.
    pub fn recorded(&self) -> Vec<RecordedConnection> {
        self.recorded.lock().expect("nobody panics").clone()
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
                let mut recorded = recorded.lock().expect("nobody panics");
                recorded.push(RecordedConnection::default());
                recorded.len() - 1
            };
            let _ = write_down(stream, tls, |bytes| {
                let mut recorded = recorded.lock().expect("nobody panics");
                match bytes {
                    Some(bytes) => recorded[number].bytes.extend_from_slice(bytes),
                    None => recorded[number].trusted = true,
                }
            })
            .await;
        });
    }
}

/// `None` to `note`: the handshake has succeeded.
async fn write_down(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    note: impl Fn(Option<&[u8]>),
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    match tls {
        Some(tls) => {
            let mut stream = tls.accept(stream).await?;
            // In TLS 1.3 the server is done first: only what the client says next, if only an alert, shows what it thinks of us.
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
