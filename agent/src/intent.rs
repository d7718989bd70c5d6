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

mod hold;
mod state;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use self::state::{Phase, State};
pub use self::{
    hold::{Closed, Hold, Unmet},
    state::{HELD, HELD_BYTES},
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
pub enum Refused {
    /// The workspace falls asleep, or too many wait already.
    #[error("the workspace prepares to sleep; try again in a moment")]
    Preparing,
    /// Only the workspace's storage is being read or filled.
    #[error("the workspace is in maintenance: only its files can be read or restored")]
    Maintenance,
}

/// The door did not shut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unshut {
    /// It was not prepared, or its hold was over.
    Unprepared,
    /// Somebody wants in. All have passed.
    Wanted(Vec<Intent>),
}

/// The door, and the record of who came through it.
#[derive(Debug)]
pub struct Intents {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Intent {
    /// Those whose last time is remembered.
    pub const REMEMBERED: [Self; 3] = [Self::Keystroke, Self::ClientWrite, Self::ClientStart];

    fn remembered_as(self) -> Option<usize> {
        match self {
            Self::Keystroke => Some(0),
            Self::ClientWrite | Self::Restore => Some(1),
            Self::ClientStart => Some(2),
            Self::Lease => None,
        }
    }
}

impl Intents {
    /// An open door that nobody has used.
    pub fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// From here on only [`Intent::Restore`] is admitted.
    pub fn maintain(&self) {
        self.state().maintenance = true;
    }

    /// Asks to act with this many bytes in hand; the act is recorded when it is admitted. Never waits: whoever is held gets its place
    /// in the same moment.
    pub fn ask(self: &Arc<Self>, intent: Intent, bytes: usize) -> Result<(), Closed> {
        let now = Instant::now();
        let mut state = self.state();
        let mut edge = state.lapse(now);
        let answer = if state.maintenance && intent != Intent::Restore {
            Err(Closed::Refused(Refused::Maintenance))
        } else {
            match state.phase {
                Phase::Open => {
                    edge |= state.remember(intent, now);
                    Ok(())
                }
                Phase::Prepared { until, .. } => {
                    let held = state.wait(intent, bytes);
                    held.map_or(Err(Closed::Refused(Refused::Preparing)), |(id, answer)| {
                        tracing::debug!(?intent, "held while the workspace prepares to sleep");
                        Err(Closed::Held(Hold::new(Arc::clone(self), id, answer, until)))
                    })
                }
                Phase::Shut => Err(Closed::Refused(Refused::Preparing)),
            }
        };
        drop(state);
        self.tell(edge);
        answer
    }

    /// Asks to act, and waits while it is held.
    pub async fn admit(self: &Arc<Self>, intent: Intent) -> Result<(), Refused> {
        Unmet::until_met(|| Ok(self.ask(intent, 0)?)).await
    }

    /// Nobody passes for so long, unless it is opened before. A door that is closed already is closed anew, but for no longer if
    /// somebody waits. `false` if it is shut.
    pub fn close(&self, hold: Duration, force: bool) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        let edge = state.lapse(now);
        let shut = match state.phase {
            Phase::Shut => true,
            Phase::Prepared { until, .. } if !state.waiting.is_empty() => {
                state.phase = Phase::Prepared { until, force };
                false
            }
            Phase::Open | Phase::Prepared { .. } => {
                state.phase = Phase::Prepared { until: now + hold, force };
                false
            }
        };
        drop(state);
        self.tell(edge);
        !shut
    }

    /// Back to normal: who waits passes. `false` if it is shut.
    pub fn open(&self) -> bool {
        let mut state = self.state();
        if state.phase == Phase::Shut {
            return false;
        }
        let edge = state.pass(Instant::now());
        drop(state);
        self.tell(edge);
        true
    }

    /// Nobody passes any more, ever; who waits is refused. Not if it was not closed, or if somebody waits whom no `force` overrides:
    /// then all pass. A repeat changes nothing.
    pub fn shut(&self) -> Result<(), Unshut> {
        let now = Instant::now();
        let mut state = self.state();
        let mut edge = state.lapse(now);
        let done = match state.phase {
            Phase::Shut => Ok(()),
            Phase::Open => Err(Unshut::Unprepared),
            Phase::Prepared { force: false, .. } if !state.waiting.is_empty() => {
                let wanted = state.waiting.values().map(|waiter| waiter.intent).collect();
                edge |= state.pass(now);
                Err(Unshut::Wanted(wanted))
            }
            Phase::Prepared { .. } => {
                state.phase = Phase::Shut;
                state.answer_all(Err(Refused::Preparing));
                Ok(())
            }
        };
        drop(state);
        self.tell(edge);
        done
    }

    /// Whether somebody who asks now would have to wait.
    pub fn is_closed(&self) -> bool {
        matches!(self.state().phase, Phase::Prepared { until, .. } if until > Instant::now())
    }

    /// Who waits.
    pub fn waiting(&self) -> Vec<Intent> {
        self.state().waiting.values().map(|waiter| waiter.intent).collect()
    }

    /// When this was last done. Of what is not remembered: never.
    pub fn last(&self, intent: Intent) -> Option<Instant> {
        self.state().last[intent.remembered_as()?]
    }

    /// Ticks when an intent came after a pause: an edge worth a heartbeat.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Opens it if its hold is over; else says until when it lasts.
    fn lapse(&self) -> Option<Instant> {
        let mut state = self.state();
        let edge = state.lapse(Instant::now());
        let until = if let Phase::Prepared { until, .. } = state.phase { Some(until) } else { None };
        drop(state);
        self.tell(edge);
        until
    }

    /// It waits no longer.
    fn leave(&self, id: u64) {
        let mut state = self.state();
        if let Some(waiter) = state.waiting.remove(&id) {
            state.held_bytes -= waiter.bytes;
        }
    }

    fn tell(&self, edge: bool) {
        if edge {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Default for Intents {
    fn default() -> Self {
        Self::new()
    }
}
