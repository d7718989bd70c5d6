//! One stream to the control plane, from hello to its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Uri;
use podling_proto::control::v1::{
    self as wire, AgentMessage, agents_client::AgentsClient, control_message::Message, directive::Directive,
};
use tokio::{
    sync::mpsc,
    time::{sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Streaming, codegen::http::header::AUTHORIZATION, metadata::MetadataValue};

use super::{
    Link,
    beats::{self, Beats},
    dial::{credential, dial},
    lost::{HELLO_TIMEOUT, Lost},
    message,
};
use crate::{
    claim::Claim,
    shutdown::{ShutdownReason, ShutdownRequest},
    sleep::Declined,
};

/// Messages to the control plane that wait to be sent. When full it has stopped reading: the link is given up.
const OUTBOX: usize = 16;
/// The last words may take this long to be heard.
const FAREWELL: Duration = Duration::from_secs(1);
/// Written into requests as `:authority`; the connection is already made.
const ORIGIN: &str = "https://podling-control";

/// How a session ended well.
#[derive(Debug)]
pub(super) enum Over {
    /// There is no more to say: the agent ends.
    Finished,
}

/// One stream.
pub(super) struct Session<'a> {
    link: &'a Link,
    beats: Beats,
    /// Directives to drain that are answered when all is drained.
    draining: Vec<u64>,
    /// Directives to commit that are answered when all is on disk.
    committing: Vec<u64>,
}

impl<'a> Session<'a> {
    pub(super) fn new(link: &'a Link) -> Self {
        Self { link, beats: Beats::default(), draining: Vec::new(), committing: Vec::new() }
    }

    /// Whether a beat was ever acknowledged.
    pub(super) fn was_healthy(&self) -> bool {
        self.beats.was_acknowledged()
    }

    /// Dials, says hello, and keeps on until the stream breaks or the agent has ended.
    pub(super) async fn run(&mut self, life: CancellationToken) -> Result<Over, Lost> {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let connect = self.connect(life, messages);
        let held = self.link.claims.borrow().clone();
        say(&outbox, message::hello(&self.link.introduction, held.as_deref()))?;
        let inbound = tokio::select! {
            connected = connect => connected?,
            () = self.link.ended.cancelled() => return Ok(Over::Finished),
        };
        self.talk(outbox, inbound).await
    }

    fn connect(
        &self,
        life: CancellationToken,
        messages: mpsc::Receiver<AgentMessage>,
    ) -> impl Future<Output = Result<Streaming<wire::ControlMessage>, Lost>> + use<> {
        let control = self.link.control.clone();
        async move {
            let sender = dial(&control, life).await?;
            // Read only now: whoever could not prove to be the control plane never comes this far.
            let credential = credential(&control).await?;
            let mut bearer: MetadataValue<_> =
                format!("Bearer {credential}").parse().map_err(|_| Lost::BadCredential)?;
            bearer.set_sensitive(true);
            let service = tower::service_fn(move |request| {
                let mut sender = sender.clone();
                async move { sender.send_request(request).await }
            });
            let mut client = AgentsClient::with_origin(service, Uri::from_static(ORIGIN));
            let mut request = Request::new(ReceiverStream::new(messages));
            request.metadata_mut().insert(AUTHORIZATION.as_str(), bearer);
            let answer = timeout(HELLO_TIMEOUT, client.connect(request)).await;
            Ok(answer.map_err(|_| Lost::NoAnswer)?.map_err(Lost::Refused)?.into_inner())
        }
    }

    async fn talk(
        &mut self,
        outbox: mpsc::Sender<AgentMessage>,
        mut inbound: Streaming<wire::ControlMessage>,
    ) -> Result<Over, Lost> {
        let mut pulse = self.link.activity.pulse();
        let greeted = Instant::now() + HELLO_TIMEOUT;
        let mut answered = false;
        loop {
            let patience = beats::patience(self.interval());
            tokio::select! {
                said = inbound.message() => {
                    let said = said.map_err(Lost::Refused)?.ok_or(Lost::Closed)?;
                    answered = true;
                    if let Some(message) = said.message {
                        self.hear(message, &outbox)?;
                    }
                }
                () = at(self.beats.next()) => self.beat(&outbox)?,
                () = at(self.beats.silent_since().map(|since| since + patience)) => {
                    return Err(Lost::Silent(patience));
                }
                () = at((!answered).then_some(greeted)) => return Err(Lost::NoAnswer),
                Ok(()) = pulse.changed() => {
                    let verdict = pulse.borrow_and_update().verdict;
                    self.beats.on_edge(verdict, Instant::now());
                }
                () = self.link.sleep.over(), if !self.committing.is_empty() => {
                    for id in self.committing.drain(..) {
                        say(&outbox, message::done(id))?;
                    }
                }
                () = self.link.ended.cancelled() => return self.farewell(outbox, inbound).await,
            }
        }
    }

    fn hear(&mut self, message: Message, outbox: &mpsc::Sender<AgentMessage>) -> Result<(), Lost> {
        match message {
            Message::Wait(wire::Wait {}) => tracing::info!("waiting for a workspace"),
            Message::Claim(claim) => self.take(message::claim(claim)?),
            Message::HeartbeatAck(ack) => self.acknowledged(ack.sequence),
            Message::Directive(directive) => self.obey(directive, outbox)?,
            Message::Dismiss(dismiss) => {
                tracing::warn!(reason = dismiss.reason, message = dismiss.message, "dismissed");
                let why = format!("{}: {}", dismiss.reason, dismiss.message);
                self.link.shutdown.request(ShutdownRequest::new(ShutdownReason::Dismissed(why)));
            }
        }
        Ok(())
    }

