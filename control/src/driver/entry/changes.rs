//! The spec of a workspace as the driver observes it, the changes of it that requests need, and the
//! refusal of a change that the newest spec did not permit. `requests` checks requests first.

use std::{sync::Arc, time::Duration};

use podling_core::{
    decide::{is_asleep, is_unrecorded_sleep, observe_spec, request_before_sleep, shorten_backoff},
    observed::UseState,
    reason::SleepRequest,
    spec_change::SpecChange,
    status::Phase,
    workspace::{DesiredSpec, DesiredState},
};
use tokio::time::Instant;

use super::{OwnSpecChange, PendingReply, WorkspaceEntry};
use crate::{
    clock,
    driver::DriverError,
    store::{StoredSpec, WorkspaceRecord},
};

/// Longest time that a caller waits for the status that follows from the changed spec. The status may
/// be impossible to write, and the request is durable without it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

impl WorkspaceEntry {
    /// Records the stored spec, unless a later one was observed before.
    pub(crate) fn observe_spec(&mut self, stored: &StoredSpec) {
        if stored.version < self.spec_version {
            return;
        }
        self.spec_version = stored.version;
        self.deleted_in_store = stored.deleted_in_store;
        let before = self.record.spec.clone();
        let has_changed = stored.desired != before.desired();
        if !has_changed && stored.generation == self.record.generation {
            return;
        }
        let spec = if has_changed { Arc::new(before.with(&stored.desired)) } else { before.clone() };
        if has_changed {
            // Values of the environment may be sensitive.
            tracing::info!(
                workspace = %spec.id, generation = stored.generation, desired_state = ?spec.desired_state,
                request = spec.request_seq, resources = ?spec.resources, policy = ?spec.policy,
                "workspace spec changed"
            );
        }
        // The quota admitted the earlier resources, not other ones.
        self.observed.admitted &= spec.resources == before.resources;
        // A request to sleep that arrived after a wake in progress is newer, and stays.
        let is_requested =
            spec.desired_state == DesiredState::Awake && spec.request_seq != before.request_seq;
        if is_requested && self.wakes_in_progress == 0 {
            self.observed.sleep_request = None;
        }
        let status = observe_spec(&before, &spec, &self.record.status, clock::now());
        let generation = stored.generation;
        self.record = Arc::new(WorkspaceRecord { spec, generation, status, ..(*self.record).clone() });
    }

    /// Records the spec that a change has returned. Ignores it if a spec of the same version was
    /// observed: the change may have used an older template.
    pub(crate) fn observe_changed_spec(&mut self, stored: &StoredSpec) {
        self.must_read_spec = false;
        if stored.version > self.spec_version {
            self.observe_spec(stored);
        }
    }

    /// Records that a caller requests a change of the spec.
    pub(crate) fn spec_change_requested(&mut self, change: &SpecChange) {
        self.name_reservations += usize::from(reclaims_name(change));
        self.wakes_in_progress += usize::from(matches!(change, SpecChange::Wake { .. }));
    }

    /// Records that the store has failed to change the spec. It may have made the change nevertheless.
    pub(crate) fn spec_change_failed(&mut self) {
        self.must_read_spec = true;
    }

    /// Answers the callers that have requested a change of the spec: with the refusal, or once the
    /// status that follows from the change is durable.
    pub(crate) fn answer_spec_change(
        &mut self,
        change: &SpecChange,
        replies: Vec<PendingReply>,
        refusal: Option<&DriverError>,
    ) {
        if reclaims_name(change) {
            self.name_reservations -= replies.len();
        }
        if let SpecChange::Wake { .. } = change {
            self.wakes_in_progress -= replies.len();
        }
        if let (None, SpecChange::Wake { .. } | SpecChange::Delete { .. }) = (refusal, change) {
            // A caller waits, who may have repaired the cause of the failures.
            self.shorten_backoff();
        }
        let until = Instant::now() + STATUS_TIMEOUT;
        for reply in replies {
            match refusal {
                Some(refusal) => reply.reject(refusal.clone()),
                None => self.pending_replies.push((Some(until), reply)),
            }
        }
    }

    /// Returns why the newest spec did not permit the change, if it did not. Another client may have
    /// deleted or resized the workspace meanwhile.
    pub(crate) fn refusal(&self, change: &SpecChange, newest: &DesiredSpec) -> Option<DriverError> {
        let id = self.record.spec.id.clone();
        match (change, self.check_undelete()) {
            (SpecChange::Resize { overrides, .. }, _) if !newest.desired_state.is_gone() => {
                (newest.resources.with(*overrides) != newest.resources).then_some(DriverError::TooLarge)
            }
            _ if !change.is_refused_while_deleting() || !newest.desired_state.is_gone() => None,
            (SpecChange::Undelete(_), Err(cause)) => Some(DriverError::CannotUndelete { id, cause }),
            (_, undelete) => Some(DriverError::Deleting { id, undelete: undelete.is_ok() }),
        }
    }

    /// Returns whether no other workspace of the owner may have this name.
    pub(crate) fn holds_name(&self) -> bool {
        self.name_reservations > 0 || !self.record.is_gone()
    }

