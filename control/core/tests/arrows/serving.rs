//! While it is awake: death, silence, health.

use std::time::Duration;

use podling_core::{
    decide::{Action, FIRST_PAUSE, HEALTHY_AFTER, SILENCE_LIMIT, decide},
    observed::{Observed, Processes},
    status::{Phase, Status},
    time::Timestamp,
    workspace::Wanted,
};

use crate::given::*;

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
