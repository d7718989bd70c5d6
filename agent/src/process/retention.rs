//! Retains an ended process for clients that still want its result. Terminates the remaining
//! members of its group if termination was requested.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{Process, registry::RegistryShared, termination::Termination, watcher::until};

/// Time for which an ended process is retained.
const RETENTION: Duration = Duration::from_secs(10 * 60);
/// Interval at which a group under termination is checked for members. No event reports the exit of
/// the last member.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(super) struct RetainedProcess {
    pub(super) process: Arc<Process>,
    pub(super) termination: Termination,
    pub(super) shared: Weak<RegistryShared>,
}

impl RetainedProcess {
    /// Runs until the process is removed (by age or by the table's limits) and a requested
    /// termination of its group is complete.
    pub(super) async fn run(mut self) {
        let remove_at = Instant::now() + RETENTION;
        if self.process.state().remove_when_finished {
            self.remove();
        }
        loop {
            let now = Instant::now();
            self.send_signals(now);
            let ends = self.termination.is_under_way() && self.process.group.has_members();
            let removed = self.process.removed.is_cancelled();
            if removed && !ends {
                return;
            }
            // A watcher may have left, so that the limits now apply to this process.
            if let Some(shared) = self.shared.upgrade() {
                shared.table().enforce_bounds();
            }
            let wake_at = if ends { now + POLL_INTERVAL } else { remove_at };
            tokio::select! {
                () = until(Some(wake_at)) => {}
                () = self.process.task_wakeup.notified() => {}
                () = self.process.removed.cancelled(), if !removed => {}
            }
            if !removed && Instant::now() >= remove_at {
                self.remove();
            }
        }
    }

    fn send_signals(&mut self, now: Instant) {
        let grace = self.process.state().requested_grace.take();
        let requested = grace.map_or(&[][..], |grace| self.termination.request(now, grace));
        for signal in requested.iter().chain(self.termination.due(now)) {
            self.process.group.signal(*signal);
        }
    }

    fn remove(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.table().remove(&self.process);
        }
        self.process.removed.cancel();
    }
}
