//! What becomes of the storage of a workspace that sleeps.

use std::time::Duration;

use podling_core::{
    archive::ArchiveKey,
    decide::{Action, HELLO_LIMIT, decide},
    observed::{Observed, Processes},
    reason::{Operation, StateReason},
    status::{MaintenanceRetry, MaintenanceStage, MaintenanceTask, Phase, Status},
    workspace::{DesiredState, Spec},
};

use crate::given::*;

const TO_ARCHIVE: Phase =
    Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Starting };
const TO_RESTORE: Phase =
    Phase::Maintenance { task: MaintenanceTask::Restore, stage: MaintenanceStage::Starting };
const STOP: Option<Action> = Some(Action::Stop);

/// Rested so long ago.
fn slept(since: Duration) -> Status {
    Status { slept_at: WITNESSED - since, ..status(Phase::Asleep) }
}

/// Only its archive is left.
fn put_away() -> Status {
    Status { storage: false, ..archived(status(Phase::Archived), &[3]) }
}

fn with_archive(observed: Observed, generation: u64) -> Observed {
    Observed { archived: Some(Box::new(archive(generation, Duration::ZERO))), ..observed }
}

#[test]
fn archive_due() {
    let none = || seen(Processes::None);
    let asleep = (Phase::Asleep, 3, None);
    let opens = (TO_ARCHIVE, 4, Some(Action::Start(4)));
    let paused = MaintenanceRetry { failures: 1, not_before: NOW.plus(SECOND) };
    cases(&[
        ("for a day", spec(DesiredState::Awake), slept(24 * HOUR), none(), opens),
        ("a second less", spec(DesiredState::Awake), slept(24 * HOUR - SECOND), none(), asleep),
        ("deleted", spec(DesiredState::Deleted), slept(SECOND), none(), opens),
        (
            "nobody knows what runs",
            spec(DesiredState::Awake),
            slept(24 * HOUR),
            seen(Processes::Unseen),
            asleep,
        ),
        (
            "something runs",
            spec(DesiredState::Awake),
            slept(24 * HOUR),
            seen(agents(&[])),
            (Phase::Asleep, 3, STOP),
        ),
        ("going down", spec(DesiredState::Awake), slept(24 * HOUR), standby(none()), asleep),
        (
            "enough are being archived",
            spec(DesiredState::Awake),
            slept(24 * HOUR),
            Observed { archive_slots_full: true, ..none() },
            asleep,
        ),
        (
            "it has just failed",
            spec(DesiredState::Awake),
            Status { maintenance_retry: paused, ..slept(24 * HOUR) },
            none(),
            asleep,
        ),
    ]);
    let opened = decide(&spec(DesiredState::Awake), &slept(24 * HOUR), &none(), NOW).status;
    assert_eq!(opened.storage_generation, 3, "who only reads changes nothing");
}

#[test]
fn opened() {
    let failed_start = ended(seen(agents(&[])), 3);
    table(
        DesiredState::Awake,
        &[
            ("it said hello", TO_ARCHIVE, served(), (ARCHIVING, 3, Some(Action::Archive(3)))),
            ("it has not", TO_ARCHIVE, seen(agents(&[3])), (TO_ARCHIVE, 3, None)),
            ("to restore", TO_RESTORE, served(), (RESTORING, 3, Some(Action::Restore(3)))),
            ("it does not start", TO_ARCHIVE, failed_start, (Phase::Asleep, 3, STOP)),
            (
                "it says nothing",
                TO_ARCHIVE,
                silent(seen(agents(&[3])), HELLO_LIMIT),
                (Phase::Asleep, 3, STOP),
            ),
        ],
    );
}

