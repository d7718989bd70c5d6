//! One stream to the control plane, from hello to its end, with the schedule of its heartbeats.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Uri;
use podling_proto::control::{
    v1 as wire,
    v1::{AgentMessage, agents_client::AgentsClient, control_message::Message, directive::Directive},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Streaming, codegen::http::header::AUTHORIZATION, metadata::MetadataValue};

use super::{
    ControlConnection, DisconnectError, HELLO_TIMEOUT,
    dial::{credential, dial},
    messages,
};
use crate::{
    activity::UrgentActivity,
    claim::Claim,
    shutdown::{ShutdownReason, ShutdownRequest},
    sleep::SleepDeclined,
    util::sleep_until,
};

/// Limit of outgoing messages that wait to be sent. At the limit the agent disconnects, because the
/// control plane does not read.
const OUTBOX_MESSAGES: usize = 16;
/// Time that the agent waits for the control plane to close the stream at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Origin of requests. Only their `:authority` has it, because the connection exists already.
const ORIGIN: &str = "https://podling-control";

/// Intervals without an acknowledgement after which the connection counts as dead.
const MAX_UNACKNOWLEDGED_INTERVALS: u32 = 3;
/// Fraction by which an interval varies randomly, up or down. Spreads the heartbeats of agents that
/// started together.
const JITTER: f64 = 0.1;
/// Minimum time between two heartbeats that report a changed level.
const MIN_CHANGE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct ControlSession<'a> {
    connection: &'a ControlConnection,
    heartbeats: HeartbeatSchedule,
    /// Ids of drain directives, answered when everything has ended.
    draining: Vec<u64>,
    /// Ids of commit directives, answered when everything is on disk.
    committing: Vec<u64>,
}

impl<'a> ControlSession<'a> {
    pub(super) fn new(connection: &'a ControlConnection) -> Self {
        Self {
            connection,
            heartbeats: HeartbeatSchedule::default(),
            draining: Vec::new(),
            committing: Vec::new(),
        }
    }

    /// Returns whether a heartbeat was ever acknowledged.
    pub(super) fn was_healthy(&self) -> bool {
        self.heartbeats.acknowledged_any
    }

    /// Dials, sends hello, and runs until the stream breaks or the agent has ended.
    pub(super) async fn run(&mut self, life: CancellationToken) -> Result<(), DisconnectError> {
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let connect = self.connect(life, messages);
        let held = self.connection.claim_sender.borrow().clone();
        send(&outbox, messages::hello(&self.connection.info, held.as_deref()))?;
        let inbound = tokio::select! {
            connected = connect => connected?,
            () = self.connection.ended.cancelled() => return Ok(()),
        };
        self.exchange(outbox, inbound).await
    }

    fn connect(
        &self,
        life: CancellationToken,
        messages: mpsc::Receiver<AgentMessage>,
    ) -> impl Future<Output = Result<Streaming<wire::ControlMessage>, DisconnectError>> + use<> {
        let control = self.connection.control.clone();
        async move {
            let sender = dial(&control, life).await?;
            // Read only after the control plane has proven its identity.
            let credential = credential(&control).await?;
            let mut bearer: MetadataValue<_> =
                format!("Bearer {credential}").parse().map_err(|_| DisconnectError::BadCredential)?;
            bearer.set_sensitive(true);
            let service = tower::service_fn(move |request| {
                let mut sender = sender.clone();
                async move { sender.send_request(request).await }
            });
            let mut client = AgentsClient::with_origin(service, Uri::from_static(ORIGIN));
            let mut request = Request::new(ReceiverStream::new(messages));
            request.metadata_mut().insert(AUTHORIZATION.as_str(), bearer);
            let answer = timeout(HELLO_TIMEOUT, client.connect(request)).await;
            Ok(answer
                .map_err(|_| DisconnectError::NoAnswer)?
                .map_err(DisconnectError::Rejected)?
                .into_inner())
        }
    }

