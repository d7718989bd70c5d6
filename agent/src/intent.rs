//! Intent: the doors through which people act on a workspace, and when each was last used.
//!
//! Whoever takes a keystroke, a client's write or a start asks here first. That one question is the lock of the two-phase sleep:
//! while the agent prepares to sleep nobody is admitted, so no intent can slip in between "it is idle" and "it sleeps".

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// A thing that only somebody who means it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Intent {
    /// A user typed.
    Keystroke,
    /// A client changed a file.
    ClientWrite,
    /// A client started a command or opened a terminal.
    ClientStart,
}

/// The workspace prepares to sleep: nothing is admitted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the workspace prepares to sleep")]
pub struct Preparing;

/// The door, and the record of who came through it.
#[derive(Debug)]
pub struct Intents {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    last: [Option<Instant>; 3],
}

/// How finely `changed` tells of a door that is used over and over: the verdict needs no more.
const TELL_EVERY: Duration = Duration::from_secs(1);

impl Intents {
    /// An open door that nobody has used.
    pub fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Asks to act; the act is recorded when it is admitted.
    pub fn admit(&self, intent: Intent) -> Result<(), Preparing> {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        if state.closed {
            return Err(Preparing);
        }
        let now = Instant::now();
        let before = state.last[intent as usize].replace(now);
        drop(state);
        if before.is_none_or(|at| now.duration_since(at) >= TELL_EVERY) {
            self.changed.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    /// When this was last done.
    pub fn last(&self, intent: Intent) -> Option<Instant> {
        self.state.lock().unwrap_or_else(|e| e.into_inner()).last[intent as usize]
    }

    /// Ticks when an intent came after a pause: an edge worth a heartbeat.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Default for Intents {
    fn default() -> Self {
        Self::new()
    }
}
