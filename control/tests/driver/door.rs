//! The door for agents with the driver behind it: what an agent must show, and what it gets.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use podling_control::{
    agents::AgentsService,
    driver::MAX_LINKS,
    identity::{ControlIdentity, PublicTokenKey},
    server::{AgentsRouter, ServerListener, ShutdownSignals},
};
use podling_core::{
    id::WorkspaceId,
    workspace::{AgentConnection, State},
};
use podling_proto::{
    agent::v1::{ActivityLevel, ActivityState},
    control::v1::{
        AgentMessage, Heartbeat, Hello, agent_message, agents_client::AgentsClient, control_message::Message,
    },
    error::{self, Reason},
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::UnixStream, sync::mpsc, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Status, Streaming,
    service::Routes,
    transport::{Channel, Endpoint},
};

use crate::{
    api::refused,
    fake::{Fake, credential},
    plane::{DEADLINE, Plane, runs},
};

/// How many connections may be open that have shown no good credential.
const STRANGERS: i64 = 128;
/// An agent gives up a control plane that has not answered its hello by then.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// The door for agents.
struct Door {
    socket: PathBuf,
    tls: TlsConnector,
    /// Connections that are open.
    open: Gauge,
    stopping: ShutdownSignals,
    _folder: tempfile::TempDir,
    _serving: JoinSet<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stopping.draining.cancel();
        self.stopping.streams.cancel();
    }
}

impl Door {
    fn open(plane: &Plane, backend: &Fake) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = ControlIdentity::open(folder.path()).unwrap();
        let (stopping, open) = (ShutdownSignals::default(), Gauge::default());
        let keys = [PublicTokenKey { id: "k1".into(), public_key: vec![7; 32] }];
        let service = AgentsService::new(
            plane.handle.clone(),
            backend.clone(),
            &keys,
            TaskTracker::new(),
            stopping.streams.clone(),
            Counter::default(),
        );
        let front = AgentsRouter::new(Routes::new(service.into_server()).into_axum_router());
        let socket = folder.path().join("control.sock");
        let listener =
            ServerListener::unix(&socket, identity.agents_tls(), stopping.clone(), open.clone()).unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(listener.serve(front));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(identity.ca_file()).unwrap()).unwrap();
        let provider = rustls::crypto::ring::default_provider().into();
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Self { socket, tls: Arc::new(tls).into(), open, stopping, _folder: folder, _serving: serving }
    }

    /// Waits until no more connections are open than these.
    async fn at_most(&self, connections: i64) {
        let fewer = async {
            while self.open.get() > connections {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, fewer).await.unwrap_or_else(|_| panic!("{} are open", self.open.get()));
    }

    /// A connection of its own.
    async fn connect(&self) -> AgentsClient<Channel> {
        let (socket, tls) = (self.socket.clone(), self.tls.clone());
        let connect = tower::service_fn(move |_| {
            let (socket, tls) = (socket.clone(), tls.clone());
            async move {
                let name = ServerName::try_from("podling-control").unwrap();
                tls.connect(name, UnixStream::connect(socket).await?).await.map(TokioIo::new)
            }
        });
        let channel = Endpoint::from_static("http://door").connect_with_connector(connect).await.unwrap();
        AgentsClient::new(channel)
    }
}

struct Agent {
    say: mpsc::Sender<AgentMessage>,
    heard: Streaming<podling_proto::control::v1::ControlMessage>,
}

impl Agent {
    async fn dial(door: &mut AgentsClient<Channel>, credential: &str) -> Result<Self, Status> {
        let (say, messages) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(messages));
        request.metadata_mut().insert("authorization", format!("Bearer {credential}").parse().unwrap());
        Ok(Self { say, heard: door.connect(request).await?.into_inner() })
    }

    async fn say(&self, message: agent_message::Message) {
        self.say.send(AgentMessage { message: Some(message) }).await.unwrap();
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
        self.say(agent_message::Message::Hello(hello)).await;
    }

    /// Beats, and is heard.
    async fn beats(&mut self, sequence: u64, activity: Option<ActivityState>) {
        self.say(agent_message::Message::Heartbeat(Heartbeat { sequence, activity })).await;
        let Some(Message::HeartbeatAck(ack)) = self.hears().await else { panic!("no ack") };
        assert_eq!(ack.sequence, sequence);
    }

    /// The next message that is more than "wait".
    async fn hears(&mut self) -> Option<Message> {
        loop {
            let message = timeout(DEADLINE, self.heard.message()).await.expect("an answer");
            match message.ok()??.message? {
                Message::Wait(_) => {}
                message => return Some(message),
            }
        }
    }
}

