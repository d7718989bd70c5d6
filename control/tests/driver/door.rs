//! The door for agents with the driver behind it: what an agent must show, and what it gets.

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use podling_control::{agents, identity::TokenKey};
use podling_core::{id::WorkspaceId, workspace::State};
use podling_proto::{
    agent::v1::{ActivityState, Verdict},
    control::v1::{
        AgentMessage, Beat, Hello, agent_message, agents_client::AgentsClient, control_message::Message,
    },
    error::{self, Reason},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
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

/// The door for agents, without the TLS that proves the control plane to them.
async fn door(plane: &Plane, backend: &Fake, tasks: &mut JoinSet<()>) -> AgentsClient<Channel> {
    let keys = [TokenKey { id: "k1".into(), public_key: vec![7; 32] }];
    let service = agents::service(
        plane.handle.clone(),
        backend.clone(),
        &keys,
        TaskTracker::new(),
        CancellationToken::new(),
        Counter::default(),
    );
    let router = Routes::new(service).into_axum_router().with_state(());
    let (client, server) = tokio::io::duplex(64 * 1024);
    tasks.spawn(async move {
        let builder = auto::Builder::new(TokioExecutor::new());
        let _over = builder.serve_connection(TokioIo::new(server), TowerToHyperService::new(router)).await;
    });
    let mut client = Some(client);
    let connect = tower::service_fn(move |_| {
        let client = client.take().map(TokioIo::new);
        async move { client.ok_or_else(|| std::io::Error::other("only once")) }
    });
    let channel = Endpoint::from_static("http://door").connect_with_connector(connect).await.unwrap();
    AgentsClient::new(channel)
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
    let (folder, backend, mut tasks) = (tempfile::tempdir().unwrap(), Fake::default(), JoinSet::new());
    let plane = Plane::up(folder.path(), &backend).await;
    let id = plane.create("demo").await.spec.id.clone();
    let other = plane.create("other").await.spec.id.clone();
    runs(&backend, &id, 1).await;
    runs(&backend, &other, 1).await;
    let secret = |of: &WorkspaceId| backend.state().secrets[of].clone();
    let mut door = door(&plane, &backend, &mut tasks).await;
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
        let activity = Some(ActivityState { verdict: Verdict::Busy.into(), ..Default::default() });
        agent.say(agent_message::Message::Beat(Beat { sequence, activity })).await;
        let Some(Message::BeatAck(ack)) = agent.hears().await else { panic!("no ack") };
        assert_eq!(ack.sequence, sequence);
    }
    plane.wait(&id, |view| view.state == State::Awake && view.activity.is_some()).await;

    // Also one's own credential, of an earlier start.
    let mut second = Agent::dial(&mut door, &credential(&id, 7, &secret(&id))).await.unwrap();
    second.hello().await;
    assert!(matches!(second.hears().await, Some(Message::Dismiss(_))), "it is another agent");
    assert!(second.hears().await.is_none());

    drop(agent);
    let view = plane.wait(&id, |view| view.link == podling_core::workspace::Link::Unknown).await;
    assert_eq!(view.state, State::Awake);
}

#[tokio::test]
async fn an_agent_that_does_not_keep_to_the_protocol_is_let_go() {
    let (folder, backend, mut tasks) = (tempfile::tempdir().unwrap(), Fake::default(), JoinSet::new());
    let plane = Plane::up(folder.path(), &backend).await;
    let id = plane.create("demo").await.spec.id.clone();
    runs(&backend, &id, 1).await;
    let shown = credential(&id, 1, &backend.state().secrets[&id].clone());
    let mut door = door(&plane, &backend, &mut tasks).await;

    let mut early = Agent::dial(&mut door, &shown).await.unwrap();
    early.say(agent_message::Message::Beat(Beat::default())).await;
    assert!(early.hears().await.is_none(), "hello comes first");

    let mut huge = Agent::dial(&mut door, &shown).await.unwrap();
    huge.hello().await;
    assert!(matches!(huge.hears().await, Some(Message::Claim(_))));
    let lease = podling_proto::agent::v1::Lease { name: "n".repeat(1024 * 1024), ..Default::default() };
    let activity = Some(ActivityState { leases: vec![lease], ..Default::default() });
    huge.say(agent_message::Message::Beat(Beat { sequence: 1, activity })).await;
    assert!(huge.hears().await.is_none(), "a message of a megabyte is not taken");
    let mut again = Agent::dial(&mut door, &shown).await.unwrap();
    again.hello().await;
    assert!(matches!(again.hears().await, Some(Message::Claim(_))), "it may come back");
}
