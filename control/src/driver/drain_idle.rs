//! Before the control plane stops, idle workspaces are put to sleep in two phases, and the others
//! run on without it.
//!
//! Unlike [`super::DriverHandle::down`] this ends nothing that is in use: an agent that declines
//! runs on, and the next control plane adopts it.

use podling_core::{decide::Action, observed::Used, reason::SleepRequest, status::Phase};

use super::{Driver, entry::WorkspaceEntry, event::Reply};
use crate::backend::Backend;

impl<B: Backend> Driver<B> {
    /// Begins the drain. `reply` is answered once all idle workspaces sleep. New workspaces and
    /// wakes are rejected from now on.
    pub(super) fn drain_idle(&mut self, reply: Reply<()>) {
        tracing::info!("stopping: putting idle workspaces to sleep, leaving the others running");
        self.draining_idle = true;
        self.drain_reply = Some(reply);
        for entry in self.entries.values_mut() {
            let idle = matches!(entry.observed.used, Used::No(_));
            entry.observed.sleep_request = idle.then_some(SleepRequest::Shutdown);
        }
        self.advance_all();
    }

    /// Answers the drain once no workspace is falling asleep, or ends it once its caller has given
    /// up.
    pub(super) fn finish_idle_drain(&mut self) {
        let Some(reply) = &self.drain_reply else { return };
        if reply.is_closed() || !self.entries.values().any(WorkspaceEntry::is_falling_asleep) {
            // An agent that could not be asked runs on: the control plane may not hear from it for
            // much longer.
            self.entries.values_mut().for_each(|entry| entry.observed.sleep_request = None);
            if let Some(reply) = self.drain_reply.take() {
                // A caller that has gone away needs no answer.
                drop(reply.send(Ok(())));
            }
        }
    }
}

impl WorkspaceEntry {
    /// Whether a step to sleep, its cancellation or its write is in flight.
    fn is_falling_asleep(&self) -> bool {
        let in_sleep_phase = matches!(
            self.record.status.phase,
            Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep
        );
        let sleep_action = matches!(
            self.in_flight,
            Some(Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) | Action::Stop)
        );
        in_sleep_phase || sleep_action || !self.is_settled()
    }
}
