//! Polls the kernel for a terminal's working directory and foreground job, which no event reports.
//!
//! A poll follows shortly after a change, and only while the terminal has viewers. An idle terminal
//! thus costs no wake-up.

use std::time::{Duration, Instant};

use super::{Terminal, state::TerminalState};

/// Delay between a change and the poll that follows it. A burst of changes costs one poll.
const POLL_DELAY: Duration = Duration::from_millis(150);

/// Schedule of the polls of one terminal.
#[derive(Debug, Default)]
pub(super) struct ForegroundPoller {
    at: Option<Instant>,
}

impl ForegroundPoller {
    /// Polls if a poll is due, and schedules the next one after a change. Returns its time, or
    /// `None` if none is scheduled.
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

    /// Clears the foreground job and cancels the next poll, because the terminal has ended.
    pub(super) fn stop(&mut self, state: &mut TerminalState) {
        let next = state.log.next();
        state.foreground.set(String::new(), next);
        self.at = None;
        state.poll_scheduled = false;
    }
}
