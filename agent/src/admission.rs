//! The admission gate, which admits the intents of users and clients, and records when each kind
//! was last admitted.
//!
//! A keystroke, client write, start or lease takes effect only after the gate has admitted it.
//! While the agent prepares to sleep, the gate holds all requests. No intent can therefore take
//! effect between the last assessment and the commit of the sleep.
//!
//! ```text
//!   open ──hold──▶ holding ──close──▶ closed for good: rejects all requests
//!    ▲               │ holds requests, up to a bound
//!    └─ resume, or the hold expires: held requests are admitted
//! ```

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    time::sleep_until,
};

use crate::util::lock;

/// Held requests at once; more are rejected, and their clients may retry.
pub const MAX_HELD_REQUESTS: usize = 1024;
/// Bytes of all held requests together, from which further requests are rejected. The last held
/// request may exceed the bound by its own size.
pub const MAX_HELD_BYTES: usize = 8 * 1024 * 1024;
/// Minimum time between two notifications while intents of one kind keep arriving. The assessment
/// needs no finer resolution.
const EDGE_INTERVAL: Duration = Duration::from_secs(1);

/// A deliberate action of a user or client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Intent {
    /// A user typed into a terminal or a process.
    Keystroke,
    /// A client changed a file.
    ClientWrite,
    /// A client started a process or opened a terminal.
    ClientStart,
    /// A client fills the workspace from an archive. Recorded as a client write. Maintenance mode
    /// admits no other intent.
    Restore,
    /// A client takes a lease. The lease itself is evidence of activity, so the time is not
    /// recorded.
    Lease,
}

/// Reason why the gate rejects a request instead of holding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The workspace is falling asleep, or the gate holds too many requests already.
    #[error("the workspace is preparing to sleep; try again in a moment")]
    Preparing,
    /// In maintenance mode the control plane reads or fills the workspace's storage.
    #[error(
        "the workspace is in maintenance mode, which permits only reading and restoring files; retry later"
    )]
    Maintenance,
}

/// Reason why the gate did not close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// The gate was not holding requests, or the hold had expired.
    NotHolding,
    /// Requests were held. The gate has admitted all of them.
    RequestsHeld(Vec<Intent>),
}

/// Admits, holds or rejects intents, and records when each kind was last admitted.
#[derive(Debug, Default)]
pub struct AdmissionGate {
    state: Mutex<GateState>,
    changed: watch::Sender<u64>,
}

impl Intent {
    /// The kinds of intents whose last admission is recorded.
    pub const RECORDED: [Self; 3] = [Self::Keystroke, Self::ClientWrite, Self::ClientStart];

    /// Describes the action, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Keystroke => "a user typed",
            Self::ClientWrite => "a client changed files",
            Self::ClientStart => "a client started a command or opened a terminal",
            Self::Restore => "a client restored files",
            Self::Lease => "a client took a lease",
        }
    }

    fn history_slot(self) -> Option<usize> {
        match self {
            Self::Keystroke => Some(0),
            Self::ClientWrite | Self::Restore => Some(1),
            Self::ClientStart => Some(2),
            Self::Lease => None,
        }
    }
}

impl AdmissionGate {
    pub fn new() -> Self {
        Self::default()
    }

    /// Admits only [`Intent::Restore`] from now on.
    pub fn enter_maintenance(&self) {
        self.state().maintenance = true;
    }

    /// Tries to admit a request of `bytes` bytes, and records the intent if it is admitted. Never
    /// waits. A held request is in the queue when this returns.
    pub fn try_admit(self: &Arc<Self>, intent: Intent, bytes: usize) -> Result<(), AdmitError> {
        let now = Instant::now();
        let mut state = self.state();
        let mut edge = state.expire_hold(now);
        let answer = if state.maintenance && intent != Intent::Restore {
            Err(AdmitError::Rejected(Rejection::Maintenance))
        } else {
            match state.phase {
                GatePhase::Open => {
                    edge |= state.record(intent, now);
                    Ok(())
                }
                GatePhase::Holding { until, .. } => {
                    let held = state.hold(intent, bytes);
                    held.map_or(Err(AdmitError::Rejected(Rejection::Preparing)), |(id, answer)| {
                        tracing::debug!(?intent, "request held while the workspace prepares to sleep");
                        Err(AdmitError::Held(HeldRequest { gate: Arc::clone(self), id, answer, until }))
                    })
                }
                GatePhase::Closed => Err(AdmitError::Rejected(Rejection::Preparing)),
            }
        };
        drop(state);
        self.notify(edge);
        answer
    }

