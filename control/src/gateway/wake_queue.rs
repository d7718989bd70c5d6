//! Held calls, in a first-in first-out queue for each workspace.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use podling_core::id::WorkspaceId;
use podling_proto::error::{Reason, WireError};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::waiting::RETRY_INTERVAL;

/// Calls held for one workspace. Enough for the tabs of a browser and some tools. Further calls are
/// rejected with TOO_MANY_HELD_CALLS.
pub(super) const MAX_HELD_PER_WORKSPACE: usize = 64;
/// Calls held in total. Further calls are rejected with TOO_MANY_HELD_CALLS.
const MAX_HELD: usize = 1024;

/// The queues of all workspaces. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct WakeQueue {
    by_workspace: Arc<Mutex<HashMap<WorkspaceId, WorkspaceQueue>>>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct WorkspaceQueue {
    held: BTreeSet<u64>,
    next: u64,
    moved: watch::Sender<()>,
}

/// A call's position in its queue. Dropping it lets the next call proceed.
pub(super) struct Ticket {
    id: WorkspaceId,
    number: u64,
    moved: watch::Receiver<()>,
    queue: WakeQueue,
}

impl WakeQueue {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { by_workspace: Arc::default(), gauge }
    }

    /// Returns whether any call is held for this workspace.
    pub(super) fn has_waiting(&self, id: &WorkspaceId) -> bool {
        self.all().contains_key(id)
    }

    /// Appends a call to the workspace's queue. Fails with `TOO_MANY_HELD_CALLS` at the limits.
    pub(super) fn enqueue(&self, id: &WorkspaceId) -> Result<Ticket, WireError> {
        let mut all = self.all();
        let mine = all.get(id).map_or(0, |queue| queue.held.len());
        let total: usize = all.values().map(|queue| queue.held.len()).sum();
        for (count, limit, target, what) in [
            (mine, MAX_HELD_PER_WORKSPACE, "this workspace", "calls held for one workspace"),
            (total, MAX_HELD, "workspaces", "calls held for workspaces"),
        ] {
            if count >= limit {
                let message = format!("{limit} calls already wait for {target}; retry later");
                let error = WireError::new(Reason::TooManyHeldCalls, message).retry_after(RETRY_INTERVAL);
                return Err(error.with("limit", limit).with("what", what));
            }
        }
        let queue = all.entry(id.clone()).or_default();
        let number = queue.next;
        queue.next += 1;
        queue.held.insert(number);
        self.gauge.inc();
        Ok(Ticket { id: id.clone(), number, moved: queue.moved.subscribe(), queue: self.clone() })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<WorkspaceId, WorkspaceQueue>> {
        self.by_workspace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Returns whether no held call precedes this one.
    pub(super) fn is_first(&self) -> bool {
        self.queue.all().get(&self.id).is_none_or(|queue| queue.held.first() == Some(&self.number))
    }

    /// Waits until a call leaves the queue. A departure since the last wait counts. Cancel-safe.
    pub(super) async fn moved(&mut self) {
        // Fails only if the sender is dropped. The queue owns it and lives as long as this ticket.
        let _lasts = self.moved.changed().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut all = self.queue.all();
        self.queue.gauge.dec();
        let Some(queue) = all.get_mut(&self.id) else { return };
        queue.held.remove(&self.number);
        queue.moved.send_replace(());
        if queue.held.is_empty() {
            all.remove(&self.id);
        }
    }
}
