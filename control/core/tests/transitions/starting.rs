//! Transitions from creation to awake, and the back-off in between.

use std::time::Duration;

use podling_core::{
    decide::{Action, HELLO_LIMIT, MAX_BACKOFF, MIN_BACKOFF, decide, shorten_backoff},
    observed::{Observed, RunningAgents},
    reason::{StateReason, Wait, WaitReason},
    status::{FAILED_AFTER, Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, State},
};

use crate::fixture::*;

#[test]
fn queued_workspace_starts_when_admitted() {
    let start = (Phase::Starting, 4, Some(Action::StartAgent(4)));
    assert_table(
        DesiredState::Awake,
        &[
            ("not admitted", Phase::Queued, with_processes(RunningAgents::None), (Phase::Queued, 3, None)),
            ("admitted", Phase::Queued, admitted(with_processes(RunningAgents::None)), start),
            (
                "admitted, an earlier agent runs",
                Phase::Queued,
                admitted(with_processes(agents(&[2]))),
                (pending(Duration::ZERO), 3, Some(Action::StopProcesses)),
            ),
            (
                "not admitted, leftover processes",
                Phase::Queued,
                with_processes(agents(&[])),
                (Phase::Queued, 3, Some(Action::StopProcesses)),
            ),
            (
                "control plane shuts down",
                Phase::Queued,
                shutting_down(admitted(with_processes(RunningAgents::None))),
                (Phase::Asleep, 3, None),
            ),
        ],
    );
    let sleep_requested = outcome(
        &spec(DesiredState::Asleep),
        &status(Phase::Queued),
        &admitted(with_processes(RunningAgents::None)),
    );
    assert_eq!(sleep_requested, (Phase::Asleep, 3, None), "an unwanted workspace starts");
}

#[test]
fn created_workspace_joins_the_queue_once() {
    let created =
        decide(&spec(DesiredState::Awake), &Status::new(NOW), &with_processes(RunningAgents::None), NOW)
            .status;
    assert_eq!(created.queued_at, Some(OBSERVED_TIME));
    let later = Observed { observed_time: OBSERVED_TIME + SECOND, ..with_processes(RunningAgents::None) };
    assert_eq!(
        decide(&spec(DesiredState::Awake), &created, &later, NOW).status.queued_at,
        Some(OBSERVED_TIME)
    );
}

#[test]
fn pending_workspace_starts_when_nothing_runs() {
    let (now, later) = (pending(Duration::ZERO), pending(SECOND));
    assert_table(
        DesiredState::Awake,
        &[
            (
                "no processes",
                now,
                with_processes(RunningAgents::None),
                (Phase::Starting, 4, Some(Action::StartAgent(4))),
            ),
            ("processes unknown", now, with_processes(RunningAgents::Unseen), (now, 3, None)),
            ("orphaned processes", now, with_processes(agents(&[])), (now, 3, Some(Action::StopProcesses))),
            (
                "an earlier agent runs",
                now,
                with_processes(agents(&[2])),
                (now, 3, Some(Action::StopProcesses)),
            ),
            ("back-off", later, with_processes(RunningAgents::None), (later, 3, None)),
            (
                "orphaned processes in the back-off",
                later,
                with_processes(agents(&[])),
                (later, 3, Some(Action::StopProcesses)),
            ),
        ],
    );
    let clock_set_back = pending(MAX_BACKOFF + SECOND);
    let (phase, ..) =
        outcome(&spec(DesiredState::Awake), &status(clock_set_back), &with_processes(RunningAgents::None));
    assert_eq!(phase, Phase::Starting, "a clock that was set back delays the start");
}

#[test]
fn start_uses_a_new_epoch_and_storage_generation() {
    let decision = decide(
        &spec(DesiredState::Awake),
        &status(pending(Duration::ZERO)),
        &with_processes(RunningAgents::None),
        NOW,
    );
    assert_eq!((decision.status.epoch, decision.status.storage_generation), (4, 4));
}

#[test]
fn storage_holds_files_from_first_agent_that_asks_for_claim() {
    let unused = |phase| Status { storage: false, ..status(phase) };
    let after = |status: &Status, observed: &Observed| {
        decide(&spec(DesiredState::Awake), status, observed, NOW).status
    };
    let started = after(&unused(pending(Duration::ZERO)), &with_processes(RunningAgents::None));
    assert_eq!((started.phase, started.storage), (Phase::Starting, false), "no agent runs yet");
    let starting = unused(Phase::Starting);
    let running = with_processes(agents(&[3]));
    let running_status = after(&starting, &running);
    assert!(!running_status.storage && !running_status.permits_claim(), "no agent has said hello");
    let earlier = Observed { greeted: Some(2), ..running.clone() };
    assert!(!after(&starting, &earlier).storage, "an agent of an earlier start");
    let asks = after(&starting, &Observed { greeted: Some(3), ..running });
    assert_eq!((asks.phase, asks.storage, asks.permits_claim()), (Phase::Starting, true, true));
}

