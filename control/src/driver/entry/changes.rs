//! Changes of a workspace's spec, by requests of callers and by edits in the store, such as edits of
//! a Workspace resource. Whether a request is permitted is decided elsewhere.

use std::sync::Arc;

use podling_core::{
    decide::{shorten_backoff, undelete},
    observed::UseState,
    policy::PolicyOverrides,
    reason::SleepRequest,
    status::{Phase, Status},
    workspace::{DesiredState, Resources, Spec},
};

use super::WorkspaceEntry;
use crate::{clock, driver::SpecEdit, store::WorkspaceRecord};

impl WorkspaceEntry {
    /// Deletes the workspace, after archiving it unless `discard` is set.
    pub(crate) fn delete(&mut self, discard: bool) {
        let wanted = if discard { DesiredState::Discarded } else { DesiredState::Deleted };
        if self.record.spec.desired_state != wanted
            && self.record.spec.desired_state != DesiredState::Discarded
        {
            tracing::info!(workspace = %self.record.spec.id, discard, "deletion requested");
            self.set_desired_state(wanted);
        }
        // A caller may have repaired the files that could not be archived.
        self.replace_status(shorten_backoff(&self.record.status, clock::now()));
    }

    /// Takes the deletion back. The workspace stays as it is, asleep or awake.
    pub(crate) fn undelete(&mut self) {
        tracing::info!(workspace = %self.record.spec.id, "deletion taken back");
        let mut status = undelete(&self.record.status, clock::now());
        let is_asleep = matches!(status.phase, Phase::Asleep | Phase::Maintenance { .. } | Phase::Archived);
        if is_asleep {
            // The deletion counted as a request, which must not wake the workspace now.
            status.observed_request = self.record.spec.request_seq;
        }
        self.replace_status(status);
        // No request to wake: the workspace stays asleep if it is.
        let spec = Spec::clone(&self.record.spec);
        self.replace_spec(Spec { desired_state: DesiredState::Awake, ..spec });
    }

    /// Requests a wake, unless the workspace is awake or already waking. Shortens the back-off to at
    /// most 1 s after the failure, because a caller waits.
    pub(crate) fn request_wake(&mut self) {
        self.observed.sleep_request = None;
        let record = &self.record;
        let answered = record.spec.request_seq <= record.status.observed_request;
        if record.spec.desired_state == DesiredState::Asleep
            || (answered && is_asleep_or_going(record.status.phase))
        {
            self.set_desired_state(DesiredState::Awake);
        }
        self.replace_status(shorten_backoff(&self.record.status, clock::now()));
    }

    /// Requests sleep. With `force`, the agent cannot decline.
    pub(crate) fn request_sleep(&mut self, force: bool) {
        if self.record.spec.desired_state == DesiredState::Asleep {
            return;
        }
        tracing::info!(workspace = %self.record.spec.id, force, "sleep requested");
        match self.record.status.phase {
            // Only the agent knows the current activity.
            Phase::Awake | Phase::Preparing { .. } if !force => {
                self.observed.sleep_request = Some(SleepRequest::User);
            }
            _ => self.set_desired_state(DesiredState::Asleep),
        }
    }

    /// Requests sleep if the workspace is idle, because the control plane is about to stop.
    pub(crate) fn sleep_if_idle(&mut self) {
        let idle = matches!(self.observed.used, UseState::No(_));
        self.observed.sleep_request = idle.then_some(SleepRequest::Shutdown);
    }

    /// Withdraws a request to sleep of which the agent does not know yet.
    pub(crate) fn cancel_sleep_request(&mut self) {
        self.observed.sleep_request = None;
    }

    /// Records that the control plane ends all processes before it stops.
    pub(crate) fn shut_down(&mut self) {
        self.observed.shutting_down = true;
    }

    /// Requests that the storage is restored from the archive.
    pub(crate) fn request_restore(&mut self) {
        tracing::info!(workspace = %self.record.spec.id, "restore requested");
        self.set_desired_state(DesiredState::Awake);
        self.deleted_in_store = false;
    }

