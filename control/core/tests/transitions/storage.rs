//! Transitions that archive, remove and restore the storage of a sleeping workspace.

use std::time::Duration;

use podling_core::{
    archive::ArchiveKey,
    decide::{Action, HELLO_LIMIT, MIN_BACKOFF, decide},
    observed::{Observed, RunningAgents},
    reason::{NextStep, Operation, StateReason},
    status::{MaintenanceRetry, MaintenanceStage, MaintenanceTask, Phase, Status},
    workspace::{DesiredState, Spec},
};

use crate::fixture::*;

const RESTORE_STARTING: Phase =
    Phase::Maintenance { task: MaintenanceTask::Restore, stage: MaintenanceStage::Starting };
const STOP: Option<Action> = Some(Action::StopProcesses);

/// Returns the status of a workspace that fell asleep `since` ago.
fn asleep_for(since: Duration) -> Status {
    Status { slept_at: OBSERVED_TIME - since, ..status(Phase::Asleep) }
}

fn only_archive_left() -> Status {
    Status { storage: false, ..archived(status(Phase::Archived), &[3]) }
}

fn with_archive(observed: Observed, generation: u64) -> Observed {
    Observed { archived: Some(Box::new(archive(generation, Duration::ZERO))), ..observed }
}

#[test]
fn sleeping_workspace_is_archived_when_due() {
    let none = || with_processes(RunningAgents::None);
    let asleep = (Phase::Asleep, 3, None);
    let starts = (ARCHIVE_STARTING, 4, Some(Action::StartAgent(4)));
    let backing_off = MaintenanceRetry { failures: 1, not_before: NOW.plus(SECOND) };
    assert_cases(&[
        ("asleep for a day", spec(DesiredState::Awake), asleep_for(24 * HOUR), none(), starts),
        ("a second less", spec(DesiredState::Awake), asleep_for(24 * HOUR - SECOND), none(), asleep),
        ("deleted", spec(DesiredState::Deleted), asleep_for(SECOND), none(), starts),
        (
            "processes unknown",
            spec(DesiredState::Awake),
            asleep_for(24 * HOUR),
            with_processes(RunningAgents::Unseen),
            asleep,
        ),
        (
            "leftover processes",
            spec(DesiredState::Awake),
            asleep_for(24 * HOUR),
            with_processes(agents(&[])),
            (Phase::Asleep, 3, STOP),
        ),
        (
            "control plane shuts down",
            spec(DesiredState::Awake),
            asleep_for(24 * HOUR),
            shutting_down(none()),
            asleep,
        ),
        (
            "archive slots full",
            spec(DesiredState::Awake),
            asleep_for(24 * HOUR),
            Observed { archive_slots_full: true, ..none() },
            asleep,
        ),
        (
            "archive has just failed",
            spec(DesiredState::Awake),
            Status { maintenance_retry: backing_off, ..asleep_for(24 * HOUR) },
            none(),
            asleep,
        ),
    ]);
    let archiving = decide(&spec(DesiredState::Awake), &asleep_for(24 * HOUR), &none(), NOW).status;
    assert_eq!(archiving.storage_generation, 3, "archiving changes the storage generation");
}

#[test]
fn maintenance_runs_once_its_agent_connects() {
    let failed_start = ended(with_processes(agents(&[])), 3);
    assert_table(
        DesiredState::Awake,
        &[
            ("hello received", ARCHIVE_STARTING, served(), (ARCHIVE_RUNNING, 3, Some(Action::Archive(3)))),
            ("no hello yet", ARCHIVE_STARTING, with_processes(agents(&[3])), (ARCHIVE_STARTING, 3, None)),
            ("to restore", RESTORE_STARTING, served(), (RESTORE_RUNNING, 3, Some(Action::Restore(3)))),
            ("agent does not start", ARCHIVE_STARTING, failed_start, (Phase::Asleep, 3, STOP)),
            (
                "hello overdue",
                ARCHIVE_STARTING,
                silent(with_processes(agents(&[3])), HELLO_LIMIT),
                (Phase::Asleep, 3, STOP),
            ),
        ],
    );
}

