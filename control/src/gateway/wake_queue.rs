//! Calls that are held, each workspace's in the order in which they came. Must not know what they wait for.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use podling_core::id::WorkspaceId;
use podling_proto::error::{Reason, WireError};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::waiting::RETRY_INTERVAL;

/// Calls held for one workspace: a browser's tabs and some tools. One more is refused with TOO_MANY_WAITING.
pub(super) const MAX_HELD_PER_WORKSPACE: usize = 64;
/// Calls held in all. One more is refused with TOO_MANY_WAITING.
const MAX_HELD: usize = 1024;

/// All lines. All clones are the same.
#[derive(Debug, Clone)]
pub(super) struct WakeQueue {
    of: Arc<Mutex<HashMap<WorkspaceId, WorkspaceQueue>>>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct WorkspaceQueue {
    held: BTreeSet<u64>,
    next: u64,
    moved: watch::Sender<()>,
}

/// A call's place. Dropped, the ticket of the one behind it has come.
pub(super) struct Ticket {
    id: WorkspaceId,
    number: u64,
    moved: watch::Receiver<()>,
    queue: WakeQueue,
}

impl WakeQueue {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { of: Arc::default(), gauge }
    }

    /// Whether somebody is held for this workspace.
    pub(super) fn has_waiting(&self, id: &WorkspaceId) -> bool {
        self.all().contains_key(id)
    }

    /// A place behind all others.
    pub(super) fn enqueue(&self, id: &WorkspaceId) -> Result<Ticket, WireError> {
        let mut all = self.all();
        let mine = all.get(id).map_or(0, |line| line.held.len());
        for (count, limit, what) in [
            (mine, MAX_HELD_PER_WORKSPACE, "calls waiting for one workspace"),
            (all.values().map(|line| line.held.len()).sum(), MAX_HELD, "calls waiting for workspaces"),
        ] {
            if count >= limit {
                let message = format!("{limit} {what} already; try again");
                let error = WireError::new(Reason::TooManyWaiting, message).retry_after(RETRY_INTERVAL);
                return Err(error.with("limit", limit).with("what", what));
            }
        }
        let line = all.entry(id.clone()).or_default();
        let number = line.next;
        line.next += 1;
        line.held.insert(number);
        self.gauge.inc();
        Ok(Ticket { id: id.clone(), number, moved: line.moved.subscribe(), queue: self.clone() })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<WorkspaceId, WorkspaceQueue>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Nobody is before it.
    pub(super) fn is_first(&self) -> bool {
        self.queue.all().get(&self.id).is_none_or(|line| line.held.first() == Some(&self.number))
    }

    /// Somebody before or behind it has gone since this was asked last.
    pub(super) async fn moved(&mut self) {
        // The line lasts as long as this place in it.
        let _lasts = self.moved.changed().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut all = self.queue.all();
        self.queue.gauge.dec();
        let Some(line) = all.get_mut(&self.id) else { return };
        line.held.remove(&self.number);
        line.moved.send_replace(());
        if line.held.is_empty() {
            all.remove(&self.id);
        }
    }
}
