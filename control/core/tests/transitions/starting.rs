//! From made to awake, and the pauses in between.

use std::time::Duration;

use podling_core::{
    decide::{Action, FIRST_PAUSE, HELLO_LIMIT, LONGEST_PAUSE, decide, shorten_backoff},
    observed::{Observed, Processes},
    reason::{StateReason, Wait, WaitReason},
    status::{FAILED_AFTER, Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, State},
};

use crate::given::*;

#[test]
fn admit() {
    let start = (Phase::Starting, 4, Some(Action::Start(4)));
    table(
        DesiredState::Awake,
        &[
            ("no room", Phase::Queued, seen(Processes::None), (Phase::Queued, 3, None)),
            ("room", Phase::Queued, room(seen(Processes::None)), start),
            (
                "room, and something of an earlier agent runs",
                Phase::Queued,
                room(seen(agents(&[2]))),
                (pending(Duration::ZERO), 3, Some(Action::Stop)),
            ),
            (
                "what runs is ended before there is room",
                Phase::Queued,
                seen(agents(&[])),
                (Phase::Queued, 3, Some(Action::Stop)),
            ),
            ("going down", Phase::Queued, standby(room(seen(Processes::None))), (Phase::Asleep, 3, None)),
        ],
    );
    let unwanted = follows(&spec(DesiredState::Asleep), &status(Phase::Queued), &room(seen(Processes::None)));
    assert_eq!(unwanted, (Phase::Asleep, 3, None), "it is not wanted any more");
}

#[test]
fn who_is_made_joins_the_line_once() {
    let made = decide(&spec(DesiredState::Awake), &Status::new(NOW), &seen(Processes::None), NOW).status;
    assert_eq!(made.queued_at, Some(WITNESSED));
    let later = Observed { observed_time: WITNESSED + SECOND, ..seen(Processes::None) };
    assert_eq!(decide(&spec(DesiredState::Awake), &made, &later, NOW).status.queued_at, Some(WITNESSED));
}

#[test]
fn start() {
    let (now, later) = (pending(Duration::ZERO), pending(SECOND));
    table(
        DesiredState::Awake,
        &[
            ("nothing runs", now, seen(Processes::None), (Phase::Starting, 4, Some(Action::Start(4)))),
            ("nobody knows what runs", now, seen(Processes::Unseen), (now, 3, None)),
            ("orphans run", now, seen(agents(&[])), (now, 3, Some(Action::Stop))),
            ("an old agent lives", now, seen(agents(&[2])), (now, 3, Some(Action::Stop))),
            ("the pause lasts", later, seen(Processes::None), (later, 3, None)),
            ("orphans are ended in the pause", later, seen(agents(&[])), (later, 3, Some(Action::Stop))),
        ],
    );
    let back = pending(LONGEST_PAUSE + SECOND);
    let (phase, ..) = follows(&spec(DesiredState::Awake), &status(back), &seen(Processes::None));
    assert_eq!(phase, Phase::Starting, "a clock that was set back does not hold it up");
}

#[test]
fn every_start_has_a_new_epoch_and_a_new_storage_generation() {
    let decision =
        decide(&spec(DesiredState::Awake), &status(pending(Duration::ZERO)), &seen(Processes::None), NOW);
    assert_eq!((decision.status.epoch, decision.status.storage_generation), (4, 4));
    assert!(decision.status.storage);
}

#[test]
fn hello() {
    let starting = (Phase::Starting, 3, None);
    table(
        DesiredState::Awake,
        &[
            ("it said hello", Phase::Starting, connected(seen(agents(&[3]))), (Phase::Awake, 3, None)),
            ("it lives and has not", Phase::Starting, seen(agents(&[3])), starting),
            ("it is being started", Phase::Starting, seen(agents(&[])), starting),
            (
                "an older one did",
                Phase::Starting,
                Observed { connected: Some(2), ..seen(agents(&[3])) },
                starting,
            ),
        ],
    );
}

