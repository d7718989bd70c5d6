//! To sleep, in two phases, and back.

use std::time::Duration;

use podling_core::{
    decide::{Action, COMMIT_TRIES, SILENCE_LIMIT, decide},
    observed::{Observed, PrepareState, Processes, Used},
    reason::SleepRequest,
    status::{Phase, Status, Urgency},
    time::Timestamp,
    workspace::{DesiredState, Spec},
};

use crate::given::*;

const AWAKE: Outcome = (Phase::Awake, 3, None);
const COMMITTING: Outcome = (Phase::Committing, 3, Some(Action::Commit(3)));
const ENDED: Outcome = (Phase::FallingAsleep, 3, Some(Action::Stop));

#[test]
fn fall_asleep() {
    let asked = (IDLY, 3, Some(prepare(Urgency::Idle)));
    let just_come = Status { requested_at: WITNESSED - IDLE_TIMEOUT + SECOND, ..status(Phase::Awake) };
    let awake = || status(Phase::Awake);
    let mut bounded = spec(DesiredState::Awake);
    bounded.policy.max_awake = Some(20 * HOUR);
    let mut longer = bounded.clone();
    longer.policy.max_awake = Some(20 * HOUR + SECOND);
    let used = || Observed { used: Used::Yes, ..served() };
    let by_force = (BY_FORCE, 3, Some(prepare(Urgency::Forced)));
    cases(&[
        ("idle for its timeout", spec(DesiredState::Awake), awake(), idle(IDLE_TIMEOUT), asked),
        ("a second less", spec(DesiredState::Awake), awake(), idle(IDLE_TIMEOUT - SECOND), AWAKE),
        ("used", spec(DesiredState::Awake), awake(), used(), AWAKE),
        ("nobody has said", spec(DesiredState::Awake), awake(), served(), AWAKE),
        ("somebody has just come", spec(DesiredState::Awake), just_come, idle(IDLE_TIMEOUT), AWAKE),
        (
            "nobody hears it",
            spec(DesiredState::Awake),
            awake(),
            Observed { connected: None, ..idle(IDLE_TIMEOUT) },
            AWAKE,
        ),
        (
            "its door may still be shut",
            spec(DesiredState::Awake),
            awake(),
            door(idle(IDLE_TIMEOUT), PrepareState::Unconfirmed(3)),
            (Phase::Awake, 3, Some(Action::Cancel(3))),
        ),
        ("awake for as long as it may", bounded, awake(), used(), by_force),
        ("a second less", longer, awake(), used(), AWAKE),
        ("somebody puts it to sleep", called(DesiredState::Asleep), awake(), used(), by_force),
        ("somebody deletes it", called(DesiredState::Deleted), awake(), used(), by_force),
        (
            "it has just declined",
            spec(DesiredState::Awake),
            awake(),
            declined(idle(IDLE_TIMEOUT), prepare(Urgency::Idle), 1),
            AWAKE,
        ),
    ]);
}

#[test]
fn asked_to_sleep() {
    let asked = |observed| Observed { sleep_request: Some(SleepRequest::User), ..observed };
    let yes = Observed { used: Used::Yes, ..served() };
    let ask = prepare(Urgency::Requested);
    let idle = || idle(SECOND);
    table(
        DesiredState::Awake,
        &[
            ("idle, for however short", Phase::Awake, asked(idle()), (ASKED, 3, Some(ask))),
            ("nobody has said", Phase::Awake, asked(served()), (ASKED, 3, Some(ask))),
            ("used", Phase::Awake, asked(yes.clone()), AWAKE),
            ("its agent looks", ASKED, idle(), (ASKED, 3, Some(ask))),
            ("it is used after all", ASKED, yes, AWAKE),
            ("it declines", ASKED, declined(idle(), ask, 1), AWAKE),
            ("its door is shut", ASKED, door(idle(), PrepareState::Prepared(3)), COMMITTING),
            (
                "it has just declined, and is asked again",
                Phase::Awake,
                declined(asked(idle()), ask, 1),
                AWAKE,
            ),
            (
                "it has just declined to sleep by itself",
                Phase::Awake,
                declined(asked(idle()), prepare(Urgency::Idle), 1),
                (ASKED, 3, Some(ask)),
            ),
        ],
    );
    let unheard = Observed { connected: None, ..asked(idle()) };
    assert_eq!(
        follows(&spec(DesiredState::Awake), &status(ASKED), &unheard),
        AWAKE,
        "nobody knows whether it is used"
    );
}

#[test]
fn who_asks_for_its_sleep_asks_once() {
    let asked = || Observed { sleep_request: Some(SleepRequest::User), ..served() };
    let mut ordered = asked();
    ordered.ordered(prepare(Urgency::Requested));
    let mut lost = asked();
    lost.disconnected();
    let mut used = asked();
    used.use_reported(Used::Yes);
    assert!(ordered.sleep_request.or(lost.sleep_request).or(used.sleep_request).is_none());
}

