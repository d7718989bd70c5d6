//! The transitions of the state machine. Each is a function that returns the new status, or `None`
//! if the transition does not apply.

mod serving;
mod sleeping;
mod storage;

use super::backoff;
use crate::{
    observed::Observed,
    reason::StateReason,
    status::{MaintenanceStage, MaintenanceTask, Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, Spec},
};

/// The arguments of every transition.
#[derive(Clone, Copy)]
struct TransitionInput<'a> {
    spec: &'a Spec,
    status: &'a Status,
    observed: &'a Observed,
    now: Timestamp,
}

/// Returns the status after the first transition that applies, or `None` if none applies.
pub(super) fn follow(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Option<Status> {
    let input = TransitionInput { spec, status, observed, now };
    let first = storage::sync_archives(input).or_else(|| input.discard());
    if first.is_some() {
        return first;
    }
    match status.phase {
        Phase::Queued => {
            serving::stop_now(input).or_else(|| serving::enqueue(input)).or_else(|| serving::admit(input))
        }
        Phase::Pending { not_before } => serving::stop_now(input)
            .or_else(|| serving::resized(input))
            .or_else(|| serving::start(input, not_before)),
        Phase::Starting => serving::open_storage(input)
            .or_else(|| serving::stop_now(input))
            .or_else(|| serving::resized(input))
            .or_else(|| serving::start_failed(input))
            .or_else(|| serving::hello(input)),
        Phase::Awake => serving::stop_restarting(input)
            .or_else(|| serving::agent_ended(input))
            .or_else(|| sleeping::stop_now(input))
            .or_else(|| serving::agent_silent(input))
            .or_else(|| sleeping::fall_asleep(input))
            .or_else(|| serving::resized(input))
            .or_else(|| serving::healthy(input)),
        Phase::Preparing { urgency, declined } => serving::stop_restarting(input)
            .or_else(|| serving::agent_ended(input))
            .or_else(|| sleeping::stop_now(input))
            .or_else(|| sleeping::cancel_sleep(input, urgency, declined))
            .or_else(|| sleeping::prepared(input)),
        Phase::Committing => {
            sleeping::ready(input).or_else(|| sleeping::give_up(input)).or_else(|| sleeping::declined(input))
        }
        Phase::FallingAsleep => sleeping::stopped(input),
        Phase::Asleep => sleeping::wake(input)
            .or_else(|| storage::release_storage(input))
            .or_else(|| storage::archive_due(input)),
        Phase::Maintenance { task, stage: MaintenanceStage::Starting } => match task {
            MaintenanceTask::Archive => sleeping::wake(input).or_else(|| storage::cancel_archive(input)),
            MaintenanceTask::Restore => None,
        }
        .or_else(|| storage::retry_later(input, task))
        .or_else(|| storage::maintenance_started(input, task)),
        Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Running } => {
            sleeping::wake(input)
                .or_else(|| storage::cancel_archive(input))
                .or_else(|| storage::archived(input))
                .or_else(|| storage::retry_later(input, MaintenanceTask::Archive))
        }
        Phase::Maintenance { task: MaintenanceTask::Restore, stage: MaintenanceStage::Running } => {
            storage::restored(input).or_else(|| storage::retry_later(input, MaintenanceTask::Restore))
        }
        Phase::Archived => storage::nothing_left(input).or_else(|| storage::restore(input)),
        Phase::Deleting => None,
    }
}

impl TransitionInput<'_> {
    /// Applies when a request discards the workspace with its files and archives.
    fn discard(self) -> Option<Status> {
        (self.spec.desired_state == DesiredState::Discarded && self.status.phase != Phase::Deleting)
            .then(|| self.to(Phase::Deleting, StateReason::DiscardRequested))
    }

    fn connected(self) -> bool {
        self.observed.connected == Some(self.status.epoch)
    }

    fn is_running(self) -> bool {
        self.observed.processes.is_running(self.status.epoch)
    }

    /// Returns whether the agent of the present epoch has reported use.
    fn was_used(self) -> bool {
        self.observed.used_by == Some(self.status.epoch)
    }

    /// Returns whether a request to wake is pending. During a shutdown none is.
    fn is_requested(self) -> bool {
        self.spec.desired_state == DesiredState::Awake
            && self.spec.request_seq > self.status.observed_request
            && !self.observed.shutting_down
    }

    fn to(self, phase: Phase, reason: StateReason) -> Status {
        Status { phase, reason, since: self.now, waits: None, ..self.status.clone() }
    }

    /// Enters `phase` and keeps the present reason.
    fn on_to(self, phase: Phase) -> Status {
        self.to(phase, self.status.reason.clone())
    }

    /// Enters the pause after `counted` failures in a row, and adds one to the status's failures.
    fn fail(self, reason: StateReason, counted: u32) -> Status {
        let not_before = self.now.plus(backoff::after(counted));
        let mut next = self.to(Phase::Pending { not_before }, reason);
        next.failures = next.failures.saturating_add(1);
        next
    }
}
