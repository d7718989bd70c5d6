//! A fake control plane. It accepts agents through the real gRPC service, and tests send the
//! messages.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::Stream;
use podling_agent::{
    config::ListenAddress,
    metrics::AgentMetrics,
    server::{connection::ClientConnections, listener::AgentListener},
};
use podling_proto::{
    control::v1::{
        self as wire, AgentMessage, ControlMessage, agent_message,
        agents_server::{Agents, AgentsServer},
        control_message::Message,
    },
    token::{Audience, SigningKey, TokenClaims},
    verb::Verbs,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

pub(crate) const WORKSPACE: &str = "abcdefghijkl";
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A certificate authority that the agent may trust.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A listener for agents. Dropping it closes all connections without a message.
pub(crate) struct ScriptedControlPlane {
    sessions: mpsc::Receiver<AgentSession>,
    _serving: JoinSet<()>,
}

/// The stream of one agent after its hello.
pub(crate) struct AgentSession {
    pub(crate) credential: String,
    pub(crate) hello: wire::Hello,
    to: mpsc::Sender<Result<ControlMessage, Status>>,
    from: Streaming<AgentMessage>,
}

struct AgentsService(mpsc::Sender<AgentSession>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn server(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("name");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("usable");
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

impl ScriptedControlPlane {
    /// Listens on [`socket`] in `dir`.
    pub(crate) async fn start(dir: &Path, tls: TlsAcceptor) -> Self {
        Self::start_at(&ListenAddress::Unix(socket(dir)), tls).await.0
    }

    /// Listens at `at`, and also returns the bound address.
    pub(crate) async fn start_at(at: &ListenAddress, tls: TlsAcceptor) -> (Self, String) {
        let (sender, sessions) = mpsc::channel(8);
        let router = Routes::new(AgentsServer::new(AgentsService(sender))).into_axum_router();
        let listener = AgentListener::bind(at).await.expect("listens");
        let address = listener.address().expect("address");
        let connections = ClientConnections::new(AgentMetrics::new());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let io = listener.accept().await.expect("connection");
                let permit = connections.try_acquire().expect("a connection permit");
                open.spawn(permit.serve(io, tls.clone(), router.clone(), CancellationToken::new()));
            }
        });
        (Self { sessions, _serving: serving }, address)
    }

    /// Waits for the next agent's hello.
    pub(crate) async fn session(&mut self) -> AgentSession {
        timeout(DEADLINE, self.sessions.recv()).await.expect("an agent connects in time").expect("serving")
    }

    /// Returns whether no agent has said hello since the last session.
    pub(crate) fn has_no_session(&mut self) -> bool {
        self.sessions.try_recv().is_err()
    }
}

impl AgentSession {
    pub(crate) async fn send(&self, message: Message) {
        self.to.send(Ok(ControlMessage { message: Some(message) })).await.expect("connected");
    }

    pub(crate) async fn send_directive(&self, id: u64, directive: wire::directive::Directive) {
        self.send(Message::Directive(wire::Directive { id, directive: Some(directive) })).await;
    }

    /// Waits for the next message. Returns `None` at the end of the stream.
    pub(crate) async fn receive(&mut self) -> Option<agent_message::Message> {
        let received = timeout(DEADLINE, self.from.next()).await.expect("a message in time");
        received.and_then(Result::ok).and_then(|received| received.message)
    }

    /// Waits for the next heartbeat and acknowledges it.
    pub(crate) async fn heartbeat(&mut self) -> wire::Heartbeat {
        let heartbeat = self.unacknowledged_heartbeat().await;
        self.send(Message::HeartbeatAck(wire::HeartbeatAck { sequence: heartbeat.sequence })).await;
        heartbeat
    }

    pub(crate) async fn unacknowledged_heartbeat(&mut self) -> wire::Heartbeat {
        loop {
            match self.receive().await.expect("the stream goes on") {
                agent_message::Message::Heartbeat(heartbeat) => return heartbeat,
                agent_message::Message::Hello(_) => panic!("a second hello"),
                agent_message::Message::DirectiveResult(_) => {}
            }
        }
    }

    /// Acknowledges heartbeats until one satisfies the condition, and returns that one.
    pub(crate) async fn heartbeat_until(
        &mut self,
        mut condition: impl FnMut(&wire::Heartbeat) -> bool,
    ) -> wire::Heartbeat {
        let found = async {
            loop {
                let heartbeat = self.heartbeat().await;
                if condition(&heartbeat) {
                    return heartbeat;
                }
            }
        };
        timeout(DEADLINE, found).await.expect("such a heartbeat in time")
    }

    /// Acknowledges heartbeats until `done` completes.
    pub(crate) async fn with_heartbeats<T>(&mut self, done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return done,
                _ = self.heartbeat() => {}
            }
        }
    }

    /// Waits for the result of a directive and acknowledges heartbeats meanwhile.
    pub(crate) async fn wait_result(&mut self, id: u64) -> wire::directive_result::Result {
        loop {
            match self.receive().await.expect("the stream goes on") {
                agent_message::Message::DirectiveResult(result) if result.id == id => {
                    return result.result.expect("a result");
                }
                agent_message::Message::Heartbeat(heartbeat) => {
                    self.send(Message::HeartbeatAck(wire::HeartbeatAck { sequence: heartbeat.sequence }))
                        .await;
                }
                _ => {}
            }
        }
    }
}

#[tonic::async_trait]
impl Agents for AgentsService {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<ControlMessage, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let credential = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let credential = credential.unwrap_or_default().to_owned();
        let mut from = request.into_inner();
        let Some(agent_message::Message::Hello(hello)) = from.message().await?.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (to, stream) = mpsc::channel(16);
        let session = AgentSession { credential, hello, to, from };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// Returns settings with much shorter times than the default, so that tests are fast.
fn settings() -> wire::AgentSettings {
    let span = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
    wire::AgentSettings {
        active_for: span(600),
        work_window: span(600),
        heartbeat_interval: span(300),
        // Low, because a busy machine may give the program little CPU time.
        cpu_cores: 0.01,
        ..Default::default()
    }
}

/// Returns a claim for [`WORKSPACE`] that accepts tokens signed by `key`.
pub(crate) fn claim(key: &SigningKey) -> wire::Claim {
    wire::Claim {
        id: Some(wire::ClaimId { workspace_id: WORKSPACE.into(), epoch: 1 }),
        protocol: 1,
        policy: Some(wire::Policy {
            idle_timeout: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
            ..Default::default()
        }),
        settings: Some(settings()),
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        command: vec![],
        token_keys: vec![wire::TokenKey { id: key.id().into(), public_key: key.public_key().into() }],
        workspace_name: "mine".into(),
        maintenance: false,
    }
}

pub(crate) fn to_argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) fn key() -> SigningKey {
    SigningKey::generate().expect("key").0
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Returns the claims of a valid token for the agent of [`WORKSPACE`]. Tests change single fields.
pub(crate) fn claims(verbs: Verbs) -> TokenClaims {
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
