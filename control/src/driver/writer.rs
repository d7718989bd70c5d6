//! Writes changes to the store in batches, one batch at a time, outside the driver's task. Finished
//! writes make records durable, and failed ones roll decisions back.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use podling_core::{decide::Action, id::WorkspaceId};
use tokio::{task::JoinSet, time::Instant};

use super::{Driver, DriverError};
use crate::{
    backend::Backend,
    clock,
    executor::failpoint,
    store::{CommitResult, Store, StoreChange, StoreError},
};

/// Pause after a failed write of a workspace, before its next change is written.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Interval at which the observed time is written. A crash loses at most this much of it.
const OBSERVED_TIME_INTERVAL: Duration = Duration::from_secs(60);

/// Queues changes and writes them in batches.
#[derive(Debug)]
pub(crate) struct StoreWriter {
    store: Arc<dyn Store>,
    /// At most one change for each workspace. A newer change replaces an older one.
    pending: BTreeMap<WorkspaceId, StoreChange>,
    writing: JoinSet<Vec<CommitResult>>,
    /// The workspaces whose last write failed, with the time from which they may be written again.
    not_before: BTreeMap<WorkspaceId, Instant>,
    observed_time: Duration,
    /// Observed time in the last batch that was started.
    persisted_time: Duration,
}

impl StoreWriter {
    /// Creates a writer for a store that holds this observed time.
    pub(crate) fn new(store: Arc<dyn Store>, observed_time: Duration) -> Self {
        Self {
            store,
            pending: BTreeMap::new(),
            writing: JoinSet::new(),
            not_before: BTreeMap::new(),
            observed_time,
            persisted_time: observed_time,
        }
    }

    /// Sets the observed time. It is written with the next batch, at the latest after
    /// [`OBSERVED_TIME_INTERVAL`].
    pub(crate) fn set_observed_time(&mut self, observed_time: Duration) {
        self.observed_time = observed_time;
    }

    /// Adds a change to the next batch. It replaces the workspace's queued change.
    pub(crate) fn enqueue(&mut self, id: WorkspaceId, change: StoreChange) {
        self.pending.insert(id, change);
    }

    /// Starts a batch if a change may be written or the observed time is due. Does nothing while a batch
    /// is being written.
    pub(crate) fn start_batch(&mut self) {
        if !self.writing.is_empty() {
            return;
        }
        let now = Instant::now();
        self.not_before.retain(|_, at| *at > now);
        let ready = self.pending.extract_if(.., |id, _| !self.not_before.contains_key(id));
        let mut changes: Vec<_> = ready.map(|(_, change)| change).collect();
        let due = self.observed_time.saturating_sub(self.persisted_time) >= OBSERVED_TIME_INTERVAL;
        if changes.is_empty() && !due {
            return;
        }
        changes.push(StoreChange::ObservedTime(self.observed_time));
        self.persisted_time = self.observed_time;
        let store = self.store.clone();
        self.writing.spawn(async move { store.commit(changes).await });
    }

    /// Waits until the running batch is finished. Never returns while nothing is being written.
    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> Vec<CommitResult> {
        let Some(results) = self.writing.join_next().await else { return pending().await };
        let results = results.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        self.finish_batch(results)
    }

    /// Returns the result of each change. If the write of a workspace failed, its queued change is
    /// dropped and returned with the same error.
    fn finish_batch(&mut self, mut committed: Vec<CommitResult>) -> Vec<CommitResult> {
        let failed = |(change, result): &CommitResult| Some((change.id()?.clone(), result.clone().err()?));
        for (id, error) in committed.iter().filter_map(failed).collect::<Vec<_>>() {
            committed.extend(self.pending.remove(&id).map(|queued| (queued, Err(error))));
            self.not_before.insert(id, Instant::now() + RETRY_PAUSE);
        }
        committed
    }

    /// Returns when to call [`StoreWriter::start_batch`] again, if a queued change waits for the pause
    /// after a failed write. Returns `None` while a batch is being written.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        let waiting = self.pending.keys().filter_map(|id| self.not_before.get(id));
        waiting.min().copied().filter(|_| self.writing.is_empty())
    }

    /// Returns the number of queued changes, without those being written.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns whether nothing is queued or being written.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.writing.is_empty()
    }
}

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
                    self.with_entry(&id, |entry| entry.committed(record));
                }
                // The next batch contains the current value.
                (StoreChange::ObservedTime(_), _) => {}
                (StoreChange::Put(record), Err(error)) => self.roll_back(&record.spec.id, error),
                (StoreChange::Remove(id, _), Ok(())) => {
                    // A workspace whose first write failed was removed from the entries before.
                    let Some(mut entry) = self.entries.remove(&id) else { continue };
                    entry.reject_pending(&DriverError::NoWorkspace(id.clone()));
                    failpoint(Action::RemoveRecord, "after");
                    tracing::info!(workspace = %id, "workspace removed");
                    self.update_index(&id);
                }
                (StoreChange::Remove(id, at), Err(_)) if !self.entries.contains_key(&id) => {
                    self.writer.enqueue(id.clone(), StoreChange::Remove(id, at));
                }
                (StoreChange::Remove(id, _), Err(error)) => {
                    self.with_entry(&id, |entry| entry.removal_failed(error));
                }
            }
        }
    }

    /// Rolls the workspace's status back to the stored one.
    fn roll_back(&mut self, id: &WorkspaceId, error: &StoreError) {
        match self.entries.get_mut(id).map(|entry| entry.roll_back(error)) {
            Some(true) => self.advance(id),
            Some(false) => {
                self.entries.remove(id);
                self.update_index(id);
                // The failed write may have reached the disk. After a restart, the store would then
                // contain a workspace whose creation was reported as failed, beside the one that a
                // repeated call creates. Therefore the removal is retried until it is written.
                self.writer.enqueue(id.clone(), StoreChange::Remove(id.clone(), clock::now()));
            }
            None => {}
        }
    }
}