#[test]
fn storage_is_released_once_archived() {
    let none = || with_processes(RunningAgents::None);
    assert_table(
        DesiredState::Awake,
        &[
            ("proven", ARCHIVE_RUNNING, with_archive(served(), 3), (Phase::Archived, 3, STOP)),
            (
                "of an older generation",
                ARCHIVE_RUNNING,
                with_archive(served(), 2),
                (ARCHIVE_RUNNING, 3, Some(Action::Archive(3))),
            ),
            ("no longer due", Phase::Asleep, with_archive(none(), 3), (Phase::Asleep, 3, None)),
            ("an old archive", Phase::Asleep, with_archive(none(), 2), (Phase::Asleep, 3, None)),
            (
                "control plane shuts down",
                Phase::Asleep,
                shutting_down(with_archive(none(), 3)),
                (Phase::Asleep, 3, None),
            ),
        ],
    );
    let aged = Status { slept_at: OBSERVED_TIME - 25 * HOUR, ..status(Phase::Asleep) };
    for (desired_state, status) in
        [(DesiredState::Awake, aged), (DesiredState::Deleted, status(Phase::Asleep))]
    {
        let released = outcome(&spec(desired_state), &status, &with_archive(none(), 3));
        assert_eq!(released, (Phase::Archived, 3, Some(Action::RemoveStorage)), "{desired_state:?}");
    }
    let raised = Status { slept_at: OBSERVED_TIME - HOUR, ..status(ARCHIVE_RUNNING) };
    assert_eq!(
        outcome(&spec(DesiredState::Awake), &raised, &served()),
        (Phase::Asleep, 3, STOP),
        "an archive goes on although it is no longer due"
    );
    let requested_meanwhile =
        outcome(&requested(DesiredState::Awake), &archived(status(Phase::Asleep), &[3]), &none());
    assert_eq!(requested_meanwhile, (Phase::Queued, 3, None), "a request is not preferred to the release");
}

#[test]
fn failed_maintenance_is_retried_after_back_off() {
    let failing = |action| failed(served(), action, 1);
    assert_table(
        DesiredState::Awake,
        &[
            ("archiving fails", ARCHIVE_RUNNING, failing(Action::Archive(3)), (Phase::Asleep, 3, STOP)),
            ("restoring fails", RESTORE_RUNNING, failing(Action::Restore(3)), (Phase::Archived, 3, STOP)),
            (
                "an older failure",
                ARCHIVE_RUNNING,
                failing(Action::Archive(2)),
                (ARCHIVE_RUNNING, 3, Some(Action::Archive(3))),
            ),
            ("agent disconnected", ARCHIVE_RUNNING, with_processes(agents(&[3])), (Phase::Asleep, 3, STOP)),
            ("agent ended", RESTORE_RUNNING, with_processes(agents(&[])), (Phase::Archived, 3, STOP)),
            (
                "processes unknown",
                ARCHIVE_RUNNING,
                with_processes(RunningAgents::Unseen),
                (ARCHIVE_RUNNING, 3, None),
            ),
        ],
    );
    let sleep_requested = outcome(&spec(DesiredState::Asleep), &status(RESTORE_RUNNING), &served());
    assert_eq!(sleep_requested, (Phase::Archived, 3, STOP));
    let retried = decide(
        &spec(DesiredState::Awake),
        &retried_three_times(ARCHIVE_RUNNING),
        &failing(Action::Archive(3)),
        NOW,
    );
    assert_eq!(
        retried.status.maintenance_retry,
        MaintenanceRetry { failures: 4, not_before: NOW.plus(8 * SECOND) }
    );
    let cause =
        Box::new(StateReason::ActionFailed { operation: Operation::Archive, detail: "disk error".into() });
    assert_eq!(
        (retried.status.storage, &retried.status.reason),
        (true, &StateReason::ArchiveFailed { cause })
    );
}

