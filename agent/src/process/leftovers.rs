//! A process that has ended: kept for those who come for its end, and for as long as others live in its group these are ended
//! with it, if its end was wanted. Must not touch output.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{Process, ending::Ending, registry::Inner, watcher::until};

/// How long an ended process is kept.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// How often it is looked whether a group that is being ended is empty: nobody tells.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Leftovers {
    pub(super) process: Arc<Process>,
    pub(super) ending: Ending,
    pub(super) inner: Weak<Inner>,
}

impl Leftovers {
    /// Until it is forgotten, by time or for want of room, and nobody is left whose end was wanted.
    pub(super) async fn mind(mut self) {
        let kept_until = Instant::now() + KEPT;
        if self.process.state().unwanted {
            self.forget();
        }
        loop {
            let now = Instant::now();
            self.tell(now);
            let ends = self.ending.is_under_way() && self.process.group.has_members();
            let forgotten = self.process.forgotten.is_cancelled();
            if forgotten && !ends {
                return;
            }
            // Somebody may have left who held its output.
            if let Some(inner) = self.inner.upgrade() {
                inner.table().settle();
            }
            let look_at = if ends { now + LOOK_EVERY } else { kept_until };
            tokio::select! {
                () = until(Some(look_at)) => {}
                () = self.process.moved.notified() => {}
                () = self.process.forgotten.cancelled(), if !forgotten => {}
            }
            if !forgotten && Instant::now() >= kept_until {
                self.forget();
            }
        }
    }

    fn tell(&mut self, now: Instant) {
        let wanted = self.process.state().end_wanted.take();
        let asked = wanted.map_or(&[][..], |grace| self.ending.want(now, grace));
        for signal in asked.iter().chain(self.ending.due(now)) {
            self.process.group.signal(*signal);
        }
    }

    fn forget(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.table().forget(&self.process);
        }
        self.process.forgotten.cancel();
    }
}
