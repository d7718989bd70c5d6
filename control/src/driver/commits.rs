//! Handles finished store writes: marks records as durable, and rolls failed changes back.

use podling_core::{decide::Action, id::WorkspaceId, observed::Failure};

use super::{Driver, DriverError, error::with_causes};
use crate::{
    backend::Backend,
    clock,
    store::{CommitResult, StoreChange, StoreError},
};

impl<B: Backend> Driver<B> {
    /// Handles a finished batch. Each change in it may have succeeded or failed.
    pub(super) fn batch_committed(&mut self, committed: Vec<CommitResult>) {
        let mut failures = committed.iter().filter_map(|(_, result)| result.as_ref().err());
        if let Some(error) = failures.next() {
            tracing::error!(
                error = error as &dyn std::error::Error,
                changes = 1 + failures.count(),
                "failed to write the store; rolling decisions back"
            );
        }
        for (change, result) in committed {
            match (change, &result) {
                (StoreChange::Put(record), Ok(())) => {
                    let id = record.spec.id.clone();
                    // Quota is released once the record that releases it is durable.
                    self.queue_changed = true;
                    self.with_entry(&id, |entry| {
                        entry.durable = Some(record);
                        if entry.is_settled() {
                            entry.unsaved_edit = None;
                        }
                    });
                }
                // The next batch contains the current value.
                (StoreChange::ObservedTime(_), _) => {}
                (StoreChange::Put(record), Err(error)) => self.roll_back(&record.spec.id, error),
                (StoreChange::Remove(id, _), Ok(())) => {
                    // A workspace whose first write failed was removed from the entries before.
                    let Some(mut entry) = self.entries.remove(&id) else { continue };
                    entry.reject_pending(&DriverError::NoWorkspace(id.clone()));
                    #[cfg(debug_assertions)]
                    super::failpoint::hit(Action::RemoveRecord, "after");
                    tracing::info!(workspace = %id, "workspace removed");
                    if let Some(at) = entry.scheduled_at {
                        self.schedule.remove(&(at, id));
                    }
                    self.publisher.mark_changed();
                }
                (StoreChange::Remove(id, at), Err(_)) if !self.entries.contains_key(&id) => {
                    self.writer.enqueue(id.clone(), StoreChange::Remove(id, at));
                }
                (StoreChange::Remove(id, _), Err(error)) => {
                    let (error, now) = (with_causes(error), clock::now());
                    self.with_entry(&id, |entry| {
                        entry.in_flight = None;
                        entry.observed.done(Action::RemoveRecord, Err(Failure::Failed(error)), now);
                    });
                }
            }
        }
    }

    /// Rolls the workspace's record back to the stored one.
    fn roll_back(&mut self, id: &WorkspaceId, error: &StoreError) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.reject_pending(&DriverError::not_saved(error));
        match entry.durable.clone() {
            Some(durable) => {
                entry.record = durable;
                entry.submitted = None;
                self.queue_changed = true;
                // The decision that is rolled back may be included in the count.
                self.recount_archiving();
                self.reapply_unsaved_edit(id);
                self.advance(id);
            }
            None => {
                if let Some(at) = self.entries.remove(id).and_then(|entry| entry.scheduled_at) {
                    self.schedule.remove(&(at, id.clone()));
                }
                // The failed write may have reached the disk. After a restart, the store would then
                // contain a workspace whose creation was reported as failed, beside the one that a
                // repeated call creates. Therefore the removal is retried until it is written.
                self.writer.enqueue(id.clone(), StoreChange::Remove(id.clone(), clock::now()));
            }
        }
    }
}
