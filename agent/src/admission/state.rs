//! State of the gate, guarded by its lock. Pure: the time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Intent, Rejection};

/// Held requests at once; more are rejected, and their clients may retry.
pub const MAX_HELD_REQUESTS: usize = 1024;
/// Bytes of all held requests together, from which further requests are rejected. The last held
/// request may exceed the bound by its own size.
pub const MAX_HELD_BYTES: usize = 8 * 1024 * 1024;
/// Minimum time between two notifications while intents of one kind keep arriving. The assessment
/// needs no finer resolution.
const EDGE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct GateState {
    pub(super) phase: GatePhase,
    pub(super) maintenance: bool,
    /// Last admission of keystrokes, client writes and client starts, in this order.
    pub(super) last: [Option<Instant>; 3],
    /// Held requests by ticket, which is the order of arrival.
    pub(super) held: BTreeMap<u64, HeldIntent>,
    last_ticket: u64,
    pub(super) held_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum GatePhase {
    #[default]
    Open,
    Holding {
        until: Instant,
        force: bool,
    },
    Closed,
}

#[derive(Debug)]
pub(super) struct HeldIntent {
    pub(super) intent: Intent,
    pub(super) bytes: usize,
    pub(super) decision: oneshot::Sender<Result<(), Rejection>>,
}

impl GateState {
    /// Records an intent. Returns `true` if the previous intent of its kind is at least
    /// [`EDGE_INTERVAL`] old, or if there was none.
    pub(super) fn record(&mut self, intent: Intent, now: Instant) -> bool {
        let Some(index) = intent.history_slot() else { return false };
        let before = self.last[index].replace(now);
        before.is_none_or(|at| now.duration_since(at) >= EDGE_INTERVAL)
    }

    pub(super) fn hold(
        &mut self,
        intent: Intent,
        bytes: usize,
    ) -> Option<(u64, oneshot::Receiver<Result<(), Rejection>>)> {
        if self.held.len() >= MAX_HELD_REQUESTS || self.held_bytes >= MAX_HELD_BYTES {
            return None;
        }
        let (decision, answer) = oneshot::channel();
        self.last_ticket += 1;
        self.held_bytes += bytes;
        self.held.insert(self.last_ticket, HeldIntent { intent, bytes, decision });
        Some((self.last_ticket, answer))
    }

    pub(super) fn expire_hold(&mut self, now: Instant) -> bool {
        matches!(self.phase, GatePhase::Holding { until, .. } if until <= now) && self.admit_held(now)
    }

    /// Opens the gate and admits the held requests. Records their intents, so that the next prepare
    /// sees them. Returns `true` if [`Self::record`] returned `true` for one of them.
    pub(super) fn admit_held(&mut self, now: Instant) -> bool {
        self.phase = GatePhase::Open;
        let intents: Vec<_> = self.held.values().map(|held| held.intent).collect();
        self.decide_all(Ok(()));
        intents.into_iter().fold(false, |edge, intent| self.record(intent, now) | edge)
    }

    pub(super) fn decide_all(&mut self, answer: Result<(), Rejection>) {
        self.held_bytes = 0;
        for held in std::mem::take(&mut self.held).into_values() {
            // A request that was dropped meanwhile needs no answer.
            let _left = held.decision.send(answer);
        }
    }
}
