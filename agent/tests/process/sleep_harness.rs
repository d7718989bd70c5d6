//! Harness of the sleep tests: a claimed agent, a client of its terminals, and the directives of
//! the sleep protocol.

use std::time::Duration;

use podling_proto::{
    agent::v1::{self as pb, attach_response::Response as AttachEvent, frame::Frame as FrameKind},
    control::v1::{
        self as wire, control_message::Message, directive::Directive,
        directive_result::Result as DirectiveOutcome,
    },
    token::SigningKey,
};
use podling_testkit::{
    AgentProcess, AgentSession, Client, FakeControlPlane, TerminalStream,
    agent_process::claimed,
    argv, attach_open,
    control_plane::{claim, token},
    from_oldest, wait_until, wire_duration, within,
};
use tonic::Status;

/// An agent that tests put to sleep, and its fake control plane.
pub(crate) struct SleepHarness {
    pub(crate) agent: AgentProcess,
    pub(crate) key: SigningKey,
    pub(crate) control_plane: FakeControlPlane,
    pub(crate) session: AgentSession,
    /// A client with the verb `admin`.
    pub(crate) client: Client,
    pub(crate) epoch: u64,
    /// Id of the last directive.
    last_directive: u64,
}

/// Attachment of one client to one terminal, as a writer.
pub(crate) struct HarnessWriter {
    pub(crate) stream: TerminalStream,
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
    let millis = |millis| wire_duration(Duration::from_millis(millis));
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
        let client = agent.client().await.token(&token(&key, "admin"));
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
        self.client = self.agent.client().await.token(&token(&self.key, "admin"));
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
        within("the idle timeout", idle).await;
    }

    pub(crate) async fn commit(&mut self) -> DirectiveOutcome {
        self.run_directive(Directive::Commit(wire::Commit {})).await
    }

    pub(crate) async fn cancel(&mut self) -> DirectiveOutcome {
        self.run_directive(Directive::Cancel(wire::Cancel {})).await
    }

    pub(crate) async fn create(&self, words: &[&str]) -> Result<pb::Terminal, Status> {
        let create =
            pb::CreateTerminalRequest { argv: argv(words), name: "mine".into(), ..Default::default() };
        let created = self.client.terminals().create(create).await?;
        Ok(created.into_inner().terminal.expect("a terminal"))
    }

    pub(crate) async fn list(&self) -> Vec<pb::Terminal> {
        let list = self.client.terminals().list(pb::ListTerminalsRequest::default()).await;
        list.expect("listed").into_inner().terminals
    }

    /// Waits until the agent's log shows that `count` requests were held since its start.
    pub(crate) async fn wait_held(&mut self, count: usize) {
        let reached = async {
            let held = || self.agent.log().matches("held while the workspace prepares").count();
            wait_until("held requests", || held() >= count).await;
        };
        self.session.with_heartbeats(reached).await;
    }

    /// Receives responses until `condition` holds, and acknowledges heartbeats meanwhile.
    pub(crate) async fn receive_until(
        &mut self,
        writer: &mut HarnessWriter,
        what: &str,
        condition: impl FnMut(&HarnessWriter) -> bool,
    ) {
        self.session.with_heartbeats(writer.receive_until(what, condition)).await;
    }

    /// Receives output until it contains `text`.
    pub(crate) async fn wait_output(&mut self, writer: &mut HarnessWriter, text: &str) {
        self.receive_until(writer, text, |writer| writer.text().contains(text)).await;
    }

    /// Receives responses until the program has ended.
    pub(crate) async fn wait_program_exit(&mut self, writer: &mut HarnessWriter) {
        self.receive_until(writer, "the exit", |writer| writer.exit.is_some()).await;
    }

    /// Attaches to a terminal, from its oldest byte.
    pub(crate) async fn attach(&self, id: &str) -> HarnessWriter {
        self.attach_from(id, from_oldest()).await
    }

    pub(crate) async fn attach_from(&self, id: &str, from: pb::from::From) -> HarnessWriter {
        let open = attach_open(id, "writer", from);
        let stream = TerminalStream::open(&self.client, open).await.expect("attached");
        let mut attachment =
            HarnessWriter { stream, acked: 0, output: Vec::new(), refused: Vec::new(), exit: None };
        attachment.receive().await;
        attachment
    }
}

/// Takes the lease `job`.
pub(crate) async fn keep_awake(client: &Client, seconds: u64) -> Result<(), Status> {
    let duration = wire_duration(Duration::from_secs(seconds));
    let lease = pb::KeepAwakeRequest { name: "job".into(), duration, reason: String::new() };
    client.activity().keep_awake(lease).await.map(drop)
}

impl HarnessWriter {
    /// Sends input. Acknowledgement and output are received later.
    pub(crate) async fn type_text(&mut self, text: &str) {
        // The agent may have ended.
        let _sent = self.stream.send(text.to_owned()).await;
    }

    /// Receives and records the next response. Returns `false` at the end of the stream.
    pub(crate) async fn receive(&mut self) -> bool {
        let response = within("a response", self.stream.next()).await;
        match response.ok().flatten() {
            Some(AttachEvent::InputAck(ack)) => self.acked = ack.next_offset,
            Some(AttachEvent::InputRejected(refused)) => self.refused.push(refused.reason),
            Some(AttachEvent::Frame(frame)) => match frame.frame {
                Some(FrameKind::Started(started)) => self.acked = started.input_offset,
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
