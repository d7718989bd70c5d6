//! Out of the world, and down with the control plane.

use std::time::Duration;

use podling_core::{
    decide::{Action, decide},
    observed::{ActionFailure, Failure, Observed, Processes},
    reason::{Operation, StateReason},
    status::{Phase, Status, Urgency},
    time::Timestamp,
    workspace::DesiredState,
};

use crate::given::*;

#[test]
fn standby_puts_all_to_rest() {
    let stop = (Phase::FallingAsleep, 3, Some(Action::Stop));
    let later = pending(SECOND);
    table(
        DesiredState::Awake,
        &[
            ("awake", Phase::Awake, standby(served()), stop),
            ("starting", Phase::Starting, standby(seen(agents(&[]))), stop),
            ("being asked", IDLY, standby(served()), stop),
            ("pausing", later, standby(seen(agents(&[]))), stop),
            ("pausing, nothing runs", later, standby(seen(Processes::None)), (Phase::Asleep, 3, None)),
            ("all ended", Phase::FallingAsleep, standby(seen(Processes::None)), (Phase::Asleep, 3, None)),
            ("saving", Phase::Committing, standby(served()), (Phase::Committing, 3, Some(Action::Commit(3)))),
            (
                "saving, and nobody hears it",
                Phase::Committing,
                standby(seen(agents(&[3]))),
                (Phase::FallingAsleep, 3, Some(Action::Stop)),
            ),
            (
                "something is left",
                Phase::Asleep,
                standby(seen(agents(&[]))),
                (Phase::Asleep, 3, Some(Action::Stop)),
            ),
            ("archiving", ARCHIVING, standby(served()), (Phase::Asleep, 3, Some(Action::Stop))),
            ("restoring", RESTORING, standby(served()), (Phase::Archived, 3, Some(Action::Stop))),
        ],
    );
    let asked =
        follows(&called(DesiredState::Awake), &status(Phase::Asleep), &standby(seen(Processes::None)));
    assert_eq!(asked, (Phase::Asleep, 3, None), "nothing wakes while the control plane goes down");
}

#[test]
fn discard_leads_from_everywhere_to_the_end_of_all() {
    let deleting = |action| (Phase::Deleting, 3, Some(action));
    let removed = |observed| Observed { removed: true, ..observed };
    table(
        DesiredState::Discarded,
        &[
            ("awake", Phase::Awake, served(), deleting(Action::Stop)),
            ("starting", Phase::Starting, seen(agents(&[])), deleting(Action::Stop)),
            ("falling asleep", Phase::Committing, served(), deleting(Action::Stop)),
            ("archiving", ARCHIVING, served(), deleting(Action::Stop)),
            ("pausing", pending(SECOND), seen(Processes::None), deleting(Action::Remove)),
            ("nobody knows", Phase::Deleting, seen(Processes::Unseen), (Phase::Deleting, 3, None)),
            ("orphans", Phase::Deleting, seen(agents(&[])), deleting(Action::Stop)),
            ("nothing runs", Phase::Deleting, seen(Processes::None), deleting(Action::Remove)),
            ("no storage", Phase::Deleting, removed(seen(Processes::None)), deleting(Action::Forget)),
            ("going down meanwhile", Phase::Deleting, standby(seen(agents(&[]))), deleting(Action::Stop)),
        ],
    );
    let gone = removed(seen(Processes::None));
    let status = archived(status(Phase::Deleting), &[2, 3]);
    assert_eq!(
        follows(&spec(DesiredState::Discarded), &status, &gone),
        deleting(Action::Expire(2)),
        "oldest first"
    );
    let gone = Observed { expired: [2, 3].into(), ..gone };
    assert_eq!(
        follows(&spec(DesiredState::Discarded), &status, &gone),
        deleting(Action::Forget),
        "the record last"
    );
}

#[test]
fn delete_archives_first() {
    table(
        DesiredState::Deleted,
        &[
            ("awake", Phase::Awake, served(), (BY_FORCE, 3, Some(prepare(Urgency::Forced)))),
            (
                "awake, and nobody hears it",
                Phase::Awake,
                seen(agents(&[3])),
                (Phase::FallingAsleep, 3, Some(Action::Stop)),
            ),
            ("waiting for room", Phase::Queued, seen(Processes::None), (OPENING, 4, Some(Action::Start(4)))),
        ],
    );
    let never_started = Status { storage: false, ..status(Phase::Queued) };
    let none = seen(Processes::None);
    let end = follows(&spec(DesiredState::Deleted), &never_started, &none);
    assert_eq!(end, (Phase::Deleting, 3, Some(Action::Remove)), "there is nothing to archive");
    let kept = archived(Status { storage: false, ..status(Phase::Archived) }, &[3]);
    assert_eq!(
        follows(&spec(DesiredState::Deleted), &kept, &none),
        (Phase::Archived, 3, None),
        "its archive stays"
    );
}

#[test]
fn an_order_that_fails_is_given_again_after_a_pause_and_says_why() {
    let failure = |seconds: u64| ActionFailure {
        action: Action::Stop,
        failures: 2,
        at: Timestamp(NOW.0 - seconds * 1000),
        failure: Failure::Failed("it does not die".into()),
    };
    let observed = |seconds| Observed { last_failure: Some(failure(seconds)), ..seen(agents(&[])) };
    let waiting = decide(&spec(DesiredState::Discarded), &status(Phase::Deleting), &observed(1), NOW);
    assert_eq!((waiting.action, waiting.next.map(|(at, _)| at)), (None, Some(NOW.plus(SECOND))));
    assert_eq!(
        waiting.status.reason,
        StateReason::ActionFailed { operation: Operation::StopProcesses, detail: "it does not die".into() }
    );
    let again = decide(&spec(DesiredState::Discarded), &status(Phase::Deleting), &observed(2), NOW);
    assert_eq!(again.action, Some(Action::Stop));
    let long =
        Observed { last_failure: Some(ActionFailure { failures: 60, ..failure(0) }), ..seen(agents(&[])) };
    let next = decide(&spec(DesiredState::Discarded), &status(Phase::Deleting), &long, NOW).next;
    assert_eq!(next.map(|(at, _)| at.since(NOW)), Some(Duration::from_secs(300)), "at most five minutes");
}
