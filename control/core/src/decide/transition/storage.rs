//! Transitions that archive, remove and restore the storage of a sleeping workspace.

use super::{TransitionInput, start_failure};
use crate::{
    decide::{Action, backoff, is_pending},
    observed::RunningAgents,
    reason::StateReason,
    status::{MaintenanceRetry, MaintenanceStage, MaintenanceTask, Phase, Status},
    workspace::DesiredState,
};

/// Applies in every phase when an archive was proven or removed, and in `Archived` when the storage
/// was removed.
pub(super) fn sync_archives(input: TransitionInput<'_>) -> Option<Status> {
    let (status, observed) = (input.status, input.observed);
    if let Some(archive) = &observed.archived
        && !observed.expired.contains(&archive.generation)
        && status.archives.iter().all(|known| known.generation != archive.generation)
    {
        let mut next = status.clone();
        next.archives.push((**archive).clone());
        return Some(next);
    }
    if status.archives.iter().any(|archive| observed.expired.contains(&archive.generation)) {
        let mut next = status.clone();
        next.archives.retain(|archive| !observed.expired.contains(&archive.generation));
        return Some(next);
    }
    let removed = observed.removed && status.storage && status.phase == Phase::Archived;
    removed.then(|| {
        let archive = status.archive().map(|archive| archive.key.clone());
        let reason = match (&status.reason, archive) {
            // Stays until the next attempt, because it says why the last one failed.
            (failed @ StateReason::RestoreFailed { .. }, _) => failed.clone(),
            (_, Some(archive)) => StateReason::OnlyArchiveLeft { archive },
            (other, None) => other.clone(),
        };
        // The time identifies a failure for those who wait. Its clean-up is no new failure.
        let has_failed = matches!(reason, StateReason::RestoreFailed { .. });
        let since = if has_failed { status.since } else { input.now };
        Status { storage: false, since, reason, ..status.clone() }
    })
}

/// Applies when a proven archive holds the storage's present content, so that the storage may be
/// removed. Also applies to a deleted workspace that never had storage. Does not apply if the
/// workspace is no longer due to be archived, for example because its deletion was taken back.
pub(super) fn release_storage(input: TransitionInput<'_>) -> Option<Status> {
    if input.observed.shutting_down {
        return None;
    }
    match (input.status.storage, input.status.archive().is_some()) {
        (true, true) if is_archive_due(input) => {
            Some(input.to(Phase::Archived, StateReason::ReleasingStorage))
        }
        (false, _) if input.spec.desired_state == DesiredState::Deleted => {
            Some(input.to(Phase::Archived, StateReason::DeleteRequested))
        }
        _ => None,
    }
}

/// Applies when the workspace has been asleep for `archive_after` or is being deleted, and an
/// archive slot is free.
pub(super) fn archive_due(input: TransitionInput<'_>) -> Option<Status> {
    let deleted = input.spec.desired_state == DesiredState::Deleted;
    let may_start =
        input.status.storage && !input.observed.archive_slots_full && can_start_maintenance(input);
    (may_start && is_archive_due(input)).then(|| {
        let reason = if deleted { StateReason::ArchiveBeforeDelete } else { StateReason::ArchiveDue };
        start_maintenance(input, MaintenanceTask::Archive, reason)
    })
}

/// Returns whether the workspace has been asleep for `archive_after` or is being deleted.
fn is_archive_due(input: TransitionInput<'_>) -> bool {
    let slept = input.observed.observed_time.saturating_sub(input.status.slept_at);
    slept >= input.spec.policy.archive_after || input.spec.desired_state == DesiredState::Deleted
}

/// Applies when the storage is being archived and is no longer due to be: the deletion was taken
/// back, or the policy's `archive_after` was increased. The workspace stays asleep with its storage.
pub(super) fn cancel_archive(input: TransitionInput<'_>) -> Option<Status> {
    (!is_archive_due(input)).then(|| {
        let reason = match input.status.reason {
            StateReason::DeletionCancelled => StateReason::DeletionCancelled,
            _ => StateReason::ArchiveNotDue,
        };
        let mut next = input.to(Phase::Asleep, reason);
        next.maintenance_retry = MaintenanceRetry::default();
        next
    })
}

/// Applies when a request wakes a workspace of which only an archive is left.
pub(super) fn restore(input: TransitionInput<'_>) -> Option<Status> {
    let source = input.status.archive().map(|archive| &archive.key).or(input.spec.source.as_ref())?;
    (input.is_requested() && !input.status.storage && can_start_maintenance(input)).then(|| {
        let reason = StateReason::Restoring { archive: source.clone() };
        let mut next = start_maintenance(input, MaintenanceTask::Restore, reason);
        // From here on the storage may be partly filled. The archive is not changed.
        next.storage = true;
        next
    })
}

