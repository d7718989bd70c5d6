//! Intent: the doors through which people act on a workspace, and when each was last used.
//!
//! Whoever takes a keystroke, a client's write, a start or a lease asks here first. That one question is the lock of the two-phase
//! sleep: while the agent prepares to sleep nobody is admitted, so no intent can slip in between "it is idle" and "it sleeps".
//!
//! ```text
//!   open ──close──▶ prepared ──shut──▶ shut, for good: all are refused
//!    ▲                 │ (who asks is held, boundedly)
//!    └──open, or the end of the hold: who waits passes──┘
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

/// A thing that only somebody who means it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Intent {
    /// A user typed.
    Keystroke,
    /// A client changed a file.
    ClientWrite,
    /// A client started a command or opened a terminal.
    ClientStart,
    /// A client fills the workspace from an archive: a client's write, and the only one that maintenance admits.
    Restore,
    /// Somebody takes a lease. It speaks for itself as long as it holds, so its taking is not remembered.
    Lease,
}

/// Nobody is admitted, and waiting is no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The workspace falls asleep, or too many wait already.
    #[error("the workspace prepares to sleep; try again in a moment")]
    Preparing,
    /// Only the workspace's storage is being read or filled.
    #[error("the workspace is in maintenance: only its files can be read or restored")]
    Maintenance,
}

/// The gate did not shut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// It was not prepared, or its hold was over.
    NotHolding,
    /// Somebody wants in. All have passed.
    RequestsHeld(Vec<Intent>),
}

/// The gate, and the record of who came through it.
#[derive(Debug)]
pub struct AdmissionGate {
    state: Mutex<GateState>,
    changed: watch::Sender<u64>,
}

impl Intent {
    /// Those whose last time is remembered.
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
    /// An open gate that nobody has used.
    pub fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// From here on only [`Intent::Restore`] is admitted.
    pub fn enter_maintenance(&self) {
        self.state().maintenance = true;
    }

    /// Asks to act with this many bytes in hand; the act is recorded when it is admitted. Never waits: whoever is held gets its place
    /// in the same moment.
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
                        tracing::debug!(?intent, "held while the workspace prepares to sleep");
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

    /// Asks to act, and waits while it is held.
    pub async fn admit(self: &Arc<Self>, intent: Intent) -> Result<(), Rejection> {
        Attempt::retry_while_held(|| Ok(self.try_admit(intent, 0)?)).await
    }

    /// Nobody passes for so long, unless it is opened before. A gate that is closed already is closed anew, but for no longer if
    /// somebody waits. `false` if it is shut.
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

    /// Back to normal: who waits passes. `false` if it is shut.
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

    /// Nobody passes any more, ever; who waits is refused. Not if it was not closed, or if somebody waits whom no `force` overrides:
    /// then all pass. A repeat changes nothing.
    pub fn close(&self) -> Result<(), CommitError> {
        let now = Instant::now();
        let mut state = self.state();
        let mut edge = state.expire_hold(now);
        let done = match state.phase {
            GatePhase::Closed => Ok(()),
            GatePhase::Open => Err(CommitError::NotHolding),
            GatePhase::Holding { force: false, .. } if !state.held.is_empty() => {
                let wanted = state.held.values().map(|held| held.intent).collect();
                edge |= state.admit_held(now);
                Err(CommitError::RequestsHeld(wanted))
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

    /// Whether somebody who asks now would have to wait.
    pub fn is_holding(&self) -> bool {
        matches!(self.state().phase, GatePhase::Holding { until, .. } if until > Instant::now())
    }

    /// Who waits.
    pub fn held_intents(&self) -> Vec<Intent> {
        self.state().held.values().map(|held| held.intent).collect()
    }

    /// When this was last done. Of what is not remembered: never.
    pub fn last_admitted(&self, intent: Intent) -> Option<Instant> {
        self.state().last[intent.history_slot()?]
    }

    /// Ticks when an intent came after a pause: an edge worth a heartbeat.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Opens it if its hold is over; else says until when it lasts.
    fn expire_hold(&self) -> Option<Instant> {
        let mut state = self.state();
        let edge = state.expire_hold(Instant::now());
        let until = if let GatePhase::Holding { until, .. } = state.phase { Some(until) } else { None };
        drop(state);
        self.notify(edge);
        until
    }

    /// It waits no longer.
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
