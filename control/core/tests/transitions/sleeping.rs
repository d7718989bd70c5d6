//! Transitions from awake to asleep in two phases, and back.

use std::time::Duration;

use podling_core::{
    decide::{Action, MAX_COMMIT_ATTEMPTS, SILENCE_LIMIT, decide, is_unrecorded_sleep},
    observed::{Observed, PrepareState, RunningAgents, UseState},
    reason::SleepRequest,
    status::{Phase, Status, Urgency},
    time::Timestamp,
    workspace::{DesiredState, Spec},
};

use crate::fixture::*;

const AWAKE: DecisionOutcome = (Phase::Awake, 3, None);
const COMMITTING: DecisionOutcome = (Phase::Committing, 3, Some(Action::Commit(3)));
const ENDED: DecisionOutcome = (Phase::FallingAsleep, 3, Some(Action::StopProcesses));

#[test]
fn awake_workspace_prepares_to_sleep_when_due() {
    let preparing = (PREPARING_IDLE, 3, Some(prepare(Urgency::Idle)));
    let just_requested =
        Status { requested_at: OBSERVED_TIME - IDLE_TIMEOUT + SECOND, ..status(Phase::Awake) };
    let awake = || status(Phase::Awake);
    let mut bounded = spec(DesiredState::Awake);
    bounded.policy.max_awake = Some(20 * HOUR);
    let mut longer = bounded.clone();
    longer.policy.max_awake = Some(20 * HOUR + SECOND);
    let used = || Observed { used: UseState::Yes, ..served() };
    let forced = (PREPARING_FORCED, 3, Some(prepare(Urgency::Forced)));
    assert_cases(&[
        ("idle for its timeout", spec(DesiredState::Awake), awake(), idle(IDLE_TIMEOUT), preparing),
        ("a second less", spec(DesiredState::Awake), awake(), idle(IDLE_TIMEOUT - SECOND), AWAKE),
        ("used", spec(DesiredState::Awake), awake(), used(), AWAKE),
        ("activity unknown", spec(DesiredState::Awake), awake(), served(), AWAKE),
        ("just requested", spec(DesiredState::Awake), just_requested, idle(IDLE_TIMEOUT), AWAKE),
        (
            "not connected",
            spec(DesiredState::Awake),
            awake(),
            Observed { connected: None, ..idle(IDLE_TIMEOUT) },
            AWAKE,
        ),
        (
            "prepare state unconfirmed",
            spec(DesiredState::Awake),
            awake(),
            with_prepare_state(idle(IDLE_TIMEOUT), PrepareState::Unconfirmed(3)),
            (Phase::Awake, 3, Some(Action::Cancel(3))),
        ),
        ("longest time awake reached", bounded, awake(), used(), forced),
        ("a second less", longer, awake(), used(), AWAKE),
        ("sleep requested", requested(DesiredState::Asleep), awake(), used(), forced),
        ("delete requested", requested(DesiredState::Deleted), awake(), used(), forced),
        (
            "agent has just declined",
            spec(DesiredState::Awake),
            awake(),
            declined(idle(IDLE_TIMEOUT), prepare(Urgency::Idle), 1),
            AWAKE,
        ),
    ]);
}

#[test]
fn late_wake_restarts_the_idle_timeout() {
    let (wake, observed) = (requested(DesiredState::Awake), idle(IDLE_TIMEOUT));
    let awake = decide(&wake, &status(Phase::Awake), &observed, NOW).status;
    assert_eq!((awake.phase, awake.observed_request), (Phase::Awake, Some(2)), "it sleeps after the request");
    assert_eq!(awake.requested_at, OBSERVED_TIME);
}

#[test]
fn sleep_request_is_granted_unless_in_use() {
    let asked_to_sleep = |observed| Observed { sleep_request: Some(SleepRequest::User), ..observed };
    let in_use = Observed { used: UseState::Yes, ..served() };
    let requested_prepare = prepare(Urgency::Requested);
    let idle = || idle(SECOND);
    assert_table(
        DesiredState::Awake,
        &[
            (
                "just idle",
                Phase::Awake,
                asked_to_sleep(idle()),
                (PREPARING_REQUESTED, 3, Some(requested_prepare)),
            ),
            (
                "activity unknown",
                Phase::Awake,
                asked_to_sleep(served()),
                (PREPARING_REQUESTED, 3, Some(requested_prepare)),
            ),
            ("used", Phase::Awake, asked_to_sleep(in_use.clone()), AWAKE),
            (
                "agent is asked",
                PREPARING_REQUESTED,
                idle(),
                (PREPARING_REQUESTED, 3, Some(requested_prepare)),
            ),
            ("used again", PREPARING_REQUESTED, in_use, AWAKE),
            ("agent declines", PREPARING_REQUESTED, declined(idle(), requested_prepare, 1), AWAKE),
            (
                "prepared",
                PREPARING_REQUESTED,
                with_prepare_state(idle(), PrepareState::Prepared(3)),
                COMMITTING,
            ),
            (
                "agent has just declined a request",
                Phase::Awake,
                declined(asked_to_sleep(idle()), requested_prepare, 1),
                AWAKE,
            ),
            (
                "agent has just declined an idle sleep",
                Phase::Awake,
                declined(asked_to_sleep(idle()), prepare(Urgency::Idle), 1),
                (PREPARING_REQUESTED, 3, Some(requested_prepare)),
            ),
        ],
    );
    let disconnected = Observed { connected: None, ..asked_to_sleep(idle()) };
    assert_eq!(
        outcome(&spec(DesiredState::Awake), &status(PREPARING_REQUESTED), &disconnected),
        AWAKE,
        "sleeps on unknown activity"
    );
}

