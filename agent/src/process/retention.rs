//! A process that has ended: kept for those who come for its end, and for as long as others live in its group these are ended
//! with it, if its end was wanted. Must not touch output.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{Process, registry::RegistryShared, termination::Termination, watcher::until};

/// How long an ended process is kept.
const RETENTION: Duration = Duration::from_secs(10 * 60);
/// How often it is looked whether a group that is being ended is empty: nobody tells.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(super) struct RetainedProcess {
    pub(super) process: Arc<Process>,
    pub(super) ending: Termination,
    pub(super) inner: Weak<RegistryShared>,
}

impl RetainedProcess {
    /// Until it is forgotten, by time or for want of room, and nobody is left whose end was wanted.
    pub(super) async fn run(mut self) {
        let remove_at = Instant::now() + RETENTION;
        if self.process.state().remove_when_finished {
            self.remove();
        }
        loop {
            let now = Instant::now();
            self.send_signals(now);
            let ends = self.ending.is_under_way() && self.process.group.has_members();
            let forgotten = self.process.removed.is_cancelled();
            if forgotten && !ends {
                return;
            }
            // Somebody may have left who held its output.
            if let Some(inner) = self.inner.upgrade() {
                inner.table().enforce_bounds();
            }
            let wake_at = if ends { now + POLL_INTERVAL } else { remove_at };
            tokio::select! {
                () = until(Some(wake_at)) => {}
                () = self.process.task_wakeup.notified() => {}
                () = self.process.removed.cancelled(), if !forgotten => {}
            }
            if !forgotten && Instant::now() >= remove_at {
                self.remove();
            }
        }
    }

    fn send_signals(&mut self, now: Instant) {
        let grace = self.process.state().requested_grace.take();
        let requested = grace.map_or(&[][..], |grace| self.ending.request(now, grace));
        for signal in requested.iter().chain(self.ending.due(now)) {
            self.process.group.signal(*signal);
        }
    }

    fn remove(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.table().remove(&self.process);
        }
        self.process.removed.cancel();
    }
}
