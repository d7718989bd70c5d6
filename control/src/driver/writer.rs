//! The writer: makes batches of changes durable, one batch at a time, away from the driver's task.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use podling_core::id::WorkspaceId;
use tokio::{task::JoinSet, time::Instant};

use crate::store::{Change, Store, StoreError};

/// Pause after a failed write: a full disk is tried once a second.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is written how long has been watched: so much of it a crash makes unseen.
const WITNESSED_EVERY: Duration = Duration::from_secs(60);

/// What waits to become durable, and what is on its way.
#[derive(Debug)]
pub(super) struct Writer {
    store: Arc<Store>,
    /// At most one change per workspace: the newest stands for those before it.
    waiting: BTreeMap<WorkspaceId, Change>,
    writing: JoinSet<(Vec<Change>, Result<(), StoreError>)>,
    not_before: Option<Instant>,
    /// How long has been watched, and how much of it was given to the store.
    witnessed: Duration,
    written: Duration,
}

/// How a batch went.
#[derive(Debug)]
pub(crate) struct Written {
    /// What was in it. After a failure: also what waited behind it, for none of it will be written.
    pub(crate) changes: Vec<Change>,
    /// The reason it failed.
    pub(crate) result: Result<(), StoreError>,
}

impl Writer {
    /// Of a store in which so much has been watched.
    pub(super) fn new(store: Store, witnessed: Duration) -> Self {
        Self {
            store: Arc::new(store),
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
    pub(super) fn put(&mut self, id: WorkspaceId, change: Change) {
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
        changes.push(Change::Witnessed(self.witnessed));
        self.written = self.witnessed;
        let store = self.store.clone();
        self.writing.spawn_blocking(move || {
            let result = store.commit(&changes);
            (changes, result)
        });
    }

    /// The end of the batch; waits for ever while nothing is written. Cancel-safe.
    pub(super) async fn next(&mut self) -> Written {
        let (mut changes, result) = match self.writing.join_next().await {
            None => pending().await,
            Some(Ok(done)) => done,
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        };
        if result.is_err() {
            changes.extend(std::mem::take(&mut self.waiting).into_values());
            self.not_before = Some(Instant::now() + PAUSE);
        }
        Written { changes, result }
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
