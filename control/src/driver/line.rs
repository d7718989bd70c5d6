//! Who has room to be awake, and who waits for it.

use podling_core::{id::WorkspaceId, observed::Processes, quota, quota::QuotaRequest, status::Phase};

use super::{Driver, entry::Entry};
use crate::backend::Backend;

impl<B: Backend> Driver<B> {
    /// Draws up the line anew, if somebody has come or gone, and lets those in for whom there is room now.
    pub(super) fn let_in(&mut self) {
        // Room that is given back when the control plane leaves is for who comes to the next one.
        while !self.leaving && std::mem::take(&mut self.line_changed) {
            let line =
                quota::admission_queue(self.entries.values().filter_map(Entry::claimant), &self.quotas);
            let moved: Vec<WorkspaceId> = self
                .entries
                .iter_mut()
                .filter_map(|(id, entry)| {
                    let place = line.get(id).copied();
                    let waits = entry.claimant().is_some_and(|claimant| claimant.waits.is_some());
                    let news = entry.place != place || (waits && place.is_none() != entry.observed.admitted);
                    entry.place = place;
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

impl Entry {
    /// As the line sees it; `None`: it neither has room nor wants it.
    fn claimant(&self) -> Option<QuotaRequest<'_>> {
        let (spec, status) = (&self.record.spec, &self.record.status);
        let ends = status.phase == Phase::Deleting && self.observed.processes != Processes::None;
        QuotaRequest::of(spec, status, self.durable.as_ref().map(|durable| &durable.status), ends)
    }
}
