//! Each arrow of the drawing, as a table: when it is followed, when it is not, and what is ordered at its end.

use std::{collections::BTreeSet, time::Duration};

use podling_core::{
    decide::{Action, FIRST_PAUSE, HEALTHY_AFTER, HELLO_LIMIT, LONGEST_PAUSE, SILENCE_LIMIT, decide, hurry},
    id::WorkspaceId,
    observed::{Ended, Observed, Processes, Trouble},
    policy::Policy,
    status::{FAILED_AFTER, Phase, Status},
    time::Timestamp,
    workspace::{Spec, State, Wanted},
};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp(1_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn spec(wanted: Wanted) -> Spec {
    Spec {
        id: WorkspaceId::from_bits(7),
        name: "demo".parse().expect("a name"),
        owner: "me".parse().expect("an owner"),
        template: "shell".into(),
        command: Vec::new(),
        env: Default::default(),
        policy: Policy::default(),
        wanted,
        created: NOW,
        request_id: String::new(),
    }
}

/// Of a workspace whose third agent is (or was) the present one.
fn status(phase: Phase) -> Status {
    Status { phase, epoch: 3, storage_generation: 3, ..Status::new(NOW) }
}

fn pending(after: Duration) -> Phase {
    Phase::Pending { not_before: NOW.plus(after) }
}

fn agents(epochs: &[u64]) -> Processes {
    Processes::Some(epochs.iter().copied().collect::<BTreeSet<_>>())
}

fn seen(processes: Processes) -> Observed {
    Observed { processes, ..Observed::default() }
}

fn ended(observed: Observed, epoch: u64) -> Observed {
    Observed { ended: Some(Ended { epoch, how: "killed by SIGKILL".into() }), ..observed }
}

fn connected(observed: Observed) -> Observed {
    Observed { connected: Some(3), ..observed }
}

fn silent(observed: Observed, silence: Duration) -> Observed {
    Observed { silence, ..observed }
}

fn standby(observed: Observed) -> Observed {
    Observed { standby: true, ..observed }
}

/// What comes of it: the phase, the epoch, and the order.
type Outcome = (Phase, u64, Option<Action>);

fn follows(wanted: Wanted, status: &Status, observed: &Observed) -> Outcome {
    let decision = decide(&spec(wanted), status, observed, NOW);
    (decision.status.phase, decision.status.epoch, decision.action)
}

#[track_caller]
fn table(wanted: Wanted, rows: &[(&str, Phase, Observed, Outcome)]) {
    for (what, phase, observed, expected) in rows {
        assert_eq!(follows(wanted, &status(*phase), observed), *expected, "{what}");
    }
}

#[test]
fn start() {
    let (now, later) = (pending(Duration::ZERO), pending(SECOND));
    table(
        Wanted::Awake,
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
    let (phase, ..) = follows(Wanted::Awake, &status(back), &seen(Processes::None));
    assert_eq!(phase, Phase::Starting, "a clock that was set back does not hold it up");
}

#[test]
fn every_start_has_a_new_epoch_and_a_new_storage_generation() {
    let decision =
        decide(&spec(Wanted::Awake), &status(pending(Duration::ZERO)), &seen(Processes::None), NOW);
    assert_eq!((decision.status.epoch, decision.status.storage_generation), (4, 4));
}

#[test]
fn hello() {
    let starting = (Phase::Starting, 3, None);
    table(
        Wanted::Awake,
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
fn start_failed() {
    let again = pending(FIRST_PAUSE);
    let stop = (again, 3, Some(Action::Stop));
    table(
        Wanted::Awake,
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
        status = decide(&spec(Wanted::Awake), &status, &ended(seen(agents(&[])), 3), NOW).status;
        let Phase::Pending { not_before } = status.phase else { panic!("{status:?}") };
        pauses.push(not_before.since(NOW));
        let word = if failure >= FAILED_AFTER { State::Failed } else { State::Starting };
        assert_eq!((status.failures, status.state()), (failure, word));
        assert!(status.reason.contains("SIGKILL"), "{}", status.reason);
    }
    assert_eq!(pauses[..4], [1, 2, 4, 8].map(Duration::from_secs));
    assert!(pauses.is_sorted() && pauses.last() == Some(&LONGEST_PAUSE));
}

#[test]
fn died() {
    let at_once = pending(Duration::ZERO);
    table(
        Wanted::Awake,
        &[
            ("killed", Phase::Awake, ended(seen(agents(&[])), 3), (at_once, 3, Some(Action::Stop))),
            ("gone, nobody saw how", Phase::Awake, seen(agents(&[])), (at_once, 3, Some(Action::Stop))),
            ("nobody knows", Phase::Awake, seen(Processes::Unseen), (Phase::Awake, 3, None)),
            ("it lives", Phase::Awake, connected(seen(agents(&[3]))), (Phase::Awake, 3, None)),
            (
                "a second one lives too",
                Phase::Awake,
                connected(seen(agents(&[2, 3]))),
                (Phase::Awake, 3, None),
            ),
        ],
    );
}

#[test]
fn silence() {
    let at_once = pending(Duration::ZERO);
    let stop = (at_once, 3, Some(Action::Stop));
    let awake = (Phase::Awake, 3, None);
    table(
        Wanted::Awake,
        &[
            ("ten minutes", Phase::Awake, silent(seen(agents(&[3])), SILENCE_LIMIT), stop),
            ("a second less", Phase::Awake, silent(seen(agents(&[3])), SILENCE_LIMIT - SECOND), awake),
            ("it is back", Phase::Awake, connected(silent(seen(agents(&[3])), SILENCE_LIMIT)), awake),
            (
                "nobody knows whether it lives",
                Phase::Awake,
                silent(seen(Processes::Unseen), SILENCE_LIMIT),
                awake,
            ),
        ],
    );
}

#[test]
fn healthy() {
    let shaky = |ago: Duration| Status {
        failures: 4,
        since: Timestamp(NOW.0 - ago.as_millis() as u64),
        ..status(Phase::Awake)
    };
    let failures = |status: &Status, observed: &Observed| {
        decide(&spec(Wanted::Awake), status, observed, NOW).status.failures
    };
    let well = connected(seen(agents(&[3])));
    assert_eq!(failures(&shaky(HEALTHY_AFTER), &well), 0);
    assert_eq!(failures(&shaky(HEALTHY_AFTER - SECOND), &well), 4, "not yet");
    assert_eq!(failures(&shaky(HEALTHY_AFTER), &seen(agents(&[3]))), 4, "nobody hears it");
    let again = decide(&spec(Wanted::Awake), &shaky(SECOND), &ended(seen(agents(&[])), 3), NOW).status;
    assert_eq!(
        again.phase,
        pending(FIRST_PAUSE * 8),
        "one that dies again and again does not restart at once"
    );
}

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

proptest! {
    /// Also for what should never be seen together.
    #[test]
    fn deciding_twice_says_the_same(
        phase in prop_oneof![
            (0_u64..1000).prop_map(|ms| pending(Duration::from_millis(ms * 1000))),
            Just(Phase::Starting), Just(Phase::Awake), Just(Phase::FallingAsleep), Just(Phase::Asleep), Just(Phase::Deleting),
        ],
        failures in 0_u32..9,
        deleted in any::<bool>(),
        processes in prop_oneof![
            Just(Processes::Unseen),
            Just(Processes::None),
            prop::collection::btree_set(1_u64..6, 0..3).prop_map(Processes::Some),
        ],
        ended in prop::option::of(1_u64..6),
        connected in prop::option::of(1_u64..6),
        silence in 0_u64..1000,
        trouble in prop::option::of((any::<bool>(), 0_u32..9, 0_u64..1000)),
        removed in any::<bool>(),
        standby in any::<bool>(),
    ) {
        let trouble = trouble.map(|(stop, failures, ago)| Trouble {
            action: if stop { Action::Stop } else { Action::Remove },
            failures,
            at: Timestamp(NOW.0 - ago * 1000),
            error: "no".into(),
        });
        let ended = ended.map(|epoch| Ended { epoch, how: "so".into() });
        let silence = Duration::from_secs(silence);
        let observed = Observed { processes, ended, connected, silence, trouble, removed, standby };
        let spec = spec(if deleted { Wanted::Deleted } else { Wanted::Awake });
        let status = Status { failures, ..status(phase) };
        let once = decide(&spec, &status, &observed, NOW);
        prop_assert_eq!(&decide(&spec, &once.status, &observed, NOW), &once);
        prop_assert!(once.status.epoch <= status.epoch + 1, "at most one start at a time");
    }
}

#[test]
fn whoever_waits_cuts_the_pause_short_but_not_below_the_first() {
    let mut paused = Status { since: NOW, ..status(pending(LONGEST_PAUSE)) };
    assert_eq!(hurry(&paused, NOW).phase, pending(FIRST_PAUSE));
    paused.since = Timestamp(NOW.0 - 60_000);
    assert_eq!(hurry(&paused, NOW).phase, pending(Duration::ZERO));
    assert_eq!(hurry(&status(Phase::Awake), NOW), status(Phase::Awake));
}
