//! A bed: a claimed agent with a terminal's client, and the directives that put it to sleep. Must not know the stories.

use std::time::Duration;

use podling_proto::{
    agent::v1::{
        self as pb, activity_client::ActivityClient, attach_request::Request as Asked,
        attach_response::Response as Said, frame::Frame as Kind, terminals_client::TerminalsClient,
    },
    control::v1::{
        self as wire, control_message::Message, directive::Directive, directive_result::Result as Answer,
    },
    token::SigningKey,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    agent::{Agent, until},
    claimed::claimed,
    client::{Client, token, with_token},
    plane::{DEADLINE, Plane, Session, claim},
};

/// An agent that may be put to sleep, and its control plane.
pub(crate) struct Bed {
    pub(crate) agent: Agent,
    pub(crate) key: SigningKey,
    pub(crate) plane: Plane,
    pub(crate) session: Session,
    pub(crate) client: Client,
    pub(crate) epoch: u64,
    directives: u64,
}

/// One attachment.
pub(crate) struct Line {
    to: mpsc::Sender<pb::AttachRequest>,
    from: Streaming<pb::AttachResponse>,
    pub(crate) epoch: u64,
    /// What was typed.
    pub(crate) typed: u64,
    /// Acknowledged up to here.
    pub(crate) acked: u64,
    /// All output so far, from the oldest byte.
    pub(crate) output: Vec<u8>,
    /// Reasons of refusals.
    pub(crate) refused: Vec<String>,
    pub(crate) exit: Option<pb::Exit>,
}

/// A policy under which a workspace is idle soon.
pub(crate) fn drowsy(claim: &mut wire::Claim) {
    let millis = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
    let policy = claim.policy.as_mut().expect("a policy");
    policy.idle_timeout = millis(200);
    policy.active_for = millis(100);
    policy.heartbeat_interval = millis(250);
    // What a shell does as it starts is not the story, nor what runs in a terminal.
    policy.presence_cap = millis(100);
    policy.cpu_cores = 100.0;
    policy.io_bytes_per_second = 1e12;
}

/// Drowsy, with a plain prompt and nothing of anybody's start-up files.
pub(crate) fn plain(claim: &mut wire::Claim) {
    drowsy(claim);
    for (name, value) in [("PS1", "$ "), ("SHELL", "/bin/sh"), ("ENV", "")] {
        claim.env.insert(name.into(), value.into());
    }
}

impl Bed {
    pub(crate) async fn new(change: impl FnOnce(&mut wire::Claim)) -> Self {
        let (agent, key, plane, session) = claimed(change).await;
        let client = Client::of(&agent).await;
        Self { agent, key, plane, session, client, epoch: 1, directives: 0 }
    }

    /// The agent has ended: it starts again and is claimed for the next epoch.
    pub(crate) async fn again(&mut self, change: impl FnOnce(&mut wire::Claim)) {
        self.agent.start_again();
        self.session = self.plane.session().await;
        self.epoch += 1;
        let mut claim = claim(&self.key);
        claim.id.as_mut().expect("an id").epoch = self.epoch;
        change(&mut claim);
        self.session.send(Message::Claim(claim)).await;
        self.session.beat().await;
        self.client = Client::of(&self.agent).await;
    }

    /// Gives a directive and waits for what comes of it.
    pub(crate) async fn direct(&mut self, directive: Directive) -> Answer {
        self.directives += 1;
        self.session.direct(self.directives, directive).await;
        self.session.result(self.directives).await
    }

    pub(crate) async fn prepare(&mut self, force: bool, hold: Option<Duration>) -> Answer {
        let hold = hold.map(|hold| hold.try_into().expect("a duration"));
        self.direct(Directive::Prepare(wire::Prepare { hold, force, requested: false })).await
    }

    /// Somebody asks for its sleep, unless it is used.
    pub(crate) async fn prepare_asked(&mut self) -> Answer {
        let request = wire::Prepare { requested: true, ..wire::Prepare::default() };
        self.direct(Directive::Prepare(request)).await
    }

    /// Prepares as soon as it is idle for long enough.
    pub(crate) async fn prepare_when_idle(&mut self) {
        let idle = async {
            while let Answer::Declined(_) = self.prepare(false, None).await {
                self.session.beat().await;
            }
        };
        timeout(DEADLINE, idle).await.expect("idle in time");
    }

    pub(crate) async fn commit(&mut self) -> Answer {
        self.direct(Directive::Commit(wire::Commit {})).await
    }

    pub(crate) async fn cancel(&mut self) -> Answer {
        self.direct(Directive::Cancel(wire::Cancel {})).await
    }

