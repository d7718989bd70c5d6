//! The endpoint for agents in front of the driver: authentication, claims and limits.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use podling_control::{
    agents::AgentsService,
    driver::MAX_AGENT_SESSIONS,
    identity::{ControlIdentity, MissingSecrets},
    server::{BoundListener, ServerListener, ShutdownSignals, bind_unix},
};
use podling_core::{
    id::WorkspaceId,
    workspace::{AgentConnection, State},
};
use podling_proto::{
    agent::v1::{ActivityLevel, ActivityState},
    control::v1::{
        AgentMessage, Heartbeat, Hello, TokenKey, agent_message, agents_client::AgentsClient,
        control_message::Message,
    },
    error::{self, Reason},
};
use podling_testkit::{refused, tls::trusting};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::UnixStream, sync::mpsc, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    control_plane::{DEADLINE, TestControlPlane, wait_until_running},
    fake_backend::{FakeBackend, credential},
};

/// Limit on open connections without a valid credential.
const MAX_UNAUTHENTICATED: i64 = 128;
/// Time after which an agent gives up a control plane that does not answer its hello.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

struct AgentsEndpoint {
    socket: PathBuf,
    tls: TlsConnector,
    /// Number of open connections.
    open: Gauge,
    stopping: ShutdownSignals,
    _dir: tempfile::TempDir,
    _serving: JoinSet<()>,
}

impl Drop for AgentsEndpoint {
    fn drop(&mut self) {
        self.stopping.draining.cancel();
        self.stopping.streams.cancel();
    }
}

impl AgentsEndpoint {
    fn open(control: &TestControlPlane, backend: &FakeBackend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = ControlIdentity::open(dir.path(), MissingSecrets::Create).unwrap();
        let (stopping, open) = (ShutdownSignals::default(), Gauge::default());
        let keys = [TokenKey { id: "k1".into(), public_key: vec![7; 32] }].into();
        let service = AgentsService::new(
            control.handle.clone(),
            backend.clone(),
            keys,
            TaskTracker::new(),
            stopping.streams.clone(),
            Counter::default(),
        );
        let front = service.into_services().into_router();
        let socket = dir.path().join("control.sock");
        let bound = BoundListener::Unix(bind_unix(&socket).unwrap());
        let listener = ServerListener::agents(bound, identity.agents_tls(), stopping.clone(), open.clone());
        let mut serving = JoinSet::new();
        serving.spawn(listener.serve(front));
        let authority = CertificateDer::from_pem_file(identity.ca_file()).unwrap();
        let tls = Arc::new(trusting(authority));
        Self { socket, tls: tls.into(), open, stopping, _dir: dir, _serving: serving }
    }

    /// Waits until at most this many connections are open.
    async fn at_most(&self, connections: i64) {
        let fewer = async {
            while self.open.get() > connections {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, fewer).await.unwrap_or_else(|_| panic!("{} are open", self.open.get()));
    }

    /// Opens a new connection.
    async fn connect(&self) -> AgentsClient<Channel> {
        let (socket, tls) = (self.socket.clone(), self.tls.clone());
        let connect = tower::service_fn(move |_| {
            let (socket, tls) = (socket.clone(), tls.clone());
            async move {
                let name = ServerName::try_from("podling-control").unwrap();
                tls.connect(name, UnixStream::connect(socket).await?).await.map(TokioIo::new)
            }
        });
        let channel = Endpoint::from_static("http://agents").connect_with_connector(connect).await.unwrap();
        AgentsClient::new(channel)
    }
}

struct Agent {
    send: mpsc::Sender<AgentMessage>,
    messages_in: Streaming<podling_proto::control::v1::ControlMessage>,
}

impl Agent {
    async fn dial(client: &mut AgentsClient<Channel>, credential: &str) -> Result<Self, Status> {
        let (send, messages) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(messages));
        request.metadata_mut().insert("authorization", format!("Bearer {credential}").parse().unwrap());
        Ok(Self { send, messages_in: client.connect(request).await?.into_inner() })
    }