#[test]
fn one_that_declined_is_asked_again_after_a_pause() {
    let observed = declined(idle(IDLE_TIMEOUT), prepare(Urgency::Idle), 2);
    let first = decide(&spec(DesiredState::Awake), &status(Phase::Awake), &observed, NOW);
    assert_eq!(first.next.map(|(at, _)| at), Some(NOW.plus(2 * SECOND)));
    let later = decide(&spec(DesiredState::Awake), &first.status, &observed, NOW.plus(2 * SECOND));
    assert_eq!(
        later.status.phase,
        Phase::Preparing { urgency: Urgency::Idle, declined: 2 },
        "an old refusal is none"
    );
    assert_eq!(later.action, Some(prepare(Urgency::Idle)));
}

#[test]
fn cancel_sleep() {
    let mut deaf = idle(IDLE_TIMEOUT);
    deaf.connected = None;
    let preparing = |phase| status(phase);
    cases(&[
        (
            "it thinks",
            spec(DesiredState::Awake),
            preparing(IDLY),
            idle(IDLE_TIMEOUT),
            (IDLY, 3, Some(prepare(Urgency::Idle))),
        ),
        (
            "used again",
            spec(DesiredState::Awake),
            preparing(IDLY),
            Observed { used: Used::Yes, ..served() },
            AWAKE,
        ),
        (
            "it declines",
            spec(DesiredState::Awake),
            preparing(IDLY),
            declined(served(), prepare(Urgency::Idle), 1),
            AWAKE,
        ),
        (
            "it fails",
            spec(DesiredState::Awake),
            preparing(IDLY),
            failed(served(), prepare(Urgency::Idle), 1),
            AWAKE,
        ),
        ("nobody hears it", spec(DesiredState::Awake), preparing(IDLY), deaf.clone(), AWAKE),
        (
            "its door may be shut",
            called(DesiredState::Awake),
            preparing(IDLY),
            door(served(), PrepareState::Unconfirmed(3)),
            (Phase::Awake, 3, Some(Action::Cancel(3))),
        ),
        (
            "use is no reason where it is forced",
            spec(DesiredState::Asleep),
            preparing(BY_FORCE),
            Observed { used: Used::Yes, ..served() },
            (BY_FORCE, 3, Some(prepare(Urgency::Forced))),
        ),
        ("somebody came meanwhile", called(DesiredState::Awake), preparing(BY_FORCE), served(), AWAKE),
        (
            "forced and declined",
            spec(DesiredState::Asleep),
            preparing(BY_FORCE),
            declined(served(), prepare(Urgency::Forced), 1),
            ENDED,
        ),
        (
            "its time awake is over, and it fails",
            spec(DesiredState::Awake),
            preparing(BY_FORCE),
            failed(served(), prepare(Urgency::Forced), 1),
            ENDED,
        ),
        ("forced, and nobody hears it", spec(DesiredState::Asleep), preparing(BY_FORCE), deaf, ENDED),
        (
            "it died",
            spec(DesiredState::Awake),
            preparing(IDLY),
            seen(agents(&[])),
            (pending(Duration::ZERO), 3, Some(Action::Stop)),
        ),
        (
            "nobody knows what runs",
            spec(DesiredState::Awake),
            preparing(IDLY),
            seen(Processes::Unseen),
            (IDLY, 3, None),
        ),
    ]);
    let back = decide(&called(DesiredState::Awake), &status(IDLY), &served(), NOW).status;
    assert_eq!(
        (back.requested_at, back.observed_request),
        (WITNESSED, 2),
        "who came has its time from now on"
    );
}

#[test]
fn who_comes_when_its_time_awake_is_over_wakes_it_again_when_it_has_slept() {
    let mut bounded = called(DesiredState::Awake);
    bounded.policy.max_awake = Some(HOUR);
    let asked = decide(&bounded, &status(BY_FORCE), &served(), NOW).status;
    assert_eq!((asked.phase, asked.observed_request), (BY_FORCE, 1), "the call is not forgotten");
    let slept = Status { phase: Phase::FallingAsleep, ..asked };
    assert_eq!(follows(&bounded, &slept, &seen(Processes::None)).0, Phase::Queued);
}

#[test]
fn prepared() {
    table(
        DesiredState::Awake,
        &[
            ("its door is shut", IDLY, door(idle(IDLE_TIMEOUT), PrepareState::Prepared(3)), COMMITTING),
            (
                "its door may be shut",
                IDLY,
                door(idle(IDLE_TIMEOUT), PrepareState::Unconfirmed(3)),
                (IDLY, 3, Some(prepare(Urgency::Idle))),
            ),
            (
                "another's door",
                IDLY,
                door(idle(IDLE_TIMEOUT), PrepareState::Prepared(2)),
                (IDLY, 3, Some(prepare(Urgency::Idle))),
            ),
        ],
    );
}