    pub(crate) fn with<T>(&self, message: T) -> tonic::Request<T> {
        with_token(message, &token(&self.key, "admin"))
    }

    pub(crate) async fn create(&self, argv: &[&str]) -> Result<pb::Terminal, Status> {
        let argv = crate::plane::words(argv);
        let create = pb::CreateTerminalRequest { argv, name: "mine".into(), ..Default::default() };
        self.create_so(create).await
    }

    pub(crate) async fn create_so(&self, create: pb::CreateTerminalRequest) -> Result<pb::Terminal, Status> {
        let mut terminals = TerminalsClient::with_origin(self.client.service(), Client::origin());
        let created = terminals.create(self.with(create)).await?;
        Ok(created.into_inner().terminal.expect("a terminal"))
    }

    pub(crate) async fn list(&self) -> Vec<pb::Terminal> {
        let mut terminals = TerminalsClient::with_origin(self.client.service(), Client::origin());
        let list = terminals.list(self.with(pb::ListTerminalsRequest::default())).await;
        list.expect("listed").into_inner().terminals
    }

    pub(crate) async fn keep_awake(&self, seconds: i64) -> Result<(), Status> {
        keep_awake(&self.client, &token(&self.key, "admin"), seconds).await
    }

    /// Waits until so many intents were ever held.
    pub(crate) async fn held(&mut self, count: usize) {
        let held = async {
            let held = || self.agent.log().matches("held while the workspace prepares").count();
            until("somebody who is held", || (held() >= count).then_some(())).await;
        };
        self.session.beating(held).await;
    }

    /// Attaches from the oldest byte.
    pub(crate) async fn attach(&self, id: &str) -> Line {
        self.attach_from(id, pb::from::From::Oldest(pb::FromOldest {})).await
    }

    pub(crate) async fn attach_from(&self, id: &str, from: pb::from::From) -> Line {
        let mut terminals = TerminalsClient::with_origin(self.client.service(), Client::origin());
        let (to, requests) = mpsc::channel(64);
        let open = pb::AttachOpen {
            terminal_id: id.into(),
            from: Some(pb::From { from: Some(from) }),
            client_id: "typist".into(),
            ..Default::default()
        };
        to.send(pb::AttachRequest { request: Some(Asked::Open(open)) }).await.expect("sent");
        let from = terminals.attach(self.with(ReceiverStream::new(requests))).await;
        let from = from.expect("attached").into_inner();
        let mut line = Line {
            to,
            from,
            epoch: 0,
            typed: 0,
            acked: 0,
            output: Vec::new(),
            refused: Vec::new(),
            exit: None,
        };
        line.hear().await;
        line
    }
}

/// Takes a lease.
pub(crate) async fn keep_awake(client: &Client, token: &str, seconds: i64) -> Result<(), Status> {
    let mut activity = ActivityClient::with_origin(client.service(), Client::origin());
    let duration = Some(prost_types::Duration { seconds, nanos: 0 });
    let lease = pb::KeepAwakeRequest { name: "job".into(), duration, reason: String::new() };
    activity.keep_awake(with_token(lease, token)).await.map(drop)
}

impl Line {
    /// Types; what comes of it is heard later.
    pub(crate) async fn type_in(&mut self, text: &str) {
        let input = pb::Input {
            epoch: self.epoch,
            offset: self.typed,
            data: text.as_bytes().to_vec().into(),
            kind: pb::InputKind::User.into(),
            reply_at: 0,
        };
        self.typed += text.len() as u64;
        // An agent that has gone away hears nothing.
        let _gone = self.to.send(pb::AttachRequest { request: Some(Asked::Input(input)) }).await;
    }

    /// Hears the next thing; `false`: the stream is over.
    pub(crate) async fn hear(&mut self) -> bool {
        let said = timeout(DEADLINE, self.from.message()).await.expect("says something in time");
        match said.ok().flatten().and_then(|said| said.response) {
            Some(Said::InputAck(ack)) => self.acked = ack.next_offset,
            Some(Said::InputRefused(refused)) => self.refused.push(refused.reason),
            Some(Said::Frame(frame)) => match frame.frame {
                Some(Kind::Started(started)) => {
                    self.epoch = frame.epoch;
                    self.typed = started.input_offset;
                    self.acked = started.input_offset;
                }
                Some(Kind::Data(data)) => self.output.extend_from_slice(&data),
                Some(Kind::Exit(exit)) => self.exit = Some(exit),
                _ => {}
            },
            None => return false,
        }
        true
    }

    /// Hears on until it holds.
    pub(crate) async fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        while !holds(self) {
            assert!(self.hear().await, "the stream is over before {what}: {}", self.text());
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}