    async fn send(&self, message: agent_message::Message) {
        self.send.send(AgentMessage { message: Some(message) }).await.unwrap();
    }

    async fn hello(&self) {
        let hello = Hello {
            protocol_min: 1,
            protocol_max: 1,
            version: "0.1.0".into(),
            boot_id: "boot-1".into(),
            key_fingerprint: "ab".repeat(32),
            ..Default::default()
        };
        self.send(agent_message::Message::Hello(hello)).await;
    }

    /// Sends a heartbeat and awaits its acknowledgement.
    async fn heartbeat(&mut self, sequence: u64, activity: Option<ActivityState>) {
        self.send(agent_message::Message::Heartbeat(Heartbeat { sequence, activity })).await;
        let Some(Message::HeartbeatAck(ack)) = self.receive().await else { panic!("no ack") };
        assert_eq!(ack.sequence, sequence);
    }

    /// Receives the next message other than `AwaitClaim`.
    async fn receive(&mut self) -> Option<Message> {
        loop {
            let message = timeout(DEADLINE, self.messages_in.message()).await.expect("an answer");
            match message.ok()??.message? {
                Message::AwaitClaim(_) => {}
                message => return Some(message),
            }
        }
    }
}

#[tokio::test]
async fn authenticated_agent_is_claimed_and_heartbeats_are_acked() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let id = control.create("demo").await.spec.id.clone();
    let other = control.create("other").await.spec.id.clone();
    wait_until_running(&backend, &id, 1).await;
    wait_until_running(&backend, &other, 1).await;
    let secret = |of: &WorkspaceId| backend.state().secrets[of].clone();
    let endpoint = AgentsEndpoint::open(&control, &backend);
    let mut client = endpoint.connect().await;
    let missing = client.connect(ReceiverStream::new(mpsc::channel(1).1)).await.unwrap_err();
    assert_eq!(error::reason(&missing), Some(Reason::TokenMissing));
    for shown in [credential(&id, 1, &secret(&other)), "nonsense".into(), String::new()] {
        assert_eq!(refused(Agent::dial(&mut client, &shown).await), Reason::TokenInvalid, "{shown}");
    }
    let shown = credential(&id, 1, &secret(&id));
    backend.state().fail_reviews = true;
    assert_eq!(
        refused(Agent::dial(&mut client, &shown).await),
        Reason::Internal,
        "the credential cannot be reviewed"
    );
    backend.state().fail_reviews = false;

    let mut agent = Agent::dial(&mut client, &shown).await.unwrap();
    agent.hello().await;
    let Some(Message::Claim(claim)) = agent.receive().await else { panic!("no claim") };
    let of = claim.id.unwrap();
    assert_eq!((of.workspace_id, of.epoch, claim.workspace_name.as_str()), (id.to_string(), 1, "demo"));
    assert_eq!(claim.token_keys[0].public_key, [7; 32]);
    assert_eq!(claim.policy.unwrap().idle_timeout.unwrap().seconds, 15 * 60);
    for sequence in 1..=3 {
        let activity = Some(ActivityState { level: ActivityLevel::Busy.into(), ..Default::default() });
        agent.heartbeat(sequence, activity).await;
    }
    control.wait(&id, |view| view.state == State::Awake && view.activity.is_some()).await;

    // A credential of another start of the same workspace.
    let mut second = Agent::dial(&mut client, &credential(&id, 7, &secret(&id))).await.unwrap();
    second.hello().await;
    assert!(matches!(second.receive().await, Some(Message::Dismiss(_))), "another instance is dismissed");
    assert!(second.receive().await.is_none());

    drop(agent);
    let view = control.wait(&id, |view| view.connection == AgentConnection::Unknown).await;
    assert_eq!(view.state, State::Awake);
}

