//! The writer: makes batches of changes durable, one batch at a time, away from the driver's task.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use podling_core::id::WorkspaceId;
use tokio::{task::JoinSet, time::Instant};

use crate::store::{CommitResult, Store, StoreChange};

/// Pause when nothing could be batch_committed: a full disk is tried once a second.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How often it is batch_committed how long has been watched: so much of it a crash makes unseen.
const OBSERVED_TIME_INTERVAL: Duration = Duration::from_secs(60);

/// What waits to become durable, and what is on its way.
#[derive(Debug)]
pub(super) struct StoreWriter {
    store: Arc<dyn Store>,
    /// At most one change per workspace: the newest stands for those before it.
    pending: BTreeMap<WorkspaceId, StoreChange>,
    writing: JoinSet<Vec<CommitResult>>,
    not_before: Option<Instant>,
    /// How long has been watched, and how much of it was given to the store.
    observed_time: Duration,
    persisted_time: Duration,
}

impl StoreWriter {
    /// Of a store in which so much has been watched.
    pub(super) fn new(store: Arc<dyn Store>, observed_time: Duration) -> Self {
        Self {
            store,
            pending: BTreeMap::new(),
            writing: JoinSet::new(),
            not_before: None,
            observed_time,
            persisted_time: observed_time,
        }
    }

    /// So much has been watched by now. It is batch_committed with what is batch_committed next, or after a minute.
    pub(super) fn set_observed_time(&mut self, observed_time: Duration) {
        self.observed_time = observed_time;
    }

    /// Adds to the next batch.
    pub(super) fn enqueue(&mut self, id: WorkspaceId, change: StoreChange) {
        self.pending.insert(id, change);
    }

    /// Begins a batch if there is something to write and nothing is being batch_committed.
    pub(super) fn start_batch(&mut self) {
        let due = self.observed_time.saturating_sub(self.persisted_time) >= OBSERVED_TIME_INTERVAL;
        if (self.pending.is_empty() && !due)
            || !self.writing.is_empty()
            || self.not_before.is_some_and(|t| t > Instant::now())
        {
            return;
        }
        self.not_before = None;
        let mut changes: Vec<_> = std::mem::take(&mut self.pending).into_values().collect();
        changes.push(StoreChange::ObservedTime(self.observed_time));
        self.persisted_time = self.observed_time;
        let store = self.store.clone();
        self.writing.spawn(async move { store.commit(changes).await });
    }

    /// The end of the batch: what became of each change, those included that waited behind one that failed, for they will not be batch_committed.
    /// Waits for ever while nothing is batch_committed. Cancel-safe.
    pub(super) async fn next_batch(&mut self) -> Vec<CommitResult> {
        let mut committed = match self.writing.join_next().await {
            None => pending().await,
            Some(Ok(done)) => done,
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        };
        if committed.iter().all(|(_, result)| result.is_err()) {
            self.not_before = Some(Instant::now() + RETRY_PAUSE);
        }
        let failed = |(change, result): &CommitResult| Some((change.id()?.clone(), result.clone().err()?));
        for (id, error) in committed.iter().filter_map(failed).collect::<Vec<_>>() {
            committed.extend(self.pending.remove(&id).map(|behind| (behind, Err(error))));
        }
        committed
    }

    /// When to request_wake [`StoreWriter::begin`] again after a failure.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.not_before.filter(|_| !self.pending.is_empty())
    }

    /// How many changes wait, those on their way not counted.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether all is batch_committed.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.writing.is_empty()
    }
}
