//! Decides which workspaces hold quota, and which wait for it in the admission queue.

use podling_core::{id::WorkspaceId, observed::RunningAgents, quota, quota::QuotaRequest, status::Phase};

use super::{Driver, entry::WorkspaceEntry};
use crate::backend::Backend;

impl<B: Backend> Driver<B> {
    /// Recomputes the admission queue if it may have changed, and admits every workspace that now
    /// fits its quota.
    pub(super) fn admit_queued(&mut self) {
        // While the control plane stops, quota that is released is left to the next control plane.
        while !self.draining_idle && std::mem::take(&mut self.queue_changed) {
            let queue = quota::admission_queue(
                self.entries.values().filter_map(WorkspaceEntry::quota_request),
                &self.quotas,
            );
            let affected: Vec<WorkspaceId> = self
                .entries
                .iter_mut()
                .filter_map(|(id, entry)| {
                    let position = queue.get(id).copied();
                    let waits = entry.quota_request().is_some_and(|request| request.requested.is_some());
                    let changed = entry.queue_position != position
                        || (waits && position.is_none() != entry.observed.admitted);
                    entry.queue_position = position;
                    entry.observed.admitted = waits && position.is_none();
                    changed.then(|| id.clone())
                })
                .collect();
            for id in affected {
                self.advance(&id);
            }
        }
    }
}

impl WorkspaceEntry {
    /// Returns the workspace's request to the admission queue, or `None` if the workspace neither
    /// holds quota nor waits for it.
    fn quota_request(&self) -> Option<QuotaRequest<'_>> {
        let (spec, status) = (&self.record.spec, &self.record.status);
        let stopping = status.phase == Phase::Deleting && self.observed.processes != RunningAgents::None;
        QuotaRequest::of(spec, status, self.durable.as_ref().map(|durable| &durable.status), stopping)
    }
}