    pub(crate) fn set_policy(&mut self, overrides: &PolicyOverrides) {
        let policy = self.record.spec.policy.with(overrides).with_limited_warning();
        if policy != self.record.spec.policy {
            tracing::info!(workspace = %self.record.spec.id, ?policy, "policy changed");
            self.replace_spec(Spec { policy, ..Spec::clone(&self.record.spec) });
        }
    }

    /// Changes the requested resources. A decrease takes effect at once. An increase may wait in
    /// the admission queue, and the workspace keeps its allocated resources meanwhile.
    pub(crate) fn resize(&mut self, resources: Resources) {
        if resources != self.record.spec.resources {
            tracing::info!(workspace = %self.record.spec.id, ?resources, "resize requested");
            self.replace_spec(Spec { resources, ..Spec::clone(&self.record.spec) });
        }
    }

    /// Applies an edit of the stored spec.
    pub(crate) fn apply_edit(&mut self, edit: SpecEdit) {
        tracing::info!(workspace = %self.record.spec.id, ?edit, "workspace spec edited in the store");
        self.unsaved_edit = Some(self.unsaved_edit.take().unwrap_or_default().followed_by(edit));
        self.reapply_unsaved_edit();
    }

    /// Applies the unsaved edit to the record. Called for a new edit and after each rollback.
    pub(super) fn reapply_unsaved_edit(&mut self) {
        let Some(edit) = self.unsaved_edit.clone() else { return };
        let before = self.record.spec.clone();
        self.replace_spec(Spec {
            resources: edit.resources.unwrap_or(before.resources),
            policy: edit.policy.unwrap_or_else(|| before.policy.clone()),
            env: edit.env.unwrap_or_else(|| before.env.clone()),
            ..Spec::clone(&before)
        });
        let generation = edit.generation.max(self.record.generation);
        self.record = Arc::new(WorkspaceRecord { generation, ..WorkspaceRecord::clone(&self.record) });
        self.deleted_in_store |= edit.deleted.is_some();
        let wanted = self.record.spec.desired_state;
        match (edit.deleted, edit.awake) {
            (Some(true), _) if wanted != DesiredState::Discarded => {
                self.set_desired_state(DesiredState::Discarded);
            }
            (Some(false), _) if !wanted.is_gone() => self.set_desired_state(DesiredState::Deleted),
            (Some(_), _) => {}
            (None, _) if wanted.is_gone() => {}
            (None, Some(true)) => self.request_wake(),
            (None, Some(false)) if wanted != DesiredState::Asleep => {
                self.set_desired_state(DesiredState::Asleep);
            }
            (None, Some(false) | None) => {}
        }
    }

    /// Sets the desired state as a new request.
    fn set_desired_state(&mut self, desired_state: DesiredState) {
        let spec = Spec::clone(&self.record.spec);
        self.replace_spec(Spec { desired_state, request_seq: spec.request_seq + 1, ..spec });
    }

    fn replace_status(&mut self, status: Status) {
        if status != self.record.status {
            self.record = Arc::new(WorkspaceRecord { status, ..WorkspaceRecord::clone(&self.record) });
        }
    }

    fn replace_spec(&mut self, spec: Spec) {
        // The quota admitted the earlier resources, not other ones.
        self.observed.admitted &= spec.resources == self.record.spec.resources;
        self.record =
            Arc::new(WorkspaceRecord { spec: Arc::new(spec), ..WorkspaceRecord::clone(&self.record) });
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

/// Returns whether a workspace in this phase wakes only for a new request.
fn is_asleep_or_going(phase: Phase) -> bool {
    match phase {
        Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake | Phase::Deleting => false,
        Phase::Preparing { .. }
        | Phase::Committing
        | Phase::FallingAsleep
        | Phase::Asleep
        | Phase::Maintenance { .. }
        | Phase::Archived => true,
    }
}
