//! Model of an agent, as `proto/podling/control/v1/agents.proto` describes it. It counts idle time,
//! and holds input while it is prepared to sleep.

use std::{collections::VecDeque, time::Duration};

use podling_core::{observed::UseState, status::Urgency};

use super::workspace::{Agent, AgentMessage, AgentStream, ControlMessage};

/// Every eighth heartbeat reports unknown use.
const UNKNOWN_EVERY: u64 = 8;
/// Milliseconds between two heartbeats.
const HEARTBEAT_INTERVAL: u64 = 15_000;
/// Longest interval between two acknowledged heartbeats that counts as idle time, in milliseconds.
/// A longer one means that the agent or the connection was suspended.
const LONGEST_COUNTED_INTERVAL: u64 = 25_000;
/// Longest time in milliseconds that input is held.
const HOLD_LIMIT: u64 = 10_000;
/// Milliseconds for which a keystroke counts as use.
const ACTIVE_FOR: u64 = 3_000;

impl Agent {
    pub(crate) fn new(maintenance: bool, now: u64) -> Self {
        Self {
            maintenance,
            claimed: false,
            suspended_until: 0,
            stream: None,
            idle_timeout: Duration::MAX,
            idle: Duration::ZERO,
            // A new agent has not been used.
            used_at: now.saturating_sub(ACTIVE_FOR),
            busy_until: 0,
            unacknowledged: VecDeque::new(),
            acknowledged_at: None,
            sequence: 0,
            next_heartbeat: now,
            holding_until: None,
            forced: false,
            held: 0,
            committed: false,
            unsaved: 0,
            resources: None,
        }
    }

    /// Returns whether the agent is claimed and serves a user.
    pub(crate) fn serves(&self) -> bool {
        self.claimed && !self.maintenance
    }

    fn is_used(&self, now: u64) -> bool {
        now < self.busy_until || now < self.used_at + ACTIVE_FOR
    }

    fn record_use(&mut self, now: u64) {
        self.used_at = now;
        self.idle = Duration::ZERO;
        self.acknowledged_at = None;
        self.unacknowledged.clear();
        self.next_heartbeat = now;
    }

    /// Receives a keystroke. Returns whether the keystroke reached a program.
    pub(crate) fn accept_keystroke(&mut self, now: u64) -> bool {
        if self.suspended_until > now || self.committed || !self.serves() {
            return false;
        }
        if self.holding_until.is_some() {
            self.held += 1;
            return false;
        }
        self.record_use(now);
        self.unsaved += 1;
        true
    }

    fn resume(&mut self, now: u64) {
        self.holding_until = None;
        if self.held > 0 {
            self.unsaved += std::mem::take(&mut self.held);
            self.record_use(now);
        }
    }

    /// Ends an expired hold and sends the heartbeat that is due by `now`.
    pub(crate) fn advance_to(&mut self, now: u64) {
        if self.suspended_until > now {
            return;
        }
        if self.holding_until.is_some_and(|until| until <= now) && !self.committed {
            self.resume(now);
        }
        if self.is_used(now) {
            self.idle = Duration::ZERO;
            self.acknowledged_at = None;
            self.unacknowledged.clear();
        }
        if self.claimed && self.next_heartbeat <= now {
            self.next_heartbeat = now + HEARTBEAT_INTERVAL;
            self.sequence += 1;
            let sequence = self.sequence;
            let used = match self.is_used(now) {
                _ if sequence.is_multiple_of(UNKNOWN_EVERY) => UseState::Unknown,
                true => UseState::Yes,
                false => UseState::No(self.idle),
            };
            if let Some(stream) = &mut self.stream {
                stream.up.push_back(AgentMessage::Heartbeat { sequence, used });
                if matches!(used, UseState::No(_)) {
                    self.unacknowledged.push_back((sequence, now));
                }
            }
        }
    }

    pub(crate) fn drop_stream(&mut self) {
        self.stream = None;
        self.acknowledged_at = None;
        self.unacknowledged.clear();
    }

    pub(crate) fn connect(&mut self, connection: u64) {
        self.drop_stream();
        self.stream = Some(AgentStream {
            connection,
            blocked_until: 0,
            up: VecDeque::from([AgentMessage::Hello]),
            down: VecDeque::new(),
        });
    }

    /// Handles a message of the control plane. Returns `false` if the agent ends because of it.
    pub(crate) fn receive(&mut self, message: ControlMessage, now: u64) -> bool {
        let (order, result) = match message {
            ControlMessage::Claim { idle_timeout } => {
                self.claimed = true;
                self.idle_timeout = idle_timeout;
                self.next_heartbeat = now;
                return true;
            }
            ControlMessage::Ack { sequence } => {
                self.acknowledge(sequence);
                return true;
            }
            ControlMessage::Dismiss => return false,
            ControlMessage::Prepare { order, urgency } => (order, self.prepare(urgency, now)),
            ControlMessage::Commit { order } => (order, self.commit(now)),
            ControlMessage::Cancel { order } => (order, self.cancel(now)),
        };
        if let Some(stream) = &mut self.stream {
            stream.up.push_back(AgentMessage::Result { order, result });
        }
        true
    }

    fn acknowledge(&mut self, sequence: u64) {
        while let Some((number, at)) = self.unacknowledged.pop_front() {
            if number == sequence {
                if let Some(last) = self.acknowledged_at.filter(|last| at - last <= LONGEST_COUNTED_INTERVAL)
                {
                    self.idle += Duration::from_millis(at - last);
                }
                self.acknowledged_at = Some(at);
                return;
            }
        }
    }

    fn prepare(&mut self, urgency: Urgency, now: u64) -> Result<(), &'static str> {
        if self.committed {
            return Ok(());
        }
        let declines = match urgency {
            Urgency::Idle => self.is_used(now) || self.idle < self.idle_timeout,
            Urgency::Requested => self.is_used(now),
            Urgency::Forced => false,
        };
        if declines {
            return Err("in use");
        }
        self.holding_until = Some(now + HOLD_LIMIT);
        self.forced = urgency == Urgency::Forced;
        Ok(())
    }

    fn commit(&mut self, now: u64) -> Result<(), &'static str> {
        if self.committed {
            return Ok(());
        }
        if self.holding_until.is_none() {
            return Err("not prepared");
        }
        if self.held > 0 && !self.forced {
            self.resume(now);
            return Err("input was held");
        }
        self.held = 0;
        self.unsaved = 0;
        self.committed = true;
        Ok(())
    }

    fn cancel(&mut self, now: u64) -> Result<(), &'static str> {
        if self.committed {
            return Err("already committed");
        }
        self.resume(now);
        Ok(())
    }
}