#[test]
fn archived_and_let_go() {
    let none = || seen(Processes::None);
    table(
        DesiredState::Awake,
        &[
            ("proven", ARCHIVING, with_archive(served(), 3), (Phase::Archived, 3, STOP)),
            (
                "of an older generation",
                ARCHIVING,
                with_archive(served(), 2),
                (ARCHIVING, 3, Some(Action::Archive(3))),
            ),
            (
                "nothing runs any more",
                Phase::Asleep,
                with_archive(none(), 3),
                (Phase::Archived, 3, Some(Action::Remove)),
            ),
            ("an old archive", Phase::Asleep, with_archive(none(), 2), (Phase::Asleep, 3, None)),
            ("going down", Phase::Asleep, standby(with_archive(none(), 3)), (Phase::Asleep, 3, None)),
        ],
    );
    let woken = follows(&called(DesiredState::Awake), &archived(status(Phase::Asleep), &[3]), &none());
    assert_eq!(woken, (Phase::Queued, 3, None), "who is asked for needs no archive");
}

#[test]
fn retry_later() {
    let failing = |action| failed(served(), action, 1);
    table(
        DesiredState::Awake,
        &[
            ("archiving fails", ARCHIVING, failing(Action::Archive(3)), (Phase::Asleep, 3, STOP)),
            ("restoring fails", RESTORING, failing(Action::Restore(3)), (Phase::Archived, 3, STOP)),
            (
                "an older failure",
                ARCHIVING,
                failing(Action::Archive(2)),
                (ARCHIVING, 3, Some(Action::Archive(3))),
            ),
            ("its agent is lost", ARCHIVING, seen(agents(&[3])), (Phase::Asleep, 3, STOP)),
            ("its agent died", RESTORING, seen(agents(&[])), (Phase::Archived, 3, STOP)),
            ("nobody knows what runs", ARCHIVING, seen(Processes::Unseen), (ARCHIVING, 3, None)),
        ],
    );
    let unwanted = follows(&spec(DesiredState::Asleep), &status(RESTORING), &served());
    assert_eq!(unwanted, (Phase::Archived, 3, STOP));
    let retry_later =
        decide(&spec(DesiredState::Awake), &slept_and(ARCHIVING), &failing(Action::Archive(3)), NOW);
    assert_eq!(
        retry_later.status.maintenance_retry,
        MaintenanceRetry { failures: 4, not_before: NOW.plus(8 * SECOND) }
    );
    let cause =
        Box::new(StateReason::ActionFailed { operation: Operation::Archive, detail: "it went wrong".into() });
    assert_eq!(
        (retry_later.status.storage, &retry_later.status.reason),
        (true, &StateReason::ArchiveFailed { cause })
    );
}

fn slept_and(phase: Phase) -> Status {
    Status {
        phase,
        maintenance_retry: MaintenanceRetry { failures: 3, ..MaintenanceRetry::default() },
        ..slept(24 * HOUR)
    }
}

#[test]
fn storage_goes_and_its_archive_stays() {
    let none = || seen(Processes::None);
    let gone = || Observed { removed: true, ..none() };
    let there = || archived(status(Phase::Archived), &[3]);
    let away = (Phase::Archived, 3, None);
    cases(&[
        (
            "what archived it ends first",
            spec(DesiredState::Awake),
            there(),
            seen(agents(&[3])),
            (Phase::Archived, 3, STOP),
        ),
        (
            "then it goes",
            spec(DesiredState::Awake),
            there(),
            none(),
            (Phase::Archived, 3, Some(Action::Remove)),
        ),
        ("gone", spec(DesiredState::Awake), there(), gone(), away),
        (
            "half gone, and asked for: there is no way back",
            called(DesiredState::Awake),
            there(),
            none(),
            (Phase::Archived, 3, Some(Action::Remove)),
        ),
    ]);
    let status = decide(&spec(DesiredState::Awake), &there(), &gone(), NOW).status;
    let archive = ArchiveKey("archive-3".into());
    assert_eq!((status.storage, &status.reason), (false, &StateReason::OnlyArchiveLeft { archive }));
}

