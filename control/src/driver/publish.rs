//! The picture that everybody else looks at.

use std::{sync::Arc, time::Duration};

use podling_core::{id::WorkspaceId, time::Timestamp};
use tokio::{sync::watch, time::Instant};

use super::Driver;
use crate::{
    backend::Backend,
    snapshot::{Down, Snapshot, Snapshots},
};

/// Pause after a picture for each workspace in it. To copy the map costs about 0.1 µs for each, so that pictures take a twentieth
/// of the driver's time at most; with 100 workspaces the pause is 0.2 ms.
const PAUSE_PER_WORKSPACE: Duration = Duration::from_micros(2);

/// Publishes pictures, not more often than is affordable.
#[derive(Debug)]
pub(super) struct SnapshotPublisher {
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// Of the picture and of what is in it. Begins at the time of day, so that it also grows over restarts.
    generation: u64,
    changed: bool,
    not_before: Instant,
}

impl SnapshotPublisher {
    pub(super) fn new(now: Timestamp) -> (Self, Snapshots) {
        let (snapshots, receiver) = watch::channel(Arc::default());
        (Self { snapshots, generation: now.0, changed: true, not_before: Instant::now() }, receiver)
    }

    /// The next picture will differ.
    pub(super) fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// When the next picture is due.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.changed.then_some(self.not_before)
    }
}

impl<B: Backend> Driver<B> {
    /// Looks at a workspace anew.
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

    /// Answers those whose workspace is durable. Who has an answer shall find it in the picture too; one picture does for all that
    /// became durable together.
    pub(super) fn answer_ready(&mut self) {
        if self.ready_to_answer.is_empty() {
            return;
        }
        if self.publisher.changed {
            self.publish();
        }
        for id in std::mem::take(&mut self.ready_to_answer) {
            // What has changed meanwhile is answered when that is durable.
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
            down: self.shutting_down.then_some(Down { remaining, total }),
        };
        self.publisher.snapshots.send_replace(Arc::new(snapshot));
        self.publisher.changed = false;
        let pause = PAUSE_PER_WORKSPACE.saturating_mul(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.publisher.not_before = Instant::now() + pause;
    }
}
