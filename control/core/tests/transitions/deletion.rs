//! Deletion of a workspace, and shutdown of the control plane.

use std::time::Duration;

use podling_core::{
    decide::{Action, decide, is_unrecorded_sleep, observe_spec},
    observed::{ActionFailure, Failure, Observed, PrepareState, RunningAgents},
    reason::{Operation, StateReason},
    status::{MaintenanceRetry, Phase, Status, Urgency},
    time::Timestamp,
    workspace::DesiredState,
};

use crate::fixture::*;

/// Returns the status after the deletion was taken back.
fn undelete(status: &Status, now: Timestamp) -> Status {
    observe_spec(&spec(DesiredState::Deleted), &spec(DesiredState::Asleep), status, now)
}

#[test]
fn shutdown_stops_every_workspace() {
    let stop = (Phase::FallingAsleep, 3, Some(Action::StopProcesses));
    let later = pending(SECOND);
    assert_table(
        DesiredState::Awake,
        &[
            ("awake", Phase::Awake, shutting_down(served()), stop),
            ("starting", Phase::Starting, shutting_down(with_processes(agents(&[]))), stop),
            ("preparing", PREPARING_IDLE, shutting_down(served()), stop),
            ("back-off", later, shutting_down(with_processes(agents(&[]))), stop),
            (
                "back-off, no processes",
                later,
                shutting_down(with_processes(RunningAgents::None)),
                (Phase::Asleep, 3, None),
            ),
            (
                "all processes ended",
                Phase::FallingAsleep,
                shutting_down(with_processes(RunningAgents::None)),
                (Phase::Asleep, 3, None),
            ),
            (
                "committing",
                Phase::Committing,
                shutting_down(served()),
                (Phase::Committing, 3, Some(Action::Commit(3))),
            ),
            (
                "committing, not connected",
                Phase::Committing,
                shutting_down(with_processes(agents(&[3]))),
                (Phase::FallingAsleep, 3, Some(Action::StopProcesses)),
            ),
            (
                "asleep with leftover processes",
                Phase::Asleep,
                shutting_down(with_processes(agents(&[]))),
                (Phase::Asleep, 3, Some(Action::StopProcesses)),
            ),
            (
                "archiving",
                ARCHIVE_RUNNING,
                shutting_down(served()),
                (Phase::Asleep, 3, Some(Action::StopProcesses)),
            ),
            (
                "restoring",
                RESTORE_RUNNING,
                shutting_down(served()),
                (Phase::Archived, 3, Some(Action::StopProcesses)),
            ),
        ],
    );
    let requested_meanwhile = outcome(
        &requested(DesiredState::Awake),
        &status(Phase::Asleep),
        &shutting_down(with_processes(RunningAgents::None)),
    );
    assert_eq!(requested_meanwhile, (Phase::Asleep, 3, None), "a workspace wakes during shutdown");
}

#[test]
fn awake_after_a_deletion_needs_no_number() {
    let deleted = decide(&spec(DesiredState::Deleted), &status(Phase::Awake), &served(), NOW).status;
    assert_eq!(deleted.phase, PREPARING_FORCED);
    let asleep = Status { phase: Phase::Asleep, ..deleted };
    let desired_awake = spec(DesiredState::Awake);
    assert!(!is_unrecorded_sleep(&desired_awake, &asleep), "the edit would be overwritten");
    let observed = with_processes(RunningAgents::None);
    assert_eq!(outcome(&desired_awake, &asleep, &observed).0, Phase::Queued);
}

