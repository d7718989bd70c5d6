//! Who has room to be awake, and who waits for it.

use podling_core::{id::WorkspaceId, observed::Processes, quota, quota::QuotaRequest, status::Phase};

use super::{Driver, entry::WorkspaceEntry};
use crate::backend::Backend;

impl<B: Backend> Driver<B> {
    /// Draws up the line anew, if somebody has come or gone, and lets those in for whom there is room now.
    pub(super) fn admit_queued(&mut self) {
        // Room that is given back when the control plane leaves is for who comes to the next one.
        while !self.draining_idle && std::mem::take(&mut self.queue_changed) {
            let line = quota::admission_queue(
                self.entries.values().filter_map(WorkspaceEntry::quota_request),
                &self.quotas,
            );
            let moved: Vec<WorkspaceId> = self
                .entries
                .iter_mut()
                .filter_map(|(id, entry)| {
                    let place = line.get(id).copied();
                    let waits =
                        entry.quota_request().is_some_and(|quota_request| quota_request.waits.is_some());
                    let news = entry.queue_position != place
                        || (waits && place.is_none() != entry.observed.admitted);
                    entry.queue_position = place;
                    entry.observed.admitted = waits && place.is_none();
                    news.then(|| id.clone())
                })
                .collect();
            for id in moved {
                self.advance(&id);
            }
        }
    }
}

impl WorkspaceEntry {
    /// As the line sees it; `None`: it neither has room nor wants it.
    fn quota_request(&self) -> Option<QuotaRequest<'_>> {
        let (spec, status) = (&self.record.spec, &self.record.status);
        let ends = status.phase == Phase::Deleting && self.observed.processes != Processes::None;
        QuotaRequest::of(spec, status, self.durable.as_ref().map(|durable| &durable.status), ends)
    }
}
