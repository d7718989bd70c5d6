//! State: what the door knows, under its lock. Pure: the time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Intent, Refused};

/// Intents that are held at once. More are refused: who finds so many before it can as well come back.
pub const HELD: usize = 1024;
/// Bytes that all of them may hold together; more are refused. One message of 1 MiB may go over it.
pub const HELD_BYTES: usize = 8 * 1024 * 1024;
/// How finely the door tells of being used over and over: the verdict needs no more.
const TELL_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) maintenance: bool,
    /// Of what is remembered: keystrokes, writes, starts.
    pub(super) last: [Option<Instant>; 3],
    /// In the order in which they came.
    pub(super) waiting: BTreeMap<u64, Waiter>,
    waited: u64,
    pub(super) held_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Open,
    Prepared {
        until: Instant,
        force: bool,
    },
    Shut,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) intent: Intent,
    pub(super) bytes: usize,
    pub(super) tell: oneshot::Sender<Result<(), Refused>>,
}

impl State {
    /// `true` if it came after a pause.
    pub(super) fn remember(&mut self, intent: Intent, now: Instant) -> bool {
        let Some(index) = intent.remembered_as() else { return false };
        let before = self.last[index].replace(now);
        before.is_none_or(|at| now.duration_since(at) >= TELL_EVERY)
    }

    pub(super) fn wait(
        &mut self,
        intent: Intent,
        bytes: usize,
    ) -> Option<(u64, oneshot::Receiver<Result<(), Refused>>)> {
        if self.waiting.len() >= HELD || self.held_bytes >= HELD_BYTES {
            return None;
        }
        let (tell, answer) = oneshot::channel();
        self.waited += 1;
        self.held_bytes += bytes;
        self.waiting.insert(self.waited, Waiter { intent, bytes, tell });
        Some((self.waited, answer))
    }

    pub(super) fn lapse(&mut self, now: Instant) -> bool {
        matches!(self.phase, Phase::Prepared { until, .. } if until <= now) && self.pass(now)
    }

    /// Opens the door. To pass is to be admitted, so that whoever prepares next finds it used. `true` if that is an edge.
    pub(super) fn pass(&mut self, now: Instant) -> bool {
        self.phase = Phase::Open;
        let intents: Vec<_> = self.waiting.values().map(|waiter| waiter.intent).collect();
        self.answer_all(Ok(()));
        intents.into_iter().fold(false, |edge, intent| self.remember(intent, now) | edge)
    }

    pub(super) fn answer_all(&mut self, answer: Result<(), Refused>) {
        self.held_bytes = 0;
        for waiter in std::mem::take(&mut self.waiting).into_values() {
            // Who has left meanwhile needs no answer.
            let _left = waiter.tell.send(answer);
        }
    }
}