    async fn exchange(
        &mut self,
        outbox: mpsc::Sender<AgentMessage>,
        mut inbound: Streaming<wire::ControlMessage>,
    ) -> Result<(), DisconnectError> {
        let mut revisions = self.connection.activity.subscribe();
        let hello_deadline = Instant::now() + HELLO_TIMEOUT;
        let mut answered = false;
        loop {
            let timeout = acknowledgement_timeout(self.interval());
            tokio::select! {
                received = inbound.message() => {
                    let received = received.map_err(DisconnectError::Rejected)?;
                    let received = received.ok_or(DisconnectError::Closed)?;
                    answered = true;
                    if let Some(message) = received.message {
                        self.handle_message(message, &outbox)?;
                    }
                }
                () = sleep_until(self.heartbeats.next) => self.send_heartbeat(&outbox)?,
                () = sleep_until(self.heartbeats.unacknowledged_since.map(|since| since + timeout)) => {
                    return Err(DisconnectError::Silent(timeout));
                }
                () = sleep_until((!answered).then_some(hello_deadline)) => {
                    return Err(DisconnectError::NoAnswer);
                }
                Ok(()) = revisions.changed() => {
                    let urgent = revisions.borrow_and_update().urgent;
                    self.heartbeats.activity_changed(urgent, Instant::now());
                }
                () = self.connection.sleep.completed(), if !self.committing.is_empty() => {
                    for id in self.committing.drain(..) {
                        send(&outbox, messages::done(id))?;
                    }
                }
                () = self.connection.ended.cancelled() => return self.finish(outbox, inbound).await,
            }
        }
    }

    fn handle_message(
        &mut self,
        message: Message,
        outbox: &mpsc::Sender<AgentMessage>,
    ) -> Result<(), DisconnectError> {
        match message {
            Message::AwaitClaim(wire::AwaitClaim {}) => tracing::info!("waiting for a claim"),
            Message::Claim(claim) => self.accept_claim(messages::claim(claim)?),
            Message::HeartbeatAck(ack) => self.acknowledged(ack.sequence),
            Message::Directive(directive) => self.handle_directive(directive, outbox)?,
            Message::Dismiss(dismiss) => {
                tracing::warn!(
                    reason = dismiss.reason,
                    message = dismiss.message,
                    "dismissed by the control plane"
                );
                let why = format!("{}: {}", dismiss.reason, dismiss.message);
                self.connection.shutdown.request(ShutdownRequest::new(ShutdownReason::Dismissed(why)));
            }
        }
        Ok(())
    }

    /// Publishes the claim. An agent serves one epoch of one workspace for its whole life. Any
    /// other claim shuts the agent down.
    fn accept_claim(&mut self, mut claim: Claim) {
        let held = self.connection.claim_sender.borrow().clone();
        if let Some(held) = &held
            && (&held.workspace_id, held.epoch) != (&claim.workspace_id, claim.epoch)
        {
            tracing::error!(?held, ?claim, "claimed for another workspace or epoch");
            self.connection.shutdown.request(ShutdownRequest::new(ShutdownReason::OtherClaim));
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
            // Set before the claim is published, and so before any client is authorized.
            self.connection.sleep.gate().enter_maintenance();
        }
        let interval = claim.policy.heartbeat_interval;
        self.connection.claim_sender.send_replace(Some(Arc::new(claim)));
        // The first claim of a stream makes a heartbeat due at once. A repeated claim keeps the
        // schedule.
        self.heartbeats.start(Instant::now(), interval);
    }

    fn acknowledged(&mut self, sequence: u64) {
        if !self.heartbeats.acknowledged(sequence, Instant::now()) {
            tracing::warn!(sequence, "acknowledgement of a heartbeat that was never sent");
            return;
        }
        self.connection.activity.heartbeat_acknowledged(sequence);
        self.connection.metrics.heartbeat_acknowledged();
    }

    fn handle_directive(
        &mut self,
        directive: wire::Directive,
        outbox: &mpsc::Sender<AgentMessage>,
    ) -> Result<(), DisconnectError> {
        let id = directive.id;
        match directive.directive {
            Some(Directive::Drain(drain)) => {
                let grace = drain.grace.and_then(|grace| Duration::try_from(grace).ok());
                let mut request = ShutdownRequest::new(ShutdownReason::Drained);
                request.grace = grace.unwrap_or(request.grace);
                self.draining.push(id);
                self.connection.shutdown.request(request);
                Ok(())
            }
            Some(Directive::Warn(warn)) => {
                let warning = messages::warning(warn);
                tracing::warn!(?warning, "sleep warning received");
                self.connection.activity.warn(warning);
                send(outbox, messages::done(id))
            }
            Some(Directive::Prepare(prepare)) => {
                let (hold, urgency, cause) = messages::prepare(&prepare);
                self.answer(id, self.connection.sleep.prepare(hold, urgency, cause), outbox)
            }
            Some(Directive::Commit(wire::Commit {})) => match self.connection.sleep.commit() {
                Ok(()) => self.commit(id),
                declined => self.answer(id, declined, outbox),
            },
            Some(Directive::Cancel(wire::Cancel {})) => {
                self.answer(id, self.connection.sleep.cancel(), outbox)
            }
            None => {
                let detail = "this agent does not support the directive".to_owned();
                let (reason, snapshot) =
                    (wire::DeclineReason::Unspecified, self.connection.activity.snapshot());
                send(outbox, messages::declined(id, reason, detail, &snapshot))
            }
        }
    }