#[tokio::test]
async fn agent_that_violates_the_protocol_is_disconnected() {
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let id = control.create("demo").await.spec.id.clone();
    wait_until_running(&backend, &id, 1).await;
    let shown = credential(&id, 1, &backend.state().secrets[&id].clone());
    let endpoint = AgentsEndpoint::open(&control, &backend);
    let mut client = endpoint.connect().await;

    let mut early = Agent::dial(&mut client, &shown).await.unwrap();
    early.send(agent_message::Message::Heartbeat(Heartbeat::default())).await;
    assert!(early.receive().await.is_none(), "hello comes first");

    let mut huge = Agent::dial(&mut client, &shown).await.unwrap();
    huge.hello().await;
    assert!(matches!(huge.receive().await, Some(Message::Claim(_))));
    let lease = podling_proto::agent::v1::Lease { name: "n".repeat(1024 * 1024), ..Default::default() };
    let activity = Some(ActivityState { leases: vec![lease], ..Default::default() });
    huge.send(agent_message::Message::Heartbeat(Heartbeat { sequence: 1, activity })).await;
    assert!(huge.receive().await.is_none(), "a message of 1 MiB is rejected");
    let mut again = Agent::dial(&mut client, &shown).await.unwrap();
    again.hello().await;
    assert!(matches!(again.receive().await, Some(Message::Claim(_))), "the agent may reconnect");
}

/// Raises the limit of open files, because this process has both ends of all connections.
fn raise_open_files_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
}

/// Creates a workspace and serves it with an agent on a new connection.
async fn served(
    control: &TestControlPlane,
    backend: &FakeBackend,
    endpoint: &AgentsEndpoint,
    name: &str,
) -> (WorkspaceId, String, Agent) {
    let id = control.create(name).await.spec.id.clone();
    wait_until_running(backend, &id, 1).await;
    let shown = credential(&id, 1, &backend.state().secrets[&id].clone());
    let mut agent = Agent::dial(&mut endpoint.connect().await, &shown).await.unwrap();
    agent.hello().await;
    assert!(matches!(agent.receive().await, Some(Message::Claim(_))));
    (id, shown, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn greedy_workspace_exhausts_only_its_own_sessions() {
    raise_open_files_limit();
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let endpoint = AgentsEndpoint::open(&control, &backend);
    let (greedy, shown, _agent) = served(&control, &backend, &endpoint, "greedy").await;
    let (mut connections, mut sessions, mut refusals) = (Vec::new(), Vec::new(), 0);
    for _ in 0..MAX_UNAUTHENTICATED + 50 {
        let mut connection = endpoint.connect().await;
        match Agent::dial(&mut connection, &shown).await {
            Ok(session) => sessions.push(session),
            Err(refused) => {
                assert_eq!(error::reason(&refused), Some(Reason::TooManyStreams), "{refused}");
                refusals += 1;
            }
        }
        connections.push(connection);
    }
    assert!(refusals > 0 && !sessions.is_empty(), "{refusals} of {}", connections.len());
    // The newest session is the one that is claimed.
    let last = sessions.last_mut().unwrap();
    last.hello().await;
    assert!(matches!(last.receive().await, Some(Message::Claim(_))));
    last.heartbeat(1, None).await;
    control.wait(&greedy, |view| view.connection == AgentConnection::Connected).await;
    endpoint.at_most(MAX_UNAUTHENTICATED + MAX_AGENT_SESSIONS as i64).await;
    let ended = sessions.iter_mut().rev().skip(MAX_AGENT_SESSIONS);
    for session in ended {
        assert!(session.receive().await.is_none(), "an older session ends in favour of a newer one");
    }

    let (id, _, mut agent) = served(&control, &backend, &endpoint, "modest").await;
    agent.heartbeat(1, None).await;
    control.wait(&id, |view| view.state == State::Awake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_silent_connections_do_not_block_an_agent() {
    raise_open_files_limit();
    let (_dir, backend, control) = TestControlPlane::fresh().await;
    let endpoint = AgentsEndpoint::open(&control, &backend);
    let mut crowd = Vec::new();
    for _ in 0..1000 {
        crowd.push(UnixStream::connect(&endpoint.socket).await.unwrap());
    }
    timeout(HELLO_LIMIT, served(&control, &backend, &endpoint, "demo")).await.expect("in time");
    endpoint.at_most(MAX_UNAUTHENTICATED + 1).await;
}