fn retried_three_times(phase: Phase) -> Status {
    Status {
        phase,
        maintenance_retry: MaintenanceRetry { failures: 3, ..MaintenanceRetry::default() },
        ..asleep_for(24 * HOUR)
    }
}

#[test]
fn released_storage_is_removed_and_its_archive_retained() {
    let none = || with_processes(RunningAgents::None);
    let storage_removed = || Observed { removed: true, ..none() };
    let storage_present = || archived(status(Phase::Archived), &[3]);
    let archived_without_storage = (Phase::Archived, 3, None);
    assert_cases(&[
        (
            "archiving agent still runs",
            spec(DesiredState::Awake),
            storage_present(),
            with_processes(agents(&[3])),
            (Phase::Archived, 3, STOP),
        ),
        (
            "no processes left",
            spec(DesiredState::Awake),
            storage_present(),
            none(),
            (Phase::Archived, 3, Some(Action::RemoveStorage)),
        ),
        (
            "storage removed",
            spec(DesiredState::Awake),
            storage_present(),
            storage_removed(),
            archived_without_storage,
        ),
        (
            "requested while storage is removed",
            requested(DesiredState::Awake),
            storage_present(),
            none(),
            (Phase::Archived, 3, Some(Action::RemoveStorage)),
        ),
    ]);
    let status = decide(&spec(DesiredState::Awake), &storage_present(), &storage_removed(), NOW).status;
    let archive = ArchiveKey("archive-3".into());
    assert_eq!((status.storage, &status.reason), (false, &StateReason::OnlyArchiveLeft { archive }));
}

#[test]
fn request_restores_from_the_archive() {
    let none = || with_processes(RunningAgents::None);
    let starts = (RESTORE_STARTING, 4, Some(Action::StartAgent(4)));
    let fresh: Spec =
        Spec { source: Some(ArchiveKey("another-workspace".into())), ..spec(DesiredState::Awake) };
    let backing_off = MaintenanceRetry { failures: 1, not_before: NOW.plus(SECOND) };
    assert_cases(&[
        ("requested", requested(DesiredState::Awake), only_archive_left(), none(), starts),
        ("not requested", spec(DesiredState::Awake), only_archive_left(), none(), (Phase::Archived, 3, None)),
        (
            "created from an archive",
            fresh,
            Status::from_archive(NOW),
            none(),
            (RESTORE_STARTING, 1, Some(Action::StartAgent(1))),
        ),
        (
            "archive has just failed",
            requested(DesiredState::Awake),
            Status { maintenance_retry: backing_off, ..only_archive_left() },
            none(),
            (Phase::Archived, 3, None),
        ),
        (
            "control plane shuts down",
            requested(DesiredState::Awake),
            only_archive_left(),
            shutting_down(none()),
            (Phase::Archived, 3, None),
        ),
    ]);
    let restoring = decide(&requested(DesiredState::Awake), &only_archive_left(), &none(), NOW).status;
    assert!(restoring.storage, "a partial restore is not counted as storage");
}

#[test]
fn failed_restore_stays_the_reason_until_the_next_attempt() {
    let spec = requested(DesiredState::Awake);
    let restoring = archived(status(RESTORE_RUNNING), &[3]);
    let storage_removed = || Observed { removed: true, ..with_processes(RunningAgents::None) };
    let failed = decide(&spec, &restoring, &failed(served(), Action::Restore(3), 1), NOW).status;
    let disk_error = StateReason::ActionFailed { operation: Operation::Restore, detail: "disk error".into() };
    let reason = StateReason::RestoreFailed { cause: Box::new(disk_error) };
    assert_eq!((failed.phase, &failed.reason), (Phase::Archived, &reason));
    // The part that was restored is removed before the next attempt.
    let decision = decide(&spec, &failed, &storage_removed(), NOW.plus(MIN_BACKOFF / 2));
    assert_eq!((decision.status.storage, &decision.status.reason), (false, &reason));
    assert_eq!(decision.status.since, NOW, "the clean-up is no new failure");
    assert_eq!(decision.next, Some((NOW.plus(MIN_BACKOFF), NextStep::Restore)));
    let later = decide(&spec, &decision.status, &storage_removed(), NOW.plus(MIN_BACKOFF)).status;
    assert_eq!(later.reason, StateReason::Restoring { archive: ArchiveKey("archive-3".into()) });
}

