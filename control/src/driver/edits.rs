//! Applies changes that were made in the store outside the API, such as edits of a Workspace
//! resource. No caller waits for a reply.

use std::{collections::BTreeSet, sync::Arc};

use podling_core::{
    id::WorkspaceId,
    observed::{Observed, RunningAgents},
    workspace::{DesiredState, Spec},
};

use super::{Driver, MAX_WORKSPACES, SpecEdit, entry::WorkspaceEntry};
use crate::{backend::Backend, store::WorkspaceRecord};

impl<B: Backend> Driver<B> {
    /// Adds a workspace that was created in the store, or that has become readable again.
    pub(super) fn add_stored(&mut self, record: WorkspaceRecord) {
        let id = record.spec.id.clone();
        if self.entries.contains_key(&id) {
            return;
        }
        if self.entries.len() >= MAX_WORKSPACES {
            tracing::error!(
                workspace = %id, limit = MAX_WORKSPACES, "workspace limit reached; ignoring workspace"
            );
            return;
        }
        tracing::info!(
            workspace = %id, name = %record.spec.name, owner = %record.spec.owner,
            "workspace found in the store"
        );
        let mut entry = WorkspaceEntry::new(record, true, Observed::default());
        let running: Vec<_> =
            self.unknown_agents.extract_if(.., |instance| instance.workspace == id).collect();
        if running.is_empty() {
            // Processes of an earlier workspace with this id may be running. They are stopped
            // before a start.
            entry.observed.processes = RunningAgents::Some(BTreeSet::new());
        } else {
            entry.set_instances(running.iter());
        }
        self.issued_ids.insert(id.bits());
        self.queue_changed = true;
        self.entries.insert(id.clone(), entry);
        self.advance(&id);
    }

    /// Applies an edit of the stored spec.
    pub(super) fn apply_edit(&mut self, id: &WorkspaceId, edit: SpecEdit) {
        tracing::info!(workspace = %id, ?edit, "workspace spec edited in the store");
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.unsaved_edit = Some(entry.unsaved_edit.take().unwrap_or_default().followed_by(edit));
        self.reapply_unsaved_edit(id);
        self.advance(id);
    }

    /// Applies the unsaved edit to the record. Called for a new edit and after each rollback.
    pub(super) fn reapply_unsaved_edit(&mut self, id: &WorkspaceId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let Some(edit) = entry.unsaved_edit.clone() else { return };
        let before = entry.record.spec.clone();
        let spec = Spec {
            resources: edit.resources.unwrap_or(before.resources),
            policy: edit.policy.unwrap_or_else(|| before.policy.clone()),
            env: edit.env.unwrap_or_else(|| before.env.clone()),
            ..Spec::clone(&before)
        };
        if spec.resources != before.resources {
            // The quota admitted the earlier resources, not the new ones.
            entry.observed.admitted = false;
            self.queue_changed = true;
        }
        let generation = edit.generation.max(entry.record.generation);
        entry.record = Arc::new(WorkspaceRecord {
            spec: Arc::new(spec),
            generation,
            ..WorkspaceRecord::clone(&entry.record)
        });
        entry.deleted_in_store |= edit.deleted.is_some();
        let wanted = entry.record.spec.desired_state;
        match (edit.deleted, edit.awake) {
            (Some(true), _) if wanted != DesiredState::Discarded => {
                entry.set_desired_state(DesiredState::Discarded)
            }
            (Some(false), _) if !wanted.is_gone() => entry.set_desired_state(DesiredState::Deleted),
            (Some(_), _) => {}
            (None, _) if wanted.is_gone() => {}
            (None, Some(true)) => self.request_wake(id),
            (None, Some(false)) if wanted != DesiredState::Asleep => {
                entry.set_desired_state(DesiredState::Asleep)
            }
            (None, Some(false) | None) => {}
        }
    }
}

impl SpecEdit {
    /// Merges this edit with a later one. The later values win.
    fn followed_by(self, later: Self) -> Self {
        Self {
            generation: self.generation.max(later.generation),
            awake: later.awake.or(self.awake),
            resources: later.resources.or(self.resources),
            policy: later.policy.or(self.policy),
            env: later.env.or(self.env),
            deleted: later.deleted.or(self.deleted),
        }
    }
}