#[test]
fn a_start_says_what_it_waits_for_and_is_queued_where_that_is_room() {
    let wait = |reason| Wait { reason, detail: "the namespace is full".into() };
    let waits = |reason| Observed { waits: Some(wait(reason)), ..seen(agents(&[])) };
    let because = |reason| StateReason::Waiting(wait(reason));
    let decide = |status: &Status, observed: &Observed| {
        decide(&spec(DesiredState::Awake), status, observed, NOW).status
    };
    let queued = decide(&status(Phase::Starting), &waits(WaitReason::QuotaExceeded));
    assert_eq!(
        (queued.state(), &queued.reason, queued.epoch),
        (State::Queued, &because(WaitReason::QuotaExceeded), 3)
    );
    let goes_on = decide(&queued, &waits(WaitReason::Unschedulable));
    assert_eq!((goes_on.state(), &goes_on.reason), (State::Starting, &because(WaitReason::Unschedulable)));
    let starts = decide(&goes_on, &seen(agents(&[])));
    assert_eq!((starts.state(), starts.waits.is_none()), (State::Starting, true));
    assert_eq!(starts.reason, StateReason::AgentStarting);
    let serves = decide(&queued, &connected(seen(agents(&[3]))));
    assert_eq!((serves.phase, serves.waits), (Phase::Awake, None));
}

#[test]
fn start_failed() {
    let again = pending(FIRST_PAUSE);
    let stop = (again, 3, Some(Action::Stop));
    table(
        DesiredState::Awake,
        &[
            ("it ended", Phase::Starting, ended(seen(agents(&[])), 3), stop),
            ("an older one ended", Phase::Starting, ended(seen(agents(&[3])), 2), (Phase::Starting, 3, None)),
            ("an old agent lives beside it", Phase::Starting, seen(agents(&[2, 3])), stop),
            ("it says nothing", Phase::Starting, silent(seen(agents(&[3])), HELLO_LIMIT), stop),
            (
                "it has a little time left",
                Phase::Starting,
                silent(seen(agents(&[3])), HELLO_LIMIT - SECOND),
                (Phase::Starting, 3, None),
            ),
        ],
    );
}

#[test]
fn starts_that_fail_pause_ever_longer_and_are_called_failed_but_never_given_up() {
    let mut status = status(Phase::Starting);
    let mut pauses = Vec::new();
    for failure in 1..=20_u32 {
        status.phase = Phase::Starting;
        status = decide(&spec(DesiredState::Awake), &status, &ended(seen(agents(&[])), 3), NOW).status;
        let Phase::Pending { not_before } = status.phase else { panic!("{status:?}") };
        pauses.push(not_before.since(NOW));
        let word = if failure >= FAILED_AFTER { State::Failed } else { State::Starting };
        assert_eq!((status.failures, status.state()), (failure, word));
        let (StateReason::AgentStartFailed { detail } | StateReason::AgentEnded { detail: Some(detail) }) =
            &status.reason
        else {
            panic!("{:?}", status.reason)
        };
        assert_eq!(detail, "killed by SIGKILL");
    }
    assert_eq!(pauses[..4], [1, 2, 4, 8].map(Duration::from_secs));
    assert!(pauses.is_sorted() && pauses.last() == Some(&LONGEST_PAUSE));
}

#[test]
fn whoever_waits_cuts_the_pause_short_but_not_below_the_first() {
    let mut paused = Status { since: NOW, ..status(pending(LONGEST_PAUSE)) };
    assert_eq!(shorten_backoff(&paused, NOW).phase, pending(FIRST_PAUSE));
    paused.since = Timestamp(NOW.0 - 60_000);
    assert_eq!(shorten_backoff(&paused, NOW).phase, pending(Duration::ZERO));
    assert_eq!(shorten_backoff(&status(Phase::Awake), NOW), status(Phase::Awake));
}