    /// An agent serves one workspace, and one epoch of it, in its life.
    fn take(&mut self, mut claim: Claim) {
        let held = self.link.claims.borrow().clone();
        if let Some(held) = &held
            && (&held.workspace_id, held.epoch) != (&claim.workspace_id, claim.epoch)
        {
            tracing::error!(?held, ?claim, "claimed for something else than what is served");
            self.link.shutdown.request(ShutdownRequest::new(ShutdownReason::OtherClaim));
            return;
        }
        if let Some(held) = held {
            claim.maintenance = held.maintenance;
        } else {
            tracing::info!(
                workspace = claim.workspace_id,
                epoch = claim.epoch,
                maintenance = claim.maintenance,
                "claimed"
            );
        }
        if claim.maintenance {
            // Before anybody can ask.
            self.link.sleep.gate().enter_maintenance();
        }
        let interval = claim.policy.beat_interval;
        self.link.claims.send_replace(Some(Arc::new(claim)));
        // The claim is an edge; a repeated one keeps the pace.
        self.beats.begin(Instant::now(), interval);
    }

    fn acknowledged(&mut self, sequence: u64) {
        if !self.beats.acknowledged(sequence, Instant::now()) {
            tracing::warn!(sequence, "acknowledgement of a beat that was never sent");
            return;
        }
        self.link.activity.acknowledged(sequence);
        self.link.metrics.acknowledged();
    }

    fn obey(&mut self, directive: wire::Directive, outbox: &mpsc::Sender<AgentMessage>) -> Result<(), Lost> {
        let id = directive.id;
        match directive.directive {
            Some(Directive::Drain(drain)) => {
                let grace = drain.grace.and_then(|grace| Duration::try_from(grace).ok());
                let mut ending = ShutdownRequest::new(ShutdownReason::Drained);
                ending.grace = grace.unwrap_or(ending.grace);
                self.draining.push(id);
                self.link.shutdown.request(ending);
                Ok(())
            }
            Some(Directive::Warn(warn)) => {
                let warning = message::warning(warn);
                tracing::warn!(?warning, "the workspace will sleep unless used");
                self.link.activity.warn(warning);
                say(outbox, message::done(id))
            }
            Some(Directive::Prepare(prepare)) => {
                let (hold, urgency) = message::prepare(&prepare);
                self.answer(id, self.link.sleep.prepare(hold, urgency), outbox)
            }
            Some(Directive::Commit(wire::Commit {})) => match self.link.sleep.commit() {
                Ok(()) => self.commit(id),
                declined => self.answer(id, declined, outbox),
            },
            Some(Directive::Cancel(wire::Cancel {})) => self.answer(id, self.link.sleep.cancel(), outbox),
            None => {
                let reason = "this agent does not know the directive";
                say(outbox, message::declined(id, reason, &self.link.activity.look()))
            }
        }
    }

    /// Answered when all is on disk.
    fn commit(&mut self, id: u64) -> Result<(), Lost> {
        if self.committing.len() >= OUTBOX {
            return Err(Lost::Stuck);
        }
        self.committing.push(id);
        Ok(())
    }

    fn answer(
        &self,
        id: u64,
        done: Result<(), Declined>,
        outbox: &mpsc::Sender<AgentMessage>,
    ) -> Result<(), Lost> {
        let answer = match done {
            Ok(()) => message::done(id),
            Err(declined) => message::declined(id, &declined.to_string(), &self.link.activity.look()),
        };
        say(outbox, answer)
    }

    fn beat(&mut self, outbox: &mpsc::Sender<AgentMessage>) -> Result<(), Lost> {
        let (now, sequence) = (Instant::now(), self.beats.next_sequence());
        let snapshot = self.link.activity.beat(sequence);
        say(outbox, message::beat(sequence, &snapshot))?;
        self.link.metrics.beat();
        self.beats.sent(snapshot.judgement.verdict, now, self.interval(), fastrand::f64());
        Ok(())
    }

    fn interval(&self) -> Duration {
        let claim = self.link.claims.borrow();
        claim.as_ref().map(|claim| claim.policy.beat_interval).unwrap_or_default()
    }

    /// Says what was promised to be said at the end, and gives it time to be heard.
    async fn farewell(
        &mut self,
        outbox: mpsc::Sender<AgentMessage>,
        mut inbound: Streaming<wire::ControlMessage>,
    ) -> Result<Over, Lost> {
        for id in self.draining.drain(..) {
            say(&outbox, message::done(id))?;
        }
        drop(outbox);
        let heard = async { while let Ok(Some(_)) = inbound.message().await {} };
        if timeout(FAREWELL, heard).await.is_err() {
            tracing::debug!("the control plane did not close the stream");
        }
        Ok(Over::Finished)
    }
}

/// Waits until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

fn say(outbox: &mpsc::Sender<AgentMessage>, message: AgentMessage) -> Result<(), Lost> {
    outbox.try_send(message).map_err(|_| Lost::Stuck)
}
