//! Taking leave: before the control plane stops, what is idle is put to sleep in two phases, and what is used runs on without it.
//!
//! Unlike going down it ends nothing that anybody uses: an agent that declines is left alone and adopted by the next control plane.

use podling_core::{decide::Action, observed::Used, reason::SleepRequest, status::Phase};

use super::{Driver, entry::Entry, event::Reply};
use crate::backend::Backend;

impl<B: Backend> Driver<B> {
    /// Begins; answers when all that is idle sleeps. Nothing is made or woken from here on.
    pub(super) fn leave(&mut self, reply: Reply<()>) {
        tracing::info!("stopping: what is idle is put to sleep, the rest runs on");
        self.leaving = true;
        self.left = Some(reply);
        for entry in self.entries.values_mut() {
            let idle = matches!(entry.observed.used, Used::No(_));
            entry.observed.sleep_request = idle.then_some(SleepRequest::Shutdown);
        }
        self.advance_all();
    }

    /// Answers who takes leave, when nothing is on its way to sleep any more, or they wait no longer.
    pub(super) fn finish_leaving(&mut self) {
        let Some(reply) = &self.left else { return };
        if reply.is_closed() || !self.entries.values().any(Entry::is_going_to_sleep) {
            // What could not be asked runs on: its agent may not be heard for much longer.
            self.entries.values_mut().for_each(|entry| entry.observed.sleep_request = None);
            if let Some(reply) = self.left.take() {
                // Who has stopped waiting needs no answer.
                drop(reply.send(Ok(())));
            }
        }
    }
}

impl Entry {
    /// Something of it that leads to sleep, or back, is under way.
    fn is_going_to_sleep(&self) -> bool {
        let on_its_way = matches!(
            self.record.status.phase,
            Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep
        );
        let asked = matches!(
            self.in_flight,
            Some(Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) | Action::Stop)
        );
        on_its_way || asked || !self.is_settled()
    }
}