#[test]
fn sleep_request_is_cleared_once_acted_on() {
    let asked_to_sleep = || Observed { sleep_request: Some(SleepRequest::User), ..served() };
    let mut ordered = asked_to_sleep();
    ordered.action_started(prepare(Urgency::Requested));
    let mut lost = asked_to_sleep();
    lost.disconnected();
    let mut used = asked_to_sleep();
    used.use_reported(UseState::Yes);
    assert!(ordered.sleep_request.or(lost.sleep_request).or(used.sleep_request).is_none());
}

#[test]
fn declined_prepare_is_retried_after_back_off() {
    let observed = declined(idle(IDLE_TIMEOUT), prepare(Urgency::Idle), 2);
    let first = decide(&spec(DesiredState::Awake), &status(Phase::Awake), &observed, NOW);
    assert_eq!(first.next.map(|(at, _)| at), Some(NOW.plus(2 * SECOND)));
    let later = decide(&spec(DesiredState::Awake), &first.status, &observed, NOW.plus(2 * SECOND));
    assert_eq!(
        later.status.phase,
        Phase::Preparing { urgency: Urgency::Idle, declined: 2 },
        "an old decline counts again"
    );
    assert_eq!(later.action, Some(prepare(Urgency::Idle)));
}

#[test]
fn sleep_is_cancelled_on_use_request_or_failure() {
    let mut disconnected = idle(IDLE_TIMEOUT);
    disconnected.connected = None;
    assert_cases(&[
        (
            "no answer yet",
            spec(DesiredState::Awake),
            status(PREPARING_IDLE),
            idle(IDLE_TIMEOUT),
            (PREPARING_IDLE, 3, Some(prepare(Urgency::Idle))),
        ),
        (
            "used again",
            spec(DesiredState::Awake),
            status(PREPARING_IDLE),
            Observed { used: UseState::Yes, ..served() },
            AWAKE,
        ),
        (
            "agent declines",
            spec(DesiredState::Awake),
            status(PREPARING_IDLE),
            declined(served(), prepare(Urgency::Idle), 1),
            AWAKE,
        ),
        (
            "prepare fails",
            spec(DesiredState::Awake),
            status(PREPARING_IDLE),
            failed(served(), prepare(Urgency::Idle), 1),
            AWAKE,
        ),
        ("not connected", spec(DesiredState::Awake), status(PREPARING_IDLE), disconnected.clone(), AWAKE),
        (
            "prepare state unconfirmed",
            requested(DesiredState::Awake),
            status(PREPARING_IDLE),
            with_prepare_state(served(), PrepareState::Unconfirmed(3)),
            (Phase::Awake, 3, Some(Action::Cancel(3))),
        ),
        (
            "use does not cancel a forced sleep",
            spec(DesiredState::Asleep),
            status(PREPARING_FORCED),
            Observed { used: UseState::Yes, ..served() },
            (PREPARING_FORCED, 3, Some(prepare(Urgency::Forced))),
        ),
        ("requested meanwhile", requested(DesiredState::Awake), status(PREPARING_FORCED), served(), AWAKE),
        (
            "forced and declined",
            spec(DesiredState::Asleep),
            status(PREPARING_FORCED),
            declined(served(), prepare(Urgency::Forced), 1),
            ENDED,
        ),
        (
            "longest time awake reached, prepare fails",
            spec(DesiredState::Awake),
            status(PREPARING_FORCED),
            failed(served(), prepare(Urgency::Forced), 1),
            ENDED,
        ),
        ("forced, not connected", spec(DesiredState::Asleep), status(PREPARING_FORCED), disconnected, ENDED),
        (
            "agent ended",
            spec(DesiredState::Awake),
            status(PREPARING_IDLE),
            with_processes(agents(&[])),
            (pending(Duration::ZERO), 3, Some(Action::StopProcesses)),
        ),
        (
            "processes unknown",
            spec(DesiredState::Awake),
            status(PREPARING_IDLE),
            with_processes(RunningAgents::Unseen),
            (PREPARING_IDLE, 3, None),
        ),
    ]);
    let awake = decide(&requested(DesiredState::Awake), &status(PREPARING_IDLE), &served(), NOW).status;
    assert_eq!(
        (awake.requested_at, awake.observed_request),
        (OBSERVED_TIME, Some(2)),
        "the request does not restart the idle timeout"
    );
}

