//! Publishes snapshots, and sends the replies that must follow them.

use std::{sync::Arc, time::Duration};

use podling_core::{id::WorkspaceId, time::Timestamp};
use tokio::{sync::watch, time::Instant};

use super::Driver;
use crate::{
    backend::Backend,
    snapshot::{ShutdownProgress, Snapshot, SnapshotReceiver},
};

/// Shortest pause after a snapshot, for each workspace in it. Copying the map takes about 0.1 µs
/// for each workspace, so snapshots take at most a twentieth of the driver's time. With 100
/// workspaces the pause is 0.2 ms.
const PAUSE_PER_WORKSPACE: Duration = Duration::from_micros(2);

/// Publishes snapshots at a bounded rate.
#[derive(Debug)]
pub(super) struct SnapshotPublisher {
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// Generation of the newest snapshot or view. Starts at the wall-clock time in milliseconds, so
    /// that it also grows over restarts.
    generation: u64,
    changed: bool,
    not_before: Instant,
}

impl SnapshotPublisher {
    pub(super) fn new(now: Timestamp) -> (Self, SnapshotReceiver) {
        let (snapshots, receiver) = watch::channel(Arc::default());
        (Self { snapshots, generation: now.0, changed: true, not_before: Instant::now() }, receiver)
    }

    pub(super) fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// Returns when the next snapshot may be published, or `None` if nothing has changed.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.changed.then_some(self.not_before)
    }
}

impl<B: Backend> Driver<B> {
    /// Rebuilds the workspace's view. If the record is durable, its pending replies become ready.
    pub(super) fn refresh_view(&mut self, id: &WorkspaceId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let version = entry.view.as_ref().map_or(0, |view| view.version);
        let Some(mut view) = entry.build_view(version) else { return };
        if entry.view.as_deref() != Some(&view) {
            self.publisher.generation += 1;
            self.publisher.changed = true;
            view.version = self.publisher.generation;
            entry.view = Some(Arc::new(view));
        }
        if entry.is_settled() && !entry.pending_replies.is_empty() {
            self.ready_to_answer.insert(id.clone());
        }
    }

    /// Answers the callers whose workspace's record is durable. Publishes a snapshot first, so that
    /// it contains what the replies report. One snapshot serves all records of a batch.
    pub(super) fn answer_ready(&mut self) {
        if self.ready_to_answer.is_empty() {
            return;
        }
        if self.publisher.changed {
            self.publish();
        }
        for id in std::mem::take(&mut self.ready_to_answer) {
            // If the record has changed again, its callers are answered once that change is
            // durable.
            let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.is_settled()) else { continue };
            for reply in entry.answer_pending() {
                self.restore(&id, reply);
            }
        }
    }

    pub(super) fn publish_if_due(&mut self) {
        if self.publisher.changed && self.publisher.not_before <= Instant::now() {
            self.publish();
        }
    }

    pub(super) fn publish(&mut self) {
        let views = self.entries.iter().filter_map(|(id, entry)| Some((id.clone(), entry.view.clone()?)));
        self.publisher.generation += 1;
        let there: Vec<_> = self.entries.values().filter(|entry| !entry.record.is_gone()).collect();
        let total = there.len();
        let remaining = there.into_iter().filter(|entry| !entry.allows_shutdown()).count();
        let snapshot = Snapshot {
            generation: self.publisher.generation,
            workspaces: views.collect(),
            observed_time: self.observed_time,
            down: self.shutting_down.then_some(ShutdownProgress { remaining, total }),
        };
        self.publisher.snapshots.send_replace(Arc::new(snapshot));
        self.publisher.changed = false;
        let pause = PAUSE_PER_WORKSPACE.saturating_mul(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.publisher.not_before = Instant::now() + pause;
    }
}
