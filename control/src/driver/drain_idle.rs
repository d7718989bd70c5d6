//! Before the control plane stops, idle workspaces are put to sleep in two phases. The others
//! continue to run without it.
//!
//! Unlike [`super::DriverHandle::down`], this ends no workspace that is in use. An agent that
//! declines continues to run, and the next control plane adopts it.

use podling_core::{decide::Action, observed::UseState, reason::SleepRequest, status::Phase};

use super::{Driver, entry::WorkspaceEntry, event::Reply};
use crate::backend::Backend;

impl<B: Backend> Driver<B> {
    /// Begins the drain. `reply` is answered once all idle workspaces are asleep. From now on, new
    /// workspaces and wakes are rejected.
    pub(super) fn drain_idle(&mut self, reply: Reply<()>) {
        tracing::info!("stopping; putting idle workspaces to sleep and leaving the others running");
        self.draining_idle = true;
        self.drain_reply = Some(reply);
        for entry in self.entries.values_mut() {
            let idle = matches!(entry.observed.used, UseState::No(_));
            entry.observed.sleep_request = idle.then_some(SleepRequest::Shutdown);
        }
        self.advance_all();
    }

    /// Answers the drain once no workspace is falling asleep. Ends it early if its caller has gone
    /// away.
    pub(super) fn finish_idle_drain(&mut self) {
        let Some(reply) = &self.drain_reply else { return };
        if reply.is_closed() || !self.entries.values().any(WorkspaceEntry::is_falling_asleep) {
            // An agent that was not asked yet continues to run. The control plane ends soon, and
            // could not complete its sleep.
            self.entries.values_mut().for_each(|entry| entry.observed.sleep_request = None);
            if let Some(reply) = self.drain_reply.take() {
                // A caller that has gone away needs no answer.
                drop(reply.send(Ok(())));
            }
        }
    }
}

impl WorkspaceEntry {
    /// Returns whether a step of the sleep, its cancellation, or a write is in flight.
    fn is_falling_asleep(&self) -> bool {
        let in_sleep_phase = matches!(
            self.record.status.phase,
            Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep
        );
        let sleep_action = matches!(
            self.in_flight,
            Some(Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) | Action::StopProcesses)
        );
        in_sleep_phase || sleep_action || !self.is_settled()
    }
}
