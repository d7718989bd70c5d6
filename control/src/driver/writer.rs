//! The writer: makes batches of changes durable, one batch at a time, away from the driver's task.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use podling_core::id::WorkspaceId;
use tokio::{task::JoinSet, time::Instant};

use crate::store::{CommitResult, Store, StoreChange};

/// Pause when nothing could be written: a full disk is tried once a second.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is written how long has been watched: so much of it a crash makes unseen.
const WITNESSED_EVERY: Duration = Duration::from_secs(60);

/// What waits to become durable, and what is on its way.
#[derive(Debug)]
pub(super) struct Writer {
    store: Arc<dyn Store>,
    /// At most one change per workspace: the newest stands for those before it.
    waiting: BTreeMap<WorkspaceId, StoreChange>,
    writing: JoinSet<Vec<CommitResult>>,
    not_before: Option<Instant>,
    /// How long has been watched, and how much of it was given to the store.
    witnessed: Duration,
    written: Duration,
}

impl Writer {
    /// Of a store in which so much has been watched.
    pub(super) fn new(store: Arc<dyn Store>, witnessed: Duration) -> Self {
        Self {
            store,
            waiting: BTreeMap::new(),
            writing: JoinSet::new(),
            not_before: None,
            witnessed,
            written: witnessed,
        }
    }

    /// So much has been watched by now. It is written with what is written next, or after a minute.
    pub(super) fn witnessed(&mut self, witnessed: Duration) {
        self.witnessed = witnessed;
    }

    /// Adds to the next batch.
    pub(super) fn put(&mut self, id: WorkspaceId, change: StoreChange) {
        self.waiting.insert(id, change);
    }

    /// Begins a batch if there is something to write and nothing is being written.
    pub(super) fn begin(&mut self) {
        let due = self.witnessed.saturating_sub(self.written) >= WITNESSED_EVERY;
        if (self.waiting.is_empty() && !due)
            || !self.writing.is_empty()
            || self.not_before.is_some_and(|t| t > Instant::now())
        {
            return;
        }
        self.not_before = None;
        let mut changes: Vec<_> = std::mem::take(&mut self.waiting).into_values().collect();
        changes.push(StoreChange::Witnessed(self.witnessed));
        self.written = self.witnessed;
        let store = self.store.clone();
        self.writing.spawn(async move { store.commit(changes).await });
    }

    /// The end of the batch: what became of each change, those included that waited behind one that failed, for they will not be written.
    /// Waits for ever while nothing is written. Cancel-safe.
    pub(super) async fn next(&mut self) -> Vec<CommitResult> {
        let mut committed = match self.writing.join_next().await {
            None => pending().await,
            Some(Ok(done)) => done,
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        };
        if committed.iter().all(|(_, result)| result.is_err()) {
            self.not_before = Some(Instant::now() + PAUSE);
        }
        let failed = |(change, result): &CommitResult| Some((change.id()?.clone(), result.clone().err()?));
        for (id, error) in committed.iter().filter_map(failed).collect::<Vec<_>>() {
            committed.extend(self.waiting.remove(&id).map(|behind| (behind, Err(error))));
        }
        committed
    }

    /// When to call [`Writer::begin`] again after a failure.
    pub(super) fn wakes(&self) -> Option<Instant> {
        self.not_before.filter(|_| !self.waiting.is_empty())
    }

    /// How many changes wait, those on their way not counted.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether all is written.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.writing.is_empty()
    }
}
