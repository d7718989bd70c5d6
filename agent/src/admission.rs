//! The admission gate: admits every intent of a user or client, and records when each kind was last
//! admitted.
//!
//! Every keystroke, client write, start and lease asks the gate first. The gate is the lock of the
//! two-phase sleep: while the agent prepares to sleep it holds all requests. So no intent can slip
//! in between "it is idle" and "it sleeps".
//!
//! ```text
//!   open ──hold──▶ holding ──close──▶ closed for good: rejects all requests
//!    ▲               │ holds requests, up to a bound
//!    └─ resume, or the hold expires: held requests are admitted
//! ```

mod held_request;
mod state;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use self::state::{GatePhase, GateState};
pub use self::{
    held_request::{AdmitError, Attempt, HeldRequest},
    state::{MAX_HELD_BYTES, MAX_HELD_REQUESTS},
};

/// A deliberate action of a user or client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Intent {
    /// A user typed into a terminal or a process.
    Keystroke,
    /// A client changed a file.
    ClientWrite,
    /// A client started a process or opened a terminal.
    ClientStart,
    /// A client fills the workspace from an archive. Counts as a client write. It is the only
    /// intent that maintenance mode admits.
    Restore,
    /// A client takes a lease. The lease itself is evidence of activity, so the time is not
    /// recorded.
    Lease,
}

/// A request that is not admitted and cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The workspace is falling asleep, or too many requests are held already.
    #[error("the workspace is preparing to sleep; try again in a moment")]
    Preparing,
    /// Maintenance mode: the control plane reads or fills the workspace's storage.
    #[error("the workspace is in maintenance mode: only reading and restoring files is possible")]
    Maintenance,
}

/// Why the gate did not close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// The gate was not holding requests, or the hold had expired.
    NotHolding,
    /// Requests were held. All of them have been admitted now.
    RequestsHeld(Vec<Intent>),
}

/// Admits, holds or rejects intents, and records when each kind was last admitted.
#[derive(Debug)]
pub struct AdmissionGate {
    state: Mutex<GateState>,
    changed: watch::Sender<u64>,
}

impl Intent {
    /// The kinds of intents whose last admission is recorded.
    pub const RECORDED: [Self; 3] = [Self::Keystroke, Self::ClientWrite, Self::ClientStart];

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
        Self { state: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Admits only [`Intent::Restore`] from here on.
    pub fn enter_maintenance(&self) {
        self.state().maintenance = true;
    }

    /// Tries to admit a request that holds `bytes` in memory, and records the intent if it is
    /// admitted. Never waits. A held request gets its position in the queue before this returns.
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
                        Err(AdmitError::Held(HeldRequest::new(Arc::clone(self), id, answer, until)))
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

    /// Holds all requests for up to `hold`, or until [`Self::resume`]. Renews a hold that is
    /// active, but does not extend it while requests are held. Returns `false` if the gate is
    /// closed.
    pub fn hold(&self, hold: Duration, force: bool) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        let edge = state.expire_hold(now);
        let shut = match state.phase {
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
        !shut
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

    /// Closes the gate for good and rejects all held requests. Without `force`, held requests
    /// prevent this: they are admitted and the gate opens. Does nothing if the gate is closed
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

    /// Whether a request would be held now.
    pub fn is_holding(&self) -> bool {
        matches!(self.state().phase, GatePhase::Holding { until, .. } if until > Instant::now())
    }

    /// Intents of the held requests, in order of arrival.
    pub fn held_intents(&self) -> Vec<Intent> {
        self.state().held.values().map(|held| held.intent).collect()
    }

    /// Time of the last admission of this kind. `None` for kinds that are not recorded.
    pub fn last_admitted(&self, intent: Intent) -> Option<Instant> {
        self.state().last[intent.history_slot()?]
    }

    /// Changes when an intent is admitted after a pause of at least a second: an edge worth a
    /// heartbeat.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Opens the gate if the hold has expired, else returns when it will.
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
        let mut state = self.state();
        if let Some(held) = state.held.remove(&id) {
            state.held_bytes -= held.bytes;
        }
    }

    fn notify(&self, edge: bool) {
        if edge {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Default for AdmissionGate {
    fn default() -> Self {
        Self::new()
    }
}
