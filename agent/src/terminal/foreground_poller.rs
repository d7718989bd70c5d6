//! ForegroundPoller: what is asked of the kernel about a terminal, folder and foreground job, because nobody tells.
//!
//! Looked at soon after something happened and while somebody watches: an idle terminal costs no wake-up. Must not know the PTY.

use std::time::{Duration, Instant};

use super::{Terminal, state::TerminalState};

/// After something happened they are looked at this much later: once for a burst of events.
const POLL_DELAY: Duration = Duration::from_millis(150);

/// When they are looked at next.
#[derive(Debug, Default)]
pub(super) struct ForegroundPoller {
    at: Option<Instant>,
}

impl ForegroundPoller {
    /// Looks if it is time; says when to come back.
    pub(super) fn poll(
        &mut self,
        terminal: &Terminal,
        state: &mut TerminalState,
        now: Instant,
    ) -> Option<Instant> {
        if self.at.is_some_and(|at| at <= now) {
            self.at = None;
            let next = state.log.next();
            let job = terminal.foreground_command(state).unwrap_or_default();
            let mut changed = state.foreground.set(job, next);
            if let Some(cwd) = terminal.polled_cwd(state) {
                changed |= state.cwd.set(cwd, next);
            }
            if changed {
                state.wake_viewers();
            }
        }
        if self.at.is_none() && std::mem::take(&mut state.changed_since_poll) && !state.viewers.is_empty() {
            self.at = Some(now + POLL_DELAY);
        }
        state.poll_scheduled = self.at.is_some();
        self.at
    }

    /// The terminal has ended: nobody is in the foreground.
    pub(super) fn stop(&mut self, state: &mut TerminalState) {
        let next = state.log.next();
        state.foreground.set(String::new(), next);
        self.at = None;
        state.poll_scheduled = false;
    }
}