    /// Admits a request, and waits while it is held.
    pub async fn admit(self: &Arc<Self>, intent: Intent) -> Result<(), Rejection> {
        Attempt::retry_while_held(|| Ok(self.try_admit(intent, 0)?)).await
    }

    /// Holds all requests for up to `hold`, or until [`Self::resume`]. Renews an active hold, but
    /// does not extend it while requests are held. Returns `false` if the gate is closed.
    pub fn hold(&self, hold: Duration, force: bool) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        let edge = state.expire_hold(now);
        let is_closed = match state.phase {
            GatePhase::Closed => true,
            GatePhase::Holding { until, .. } if !state.held.is_empty() => {
                state.phase = GatePhase::Holding { until, force };
                false
            }
            GatePhase::Open | GatePhase::Holding { .. } => {
                state.phase = GatePhase::Holding { until: now + hold, force };
                false
            }
        };
        drop(state);
        self.notify(edge);
        !is_closed
    }

    /// Opens the gate and admits all held requests. Returns `false` if the gate is closed.
    pub fn resume(&self) -> bool {
        let mut state = self.state();
        if state.phase == GatePhase::Closed {
            return false;
        }
        let edge = state.admit_held(Instant::now());
        drop(state);
        self.notify(edge);
        true
    }

    /// Closes the gate for good and rejects all held requests. If requests are held and the hold
    /// was not forced, admits them, opens the gate and fails. Does nothing if the gate is closed
    /// already.
    pub fn close(&self) -> Result<(), CommitError> {
        let now = Instant::now();
        let mut state = self.state();
        let mut edge = state.expire_hold(now);
        let done = match state.phase {
            GatePhase::Closed => Ok(()),
            GatePhase::Open => Err(CommitError::NotHolding),
            GatePhase::Holding { force: false, .. } if !state.held.is_empty() => {
                let intents = state.held.values().map(|held| held.intent).collect();
                edge |= state.admit_held(now);
                Err(CommitError::RequestsHeld(intents))
            }
            GatePhase::Holding { .. } => {
                state.phase = GatePhase::Closed;
                state.decide_all(Err(Rejection::Preparing));
                Ok(())
            }
        };
        drop(state);
        self.notify(edge);
        done
    }

    /// Returns whether a request would be held now.
    pub fn is_holding(&self) -> bool {
        matches!(self.state().phase, GatePhase::Holding { until, .. } if until > Instant::now())
    }

    /// Returns whether the hold is forced, so that the sleep does not depend on use.
    pub fn is_forced(&self) -> bool {
        matches!(self.state().phase, GatePhase::Holding { force: true, .. })
    }

    /// Returns the intents of the held requests, in order of arrival.
    pub fn held_intents(&self) -> Vec<Intent> {
        self.state().held.values().map(|held| held.intent).collect()
    }

    /// Returns the time of the last admission of this kind. `None` if there was none, or if the
    /// kind is not recorded.
    pub fn last_admitted(&self, intent: Intent) -> Option<Instant> {
        self.state().last[intent.history_slot()?]
    }

    /// Returns a counter that increases when an intent is admitted at least a second after the
    /// previous intent of its kind. Such an intent may change the activity level.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Opens the gate if the hold has expired. Otherwise returns the time at which the hold
    /// expires, or `None` if there is no hold.
    fn expire_hold(&self) -> Option<Instant> {
        let mut state = self.state();
        let edge = state.expire_hold(Instant::now());
        let until = if let GatePhase::Holding { until, .. } = state.phase { Some(until) } else { None };
        drop(state);
        self.notify(edge);
        until
    }

    /// Removes a held request that was dropped.
    fn abandon(&self, id: u64) {
        self.state().held.remove(&id);
    }

    fn notify(&self, edge: bool) {
        if edge {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        lock(&self.state)
    }
}

