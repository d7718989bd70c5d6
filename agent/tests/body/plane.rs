//! A control plane that does what the test says.

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

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// The control plane.
pub(crate) struct Plane {
    sessions: mpsc::Receiver<Session>,
    _serving: JoinSet<()>,
}

/// One agent's stream.
pub(crate) struct Session {
    pub(crate) credential: String,
    pub(crate) hello: wire::Hello,
    to: mpsc::Sender<Result<ControlMessage, Status>>,
    from: Streaming<AgentMessage>,
}

struct Service(mpsc::Sender<Session>);

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

impl Plane {
    /// Listens in `dir`; dropped, it is as if it had been killed.
    pub(crate) async fn start(dir: &Path, tls: TlsAcceptor) -> Self {
        Self::start_at(&ListenAddress::Unix(socket(dir)), tls).await.0
    }

    /// Listens there; returns also where that is.
    pub(crate) async fn start_at(at: &ListenAddress, tls: TlsAcceptor) -> (Self, String) {
        let (sender, sessions) = mpsc::channel(8);
        let router = Routes::new(AgentsServer::new(Service(sender))).into_axum_router();
        let listener = AgentListener::bind(at).await.expect("listens");
        let address = listener.address().expect("address");
        let connections = ClientConnections::new(AgentMetrics::new());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let io = listener.accept().await.expect("connection");
                let place = connections.try_acquire().expect("room");
                open.spawn(place.serve(io, tls.clone(), router.clone(), CancellationToken::new()));
            }
        });
        (Self { sessions, _serving: serving }, address)
    }

    /// The next agent that says hello.
    pub(crate) async fn session(&mut self) -> Session {
        timeout(DEADLINE, self.sessions.recv()).await.expect("an agent comes in time").expect("serving")
    }

    /// Whether nobody has said hello.
    pub(crate) fn heard_nothing(&mut self) -> bool {
        self.sessions.try_recv().is_err()
    }
}

impl Session {
    pub(crate) async fn send(&self, message: Message) {
        self.to.send(Ok(ControlMessage { message: Some(message) })).await.expect("connected");
    }

    pub(crate) async fn direct(&self, id: u64, directive: wire::directive::Directive) {
        self.send(Message::Directive(wire::Directive { id, directive: Some(directive) })).await;
    }

    /// The next message, if the stream goes on.
    pub(crate) async fn hear(&mut self) -> Option<agent_message::Message> {
        let said = timeout(DEADLINE, self.from.next()).await.expect("says something in time");
        said.and_then(Result::ok).and_then(|said| said.message)
    }

    /// The next heartbeat; acknowledges it.
    pub(crate) async fn beat(&mut self) -> wire::Heartbeat {
        let beat = self.unacknowledged_beat().await;
        self.send(Message::HeartbeatAck(wire::HeartbeatAck { sequence: beat.sequence })).await;
        beat
    }

    pub(crate) async fn unacknowledged_beat(&mut self) -> wire::Heartbeat {
        loop {
            match self.hear().await.expect("the stream goes on") {
                agent_message::Message::Heartbeat(beat) => return beat,
                agent_message::Message::Hello(_) => panic!("a second hello"),
                agent_message::Message::DirectiveResult(_) => {}
            }
        }
    }

    /// Beats until one satisfies the condition.
    pub(crate) async fn beat_until(
        &mut self,
        mut is_it: impl FnMut(&wire::Heartbeat) -> bool,
    ) -> wire::Heartbeat {
        let found = async {
            loop {
                let beat = self.beat().await;
                if is_it(&beat) {
                    return beat;
                }
            }
        };
        timeout(DEADLINE, found).await.expect("such a beat in time")
    }

    /// Keeps the link alive while something else is done.
    pub(crate) async fn beating<T>(&mut self, done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return done,
                _ = self.beat() => {}
            }
        }
    }

    /// The answer to a directive; beats meanwhile.
    pub(crate) async fn result(&mut self, id: u64) -> wire::directive_result::Result {
        loop {
            match self.hear().await.expect("the stream goes on") {
                agent_message::Message::DirectiveResult(result) if result.id == id => {
                    return result.result.expect("a result");
                }
                agent_message::Message::Heartbeat(beat) => {
                    self.send(Message::HeartbeatAck(wire::HeartbeatAck { sequence: beat.sequence })).await;
                }
                _ => {}
            }
        }
    }
}

#[tonic::async_trait]
impl Agents for Service {
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
        let session = Session { credential, hello, to, from };
        self.0.send(session).await.map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// A policy at a fiftieth of the pace.
pub(crate) fn policy() -> wire::AgentPolicy {
    let span = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
    wire::AgentPolicy {
        idle_timeout: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
        active_for: span(600),
        work_window: span(600),
        heartbeat_interval: span(300),
        // Low, for the machine may have many other things to do.
        cpu_cores: 0.01,
        ..Default::default()
    }
}

/// A claim whose tokens this key signs.
pub(crate) fn claim(key: &SigningKey) -> wire::Claim {
    wire::Claim {
        id: Some(wire::ClaimId { workspace_id: WORKSPACE.into(), epoch: 1 }),
        protocol: 1,
        policy: Some(policy()),
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        command: vec![],
        token_keys: vec![wire::TokenKey { id: key.id().into(), public_key: key.public_key().into() }],
        workspace_name: "mine".into(),
        maintenance: false,
    }
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) fn key() -> SigningKey {
    SigningKey::generate().expect("key").0
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// What a good token says; tests spoil it.
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