#[test]
fn discard_from_any_phase_removes_everything() {
    let deleting = |action| (Phase::Deleting, 3, Some(action));
    let removed = |observed| Observed { removed: true, ..observed };
    assert_table(
        DesiredState::Discarded,
        &[
            ("awake", Phase::Awake, served(), deleting(Action::StopProcesses)),
            ("starting", Phase::Starting, with_processes(agents(&[])), deleting(Action::StopProcesses)),
            ("falling asleep", Phase::Committing, served(), deleting(Action::StopProcesses)),
            ("archiving", ARCHIVE_RUNNING, served(), deleting(Action::StopProcesses)),
            (
                "back-off",
                pending(SECOND),
                with_processes(RunningAgents::None),
                deleting(Action::RemoveStorage),
            ),
            (
                "processes unknown",
                Phase::Deleting,
                with_processes(RunningAgents::Unseen),
                (Phase::Deleting, 3, None),
            ),
            (
                "orphaned processes",
                Phase::Deleting,
                with_processes(agents(&[])),
                deleting(Action::StopProcesses),
            ),
            (
                "no processes",
                Phase::Deleting,
                with_processes(RunningAgents::None),
                deleting(Action::RemoveStorage),
            ),
            (
                "storage removed",
                Phase::Deleting,
                removed(with_processes(RunningAgents::None)),
                deleting(Action::RemoveRecord),
            ),
            (
                "control plane shuts down meanwhile",
                Phase::Deleting,
                shutting_down(with_processes(agents(&[]))),
                deleting(Action::StopProcesses),
            ),
        ],
    );
    let storage_gone = removed(with_processes(RunningAgents::None));
    let status = archived(status(Phase::Deleting), &[2, 3]);
    assert_eq!(
        outcome(&spec(DesiredState::Discarded), &status, &storage_gone),
        deleting(Action::ExpireArchive(2)),
        "the oldest archive is not removed first"
    );
    let storage_gone = Observed { expired: [2, 3].into(), ..storage_gone };
    assert_eq!(
        outcome(&spec(DesiredState::Discarded), &status, &storage_gone),
        deleting(Action::RemoveRecord),
        "the record is not removed last"
    );
}

#[test]
fn delete_archives_before_removal() {
    assert_table(
        DesiredState::Deleted,
        &[
            ("awake", Phase::Awake, served(), (PREPARING_FORCED, 3, Some(prepare(Urgency::Forced)))),
            (
                "awake, not connected",
                Phase::Awake,
                with_processes(agents(&[3])),
                (Phase::FallingAsleep, 3, Some(Action::StopProcesses)),
            ),
            (
                "queued",
                Phase::Queued,
                with_processes(RunningAgents::None),
                (ARCHIVE_STARTING, 4, Some(Action::StartAgent(4))),
            ),
        ],
    );
    let never_started = Status { storage: false, ..status(Phase::Queued) };
    let none = with_processes(RunningAgents::None);
    let deleted = outcome(&spec(DesiredState::Deleted), &never_started, &none);
    assert_eq!(
        deleted,
        (Phase::Deleting, 3, Some(Action::RemoveStorage)),
        "empty storage waits for an archive"
    );
    for phase in [pending(SECOND), Phase::Starting] {
        let never_ran = Status { storage: false, ..status(phase) };
        assert_eq!(
            outcome(&spec(DesiredState::Deleted), &never_ran, &with_processes(agents(&[]))),
            (Phase::FallingAsleep, 3, Some(Action::StopProcesses)),
            "{phase:?}: the start is given up"
        );
        let stopped = Status { phase: Phase::FallingAsleep, ..never_ran };
        let removed = outcome(&spec(DesiredState::Deleted), &stopped, &none);
        assert_eq!(removed, deleted, "{phase:?}: empty storage waits for an archive");
    }
    let archived = archived(Status { storage: false, ..status(Phase::Archived) }, &[3]);
    assert_eq!(
        outcome(&spec(DesiredState::Deleted), &archived, &none),
        (Phase::Archived, 3, None),
        "the archive of a deleted workspace is not retained"
    );
}