fn can_start_maintenance(input: TransitionInput<'_>) -> bool {
    !input.observed.shutting_down
        && input.observed.processes == RunningAgents::None
        && !is_pending(input.status.maintenance_retry.not_before, input.now)
}

/// Returns the status that starts an agent in maintenance mode. That agent runs no programs of the
/// user, so the storage generation stays.
fn start_maintenance(input: TransitionInput<'_>, task: MaintenanceTask, reason: StateReason) -> Status {
    let mut next = input.to(Phase::Maintenance { task, stage: MaintenanceStage::Starting }, reason);
    next.epoch += 1;
    next
}

/// Applies when the agent in maintenance mode has connected.
pub(super) fn maintenance_started(input: TransitionInput<'_>) -> Option<Status> {
    let Phase::Maintenance { task, .. } = input.status.phase else { return None };
    (input.connected() && input.is_running())
        .then(|| input.on_to(Phase::Maintenance { task, stage: MaintenanceStage::Running }))
}

/// Applies when the archive is proven.
pub(super) fn archived(input: TransitionInput<'_>) -> Option<Status> {
    let archive = input.status.archive()?.key.clone();
    let mut next = input.to(Phase::Asleep, StateReason::Archived { archive });
    next.maintenance_retry = MaintenanceRetry::default();
    Some(next)
}

/// Applies when the storage has been filled from the archive.
pub(super) fn restored(input: TransitionInput<'_>) -> Option<Status> {
    (input.observed.restored == Some(input.status.epoch)).then(|| {
        let mut next = input.to(Phase::Queued, StateReason::Restored);
        next.queued_at = Some(input.observed.observed_time);
        next.storage_generation += 1;
        next.observed_request = Some(input.spec.request_seq);
        next.maintenance_retry = MaintenanceRetry::default();
        next
    })
}

/// Applies when maintenance failed or is no longer wanted. The present storage stays if it was
/// being archived. It is removed if it was being restored, because it may be incomplete.
pub(super) fn retry_later(input: TransitionInput<'_>) -> Option<Status> {
    let Phase::Maintenance { task, .. } = input.status.phase else { return None };
    let back = match task {
        MaintenanceTask::Archive => Phase::Asleep,
        MaintenanceTask::Restore => Phase::Archived,
    };
    if input.observed.shutting_down {
        return Some(input.to(back, StateReason::ShuttingDown));
    }
    if task == MaintenanceTask::Restore && input.spec.desired_state != DesiredState::Awake {
        return Some(input.to(back, StateReason::RestoreCancelled));
    }
    let cause = failure(input, task)?.as_cause();
    let reason = match task {
        MaintenanceTask::Archive => StateReason::ArchiveFailed { cause },
        MaintenanceTask::Restore => StateReason::RestoreFailed { cause },
    };
    let mut next = input.to(back, reason);
    next.maintenance_retry.failures = next.maintenance_retry.failures.saturating_add(1);
    next.maintenance_retry.not_before = input.now.plus(backoff(next.maintenance_retry.failures));
    Some(next)
}

fn failure(input: TransitionInput<'_>, task: MaintenanceTask) -> Option<StateReason> {
    let running = matches!(input.status.phase, Phase::Maintenance { stage: MaintenanceStage::Running, .. });
    let action = match task {
        MaintenanceTask::Archive => Action::Archive(input.status.epoch),
        MaintenanceTask::Restore => Action::Restore(input.status.epoch),
    };
    let failed = input.observed.last_failure.as_ref().filter(|last| last.action == action);
    match failed {
        Some(last) => Some(last.failure.as_reason(action)),
        None if running && (input.is_running() && input.connected()) => None,
        None if running && input.observed.processes == RunningAgents::Unseen => None,
        None if running => Some(StateReason::MaintenanceAgentLost),
        None => start_failure(input),
    }
}

/// Applies when neither storage nor archives are left, and no source archive is still to be
/// restored.
pub(super) fn nothing_left(input: TransitionInput<'_>) -> Option<Status> {
    let fresh = input.spec.source.is_some() && input.status.storage_generation == 0;
    let wanted = fresh && !input.spec.desired_state.is_gone();
    (!input.status.storage && input.status.archives.is_empty() && !wanted).then(|| {
        // A workspace that enters `Archived` with this reason has never had storage.
        let never_stored = input.status.reason == StateReason::DeleteRequested;
        // Every archive of the workspace has a storage generation above 0.
        let reason = match input.status.storage_generation {
            0 => StateReason::NothingStored,
            _ if never_stored => StateReason::NothingStored,
            _ => StateReason::ArchivesExpired,
        };
        input.to(Phase::Deleting, reason)
    })
}
