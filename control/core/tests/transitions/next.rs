//! What happens next by itself, and who is warned of it.

use std::time::Duration;

use podling_core::{
    decide::{HEALTHY_AFTER, HELLO_LIMIT, SILENCE_LIMIT, decide},
    observed::{Observed, Processes, Used},
    status::{Phase, Status},
    workspace::{DesiredState, Spec},
};

use crate::given::*;

const MINUTE: Duration = Duration::from_secs(60);

/// How long until it is looked at again.
fn next(spec: &Spec, status: &Status, observed: &Observed) -> Option<Duration> {
    decide(spec, status, observed, NOW).next.map(|(at, _)| at.since(NOW))
}

#[test]
fn it_is_looked_at_again_when_something_is_due() {
    let unheard = || silent(seen(agents(&[3])), SECOND);
    let shaky = Status { failures: 1, since: NOW, ..status(Phase::Awake) };
    let mut bounded = spec(DesiredState::Awake);
    bounded.policy.max_awake = Some(20 * HOUR + SECOND);
    let used = || Observed { used: Used::Yes, used_by: Some(3), ..served() };
    let just_come = Status { requested_at: WITNESSED - MINUTE, ..status(Phase::Awake) };
    let kept = Status { archives: vec![archive(2, 29 * 24 * HOUR)], ..status(Phase::Asleep) };
    let rows = [
        ("waiting for room", spec(DesiredState::Awake), status(Phase::Queued), seen(Processes::None), None),
        ("pausing", spec(DesiredState::Awake), status(pending(SECOND)), seen(Processes::None), Some(SECOND)),
        (
            "starting",
            spec(DesiredState::Awake),
            status(Phase::Starting),
            unheard(),
            Some(HELLO_LIMIT - SECOND),
        ),
        ("unheard", spec(DesiredState::Awake), status(Phase::Awake), unheard(), Some(SILENCE_LIMIT - SECOND)),
        ("used", spec(DesiredState::Awake), status(Phase::Awake), used(), None),
        ("used, not for ever", bounded, status(Phase::Awake), used(), Some(SECOND)),
        ("shaky", spec(DesiredState::Awake), shaky, used(), Some(HEALTHY_AFTER)),
        (
            "idle: the warning",
            spec(DesiredState::Awake),
            status(Phase::Awake),
            idle(5 * MINUTE),
            Some(8 * MINUTE),
        ),
        (
            "warned: the sleep",
            spec(DesiredState::Awake),
            status(Phase::Awake),
            idle(14 * MINUTE),
            Some(MINUTE),
        ),
        ("somebody came", spec(DesiredState::Awake), just_come, idle(IDLE_TIMEOUT), Some(12 * MINUTE)),
        ("asleep", spec(DesiredState::Awake), status(Phase::Asleep), seen(Processes::None), Some(23 * HOUR)),
        ("asleep, with an archive", spec(DesiredState::Awake), kept, seen(Processes::None), Some(23 * HOUR)),
    ];
    for (what, spec, status, observed, expected) in rows {
        assert_eq!(next(&spec, &status, &observed), expected, "{what}");
    }
}

#[test]
fn less_than_a_millisecond_is_not_nothing() {
    let (bit, millisecond) = (Duration::from_nanos(1), Duration::from_millis(1));
    let due_soon = Status { slept_at: WITNESSED - 24 * HOUR + bit, ..status(Phase::Asleep) };
    let asleep = next(&spec(DesiredState::Awake), &due_soon, &seen(Processes::None));
    assert_eq!(asleep, Some(millisecond), "it would never be archived");
    let expiring = Status {
        archives: vec![archive(2, 30 * 24 * HOUR - bit)],
        storage: false,
        ..status(Phase::Archived)
    };
    let archived = next(&spec(DesiredState::Awake), &expiring, &seen(Processes::None));
    assert_eq!(archived, Some(millisecond), "it would be kept for ever");
}

#[test]
fn people_are_warned_of_a_sleep_that_is_near() {
    let warned = |spec: &Spec, phase: Phase, observed: &Observed| {
        decide(spec, &status(phase), observed, NOW).warning.map(|(at, _)| at.since(NOW))
    };
    let usual = spec(DesiredState::Awake);
    let rows = [
        ("two minutes before", Phase::Awake, idle(13 * MINUTE), Some(2 * MINUTE)),
        ("not earlier", Phase::Awake, idle(13 * MINUTE - SECOND), None),
        ("used again: withdrawn", Phase::Awake, Observed { used: Used::Yes, ..served() }, None),
        ("nobody hears it", Phase::Awake, Observed { connected: None, ..idle(13 * MINUTE) }, None),
        ("not awake", Phase::Starting, seen(agents(&[3])), None),
    ];
    for (what, phase, observed, expected) in rows {
        assert_eq!(warned(&usual, phase, &observed), expected, "{what}");
    }
    let mut short = spec(DesiredState::Awake);
    short.policy.idle_timeout = MINUTE;
    assert_eq!(warned(&short, Phase::Awake, &idle(29 * SECOND)), None, "at most half the timeout");
    assert_eq!(warned(&short, Phase::Awake, &idle(30 * SECOND)), Some(30 * SECOND));
    let mut bounded = spec(DesiredState::Awake);
    bounded.policy.max_awake = Some(20 * HOUR + MINUTE);
    let used = Observed { used: Used::Yes, ..served() };
    assert_eq!(warned(&bounded, Phase::Awake, &used), Some(MINUTE), "also of the longest time awake");
}
