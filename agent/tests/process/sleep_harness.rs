//! Harness of the sleep tests: a claimed agent, a client of its terminals, and the directives of
//! the sleep protocol.

use std::time::Duration;

use podling_proto::{
    agent::v1::{
        self as pb, activity_client::ActivityClient, attach_request::Request as AttachAction,
        attach_response::Response as AttachEvent, frame::Frame as FrameKind,
        terminals_client::TerminalsClient,
    },
    control::v1::{
        self as wire, control_message::Message, directive::Directive,
        directive_result::Result as DirectiveOutcome,
    },
    token::SigningKey,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    agent::{AgentProcess, wait_for},
    claimed::claimed,
    client::{AgentClient, token, with_token},
    control_plane::{AgentSession, DEADLINE, ScriptedControlPlane, claim},
};

/// An agent that tests put to sleep, and its fake control plane.
pub(crate) struct SleepHarness {
    pub(crate) agent: AgentProcess,
    pub(crate) key: SigningKey,
    pub(crate) control_plane: ScriptedControlPlane,
    pub(crate) session: AgentSession,
    pub(crate) client: AgentClient,
    pub(crate) epoch: u64,
    /// Id of the last directive.
    last_directive: u64,
}

/// Attachment of one client to one terminal, as a writer.
pub(crate) struct HarnessWriter {
    to: mpsc::Sender<pb::AttachRequest>,
    from: Streaming<pb::AttachResponse>,
    pub(crate) epoch: u64,
    /// Input offset behind the last typed byte.
    pub(crate) typed: u64,
    /// Input offset up to which the agent has acknowledged.
    pub(crate) acked: u64,
    /// All received output, from the oldest retained byte.
    pub(crate) output: Vec<u8>,
    /// Reasons of refused input, in order.
    pub(crate) refused: Vec<String>,
    pub(crate) exit: Option<pb::Exit>,
}

/// Changes the policy so that the workspace counts as idle after 200 ms.
pub(crate) fn set_short_idle(claim: &mut wire::Claim) {
    let millis = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
    let policy = claim.policy.as_mut().expect("a policy");
    policy.idle_timeout = millis(200);
    // In these tests neither starting shells nor programs in terminals make the workspace busy.
    policy.presence_cap = millis(100);
    let settings = claim.settings.as_mut().expect("settings");
    settings.active_for = millis(100);
    settings.heartbeat_interval = millis(250);
    settings.cpu_cores = 100.0;
    settings.io_bytes_per_second = 1e12;
}

/// Applies [`set_short_idle`], and makes `/bin/sh` the shell, with the prompt `$ ` and without
/// start-up files.
pub(crate) fn set_plain_shell(claim: &mut wire::Claim) {
    set_short_idle(claim);
    for (name, value) in [("PS1", "$ "), ("SHELL", "/bin/sh"), ("ENV", "")] {
        claim.env.insert(name.into(), value.into());
    }
}

impl SleepHarness {
    pub(crate) async fn new(change: impl FnOnce(&mut wire::Claim)) -> Self {
        let (agent, key, control_plane, session) = claimed(change).await;
        let client = AgentClient::connect(&agent).await;
        Self { agent, key, control_plane, session, client, epoch: 1, last_directive: 0 }
    }

    /// Starts the agent after it has ended, and claims it for the next epoch.
    pub(crate) async fn restart_agent(&mut self, change: impl FnOnce(&mut wire::Claim)) {
        self.agent.restart();
        self.session = self.control_plane.session().await;
        self.epoch += 1;
        let mut claim = claim(&self.key);
        claim.id.as_mut().expect("an id").epoch = self.epoch;
        change(&mut claim);
        self.session.send(Message::Claim(claim)).await;
        self.session.heartbeat().await;
        self.client = AgentClient::connect(&self.agent).await;
    }

    /// Sends a directive and waits for its result.
    pub(crate) async fn run_directive(&mut self, directive: Directive) -> DirectiveOutcome {
        self.last_directive += 1;
        self.session.send_directive(self.last_directive, directive).await;
        self.session.wait_result(self.last_directive).await
    }

    pub(crate) async fn prepare(&mut self, force: bool, hold: Option<Duration>) -> DirectiveOutcome {
        let hold = hold.map(|hold| hold.try_into().expect("a duration"));
        let request = wire::Prepare { hold, force, ..wire::Prepare::default() };
        self.run_directive(Directive::Prepare(request)).await
    }

    /// Sends Prepare as for a user's request. The agent then ignores the idle timeout, but declines
    /// if the workspace is in use.
    pub(crate) async fn prepare_requested(&mut self) -> DirectiveOutcome {
        let request = wire::Prepare { requested: true, ..wire::Prepare::default() };
        self.run_directive(Directive::Prepare(request)).await
    }

    /// Repeats Prepare until the agent has been idle for its timeout and accepts.
    pub(crate) async fn prepare_when_idle(&mut self) {
        let idle = async {
            while let DirectiveOutcome::Declined(_) = self.prepare(false, None).await {
                self.session.heartbeat().await;
            }
        };
        timeout(DEADLINE, idle).await.expect("idle in time");
    }

    pub(crate) async fn commit(&mut self) -> DirectiveOutcome {
        self.run_directive(Directive::Commit(wire::Commit {})).await
    }