#[test]
fn starting_workspace_is_awake_after_hello() {
    let starting = (Phase::Starting, 3, None);
    assert_table(
        DesiredState::Awake,
        &[
            (
                "hello received",
                Phase::Starting,
                connected(with_processes(agents(&[3]))),
                (Phase::Awake, 3, None),
            ),
            ("running, no hello", Phase::Starting, with_processes(agents(&[3])), starting),
            ("being started", Phase::Starting, with_processes(agents(&[])), starting),
            (
                "hello of an earlier agent",
                Phase::Starting,
                Observed { connected: Some(2), ..with_processes(agents(&[3])) },
                starting,
            ),
        ],
    );
}

#[test]
fn start_that_waits_for_quota_is_queued_with_its_reason() {
    let wait = |reason| Wait { reason, detail: "the namespace is full".into() };
    let waits = |reason| Observed { waits: Some(wait(reason)), ..with_processes(agents(&[])) };
    let because = |reason| StateReason::Waiting(wait(reason));
    let decide = |status: &Status, observed: &Observed| {
        decide(&spec(DesiredState::Awake), status, observed, NOW).status
    };
    let queued = decide(&status(Phase::Starting), &waits(WaitReason::QuotaExceeded));
    assert_eq!(
        (queued.state(), &queued.reason, queued.epoch),
        (State::Queued, &because(WaitReason::QuotaExceeded), 3)
    );
    let unschedulable = decide(&queued, &waits(WaitReason::Unschedulable));
    assert_eq!(
        (unschedulable.state(), &unschedulable.reason),
        (State::Starting, &because(WaitReason::Unschedulable))
    );
    let starting = decide(&unschedulable, &with_processes(agents(&[])));
    assert_eq!((starting.state(), starting.waits.is_none()), (State::Starting, true));
    assert_eq!(starting.reason, StateReason::AgentStarting);
    let awake = decide(&queued, &connected(with_processes(agents(&[3]))));
    assert_eq!((awake.phase, awake.waits), (Phase::Awake, None));
}

#[test]
fn failed_start_backs_off() {
    let again = pending(MIN_BACKOFF);
    let stop = (again, 3, Some(Action::StopProcesses));
    assert_table(
        DesiredState::Awake,
        &[
            ("agent ended", Phase::Starting, ended(with_processes(agents(&[])), 3), stop),
            (
                "an earlier agent ended",
                Phase::Starting,
                ended(with_processes(agents(&[3])), 2),
                (Phase::Starting, 3, None),
            ),
            ("an earlier agent runs too", Phase::Starting, with_processes(agents(&[2, 3])), stop),
            ("hello overdue", Phase::Starting, silent(with_processes(agents(&[3])), HELLO_LIMIT), stop),
            (
                "hello not overdue yet",
                Phase::Starting,
                silent(with_processes(agents(&[3])), HELLO_LIMIT - SECOND),
                (Phase::Starting, 3, None),
            ),
        ],
    );
}

#[test]
fn repeated_start_failures_back_off_and_count_as_failed() {
    let mut status = status(Phase::Starting);
    let mut backoffs = Vec::new();
    for failure in 1..=20_u32 {
        status.phase = Phase::Starting;
        status =
            decide(&spec(DesiredState::Awake), &status, &ended(with_processes(agents(&[])), 3), NOW).status;
        let Phase::Pending { not_before } = status.phase else { panic!("{status:?}") };
        backoffs.push(not_before.since(NOW));
        let state = if failure >= FAILED_AFTER { State::Failed } else { State::Starting };
        assert_eq!((status.failures, status.state()), (failure, state));
        let (StateReason::AgentStartFailed { detail } | StateReason::AgentEnded { detail: Some(detail) }) =
            &status.reason
        else {
            panic!("{:?}", status.reason)
        };
        assert_eq!(detail, "killed by SIGKILL");
    }
    assert_eq!(backoffs[..4], [1, 2, 4, 8].map(Duration::from_secs));
    assert!(backoffs.is_sorted() && backoffs.last() == Some(&MAX_BACKOFF));
}

#[test]
fn request_shortens_back_off_to_the_first_pause() {
    let mut waiting = Status { since: NOW, ..status(pending(MAX_BACKOFF)) };
    assert_eq!(shorten_backoff(&waiting, NOW).phase, pending(MIN_BACKOFF));
    waiting.since = Timestamp(NOW.0 - 60_000);
    assert_eq!(shorten_backoff(&waiting, NOW).phase, pending(Duration::ZERO));
    assert_eq!(shorten_backoff(&status(Phase::Awake), NOW), status(Phase::Awake));
}
