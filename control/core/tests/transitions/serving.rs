//! While it is awake: death, silence, health.

use std::time::Duration;

use podling_core::{
    decide::{Action, FIRST_PAUSE, HEALTHY_AFTER, SILENCE_LIMIT, decide},
    observed::{Observed, Processes},
    reason::{Operation, StateReason, Wait, WaitReason},
    status::{Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, Resources, Spec},
};

use crate::given::*;

#[test]
fn died() {
    let at_once = pending(Duration::ZERO);
    table(
        DesiredState::Awake,
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
        DesiredState::Awake,
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
fn stop_restarting() {
    let (stop, at_once) = (Some(Action::Stop), pending(Duration::ZERO));
    let asleep_soon = (Phase::FallingAsleep, 3, stop);
    let times = |failures, phase| Status { failures, ..status(phase) };
    let dead = ended(seen(agents(&[])), 3);
    let mute = silent(seen(agents(&[3])), SILENCE_LIMIT);
    let by_another = Observed { used_by: Some(2), ..dead.clone() };
    let wanted = || spec(DesiredState::Awake);
    cases(&[
        ("the first time", wanted(), times(0, Phase::Awake), dead.clone(), (at_once, 3, stop)),
        ("again, and not used", wanted(), times(1, Phase::Awake), dead.clone(), asleep_soon),
        ("used before that only", wanted(), times(1, Phase::Awake), by_another, asleep_soon),
        ("while it was asked", wanted(), times(1, IDLY), dead.clone(), asleep_soon),
        ("silent", wanted(), times(1, Phase::Awake), mute, asleep_soon),
        ("used", wanted(), times(1, Phase::Awake), used(dead.clone()), (pending(FIRST_PAUSE), 3, stop)),
    ]);
    // It sleeps on: what was asked for was had. Who asks from then on wakes it.
    let worn = decide(&called(DesiredState::Awake), &times(1, Phase::Awake), &dead, NOW).status;
    let rests = decide(&called(DesiredState::Awake), &worn, &seen(Processes::None), NOW).status;
    assert_eq!((rests.phase, rests.failures), (Phase::Asleep, 0));
}

#[test]
fn healthy() {
    let shaky = |ago: Duration| Status {
        failures: 4,
        since: Timestamp(NOW.0 - ago.as_millis() as u64),
        ..status(Phase::Awake)
    };
    let failures = |status: &Status, observed: &Observed| {
        decide(&spec(DesiredState::Awake), status, observed, NOW).status.failures
    };
    let well = used(served());
    assert_eq!(failures(&shaky(HEALTHY_AFTER), &well), 0);
    assert_eq!(failures(&shaky(HEALTHY_AFTER - SECOND), &well), 4, "not yet");
    assert_eq!(failures(&shaky(HEALTHY_AFTER), &served()), 4, "nobody uses it");
    assert_eq!(failures(&shaky(HEALTHY_AFTER), &seen(agents(&[3]))), 4, "nobody hears it");
    let again =
        decide(&spec(DesiredState::Awake), &shaky(SECOND), &used(ended(seen(agents(&[])), 3)), NOW).status;
    assert_eq!(
        again.phase,
        pending(FIRST_PAUSE * 8),
        "one that dies again and again does not restart at once"
    );
}

#[test]
fn resized() {
    let cpu = |cpu_millis| Resources { cpu_millis, memory_bytes: 1 };
    let given = |phase, has, queued_at| Status { allocated: Some(cpu(has)), queued_at, ..status(phase) };
    let since = Some(WITNESSED - SECOND);
    let after = |wants, status: Status, admitted| {
        let spec = Spec { resources: cpu(wants), ..spec(DesiredState::Awake) };
        let observed = Observed { admitted, ..served() };
        let decided = decide(&spec, &status, &observed, NOW).status;
        assert_eq!(decided.phase, status.phase, "it goes on");
        (decided.allocated.expect("it has room").cpu_millis, decided.queued_at)
    };
    for phase in [Phase::Awake, Phase::Pending { not_before: NOW.plus(SECOND) }] {
        assert_eq!(after(2, given(phase, 2, None), false), (2, None), "as it was");
        assert_eq!(after(1, given(phase, 2, None), false), (1, None), "less is given back at once");
        assert_eq!(
            after(3, given(phase, 2, None), false),
            (2, Some(WITNESSED)),
            "more is waited for in line"
        );
        assert_eq!(after(3, given(phase, 2, since), false), (2, since), "it keeps its place there");
        assert_eq!(after(3, given(phase, 2, since), true), (3, None), "there is room");
        assert_eq!(after(2, given(phase, 2, since), false), (2, None), "it does not want more after all");
        assert_eq!(after(1, given(phase, 2, since), false), (1, None), "it wants less");
    }
    let older = Status { allocated: None, ..status(Phase::Awake) };
    assert_eq!(after(2, older, false), (2, None), "a record from before has what it wants");
    // Two kinds at once are given at once, or not at all.
    let spec = Spec { resources: Resources { cpu_millis: 1, memory_bytes: 9 }, ..spec(DesiredState::Awake) };
    let both = decide(&spec, &given(Phase::Awake, 2, None), &served(), NOW).status;
    assert_eq!((both.allocated, both.queued_at), (Some(cpu(2)), Some(WITNESSED)));
    // Who rests has nothing.
    let rested = decide(&spec, &given(Phase::FallingAsleep, 2, since), &seen(Processes::None), NOW).status;
    assert_eq!((rested.phase, rested.allocated, rested.queued_at), (Phase::Asleep, None, None));
}

#[test]
fn what_runs_is_given_what_it_was_given_of_its_share() {
    let (small, large) = (Resources::default(), Resources { cpu_millis: 2000, memory_bytes: 2 << 30 });
    let resize = |resources| Some(Action::Resize { epoch: 3, resources });
    let has = |epoch, resources| Observed { actual: Some((epoch, resources)), ..served() };
    let wants = |resources| Spec { resources, ..spec(DesiredState::Awake) };
    let awake = |given| Status { allocated: Some(given), ..status(Phase::Awake) };
    let unknown = Observed { actual: None, ..served() };
    let stays = |action| (Phase::Awake, 3, action);
    let not_now = failed(has(3, small), Action::Resize { epoch: 3, resources: large }, 1);
    cases(&[
        ("it has it", wants(small), awake(small), has(3, small), stays(None)),
        ("nobody knows what it has", wants(small), awake(small), unknown, stays(resize(small))),
        ("that was another agent's", wants(small), awake(small), has(2, small), stays(resize(small))),
        ("it was given more", wants(large), awake(large), has(3, small), stays(resize(large))),
        ("there is room now", wants(large), awake(small), room(has(3, small)), stays(resize(large))),
        ("less is given back", wants(small), awake(large), has(3, large), stays(resize(small))),
        ("there is no room", wants(large), awake(small), has(3, small), stays(None)),
        ("it has just failed", wants(large), awake(large), not_now, stays(None)),
        (
            "nobody knows what runs",
            wants(large),
            awake(large),
            Observed { actual: None, ..connected(seen(Processes::Unseen)) },
            stays(None),
        ),
    ]);
}

#[test]
fn what_a_resize_waits_for_is_why_as_long_as_it_does() {
    let waits = Wait { reason: WaitReason::QuotaExceeded, detail: "the namespace is full".into() };
    let waiting = Observed { waits: Some(waits.clone()), ..served() };
    let (spec, allocated) = (spec(DesiredState::Awake), Some(Resources::default()));
    let held = decide(&spec, &Status { allocated, ..status(Phase::Awake) }, &waiting, NOW).status;
    assert_eq!((held.reason.clone(), held.phase), (StateReason::Waiting(waits), Phase::Awake));
    let resize = Action::Resize { epoch: 3, resources: Resources::default() };
    let never = failed(Observed { actual: None, ..served() }, resize, 1);
    let failed = decide(&spec, &held, &never, NOW).status;
    assert_eq!(
        failed.reason,
        StateReason::ActionFailed { operation: Operation::Resize, detail: "it went wrong".into() }
    );
    let done = decide(&spec, &failed, &served(), NOW).status;
    assert_eq!((done.reason, done.waits), (StateReason::AgentConnected, None));
}