#[test]
fn restored_workspace_joins_the_queue() {
    let observed = Observed { restored: Some(3), ..served() };
    assert_eq!(
        outcome(&requested(DesiredState::Awake), &status(RESTORE_RUNNING), &observed),
        (Phase::Queued, 3, STOP)
    );
    let filled = decide(&requested(DesiredState::Awake), &status(RESTORE_RUNNING), &observed, NOW).status;
    assert_eq!(
        (filled.storage_generation, filled.observed_request),
        (4, Some(2)),
        "a restore keeps the storage generation"
    );
    let another = Observed { restored: Some(2), ..served() };
    assert_eq!(
        outcome(&requested(DesiredState::Awake), &status(RESTORE_RUNNING), &another).0,
        RESTORE_RUNNING
    );
}

#[test]
fn archives_expire_oldest_first_then_the_record_is_removed() {
    let none = || with_processes(RunningAgents::None);
    let days = |n: u32| n * 24 * HOUR;
    let with = |ages: &[(u64, u32)], status: Status| Status {
        archives: ages.iter().map(|(g, age)| archive(*g, days(*age))).collect(),
        ..status
    };
    assert_cases(&[
        (
            "not yet",
            spec(DesiredState::Awake),
            with(&[(3, 29)], only_archive_left()),
            none(),
            (Phase::Archived, 3, None),
        ),
        (
            "expired",
            spec(DesiredState::Awake),
            with(&[(3, 30)], only_archive_left()),
            none(),
            (Phase::Archived, 3, Some(Action::ExpireArchive(3))),
        ),
        (
            "the oldest",
            spec(DesiredState::Awake),
            with(&[(1, 31), (3, 1)], only_archive_left()),
            none(),
            (Phase::Archived, 3, Some(Action::ExpireArchive(1))),
        ),
        (
            "while awake",
            spec(DesiredState::Awake),
            with(&[(1, 31)], status(Phase::Awake)),
            served(),
            (Phase::Awake, 3, Some(Action::ExpireArchive(1))),
        ),
        (
            "archive of the present storage",
            spec(DesiredState::Awake),
            with(&[(3, 31)], status(Phase::Queued)),
            none(),
            (Phase::Queued, 3, None),
        ),
        (
            "last archive removed",
            spec(DesiredState::Awake),
            with(&[(3, 31)], only_archive_left()),
            Observed { expired: [3].into(), ..none() },
            (Phase::Deleting, 3, Some(Action::RemoveStorage)),
        ),
    ]);
    let restore_backing_off = Status {
        maintenance_retry: MaintenanceRetry { failures: 1, not_before: NOW.plus(SECOND) },
        ..with(&[(3, 31)], only_archive_left())
    };
    let retained = outcome(&requested(DesiredState::Awake), &restore_backing_off, &none());
    assert_eq!(retained, (Phase::Archived, 3, None), "an archive expires while its restore is pending");
    let a_year = NOW.plus(days(365));
    assert_eq!(
        decide(&spec(DesiredState::Awake), &with(&[(3, 1)], only_archive_left()), &none(), a_year).action,
        None
    );
    let many = archived(status(Phase::Awake), &(1..=101).collect::<Vec<_>>());
    assert_eq!(
        outcome(&spec(DesiredState::Awake), &many, &served()).2,
        Some(Action::ExpireArchive(1)),
        "the oldest archive above the limit is retained"
    );
}
