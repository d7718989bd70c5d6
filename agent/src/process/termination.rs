//! Decides when a process gets TERM and, after a grace period, KILL. Pure.

use std::time::{Duration, Instant};

use rustix::process::Signal;

/// Default time between TERM and KILL.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Progress of the termination of one process, by request or by timeout.
#[derive(Debug, Default)]
pub(super) struct Termination {
    deadline: Option<Instant>,
    kill_at: Option<Instant>,
    killed: bool,
    /// True if the timeout of the command caused the termination.
    pub(super) timed_out: bool,
}

impl Termination {
    pub(super) fn new(deadline: Option<Instant>) -> Self {
        Self { deadline, ..Self::default() }
    }

    fn began(&self) -> bool {
        self.kill_at.is_some()
    }

    /// Returns whether termination has begun and KILL is still due.
    pub(super) fn is_under_way(&self) -> bool {
        self.began() && !self.killed
    }

    /// Returns whether KILL was sent.
    pub(super) fn killed(&self) -> bool {
        self.killed
    }

    /// Requests termination with KILL after `grace`, or earlier if KILL is due earlier already.
    /// Returns the signals to send now.
    pub(super) fn request(&mut self, now: Instant, grace: Duration) -> &'static [Signal] {
        let began = self.began();
        let at = now + grace;
        self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
        // CONT, because a stopped process cannot handle the other signals.
        if began { &[] } else { &[Signal::HUP, Signal::TERM, Signal::CONT] }
    }

    /// Returns the signals that are due, and records them as sent.
    pub(super) fn due(&mut self, now: Instant) -> &'static [Signal] {
        if self.kill_at.is_some_and(|at| at <= now) && !self.killed {
            self.killed = true;
            return &[Signal::KILL];
        }
        if self.deadline.is_some_and(|at| at <= now) {
            self.deadline = None;
            if !self.began() {
                self.timed_out = true;
                self.kill_at = Some(now + GRACE);
                return &[Signal::TERM, Signal::CONT];
            }
        }
        &[]
    }

    /// Returns the time at which [`Self::due`] has to be called again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let kill = self.kill_at.filter(|_| !self.killed);
        [kill, self.deadline].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_sends_term_then_kill_after_grace() {
        let start = Instant::now();
        let mut termination = Termination::new(Some(start + Duration::from_secs(60)));
        assert!(termination.due(start).is_empty());
        let timeout = termination.next_deadline().unwrap();
        assert_eq!(termination.due(timeout), [Signal::TERM, Signal::CONT]);
        assert!(termination.timed_out);
        assert_eq!(termination.next_deadline(), Some(timeout + GRACE));
        assert_eq!(termination.due(timeout + GRACE), [Signal::KILL]);
        assert_eq!(termination.next_deadline(), None);
    }

    #[test]
    fn repeated_request_only_shortens_grace() {
        let start = Instant::now();
        let mut termination = Termination::new(None);
        assert!(!termination.request(start, Duration::from_secs(9)).is_empty());
        assert!(termination.request(start, Duration::from_secs(2)).is_empty());
        assert!(termination.request(start, Duration::from_secs(5)).is_empty());
        assert_eq!(termination.next_deadline(), Some(start + Duration::from_secs(2)));
        assert!(!termination.timed_out);
    }
}
