//! What became durable, and what did not and is taken back.

use podling_core::{decide::Action, id::WorkspaceId, observed::Failure};

use super::{Driver, DriverError};
use crate::{
    backend::Backend,
    clock,
    store::{CommitResult, StoreChange, StoreError},
};

impl<B: Backend> Driver<B> {
    /// A batch was batch_committed; some of it perhaps was not.
    pub(super) fn batch_committed(&mut self, committed: Vec<CommitResult>) {
        let mut failures = committed.iter().filter_map(|(_, result)| result.as_ref().err());
        if let Some(error) = failures.next() {
            tracing::error!(
                error = error as &dyn std::error::Error,
                changes = 1 + failures.count(),
                "the store cannot be batch_committed; what was decided is taken back"
            );
        }
        for (change, result) in committed {
            match (change, &result) {
                (StoreChange::Put(record), Ok(())) => {
                    let id = record.spec.id.clone();
                    // Room that was given back is free now.
                    self.queue_changed = true;
                    self.with_entry(&id, |entry| {
                        entry.durable = Some(record);
                        if entry.is_settled() {
                            entry.unsaved_edit = None;
                        }
                    });
                }
                // After a failure it is batch_committed with the next batch.
                (StoreChange::ObservedTime(_), _) => {}
                (StoreChange::Put(record), Err(error)) => self.roll_back(&record.spec.id, error),
                (StoreChange::Forget(id, _), Ok(())) => {
                    // One that never became durable has gone already.
                    let Some(mut entry) = self.entries.remove(&id) else { continue };
                    entry.reject_pending(&DriverError::NoWorkspace(id.clone()));
                    #[cfg(debug_assertions)]
                    super::failpoint::hit(Action::Forget, "after");
                    tracing::info!(workspace = %id, "gone");
                    if let Some(at) = entry.scheduled_at {
                        self.schedule.remove(&(at, id));
                    }
                    self.publisher.mark_changed();
                }
                (StoreChange::Forget(id, at), Err(_)) if !self.entries.contains_key(&id) => {
                    self.writer.enqueue(id.clone(), StoreChange::Forget(id, at));
                }
                (StoreChange::Forget(id, _), Err(error)) => {
                    let (error, now) = (with_causes(error), clock::now());
                    self.with_entry(&id, |entry| {
                        entry.in_flight = None;
                        entry.observed.done(Action::Forget, Err(Failure::Failed(error)), now);
                    });
                }
            }
        }
    }

    /// What was decided could not be made durable: back to what is.
    fn roll_back(&mut self, id: &WorkspaceId, error: &StoreError) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let refused = DriverError::NotSaved { problem: with_causes(error), disk_full: error.is_disk_full() };
        entry.reject_pending(&refused);
        match entry.durable.clone() {
            Some(durable) => {
                entry.record = durable;
                entry.submitted = None;
                self.queue_changed = true;
                // What was counted when it was decided.
                self.recount_archiving();
                self.reapply_unsaved_edit(id);
                self.advance(id);
            }
            None => {
                if let Some(at) = self.entries.remove(id).and_then(|entry| entry.scheduled_at) {
                    self.schedule.remove(&(at, id.clone()));
                }
                // A write that failed may have reached the disk all the same: then the next start would find a workspace that
                // nobody was told of, beside the one that was made when the request_wake was repeated. Tried until it is batch_committed.
                self.writer.enqueue(id.clone(), StoreChange::Forget(id.clone(), clock::now()));
            }
        }
    }
}

/// What went wrong and why, in one line.
fn with_causes(error: &StoreError) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