#[test]
fn undelete_keeps_storage_in_every_phase() {
    let after = |phase, reason, observed: &Observed| {
        let status = Status { reason, slept_at: OBSERVED_TIME - HOUR, ..status(phase) };
        let decision = decide(&spec(DesiredState::Awake), &undelete(&status, NOW), observed, NOW);
        (decision.status.phase, decision.action, decision.status.reason)
    };
    let taken_back = StateReason::DeletionCancelled;
    let prepared = Observed { prepare_state: PrepareState::Prepared(3), ..served() };
    assert_eq!(
        after(PREPARING_FORCED, StateReason::DeleteRequested, &prepared),
        (Phase::Awake, Some(Action::Cancel(3)), taken_back.clone()),
        "a workspace that has not fallen asleep stays awake"
    );
    let none = with_processes(RunningAgents::None);
    for phase in [Phase::FallingAsleep, ARCHIVE_STARTING, ARCHIVE_RUNNING] {
        let reason = match phase {
            Phase::FallingAsleep => StateReason::DeleteRequested,
            _ => StateReason::ArchiveBeforeDelete,
        };
        assert_eq!(after(phase, reason, &none), (Phase::Asleep, None, taken_back.clone()), "{phase:?}");
    }
    let recent = Status { slept_at: OBSERVED_TIME - HOUR, ..status(ARCHIVE_RUNNING) };
    let proven = undelete(&archived(recent, &[3]), NOW);
    let decision = decide(&spec(DesiredState::Awake), &proven, &none, NOW);
    assert_eq!(decision.status.phase, Phase::Asleep, "an archive that was proven meanwhile releases nothing");
    let aged = Status { slept_at: OBSERVED_TIME - 25 * HOUR, ..decision.status };
    let decision = decide(&spec(DesiredState::Awake), &aged, &none, NOW);
    assert_eq!((decision.status.phase, decision.action), (Phase::Archived, Some(Action::RemoveStorage)));
}

#[test]
fn undelete_forgets_archives_that_failed() {
    let retry = MaintenanceRetry { failures: 4, not_before: NOW.plus(HOUR) };
    let cause = Box::new(StateReason::MaintenanceAgentLost);
    let failed = Status {
        reason: StateReason::ArchiveFailed { cause },
        maintenance_retry: retry,
        ..status(Phase::Asleep)
    };
    let undeleted = undelete(&failed, NOW);
    assert_eq!(undeleted.reason, StateReason::DeletionCancelled);
    let none = with_processes(RunningAgents::None);
    let again = decide(&spec(DesiredState::Deleted), &undeleted, &none, NOW);
    assert_eq!(again.action, Some(Action::StartAgent(4)), "a repeated deletion archives at once");
    let awake = status(Phase::Awake);
    assert_eq!(undelete(&awake, NOW), awake, "an awake workspace has no traces of it");
}

#[test]
fn deletion_without_storage_has_its_own_reason() {
    let none = with_processes(RunningAgents::None);
    let reason = |status: &Status| {
        let decision = decide(&spec(DesiredState::Deleted), status, &none, NOW);
        assert_eq!(decision.status.phase, Phase::Deleting);
        decision.status.reason
    };
    assert_eq!(reason(&Status::new(NOW)), StateReason::NothingStored, "the workspace was never started");
    let never_restored = Status::from_archive(NOW);
    assert_eq!(reason(&never_restored), StateReason::NothingStored, "only another workspace has the archive");
    let never_ran = Status { storage: false, ..status(Phase::Asleep) };
    assert_eq!(reason(&never_ran), StateReason::NothingStored, "no start succeeded");
    let expired = Status { storage: false, ..status(Phase::Archived) };
    assert_eq!(reason(&expired), StateReason::ArchivesExpired);
}

#[test]
fn failed_action_is_retried_after_back_off_with_its_reason() {
    let failure = |seconds: u64| ActionFailure {
        action: Action::StopProcesses,
        failures: 2,
        at: Timestamp(NOW.0 - seconds * 1000),
        failure: Failure::Failed("process does not end".into()),
    };
    let observed = |seconds| Observed { last_failure: Some(failure(seconds)), ..with_processes(agents(&[])) };
    let waiting = decide(&spec(DesiredState::Discarded), &status(Phase::Deleting), &observed(1), NOW);
    assert_eq!((waiting.action, waiting.next.map(|(at, _)| at)), (None, Some(NOW.plus(SECOND))));
    assert_eq!(
        waiting.status.reason,
        StateReason::ActionFailed {
            operation: Operation::StopProcesses,
            detail: "process does not end".into()
        }
    );
    let again = decide(&spec(DesiredState::Discarded), &status(Phase::Deleting), &observed(2), NOW);
    assert_eq!(again.action, Some(Action::StopProcesses));
    let long = Observed {
        last_failure: Some(ActionFailure { failures: 60, ..failure(0) }),
        ..with_processes(agents(&[]))
    };
    let next = decide(&spec(DesiredState::Discarded), &status(Phase::Deleting), &long, NOW).next;
    assert_eq!(
        next.map(|(at, _)| at.since(NOW)),
        Some(Duration::from_secs(300)),
        "the back-off exceeds five minutes"
    );
}
