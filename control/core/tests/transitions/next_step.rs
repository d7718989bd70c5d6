//! The time at which a workspace is decided again without an event, and the warning of users before
//! a sleep.

use std::time::Duration;

use podling_core::{
    decide::{HEALTHY_AFTER, HELLO_LIMIT, SILENCE_LIMIT, decide},
    observed::{Observed, RunningAgents, UseState},
    status::{Phase, Status},
    workspace::{DesiredState, Spec},
};

use crate::fixture::*;

const MINUTE: Duration = Duration::from_secs(60);

/// Returns the time until the next decision without an event.
fn next(spec: &Spec, status: &Status, observed: &Observed) -> Option<Duration> {
    decide(spec, status, observed, NOW).next.map(|(at, _)| at.since(NOW))
}

#[test]
fn next_decision_is_when_a_step_is_due() {
    let disconnected = || silent(with_processes(agents(&[3])), SECOND);
    let recovering = Status { failures: 1, since: NOW, ..status(Phase::Awake) };
    let mut bounded = spec(DesiredState::Awake);
    bounded.policy.max_awake = Some(20 * HOUR + SECOND);
    let used = || Observed { used: UseState::Yes, used_by: Some(3), ..served() };
    let just_requested = Status { requested_at: OBSERVED_TIME - MINUTE, ..status(Phase::Awake) };
    let with_archive = Status { archives: vec![archive(2, 29 * 24 * HOUR)], ..status(Phase::Asleep) };
    let rows = [
        (
            "queued",
            spec(DesiredState::Awake),
            status(Phase::Queued),
            with_processes(RunningAgents::None),
            None,
        ),
        (
            "back-off",
            spec(DesiredState::Awake),
            status(pending(SECOND)),
            with_processes(RunningAgents::None),
            Some(SECOND),
        ),
        (
            "starting",
            spec(DesiredState::Awake),
            status(Phase::Starting),
            disconnected(),
            Some(HELLO_LIMIT - SECOND),
        ),
        (
            "not connected",
            spec(DesiredState::Awake),
            status(Phase::Awake),
            disconnected(),
            Some(SILENCE_LIMIT - SECOND),
        ),
        ("used", spec(DesiredState::Awake), status(Phase::Awake), used(), None),
        ("used, with a longest time awake", bounded, status(Phase::Awake), used(), Some(SECOND)),
        ("recovering", spec(DesiredState::Awake), recovering, used(), Some(HEALTHY_AFTER)),
        (
            "idle, until the warning",
            spec(DesiredState::Awake),
            status(Phase::Awake),
            idle(5 * MINUTE),
            Some(8 * MINUTE),
        ),
        (
            "warned, until the sleep",
            spec(DesiredState::Awake),
            status(Phase::Awake),
            idle(14 * MINUTE),
            Some(MINUTE),
        ),
        ("just requested", spec(DesiredState::Awake), just_requested, idle(IDLE_TIMEOUT), Some(12 * MINUTE)),
        (
            "asleep",
            spec(DesiredState::Awake),
            status(Phase::Asleep),
            with_processes(RunningAgents::None),
            Some(23 * HOUR),
        ),
        (
            "asleep, with an archive",
            spec(DesiredState::Awake),
            with_archive,
            with_processes(RunningAgents::None),
            Some(23 * HOUR),
        ),
    ];
    for (case, spec, status, observed, expected) in rows {
        assert_eq!(next(&spec, &status, &observed), expected, "{case}");
    }
}

#[test]
fn wait_below_a_millisecond_is_rounded_up() {
    let (nanosecond, millisecond) = (Duration::from_nanos(1), Duration::from_millis(1));
    let due_soon = Status { slept_at: OBSERVED_TIME - 24 * HOUR + nanosecond, ..status(Phase::Asleep) };
    let asleep = next(&spec(DesiredState::Awake), &due_soon, &with_processes(RunningAgents::None));
    assert_eq!(asleep, Some(millisecond), "the archive is never due");
    let expiring = Status {
        archives: vec![archive(2, 30 * 24 * HOUR - nanosecond)],
        storage: false,
        ..status(Phase::Archived)
    };
    let archived = next(&spec(DesiredState::Awake), &expiring, &with_processes(RunningAgents::None));
    assert_eq!(archived, Some(millisecond), "the archive never expires");
}

#[test]
fn users_are_warned_before_a_sleep() {
    let warned = |spec: &Spec, phase: Phase, observed: &Observed| {
        decide(spec, &status(phase), observed, NOW).warning.map(|(at, _)| at.since(NOW))
    };
    let usual = spec(DesiredState::Awake);
    let rows = [
        ("two minutes before", Phase::Awake, idle(13 * MINUTE), Some(2 * MINUTE)),
        ("too early", Phase::Awake, idle(13 * MINUTE - SECOND), None),
        ("used again", Phase::Awake, Observed { used: UseState::Yes, ..served() }, None),
        ("not connected", Phase::Awake, Observed { connected: None, ..idle(13 * MINUTE) }, None),
        ("not awake", Phase::Starting, with_processes(agents(&[3])), None),
    ];
    for (case, phase, observed, expected) in rows {
        assert_eq!(warned(&usual, phase, &observed), expected, "{case}");
    }
    let mut short = spec(DesiredState::Awake);
    short.policy.idle_timeout = MINUTE;
    assert_eq!(warned(&short, Phase::Awake, &idle(29 * SECOND)), None, "warned before half of the timeout");
    assert_eq!(warned(&short, Phase::Awake, &idle(30 * SECOND)), Some(30 * SECOND));
    let mut bounded = spec(DesiredState::Awake);
    bounded.policy.max_awake = Some(20 * HOUR + MINUTE);
    let used = Observed { used: UseState::Yes, ..served() };
    assert_eq!(
        warned(&bounded, Phase::Awake, &used),
        Some(MINUTE),
        "no warning before the longest time awake"
    );
}
