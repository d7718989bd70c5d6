//! An agent, as `proto/podling/control/v1/agents.proto` describes it: what it counts, and how its door works.

use std::{collections::VecDeque, time::Duration};

use podling_core::{observed::Used, status::Urgency};

use super::real::{Agent, Down, Link, Up};

/// Of so many beats one cannot say whether the workspace is used.
const DOUBTS: u64 = 8;
/// Between two beats, milliseconds.
const BEAT: u64 = 15_000;
/// Idle time between two beats counts only up to this: more means that it, or the line, stood still.
const LONGEST_BEAT: u64 = 25_000;
/// How long a door is shut at most.
const HOLD: u64 = 10_000;
/// A keystroke is use for so long.
const ACTIVE: u64 = 3_000;

impl Agent {
    pub(crate) fn new(maintenance: bool, now: u64) -> Self {
        Self {
            maintenance,
            claimed: false,
            stuck: 0,
            link: None,
            idle_timeout: Duration::MAX,
            idle: Duration::ZERO,
            // Nobody has used it yet.
            used: now.saturating_sub(ACTIVE),
            busy: 0,
            beats: VecDeque::new(),
            acknowledged: None,
            sequence: 0,
            next_beat: now,
            shut: None,
            force: false,
            held: 0,
            committed: false,
            unsaved: 0,
            has: None,
        }
    }

    /// Whether it serves its user.
    pub(crate) fn serves(&self) -> bool {
        self.claimed && !self.maintenance
    }

    fn is_used(&self, now: u64) -> bool {
        now < self.busy || now < self.used + ACTIVE
    }

    fn intent(&mut self, now: u64) {
        self.used = now;
        self.idle = Duration::ZERO;
        self.acknowledged = None;
        self.beats.clear();
        self.next_beat = now;
    }

    /// A keystroke; whether it reached a program.
    pub(crate) fn typed(&mut self, now: u64) -> bool {
        if self.stuck > now || self.committed || !self.serves() {
            return false;
        }
        if self.shut.is_some() {
            self.held += 1;
            return false;
        }
        self.intent(now);
        self.unsaved += 1;
        true
    }

    fn open(&mut self, now: u64) {
        self.shut = None;
        if self.held > 0 {
            self.unsaved += std::mem::take(&mut self.held);
            self.intent(now);
        }
    }

    /// Time has come to `now`.
    pub(crate) fn lives_on(&mut self, now: u64) {
        if self.stuck > now {
            return;
        }
        if self.shut.is_some_and(|until| until <= now) && !self.committed {
            self.open(now);
        }
        if self.is_used(now) {
            self.idle = Duration::ZERO;
            self.acknowledged = None;
            self.beats.clear();
        }
        if self.claimed && self.next_beat <= now {
            self.next_beat = now + BEAT;
            self.sequence += 1;
            let sequence = self.sequence;
            let used = match self.is_used(now) {
                _ if sequence.is_multiple_of(DOUBTS) => Used::Unknown,
                true => Used::Yes,
                false => Used::No(self.idle),
            };
            if let Some(link) = &mut self.link {
                link.up.push_back(Up::Beat { sequence, used });
                if matches!(used, Used::No(_)) {
                    self.beats.push_back((sequence, now));
                }
            }
        }
    }

    /// It has no stream any more.
    pub(crate) fn unlinked(&mut self) {
        self.link = None;
        self.acknowledged = None;
        self.beats.clear();
    }

    pub(crate) fn dial(&mut self, connection: u64) {
        self.unlinked();
        self.link =
            Some(Link { connection, parted: 0, up: VecDeque::from([Up::Hello]), down: VecDeque::new() });
    }

    /// It is told something. `false`: it ends.
    pub(crate) fn told(&mut self, what: Down, now: u64) -> bool {
        let (order, result) = match what {
            Down::Claim { idle_timeout } => {
                self.claimed = true;
                self.idle_timeout = idle_timeout;
                self.next_beat = now;
                return true;
            }
            Down::Ack { sequence } => {
                self.acknowledge(sequence);
                return true;
            }
            Down::Dismiss => return false,
            Down::Prepare { order, urgency } => (order, self.prepare(urgency, now)),
            Down::Commit { order } => (order, self.commit(now)),
            Down::Cancel { order } => (order, self.cancel(now)),
        };
        if let Some(link) = &mut self.link {
            link.up.push_back(Up::Result { order, result });
        }
        true
    }

    fn acknowledge(&mut self, sequence: u64) {
        while let Some((number, at)) = self.beats.pop_front() {
            if number == sequence {
                if let Some(last) = self.acknowledged.filter(|last| at - last <= LONGEST_BEAT) {
                    self.idle += Duration::from_millis(at - last);
                }
                self.acknowledged = Some(at);
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
            return Err("it is used");
        }
        self.shut = Some(now + HOLD);
        self.force = urgency == Urgency::Forced;
        Ok(())
    }

    fn commit(&mut self, now: u64) -> Result<(), &'static str> {
        if self.committed {
            return Ok(());
        }
        if self.shut.is_none() {
            return Err("it is not prepared");
        }
        if self.held > 0 && !self.force {
            self.open(now);
            return Err("somebody types");
        }
        self.held = 0;
        self.unsaved = 0;
        self.committed = true;
        Ok(())
    }

    fn cancel(&mut self, now: u64) -> Result<(), &'static str> {
        if self.committed {
            return Err("it has ended everything");
        }
        self.open(now);
        Ok(())
    }
}