#[tokio::test]
async fn an_agent_shows_its_credential_is_claimed_and_its_beats_are_acknowledged() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let id = plane.create("demo").await.spec.id.clone();
    let other = plane.create("other").await.spec.id.clone();
    runs(&backend, &id, 1).await;
    runs(&backend, &other, 1).await;
    let secret = |of: &WorkspaceId| backend.state().secrets[of].clone();
    let house = Door::open(&plane, &backend);
    let mut door = house.connect().await;
    let missing = door.connect(ReceiverStream::new(mpsc::channel(1).1)).await.unwrap_err();
    assert_eq!(error::reason(&missing), Some(Reason::TokenMissing));
    for shown in [credential(&id, 1, &secret(&other)), "nonsense".into(), String::new()] {
        assert_eq!(refused(Agent::dial(&mut door, &shown).await), Reason::TokenInvalid, "{shown}");
    }
    let shown = credential(&id, 1, &secret(&id));
    backend.state().fail_reviews = true;
    assert_eq!(refused(Agent::dial(&mut door, &shown).await), Reason::Internal, "nobody can say whose it is");
    backend.state().fail_reviews = false;

    let mut agent = Agent::dial(&mut door, &shown).await.unwrap();
    agent.hello().await;
    let Some(Message::Claim(claim)) = agent.hears().await else { panic!("no claim") };
    let of = claim.id.unwrap();
    assert_eq!((of.workspace_id, of.epoch, claim.workspace_name.as_str()), (id.to_string(), 1, "demo"));
    assert_eq!(claim.token_keys[0].public_key, [7; 32]);
    assert_eq!(claim.policy.unwrap().idle_timeout.unwrap().seconds, 15 * 60);
    for sequence in 1..=3 {
        let activity = Some(ActivityState { level: ActivityLevel::Busy.into(), ..Default::default() });
        agent.beats(sequence, activity).await;
    }
    plane.wait(&id, |view| view.state == State::Awake && view.activity.is_some()).await;

    // Also one's own credential, of an earlier start.
    let mut second = Agent::dial(&mut door, &credential(&id, 7, &secret(&id))).await.unwrap();
    second.hello().await;
    assert!(matches!(second.hears().await, Some(Message::Dismiss(_))), "it is another agent");
    assert!(second.hears().await.is_none());

    drop(agent);
    let view = plane.wait(&id, |view| view.connection == AgentConnection::Unknown).await;
    assert_eq!(view.state, State::Awake);
}

#[tokio::test]
async fn an_agent_that_does_not_keep_to_the_protocol_is_let_go() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let id = plane.create("demo").await.spec.id.clone();
    runs(&backend, &id, 1).await;
    let shown = credential(&id, 1, &backend.state().secrets[&id].clone());
    let house = Door::open(&plane, &backend);
    let mut door = house.connect().await;

    let mut early = Agent::dial(&mut door, &shown).await.unwrap();
    early.say(agent_message::Message::Heartbeat(Heartbeat::default())).await;
    assert!(early.hears().await.is_none(), "hello comes first");

    let mut huge = Agent::dial(&mut door, &shown).await.unwrap();
    huge.hello().await;
    assert!(matches!(huge.hears().await, Some(Message::Claim(_))));
    let lease = podling_proto::agent::v1::Lease { name: "n".repeat(1024 * 1024), ..Default::default() };
    let activity = Some(ActivityState { leases: vec![lease], ..Default::default() });
    huge.say(agent_message::Message::Heartbeat(Heartbeat { sequence: 1, activity })).await;
    assert!(huge.hears().await.is_none(), "a message of a megabyte is not taken");
    let mut again = Agent::dial(&mut door, &shown).await.unwrap();
    again.hello().await;
    assert!(matches!(again.hears().await, Some(Message::Claim(_))), "it may come back");
}

/// For the door and a crowd before it, in one process.
fn many_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
}

/// Awake and served by an agent of its own connection.
async fn served(plane: &Plane, backend: &Fake, house: &Door, name: &str) -> (WorkspaceId, String, Agent) {
    let id = plane.create(name).await.spec.id.clone();
    runs(backend, &id, 1).await;
    let shown = credential(&id, 1, &backend.state().secrets[&id].clone());
    let mut agent = Agent::dial(&mut house.connect().await, &shown).await.unwrap();
    agent.hello().await;
    assert!(matches!(agent.hears().await, Some(Message::Claim(_))));
    (id, shown, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_that_takes_all_it_can_takes_only_its_own_places() {
    many_files();
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let house = Door::open(&plane, &backend);
    let (greedy, shown, _agent) = served(&plane, &backend, &house, "greedy").await;
    let (mut connections, mut sessions, mut refusals) = (Vec::new(), Vec::new(), 0);
    for _ in 0..STRANGERS + 50 {
        let mut connection = house.connect().await;
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
    // The session that says hello last is the one that counts.
    let last = sessions.last_mut().unwrap();
    last.hello().await;
    assert!(matches!(last.hears().await, Some(Message::Claim(_))));
    last.beats(1, None).await;
    plane.wait(&greedy, |view| view.connection == AgentConnection::Connected).await;
    house.at_most(STRANGERS + MAX_LINKS as i64).await;
    let ended = sessions.iter_mut().rev().skip(MAX_LINKS);
    for session in ended {
        assert!(session.hears().await.is_none(), "an older session makes room for a newer");
    }

    let (id, _, mut agent) = served(&plane, &backend, &house, "modest").await;
    agent.beats(1, None).await;
    plane.wait(&id, |view| view.state == State::Awake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_who_say_nothing_keep_no_agent_out() {
    many_files();
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let house = Door::open(&plane, &backend);
    let mut crowd = Vec::new();
    for _ in 0..1000 {
        crowd.push(UnixStream::connect(&house.socket).await.unwrap());
    }
    timeout(HELLO_LIMIT, served(&plane, &backend, &house, "demo")).await.expect("in time");
    house.at_most(STRANGERS + 1).await;
}