#[test]
fn restore() {
    let none = || seen(Processes::None);
    let opens = (TO_RESTORE, 4, Some(Action::Start(4)));
    let fresh: Spec = Spec { source: Some(ArchiveKey("another's".into())), ..spec(DesiredState::Awake) };
    let paused = MaintenanceRetry { failures: 1, not_before: NOW.plus(SECOND) };
    cases(&[
        ("asked for", called(DesiredState::Awake), put_away(), none(), opens),
        ("not asked for", spec(DesiredState::Awake), put_away(), none(), (Phase::Archived, 3, None)),
        (
            "made from an archive",
            fresh,
            Status::from_archive(NOW),
            none(),
            (TO_RESTORE, 1, Some(Action::Start(1))),
        ),
        (
            "it has just failed",
            called(DesiredState::Awake),
            Status { maintenance_retry: paused, ..put_away() },
            none(),
            (Phase::Archived, 3, None),
        ),
        ("going down", called(DesiredState::Awake), put_away(), standby(none()), (Phase::Archived, 3, None)),
    ]);
    let opened = decide(&called(DesiredState::Awake), &put_away(), &none(), NOW).status;
    assert!(opened.storage, "half a workspace may be there from now on");
}

#[test]
fn restored() {
    let observed = Observed { restored: Some(3), ..served() };
    assert_eq!(
        follows(&called(DesiredState::Awake), &status(RESTORING), &observed),
        (Phase::Queued, 3, STOP)
    );
    let filled = decide(&called(DesiredState::Awake), &status(RESTORING), &observed, NOW).status;
    assert_eq!((filled.storage_generation, filled.observed_request), (4, 2), "who filled it wrote to it");
    let another = Observed { restored: Some(2), ..served() };
    assert_eq!(follows(&called(DesiredState::Awake), &status(RESTORING), &another).0, RESTORING);
}

#[test]
fn archives_expire_oldest_first_and_then_the_record_goes() {
    let none = || seen(Processes::None);
    let days = |n: u32| n * 24 * HOUR;
    let with = |ages: &[(u64, u32)], status: Status| Status {
        archives: ages.iter().map(|(g, age)| archive(*g, days(*age))).collect(),
        ..status
    };
    let away = || put_away();
    cases(&[
        ("not yet", spec(DesiredState::Awake), with(&[(3, 29)], away()), none(), (Phase::Archived, 3, None)),
        (
            "over",
            spec(DesiredState::Awake),
            with(&[(3, 30)], away()),
            none(),
            (Phase::Archived, 3, Some(Action::Expire(3))),
        ),
        (
            "the oldest",
            spec(DesiredState::Awake),
            with(&[(1, 31), (3, 1)], away()),
            none(),
            (Phase::Archived, 3, Some(Action::Expire(1))),
        ),
        (
            "while awake",
            spec(DesiredState::Awake),
            with(&[(1, 31)], status(Phase::Awake)),
            served(),
            (Phase::Awake, 3, Some(Action::Expire(1))),
        ),
        (
            "what the storage holds is kept beside it",
            spec(DesiredState::Awake),
            with(&[(3, 31)], status(Phase::Queued)),
            none(),
            (Phase::Queued, 3, None),
        ),
        (
            "nothing is left",
            spec(DesiredState::Awake),
            with(&[(3, 31)], away()),
            Observed { expired: [3].into(), ..none() },
            (Phase::Deleting, 3, Some(Action::Remove)),
        ),
    ]);
    let waits = Status {
        maintenance_retry: MaintenanceRetry { failures: 1, not_before: NOW.plus(SECOND) },
        ..with(&[(3, 31)], away())
    };
    let kept = follows(&called(DesiredState::Awake), &waits, &none());
    assert_eq!(kept, (Phase::Archived, 3, None), "somebody waits to be given it back");
    let a_year = NOW.plus(days(365));
    assert_eq!(decide(&spec(DesiredState::Awake), &with(&[(3, 1)], away()), &none(), a_year).action, None);
    let many = archived(status(Phase::Awake), &(1..=101).collect::<Vec<_>>());
    assert_eq!(
        follows(&spec(DesiredState::Awake), &many, &served()).2,
        Some(Action::Expire(1)),
        "one too many"
    );
}