#[test]
fn request_after_max_awake_wakes_once_asleep() {
    let mut bounded = requested(DesiredState::Awake);
    bounded.policy.max_awake = Some(HOUR);
    let preparing = decide(&bounded, &status(PREPARING_FORCED), &served(), NOW).status;
    assert_eq!(
        (preparing.phase, preparing.observed_request),
        (PREPARING_FORCED, Some(1)),
        "the request is lost"
    );
    let falling_asleep = Status { phase: Phase::FallingAsleep, ..preparing };
    assert_eq!(outcome(&bounded, &falling_asleep, &with_processes(RunningAgents::None)).0, Phase::Queued);
    // The agent's stream ended and began again, so the sleep begins once more.
    let awake = decide(&bounded, &status(Phase::Awake), &served(), NOW).status;
    assert_eq!((awake.phase, awake.observed_request), (PREPARING_FORCED, Some(1)), "the request is lost");
}

#[test]
fn preparing_workspace_commits_when_prepared() {
    assert_table(
        DesiredState::Awake,
        &[
            (
                "prepared",
                PREPARING_IDLE,
                with_prepare_state(idle(IDLE_TIMEOUT), PrepareState::Prepared(3)),
                COMMITTING,
            ),
            (
                "prepare state unconfirmed",
                PREPARING_IDLE,
                with_prepare_state(idle(IDLE_TIMEOUT), PrepareState::Unconfirmed(3)),
                (PREPARING_IDLE, 3, Some(prepare(Urgency::Idle))),
            ),
            (
                "an earlier agent is prepared",
                PREPARING_IDLE,
                with_prepare_state(idle(IDLE_TIMEOUT), PrepareState::Prepared(2)),
                (PREPARING_IDLE, 3, Some(prepare(Urgency::Idle))),
            ),
        ],
    );
}

#[test]
fn commit_ends_ready_declined_or_given_up() {
    let not_connected = |silence| silent(with_processes(agents(&[3])), silence);
    let commit = Action::Commit(3);
    assert_table(
        DesiredState::Awake,
        &[
            ("agent saves", Phase::Committing, served(), COMMITTING),
            ("agent is ready", Phase::Committing, Observed { ready: Some(3), ..served() }, ENDED),
            (
                "an earlier agent was ready",
                Phase::Committing,
                Observed { ready: Some(2), ..served() },
                COMMITTING,
            ),
            ("agent declines", Phase::Committing, declined(served(), commit, 1), AWAKE),
            (
                "agent declined and is prepared again",
                Phase::Committing,
                with_prepare_state(declined(served(), commit, 0), PrepareState::Prepared(3)),
                COMMITTING,
            ),
            ("prepare fails", Phase::Committing, failed(served(), commit, 1), (Phase::Committing, 3, None)),
            (
                "commit fails too often",
                Phase::Committing,
                failed(served(), commit, MAX_COMMIT_ATTEMPTS),
                ENDED,
            ),
            ("agent ended", Phase::Committing, with_processes(agents(&[])), ENDED),
            (
                "no processes",
                Phase::Committing,
                with_processes(RunningAgents::None),
                (Phase::Asleep, 3, None),
            ),
            ("not connected", Phase::Committing, not_connected(SECOND), (Phase::Committing, 3, None)),
            ("not connected for ten minutes", Phase::Committing, not_connected(SILENCE_LIMIT), ENDED),
            (
                "processes unknown",
                Phase::Committing,
                with_processes(RunningAgents::Unseen),
                (Phase::Committing, 3, None),
            ),
        ],
    );
    let declined_unwanted =
        outcome(&spec(DesiredState::Asleep), &status(Phase::Committing), &declined(served(), commit, 1));
    assert_eq!(declined_unwanted, ENDED, "a declining agent prevents a forced sleep");
}

#[test]
fn workspace_is_asleep_when_nothing_runs() {
    assert_table(
        DesiredState::Awake,
        &[
            (
                "no processes",
                Phase::FallingAsleep,
                with_processes(RunningAgents::None),
                (Phase::Asleep, 3, None),
            ),
            ("leftover processes", Phase::FallingAsleep, with_processes(agents(&[])), ENDED),
            (
                "processes unknown",
                Phase::FallingAsleep,
                with_processes(RunningAgents::Unseen),
                (Phase::FallingAsleep, 3, None),
            ),
        ],
    );
    let asleep = decide(
        &spec(DesiredState::Awake),
        &status(Phase::FallingAsleep),
        &with_processes(RunningAgents::None),
        NOW,
    )
    .status;
    assert_eq!((asleep.slept_at, asleep.failures), (OBSERVED_TIME, 0));
}