    pub(crate) async fn cancel(&mut self) -> DirectiveOutcome {
        self.run_directive(Directive::Cancel(wire::Cancel {})).await
    }

    pub(crate) fn authorized<T>(&self, message: T) -> tonic::Request<T> {
        with_token(message, &token(&self.key, "admin"))
    }

    pub(crate) async fn create(&self, argv: &[&str]) -> Result<pb::Terminal, Status> {
        let argv = crate::control_plane::to_argv(argv);
        let create = pb::CreateTerminalRequest { argv, name: "mine".into(), ..Default::default() };
        self.create_with(create).await
    }

    pub(crate) async fn create_with(
        &self,
        create: pb::CreateTerminalRequest,
    ) -> Result<pb::Terminal, Status> {
        let mut terminals = TerminalsClient::with_origin(self.client.service(), AgentClient::origin());
        let created = terminals.create(self.authorized(create)).await?;
        Ok(created.into_inner().terminal.expect("a terminal"))
    }

    pub(crate) async fn list(&self) -> Vec<pb::Terminal> {
        let mut terminals = TerminalsClient::with_origin(self.client.service(), AgentClient::origin());
        let list = terminals.list(self.authorized(pb::ListTerminalsRequest::default())).await;
        list.expect("listed").into_inner().terminals
    }

    pub(crate) async fn keep_awake(&self, seconds: i64) -> Result<(), Status> {
        keep_awake(&self.client, &token(&self.key, "admin"), seconds).await
    }

    /// Waits until the agent's log shows that `count` requests were held since its start.
    pub(crate) async fn wait_held(&mut self, count: usize) {
        let reached = async {
            let held = || self.agent.log().matches("held while the workspace prepares").count();
            wait_for("held requests", || (held() >= count).then_some(())).await;
        };
        self.session.with_heartbeats(reached).await;
    }

    /// Attaches to a terminal, from its oldest byte.
    pub(crate) async fn attach(&self, id: &str) -> HarnessWriter {
        self.attach_from(id, pb::from::From::Oldest(pb::FromOldest {})).await
    }

    pub(crate) async fn attach_from(&self, id: &str, from: pb::from::From) -> HarnessWriter {
        let mut terminals = TerminalsClient::with_origin(self.client.service(), AgentClient::origin());
        let (to, requests) = mpsc::channel(64);
        let open = pb::AttachOpen {
            terminal_id: id.into(),
            from: Some(pb::From { from: Some(from) }),
            client_id: "writer".into(),
            ..Default::default()
        };
        to.send(pb::AttachRequest { request: Some(AttachAction::Open(open)) }).await.expect("sent");
        let from = terminals.attach(self.authorized(ReceiverStream::new(requests))).await;
        let from = from.expect("attached").into_inner();
        let mut attachment = HarnessWriter {
            to,
            from,
            epoch: 0,
            typed: 0,
            acked: 0,
            output: Vec::new(),
            refused: Vec::new(),
            exit: None,
        };
        attachment.receive().await;
        attachment
    }
}

/// Takes the lease `job` with the client's token.
pub(crate) async fn keep_awake(client: &AgentClient, token: &str, seconds: i64) -> Result<(), Status> {
    let mut activity = ActivityClient::with_origin(client.service(), AgentClient::origin());
    let duration = Some(prost_types::Duration { seconds, nanos: 0 });
    let lease = pb::KeepAwakeRequest { name: "job".into(), duration, reason: String::new() };
    activity.keep_awake(with_token(lease, token)).await.map(drop)
}

impl HarnessWriter {
    /// Sends input. Acknowledgement and output are received later.
    pub(crate) async fn type_text(&mut self, text: &str) {
        let input = pb::Input {
            epoch: self.epoch,
            offset: self.typed,
            data: text.as_bytes().to_vec().into(),
            kind: pb::InputKind::User.into(),
            reply_at: 0,
        };
        self.typed += text.len() as u64;
        // The agent may have ended.
        let _sent = self.to.send(pb::AttachRequest { request: Some(AttachAction::Input(input)) }).await;
    }

    /// Receives and records the next response. Returns `false` at the end of the stream.
    pub(crate) async fn receive(&mut self) -> bool {
        let response = timeout(DEADLINE, self.from.message()).await.expect("a response in time");
        match response.ok().flatten().and_then(|response| response.response) {
            Some(AttachEvent::InputAck(ack)) => self.acked = ack.next_offset,
            Some(AttachEvent::InputRejected(refused)) => self.refused.push(refused.reason),
            Some(AttachEvent::Frame(frame)) => match frame.frame {
                Some(FrameKind::Started(started)) => {
                    self.epoch = frame.epoch;
                    self.typed = started.input_offset;
                    self.acked = started.input_offset;
                }
                Some(FrameKind::Data(data)) => self.output.extend_from_slice(&data),
                Some(FrameKind::Exit(exit)) => self.exit = Some(exit),
                _ => {}
            },
            None => return false,
        }
        true
    }

    /// Receives responses until `condition` holds.
    pub(crate) async fn receive_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        while !condition(self) {
            assert!(self.receive().await, "the stream ended before {what}: {}", self.text());
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}