    /// Returns the last durable record with the last observed spec. Returns `None` before the
    /// workspace is durable.
    pub(crate) fn durable_record(&self) -> Option<Arc<WorkspaceRecord>> {
        let durable = self.durable.as_ref()?;
        if Arc::ptr_eq(&durable.spec, &self.record.spec) && durable.generation == self.record.generation {
            return Some(durable.clone());
        }
        let (spec, generation) = (self.record.spec.clone(), self.record.generation);
        Some(Arc::new(WorkspaceRecord { spec, generation, ..(**durable).clone() }))
    }

    /// Returns the change of the spec that the driver itself needs, if one is due. The caller must
    /// request it. A failed change is followed by a read, and a sleep by its record in the spec.
    pub(crate) fn begin_own_spec_change(&mut self) -> Option<SpecChange> {
        let OwnSpecChange::NotBefore(at) = self.own_spec_change else { return None };
        if at > Instant::now() || self.observed.shutting_down {
            return None;
        }
        // Only the durable status says which requests were acted on.
        let is_unrecorded =
            || self.is_settled() && is_unrecorded_sleep(&self.record.spec, &self.record.status);
        let change = match self.must_read_spec {
            true => SpecChange::Read,
            false if is_unrecorded() => SpecChange::FellAsleep { generation: self.record.generation },
            false => return None,
        };
        self.own_spec_change = OwnSpecChange::InFlight;
        Some(change)
    }

    /// Records that the change of [`Self::begin_own_spec_change`] has ended, and when the next one may
    /// begin.
    pub(crate) fn end_own_spec_change(&mut self, next_at: Instant) {
        self.own_spec_change = OwnSpecChange::NotBefore(next_at);
    }

    /// Shortens the back-off to at most 1 s after the failure, because a caller waits.
    fn shorten_backoff(&mut self) {
        let status = shorten_backoff(&self.record.status, clock::now());
        if status != self.record.status {
            self.record = Arc::new(WorkspaceRecord { status, ..WorkspaceRecord::clone(&self.record) });
        }
    }

    /// Requests a wake. Returns the change of the spec, unless the workspace is awake or starting. The
    /// store may be unavailable, and such a workspace needs no change.
    pub(crate) fn request_wake(&mut self) -> Option<SpecChange> {
        self.observed.sleep_request = None;
        let starts_or_serves = matches!(
            self.record.status.phase,
            Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake
        );
        if starts_or_serves && self.record.spec.desired_state == DesiredState::Awake && !self.must_read_spec {
            self.shorten_backoff();
            return None;
        }
        Some(SpecChange::Wake { acted_on: self.request_before_sleep() })
    }

    /// Returns the number of a request after which the workspace falls asleep, by the last decision or
    /// by the durable status. The last decision may be lost.
    fn request_before_sleep(&self) -> Option<u64> {
        let durable = self.durable.as_ref().and_then(|durable| request_before_sleep(&durable.status));
        request_before_sleep(&self.record.status).or(durable)
    }

    /// Returns the change that a request to wake needs although its first change has ended, because the
    /// workspace began to fall asleep meanwhile.
    pub(crate) fn repeated_wake(&self, change: &SpecChange) -> Option<SpecChange> {
        let SpecChange::Wake { .. } = change else { return None };
        let (spec, acted_on) = (&self.record.spec, self.request_before_sleep());
        let has_no_effect = spec.desired_state == DesiredState::Awake && acted_on == Some(spec.request_seq);
        has_no_effect.then_some(SpecChange::Wake { acted_on })
    }

    /// Requests sleep. With `force`, the agent cannot decline. Returns the change of the spec, unless
    /// the agent is asked first.
    pub(crate) fn request_sleep(&mut self, force: bool) -> Option<SpecChange> {
        tracing::info!(workspace = %self.record.spec.id, force, "sleep requested");
        match (self.record.status.phase, self.record.spec.desired_state) {
            // Only the agent knows the current activity.
            (Phase::Awake | Phase::Preparing { .. }, DesiredState::Awake) if !force => {
                self.observed.sleep_request = Some(SleepRequest::User);
                None
            }
            _ => Some(SpecChange::Sleep),
        }
    }

    /// Requests a deletion. Returns the change of the spec, unless the workspace is being removed
    /// already.
    pub(crate) fn request_deletion(&self, discard: bool) -> Option<SpecChange> {
        let is_removed = self.record.status.phase == Phase::Deleting;
        (!is_removed).then_some(SpecChange::Delete { discard })
    }

    /// Requests that the deletion is taken back. The workspace stays as it is, asleep or awake.
    pub(crate) fn request_undelete(&self) -> SpecChange {
        SpecChange::Undelete(if is_asleep(self.record.status.phase) {
            DesiredState::Asleep
        } else {
            DesiredState::Awake
        })
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
}

/// Returns whether a deleted workspace takes its name again with this change.
fn reclaims_name(change: &SpecChange) -> bool {
    matches!(change, SpecChange::Restore | SpecChange::Undelete(_))
}
