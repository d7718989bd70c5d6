//! The end of the control plane: `down`, which ends all processes, and a stop, which leaves busy
//! workspaces running. Both wait for what is in flight.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::{Driver, DriverError, Reply, TICK, WorkspaceEntry};
use crate::backend::Backend;

/// Time for actions and writes in flight to finish when the driver ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

impl<B: Backend> Driver<B> {
    /// Returns whether the control plane is about to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.shutting_down || self.draining_idle
    }

    /// Ends all processes, then the control plane. Without `force`, fails if a workspace is in use
    /// or its activity is unknown.
    pub(super) fn down(&mut self, force: bool, reply: Reply<()>) {
        let busy = self.entries.values().filter(|entry| entry.is_in_use());
        let mut busy: Vec<_> = busy.map(|entry| entry.record().spec.name.clone()).collect();
        if !force && !self.shutting_down && !busy.is_empty() {
            busy.sort();
            return drop(reply.send(Err(DriverError::Busy(busy))));
        }
        tracing::info!(force, "shutting down; ending the processes of all workspaces");
        self.shutting_down = true;
        self.entries.values_mut().for_each(WorkspaceEntry::shut_down);
        self.advance_all();
        self.publish();
        drop(reply.send(Ok(())));
    }

    /// Cancels `shutdown` once every process has ended after [`super::DriverHandle::down`].
    pub(super) fn finish_if_down(&mut self) {
        if self.shutting_down
            && self.writer.is_idle()
            && self.spec_changes.is_idle()
            && self.entries.values().all(WorkspaceEntry::allows_shutdown)
        {
            self.publish();
            tracing::info!("all workspaces are asleep");
            self.shutdown.cancel();
        }
    }

    /// Puts idle workspaces to sleep in two phases, before the control plane stops. `reply` is
    /// answered once they are asleep. From now on, new workspaces and wakes are rejected.
    ///
    /// Unlike [`super::DriverHandle::down`], this ends no workspace that is in use. An agent that
    /// declines continues to run, and the next control plane adopts it.
    pub(super) fn drain_idle(&mut self, reply: Reply<()>) {
        tracing::info!("stopping; putting idle workspaces to sleep and leaving the others running");
        self.draining_idle = true;
        self.drain_reply = Some(reply);
        self.entries.values_mut().for_each(WorkspaceEntry::sleep_if_idle);
        self.advance_all();
    }

    /// Answers the drain once no workspace is falling asleep. Ends it early if its caller has gone
    /// away.
    pub(super) fn finish_idle_drain(&mut self) {
        let is_over = |reply: &mut Reply<()>| {
            reply.is_closed() || !self.entries.values().any(WorkspaceEntry::is_falling_asleep)
        };
        if let Some(reply) = self.drain_reply.take_if(is_over) {
            // An agent that was not asked yet continues to run. The control plane ends soon, and
            // could not complete its sleep.
            self.entries.values_mut().for_each(WorkspaceEntry::cancel_sleep_request);
            // A caller that has gone away needs no answer.
            drop(reply.send(Ok(())));
        }
    }

    /// Waits up to [`SHUTDOWN_GRACE`] for actions and writes in flight. Then answers callers whose
    /// changes are durable, and publishes the last snapshot.
    pub(super) async fn finish_pending(&mut self) {
        self.events.close();
        let rest = async {
            while !(self.executor.is_idle() && self.writer.is_idle() && self.spec_changes.is_idle()) {
                self.writer.start_batch();
                self.start_spec_changes();
                let wakeup = self.writer.retry_at().unwrap_or_else(|| Instant::now() + TICK);
                tokio::select! {
                    result = self.executor.next() => {
                        if let Some(entry) = self.entries.get_mut(&result.workspace) {
                            entry.finish(&result, self.observed_time);
                        }
                    }
                    committed = self.writer.next() => self.batch_committed(committed),
                    finished = self.spec_changes.next() => self.finish_spec_change(finished),
                    () = sleep_until(wakeup) => {}
                }
            }
        };
        if timeout(SHUTDOWN_GRACE, rest).await.is_err() {
            tracing::warn!("shut down with actions or writes in flight; the next start recovers them");
        }
        self.answer_ready();
        self.publish();
    }
}