    /// Delays the answer until everything is on disk.
    fn commit(&mut self, id: u64) -> Result<(), DisconnectError> {
        if self.committing.len() >= OUTBOX_MESSAGES {
            return Err(DisconnectError::Stuck);
        }
        self.committing.push(id);
        Ok(())
    }

    fn answer(
        &self,
        id: u64,
        done: Result<(), SleepDeclined>,
        outbox: &mpsc::Sender<AgentMessage>,
    ) -> Result<(), DisconnectError> {
        let answer = match done {
            Ok(()) => messages::done(id),
            Err(declined) => {
                let (reason, snapshot) =
                    (messages::decline_reason(&declined), self.connection.activity.snapshot());
                messages::declined(id, reason, declined.to_string(), &snapshot)
            }
        };
        send(outbox, answer)
    }

    fn send_heartbeat(&mut self, outbox: &mpsc::Sender<AgentMessage>) -> Result<(), DisconnectError> {
        let (now, sequence) = (Instant::now(), self.heartbeats.sent + 1);
        let snapshot = self.connection.activity.heartbeat(sequence);
        send(outbox, messages::heartbeat(sequence, &snapshot))?;
        self.connection.metrics.heartbeat_sent();
        self.heartbeats.sent(snapshot.urgent(), now, self.interval(), fastrand::f64());
        Ok(())
    }

    fn interval(&self) -> Duration {
        let claim = self.connection.claim_sender.borrow();
        claim.as_ref().map(|claim| claim.policy.heartbeat_interval).unwrap_or_default()
    }

    /// Answers the drain directives, and waits briefly for the control plane to close the stream.
    async fn finish(
        &mut self,
        outbox: mpsc::Sender<AgentMessage>,
        mut inbound: Streaming<wire::ControlMessage>,
    ) -> Result<(), DisconnectError> {
        for id in self.draining.drain(..) {
            send(&outbox, messages::done(id))?;
        }
        drop(outbox);
        let drained = async { while let Ok(Some(_)) = inbound.message().await {} };
        if timeout(CLOSE_TIMEOUT, drained).await.is_err() {
            tracing::debug!("control plane did not close the stream in time");
        }
        Ok(())
    }
}

fn send(outbox: &mpsc::Sender<AgentMessage>, message: AgentMessage) -> Result<(), DisconnectError> {
    outbox.try_send(message).map_err(|_| DisconnectError::Stuck)
}

/// Heartbeat times of one stream. No heartbeat is due before the stream has delivered a claim.
#[derive(Debug, Default)]
struct HeartbeatSchedule {
    /// Number of the last heartbeat.
    sent: u64,
    /// Time of the next heartbeat; `None` before the first claim.
    next: Option<Instant>,
    last: Option<(Instant, UrgentActivity)>,
    /// Time since which an acknowledgement is missing. `None` if the newest heartbeat is
    /// acknowledged.
    unacknowledged_since: Option<Instant>,
    acknowledged_any: bool,
}

/// Returns the time without an acknowledgement after which the connection is closed.
fn acknowledgement_timeout(interval: Duration) -> Duration {
    interval * MAX_UNACKNOWLEDGED_INTERVALS
}

impl HeartbeatSchedule {
    /// Makes the first heartbeat due at once. After a repeated claim the next heartbeat stays due
    /// as before, or earlier if the new interval is shorter.
    fn start(&mut self, now: Instant, interval: Duration) {
        self.next = Some(self.next.map_or(now, |due| due.min(now + interval)));
    }

