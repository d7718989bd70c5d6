//! To rest and back, and out of the world.

use std::time::Duration;

use podling_core::{
    decide::{Action, decide},
    observed::{Observed, Processes, Trouble},
    status::Phase,
    time::Timestamp,
    workspace::Wanted,
};

use crate::given::*;

#[test]
fn standby_and_rest() {
    let stop = (Phase::FallingAsleep, 3, Some(Action::Stop));
    let later = pending(SECOND);
    table(
        Wanted::Awake,
        &[
            ("awake", Phase::Awake, standby(connected(seen(agents(&[3])))), stop),
            ("starting", Phase::Starting, standby(seen(agents(&[]))), stop),
            ("pausing", later, standby(seen(agents(&[]))), stop),
            ("pausing, nothing runs", later, standby(seen(Processes::None)), (Phase::Asleep, 3, None)),
            ("all ended", Phase::FallingAsleep, standby(seen(Processes::None)), (Phase::Asleep, 3, None)),
            (
                "something is left",
                Phase::Asleep,
                standby(seen(agents(&[]))),
                (Phase::Asleep, 3, Some(Action::Stop)),
            ),
        ],
    );
}

#[test]
fn come_back() {
    let (now, start) = (pending(Duration::ZERO), (Phase::Starting, 4, Some(Action::Start(4))));
    table(
        Wanted::Awake,
        &[
            ("at the next up nobody knows yet", Phase::Asleep, seen(Processes::Unseen), (now, 3, None)),
            ("something may be left", Phase::Asleep, seen(agents(&[])), (now, 3, Some(Action::Stop))),
            ("nothing is", Phase::Asleep, seen(Processes::None), start),
            ("it was going down", Phase::FallingAsleep, seen(agents(&[3])), (now, 3, Some(Action::Stop))),
        ],
    );
}

#[test]
fn delete() {
    let deleting = |action| (Phase::Deleting, 3, Some(action));
    let removed = |observed| Observed { removed: true, ..observed };
    table(
        Wanted::Deleted,
        &[
            ("awake", Phase::Awake, connected(seen(agents(&[3]))), deleting(Action::Stop)),
            ("starting", Phase::Starting, seen(agents(&[])), deleting(Action::Stop)),
            ("pausing", pending(SECOND), seen(Processes::None), deleting(Action::Remove)),
            ("nobody knows", Phase::Deleting, seen(Processes::Unseen), (Phase::Deleting, 3, None)),
            ("orphans", Phase::Deleting, seen(agents(&[])), deleting(Action::Stop)),
            ("nothing runs", Phase::Deleting, seen(Processes::None), deleting(Action::Remove)),
            ("no storage", Phase::Deleting, removed(seen(Processes::None)), deleting(Action::Forget)),
            ("going down meanwhile", Phase::Deleting, standby(seen(agents(&[]))), deleting(Action::Stop)),
        ],
    );
}

#[test]
fn an_order_that_fails_is_given_again_after_a_pause_and_says_why() {
    let trouble = |seconds: u64| Trouble {
        action: Action::Stop,
        failures: 2,
        at: Timestamp(NOW.0 - seconds * 1000),
        error: "it does not die".into(),
    };
    let observed = |seconds| Observed { trouble: Some(trouble(seconds)), ..seen(agents(&[])) };
    let waiting = decide(&spec(Wanted::Deleted), &status(Phase::Deleting), &observed(1), NOW);
    assert_eq!((waiting.action, waiting.next.map(|(at, _)| at)), (None, Some(NOW.plus(SECOND))));
    assert!(waiting.status.reason.contains("it does not die"), "{}", waiting.status.reason);
    let again = decide(&spec(Wanted::Deleted), &status(Phase::Deleting), &observed(2), NOW);
    assert_eq!(again.action, Some(Action::Stop));
}