#[derive(Debug, Default)]
struct GateState {
    phase: GatePhase,
    maintenance: bool,
    /// Last admission of keystrokes, client writes and client starts, in this order.
    last: [Option<Instant>; 3],
    /// Held requests by ticket, which is the order of arrival.
    held: BTreeMap<u64, HeldIntent>,
    last_ticket: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum GatePhase {
    #[default]
    Open,
    Holding {
        until: Instant,
        force: bool,
    },
    Closed,
}

#[derive(Debug)]
struct HeldIntent {
    intent: Intent,
    bytes: usize,
    decision: oneshot::Sender<Result<(), Rejection>>,
}

impl GateState {
    /// Records an intent. Returns `true` if the previous intent of its kind is at least
    /// [`EDGE_INTERVAL`] old, or if there was none.
    fn record(&mut self, intent: Intent, now: Instant) -> bool {
        let Some(index) = intent.history_slot() else { return false };
        let before = self.last[index].replace(now);
        before.is_none_or(|at| now.duration_since(at) >= EDGE_INTERVAL)
    }

    fn hold(
        &mut self,
        intent: Intent,
        bytes: usize,
    ) -> Option<(u64, oneshot::Receiver<Result<(), Rejection>>)> {
        let held_bytes: usize = self.held.values().map(|held| held.bytes).sum();
        if self.held.len() >= MAX_HELD_REQUESTS || held_bytes >= MAX_HELD_BYTES {
            return None;
        }
        let (decision, answer) = oneshot::channel();
        self.last_ticket += 1;
        self.held.insert(self.last_ticket, HeldIntent { intent, bytes, decision });
        Some((self.last_ticket, answer))
    }

    fn expire_hold(&mut self, now: Instant) -> bool {
        matches!(self.phase, GatePhase::Holding { until, .. } if until <= now) && self.admit_held(now)
    }

    /// Opens the gate and admits the held requests. Records their intents, so that the next prepare
    /// sees them. Returns `true` if [`Self::record`] returned `true` for one of them.
    fn admit_held(&mut self, now: Instant) -> bool {
        self.phase = GatePhase::Open;
        let intents: Vec<_> = self.held.values().map(|held| held.intent).collect();
        self.decide_all(Ok(()));
        intents.into_iter().fold(false, |edge, intent| self.record(intent, now) | edge)
    }

    fn decide_all(&mut self, answer: Result<(), Rejection>) {
        for held in std::mem::take(&mut self.held).into_values() {
            // A request that was dropped meanwhile needs no answer.
            let _left = held.decision.send(answer);
        }
    }
}

/// Reason why a request was not admitted immediately.
#[derive(Debug)]
pub enum AdmitError {
    /// The gate holds the request. The caller waits for the decision, then tries again.
    Held(HeldRequest),
    /// The gate will not admit the request.
    Rejected(Rejection),
}

/// A request in the gate's queue. Dropping it removes it from the queue.
#[derive(Debug)]
pub struct HeldRequest {
    gate: Arc<AdmissionGate>,
    id: u64,
    answer: oneshot::Receiver<Result<(), Rejection>>,
    until: Instant,
}

/// Failure of an operation that the gate may have held.
#[derive(Debug)]
pub enum Attempt<E> {
    /// The gate holds the request, and the operation did nothing.
    Held(HeldRequest),
    Failed(E),
}

impl HeldRequest {
    /// Waits for the gate's decision. Cancel-safe. After `Ok` the caller must try its operation
    /// again, because the held attempt did nothing.
    pub async fn decision(&mut self) -> Result<(), Rejection> {
        loop {
            tokio::select! {
                biased;
                // The gate drops a sender only after it has sent the answer.
                answer = &mut self.answer => return answer.unwrap_or(Err(Rejection::Preparing)),
                () = sleep_until(self.until.into()) => {
                    if let Some(until) = self.gate.expire_hold() {
                        self.until = until;
                    }
                }
            }
        }
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        self.gate.abandon(self.id);
    }
}

impl<E> Attempt<E> {
    /// Repeats `attempt` until the gate admits or rejects it.
    pub async fn retry_while_held<T>(mut attempt: impl FnMut() -> Result<T, Self>) -> Result<T, E>
    where
        E: From<Rejection>,
    {
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Self::Failed(error)) => return Err(error),
                Err(Self::Held(mut hold)) => hold.decision().await?,
            }
        }
    }
}

impl<E: From<Rejection>> From<AdmitError> for Attempt<E> {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Held(hold) => Self::Held(hold),
            AdmitError::Rejected(rejection) => Self::Failed(rejection.into()),
        }
    }
}

impl<E> From<E> for Attempt<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}