    /// Records a sent heartbeat and what it reported, and schedules the next. `chance` is in 0..1.
    fn sent(&mut self, urgent: UrgentActivity, now: Instant, interval: Duration, chance: f64) {
        self.sent += 1;
        self.last = Some((now, urgent));
        self.unacknowledged_since.get_or_insert(now);
        self.next = Some(now + interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * chance));
    }

    /// Records an acknowledgement. Returns `false` if a heartbeat with this number was never sent.
    fn acknowledged(&mut self, sequence: u64, now: Instant) -> bool {
        if sequence > self.sent {
            return false;
        }
        self.acknowledged_any = true;
        // The acknowledgement of an older heartbeat also proves that the control plane is alive.
        self.unacknowledged_since = (sequence < self.sent).then_some(now);
        true
    }

    /// Makes the next heartbeat due early if this differs from what the last one reported.
    fn activity_changed(&mut self, urgent: UrgentActivity, now: Instant) {
        if let (Some((at, reported)), Some(due)) = (self.last, self.next)
            && reported != urgent
        {
            self.next = Some(due.min((at + MIN_CHANGE_INTERVAL).max(now)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::assessment::ActivityLevel;

    const INTERVAL: Duration = Duration::from_secs(15);

    fn at_level(level: ActivityLevel) -> UrgentActivity {
        UrgentActivity { level, command_fails: false }
    }

    #[test]
    fn heartbeats_keep_interval_and_report_level_changes_early() {
        let (mut heartbeats, start) = (HeartbeatSchedule::default(), Instant::now());
        heartbeats.activity_changed(at_level(ActivityLevel::Active), start);
        assert_eq!(heartbeats.next, None, "not claimed yet");
        heartbeats.start(start, INTERVAL);
        assert_eq!(heartbeats.next, Some(start));
        heartbeats.sent(at_level(ActivityLevel::Idle), start, INTERVAL, 0.0);
        assert_eq!(heartbeats.next, Some(start + INTERVAL.mul_f64(0.9)));
        heartbeats.sent(at_level(ActivityLevel::Idle), start, INTERVAL, 1.0);
        let due = heartbeats.next.unwrap();
        assert_eq!(due, start + INTERVAL.mul_f64(1.1));
        heartbeats.start(start, 2 * INTERVAL);
        heartbeats.activity_changed(at_level(ActivityLevel::Idle), start + MIN_CHANGE_INTERVAL);
        assert_eq!(
            heartbeats.next,
            Some(due),
            "neither a repeated claim nor an unchanged level changes the schedule"
        );
        heartbeats.activity_changed(at_level(ActivityLevel::Active), start + MIN_CHANGE_INTERVAL / 4);
        assert_eq!(heartbeats.next, Some(start + MIN_CHANGE_INTERVAL));
        heartbeats.activity_changed(at_level(ActivityLevel::Busy), start + MIN_CHANGE_INTERVAL * 3);
        assert_eq!(heartbeats.next, Some(start + MIN_CHANGE_INTERVAL), "an earlier due time stays");
        let mut failing = HeartbeatSchedule::default();
        failing.sent(at_level(ActivityLevel::Idle), start, INTERVAL, 0.5);
        failing.activity_changed(
            UrgentActivity { level: ActivityLevel::Idle, command_fails: true },
            start + MIN_CHANGE_INTERVAL,
        );
        assert_eq!(failing.next, Some(start + MIN_CHANGE_INTERVAL), "a failing command is reported early");
        heartbeats.start(start, MIN_CHANGE_INTERVAL / 2);
        assert_eq!(
            heartbeats.next,
            Some(start + MIN_CHANGE_INTERVAL / 2),
            "a shorter interval of a new policy applies at once"
        );
    }

    #[test]
    fn silence_starts_at_first_unacknowledged_heartbeat() {
        let (mut heartbeats, start) = (HeartbeatSchedule::default(), Instant::now());
        let at = |n: u32| start + INTERVAL * n;
        heartbeats.start(start, INTERVAL);
        assert_eq!(heartbeats.unacknowledged_since, None);
        for n in 0..2 {
            heartbeats.sent(at_level(ActivityLevel::Idle), at(n), INTERVAL, 0.5);
        }
        assert_eq!(heartbeats.unacknowledged_since, Some(start));
        assert!(
            !heartbeats.acknowledged(3, at(2)) && !heartbeats.acknowledged_any,
            "a heartbeat that was never sent"
        );
        assert!(heartbeats.acknowledged(1, at(2)) && heartbeats.acknowledged_any);
        assert_eq!(heartbeats.unacknowledged_since, Some(at(2)));
        assert!(heartbeats.acknowledged(2, at(2)));
        assert_eq!(heartbeats.unacknowledged_since, None);
    }
}
