//! The index by which the driver finds workspaces without a search of all.
//!
//! Every fact is computed from one entry, never counted by hand. The driver updates the index
//! whenever an entry may have changed, so that no fact outlives its cause.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use podling_core::{id::WorkspaceId, workspace::Resources};
use tokio::time::Instant;

/// The facts of one workspace that the admission queue depends on, or that it has set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QuotaFacts {
    pub(crate) held: Option<Resources>,
    /// The resources that the workspace waits for since a time.
    pub(crate) requested: Option<(Duration, Resources)>,
    /// Whether the queue has admitted the present request. A rollback can reset this alone.
    pub(crate) is_admitted: bool,
}

/// The facts by which the driver finds a workspace.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct IndexedFacts {
    /// When the next decision is due, on the monotonic clock.
    pub(crate) scheduled_at: Option<Instant>,
    /// Whether the workspace is being archived.
    pub(crate) holds_archive_slot: bool,
    /// Whether the workspace sleeps, and all archive slots were full at its last decision.
    pub(crate) waits_for_archive_slot: bool,
    /// Whether callers wait for a record that is durable now.
    pub(crate) is_answerable: bool,
    pub(crate) quota: Option<QuotaFacts>,
}

/// Finds workspaces by their facts.
#[derive(Debug, Default)]
pub(crate) struct WorkspaceIndex {
    facts: BTreeMap<WorkspaceId, IndexedFacts>,
    schedule: BTreeSet<(Instant, WorkspaceId)>,
    holding_archive_slot: BTreeSet<WorkspaceId>,
    waiting_for_archive_slot: BTreeSet<WorkspaceId>,
    answerable: BTreeSet<WorkspaceId>,
    /// Whether a quota request has changed since [`Self::take_quota_change`].
    quota_changed: bool,
}

impl WorkspaceIndex {
    /// Replaces the facts of a workspace. `None` removes them.
    pub(crate) fn update(&mut self, id: &WorkspaceId, facts: Option<IndexedFacts>) {
        let now = facts.as_ref();
        let before = self.facts.get(id);
        if before == now {
            return;
        }
        if let Some(at) = before.and_then(|before| before.scheduled_at) {
            self.schedule.remove(&(at, id.clone()));
        }
        if let Some(at) = now.and_then(|now| now.scheduled_at) {
            self.schedule.insert((at, id.clone()));
        }
        self.quota_changed |= before.and_then(|before| before.quota) != now.and_then(|now| now.quota);
        let set = |ids: &mut BTreeSet<WorkspaceId>, of: fn(&IndexedFacts) -> bool| match now.is_some_and(of) {
            true => ids.insert(id.clone()),
            false => ids.remove(id),
        };
        set(&mut self.holding_archive_slot, |facts| facts.holds_archive_slot);
        set(&mut self.waiting_for_archive_slot, |facts| facts.waits_for_archive_slot);
        set(&mut self.answerable, |facts| facts.is_answerable);
        match facts {
            Some(facts) => self.facts.insert(id.clone(), facts),
            None => self.facts.remove(id),
        };
    }

    /// Returns when the next decision of any workspace is due.
    pub(crate) fn next_decision_at(&self) -> Option<Instant> {
        self.schedule.first().map(|(at, _)| *at)
    }

    /// Returns a workspace whose next decision is due.
    pub(crate) fn due(&self, now: Instant) -> Option<WorkspaceId> {
        self.schedule.first().filter(|(at, _)| *at <= now).map(|(_, id)| id.clone())
    }

    /// Returns the number of workspaces that are being archived.
    pub(crate) fn archiving(&self) -> usize {
        self.holding_archive_slot.len()
    }

    /// Returns the sleeping workspaces at whose last decision all archive slots were full.
    pub(crate) fn waiting_for_archive_slot(&self) -> Vec<WorkspaceId> {
        self.waiting_for_archive_slot.iter().cloned().collect()
    }

    /// Returns the workspaces whose callers can be answered.
    pub(crate) fn answerable(&self) -> Vec<WorkspaceId> {
        self.answerable.iter().cloned().collect()
    }

    /// Returns whether the admission queue must be recomputed, and clears that.
    pub(crate) fn take_quota_change(&mut self) -> bool {
        std::mem::take(&mut self.quota_changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_replaced_as_a_whole() {
        let (id, now) = (WorkspaceId::from_bits(1), Instant::now());
        let mut index = WorkspaceIndex::default();
        let facts = |seconds, holds_archive_slot| IndexedFacts {
            scheduled_at: Some(now + Duration::from_secs(seconds)),
            holds_archive_slot,
            ..IndexedFacts::default()
        };
        index.update(&id, Some(facts(1, true)));
        index.update(&id, Some(facts(2, true)));
        assert_eq!((index.archiving(), index.due(now + Duration::from_secs(1))), (1, None));
        assert_eq!(index.next_decision_at(), Some(now + Duration::from_secs(2)));
        index.update(&id, Some(facts(2, false)));
        assert_eq!((index.archiving(), index.take_quota_change()), (0, false));
        let quota = QuotaFacts { held: Some(Resources::default()), requested: None, is_admitted: false };
        index.update(&id, Some(IndexedFacts { quota: Some(quota), ..facts(2, false) }));
        assert!(index.take_quota_change() && !index.take_quota_change());
        index.update(&id, None);
        assert!(index.next_decision_at().is_none() && index.take_quota_change(), "its quota is free");
    }
}
