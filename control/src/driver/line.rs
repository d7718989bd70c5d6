//! Who has room to be awake, and who waits for it.

use podling_core::{id::WorkspaceId, quota, quota::Claimant, status::Phase};

use super::{Driver, entry::Entry};
use crate::backend::Backend;

impl<B: Backend> Driver<B> {
    /// Draws up the line anew, if somebody has come or gone, and lets those in for whom there is room now.
    pub(super) fn let_in(&mut self) {
        while std::mem::take(&mut self.line_changed) {
            let line = quota::line(self.entries.values().filter_map(Entry::claimant), &self.quotas);
            let moved: Vec<WorkspaceId> = self
                .entries
                .iter_mut()
                .filter_map(|(id, entry)| {
                    let place = line.get(id).copied();
                    let waits = entry.record.status.phase == Phase::Queued;
                    let news = entry.place != place || (waits && place.is_none() != entry.observed.room);
                    entry.place = place;
                    entry.observed.room = waits && place.is_none();
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
    fn claimant(&self) -> Option<Claimant<'_>> {
        let (spec, status) = (&self.record.spec, &self.record.status);
        let waits = match status.phase {
            Phase::Queued => Some(status.queued.unwrap_or_default()),
            phase if phase.takes_room() => None,
            _ => return None,
        };
        Some(Claimant { id: &spec.id, owner: &spec.owner, resources: spec.resources, waits })
    }
}