#[test]
fn ready_declined_and_given_up() {
    let unheard = |silence| silent(seen(agents(&[3])), silence);
    let commit = Action::Commit(3);
    table(
        DesiredState::Awake,
        &[
            ("it saves", Phase::Committing, served(), COMMITTING),
            ("it is ready", Phase::Committing, Observed { ready: Some(3), ..served() }, ENDED),
            ("another was ready", Phase::Committing, Observed { ready: Some(2), ..served() }, COMMITTING),
            ("it declines", Phase::Committing, declined(served(), commit, 1), AWAKE),
            (
                "it declined, and its door is shut again",
                Phase::Committing,
                door(declined(served(), commit, 0), PrepareState::Prepared(3)),
                COMMITTING,
            ),
            ("it fails", Phase::Committing, failed(served(), commit, 1), (Phase::Committing, 3, None)),
            ("it fails too often", Phase::Committing, failed(served(), commit, COMMIT_TRIES), ENDED),
            ("it died", Phase::Committing, seen(agents(&[])), ENDED),
            ("all is gone", Phase::Committing, seen(Processes::None), (Phase::Asleep, 3, None)),
            ("nobody hears it", Phase::Committing, unheard(SECOND), (Phase::Committing, 3, None)),
            ("for ten minutes", Phase::Committing, unheard(SILENCE_LIMIT), ENDED),
            ("nobody knows", Phase::Committing, seen(Processes::Unseen), (Phase::Committing, 3, None)),
        ],
    );
    let unwanted =
        follows(&spec(DesiredState::Asleep), &status(Phase::Committing), &declined(served(), commit, 1));
    assert_eq!(unwanted, ENDED, "where use is no reason, an agent that declines is ended");
}

#[test]
fn stopped() {
    table(
        DesiredState::Awake,
        &[
            ("nothing runs", Phase::FallingAsleep, seen(Processes::None), (Phase::Asleep, 3, None)),
            ("something runs", Phase::FallingAsleep, seen(agents(&[])), ENDED),
            ("nobody knows", Phase::FallingAsleep, seen(Processes::Unseen), (Phase::FallingAsleep, 3, None)),
        ],
    );
    let rested =
        decide(&spec(DesiredState::Awake), &status(Phase::FallingAsleep), &seen(Processes::None), NOW).status;
    assert_eq!((rested.slept_at, rested.failures), (WITNESSED, 0));
}

#[test]
fn wake() {
    let none = || seen(Processes::None);
    let queued = (Phase::Queued, 3, None);
    let stop = (Phase::Queued, 3, Some(Action::Stop));
    let opening = OPENING;
    cases(&[
        ("asked for", called(DesiredState::Awake), status(Phase::Asleep), none(), queued),
        (
            "asked for, and there is room",
            called(DesiredState::Awake),
            status(Phase::Asleep),
            room(none()),
            (Phase::Starting, 4, Some(Action::Start(4))),
        ),
        (
            "asked for long ago",
            spec(DesiredState::Awake),
            status(Phase::Asleep),
            none(),
            (Phase::Asleep, 3, None),
        ),
        (
            "asked to sleep",
            called(DesiredState::Asleep),
            status(Phase::Asleep),
            none(),
            (Phase::Asleep, 3, None),
        ),
        ("while an agent opens it", called(DesiredState::Awake), status(opening), seen(agents(&[3])), stop),
        ("while it is archived", called(DesiredState::Awake), status(ARCHIVING), served(), stop),
        ("while it falls asleep", called(DesiredState::Awake), status(Phase::FallingAsleep), none(), queued),
        (
            "while it saves",
            called(DesiredState::Awake),
            status(Phase::Committing),
            Observed { ready: Some(3), ..served() },
            ENDED,
        ),
    ]);
    let woken = decide(&called(DesiredState::Awake), &status(Phase::Asleep), &none(), NOW).status;
    assert_eq!(
        (woken.queued_at, woken.observed_request),
        (Some(WITNESSED), 2),
        "its place in the line is as old as the request"
    );
}

#[test]
fn time_that_nobody_watched_makes_nothing_sleep() {
    let a_year = Duration::from_secs(365 * 24 * 60 * 60);
    let then = NOW.plus(a_year);
    let mut bounded: Spec = spec(DesiredState::Awake);
    bounded.policy.max_awake = Some(21 * HOUR);
    let awake = decide(&bounded, &status(Phase::Awake), &idle(IDLE_TIMEOUT - SECOND), then).status.phase;
    assert_eq!(awake, Phase::Awake);
    let asleep = decide(&bounded, &status(Phase::Asleep), &seen(Processes::None), then).status.phase;
    assert_eq!(asleep, Phase::Asleep);
    let long_ago = Timestamp(0);
    assert_eq!(decide(&bounded, &status(Phase::Asleep), &seen(Processes::None), long_ago).action, None);
}