#[test]
fn request_wakes_a_sleeping_workspace() {
    let none = || with_processes(RunningAgents::None);
    let queued = (Phase::Queued, 3, None);
    let stop = (Phase::Queued, 3, Some(Action::StopProcesses));
    assert_cases(&[
        ("requested", requested(DesiredState::Awake), status(Phase::Asleep), none(), queued),
        (
            "requested and admitted",
            requested(DesiredState::Awake),
            status(Phase::Asleep),
            admitted(none()),
            (Phase::Starting, 4, Some(Action::StartAgent(4))),
        ),
        (
            "requested long ago",
            spec(DesiredState::Awake),
            status(Phase::Asleep),
            none(),
            (Phase::Asleep, 3, None),
        ),
        (
            "sleep requested",
            requested(DesiredState::Asleep),
            status(Phase::Asleep),
            none(),
            (Phase::Asleep, 3, None),
        ),
        (
            "while the archiving agent starts",
            requested(DesiredState::Awake),
            status(ARCHIVE_STARTING),
            with_processes(agents(&[3])),
            stop,
        ),
        ("while archiving", requested(DesiredState::Awake), status(ARCHIVE_RUNNING), served(), stop),
        (
            "while falling asleep",
            requested(DesiredState::Awake),
            status(Phase::FallingAsleep),
            none(),
            queued,
        ),
        (
            "while committing",
            requested(DesiredState::Awake),
            status(Phase::Committing),
            Observed { ready: Some(3), ..served() },
            ENDED,
        ),
    ]);
    let queued_status = decide(&requested(DesiredState::Awake), &status(Phase::Asleep), &none(), NOW).status;
    assert_eq!(
        (queued_status.queued_at, queued_status.observed_request),
        (Some(OBSERVED_TIME), Some(2)),
        "the queue position does not date from the request"
    );
}

#[test]
fn unobserved_time_puts_nothing_to_sleep() {
    let a_year = Duration::from_secs(365 * 24 * 60 * 60);
    let then = NOW.plus(a_year);
    let mut bounded: Spec = spec(DesiredState::Awake);
    bounded.policy.max_awake = Some(21 * HOUR);
    let awake = decide(&bounded, &status(Phase::Awake), &idle(IDLE_TIMEOUT - SECOND), then).status.phase;
    assert_eq!(awake, Phase::Awake);
    let asleep =
        decide(&bounded, &status(Phase::Asleep), &with_processes(RunningAgents::None), then).status.phase;
    assert_eq!(asleep, Phase::Asleep);
    let long_ago = Timestamp(0);
    assert_eq!(
        decide(&bounded, &status(Phase::Asleep), &with_processes(RunningAgents::None), long_ago).action,
        None
    );
}

#[test]
fn observed_asleep_makes_any_later_awake_a_request() {
    let none = with_processes(RunningAgents::None);
    let asleep = decide(&spec(DesiredState::Asleep), &status(Phase::Asleep), &none, NOW).status;
    assert_eq!((asleep.phase, asleep.observed_request), (Phase::Asleep, None));
    // An edit by a client that knows no request numbers.
    assert_eq!(outcome(&spec(DesiredState::Awake), &asleep, &none).0, Phase::Queued);
    assert_eq!(outcome(&spec(DesiredState::Awake), &status(Phase::Asleep), &none).0, Phase::Asleep);
    // The controller recorded the sleep, and no control plane ran when the client set `Awake`.
    let recorded = Spec { request_seq: 2, ..spec(DesiredState::Awake) };
    assert_eq!(outcome(&recorded, &status(Phase::Asleep), &none).0, Phase::Queued);
}

#[test]
fn sleep_is_recorded_once_it_cannot_be_undone() {
    let awake = spec(DesiredState::Awake);
    let records = |spec: &Spec, phase| is_unrecorded_sleep(spec, &status(phase));
    assert!(records(&awake, Phase::FallingAsleep) && records(&awake, Phase::Asleep));
    assert!(!records(&awake, PREPARING_IDLE) && !records(&awake, Phase::Committing));
    assert!(!records(&requested(DesiredState::Awake), Phase::Asleep), "the request must not be overwritten");
    assert!(!records(&spec(DesiredState::Asleep), Phase::Asleep), "it is recorded");
    assert!(!records(&spec(DesiredState::Deleted), Phase::Asleep));
}
