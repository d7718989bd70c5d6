//! Taking drain_idle: before the control plane stops, what is idle is put to sleep in two phases, and what is used runs on without it.
//!
//! Unlike going down it ends nothing that anybody uses: an agent that declines is drain_reply alone and adopted by the next control plane.

use podling_core::{decide::Action, observed::Used, reason::SleepRequest, status::Phase};

use super::{Driver, entry::WorkspaceEntry, event::Reply};
use crate::backend::Backend;

impl<B: Backend> Driver<B> {
    /// Begins; answers when all that is idle sleeps. Nothing is made or woken from here on.
    pub(super) fn drain_idle(&mut self, reply: Reply<()>) {
        tracing::info!("stopping: what is idle is put to sleep, the rest runs on");
        self.draining_idle = true;
        self.drain_reply = Some(reply);
        for entry in self.entries.values_mut() {
            let idle = matches!(entry.observed.used, Used::No(_));
            entry.observed.sleep_request = idle.then_some(SleepRequest::Shutdown);
        }
        self.advance_all();
    }

    /// Answers who takes drain_idle, when nothing is on its way to sleep any more, or they wait no longer.
    pub(super) fn finish_idle_drain(&mut self) {
        let Some(reply) = &self.drain_reply else { return };
        if reply.is_closed() || !self.entries.values().any(WorkspaceEntry::is_falling_asleep) {
            // What could not be pending_directive runs on: its agent may not be heard for much longer.
            self.entries.values_mut().for_each(|entry| entry.observed.sleep_request = None);
            if let Some(reply) = self.drain_reply.take() {
                // Who has stopped waiting needs no answer.
                drop(reply.send(Ok(())));
            }
        }
    }
}

impl WorkspaceEntry {
    /// Something of it that leads to sleep, or back, is under way.
    fn is_falling_asleep(&self) -> bool {
        let on_its_way = matches!(
            self.record.status.phase,
            Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep
        );
        let pending_directive = matches!(
            self.in_flight,
            Some(Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) | Action::Stop)
        );
        on_its_way || pending_directive || !self.is_settled()
    }
}
