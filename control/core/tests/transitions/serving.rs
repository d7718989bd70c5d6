//! Transitions while a workspace is awake.

use std::time::Duration;

use podling_core::{
    decide::{Action, HEALTHY_AFTER, MIN_BACKOFF, SILENCE_LIMIT, decide},
    observed::{CommandHealth, Observed, RunningAgents},
    reason::{Operation, StateReason, Wait, WaitReason},
    status::{Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, Resources, Spec},
};

use crate::fixture::*;

#[test]
fn ended_agent_is_restarted() {
    let at_once = pending(Duration::ZERO);
    assert_table(
        DesiredState::Awake,
        &[
            (
                "killed",
                Phase::Awake,
                ended(with_processes(agents(&[])), 3),
                (at_once, 3, Some(Action::StopProcesses)),
            ),
            (
                "gone without a reported end",
                Phase::Awake,
                with_processes(agents(&[])),
                (at_once, 3, Some(Action::StopProcesses)),
            ),
            (
                "processes unknown",
                Phase::Awake,
                with_processes(RunningAgents::Unseen),
                (Phase::Awake, 3, None),
            ),
            ("running", Phase::Awake, connected(with_processes(agents(&[3]))), (Phase::Awake, 3, None)),
            (
                "an older agent runs too",
                Phase::Awake,
                connected(with_processes(agents(&[2, 3]))),
                (Phase::Awake, 3, None),
            ),
        ],
    );
}

#[test]
fn silent_agent_is_restarted_after_the_limit() {
    let at_once = pending(Duration::ZERO);
    let stop = (at_once, 3, Some(Action::StopProcesses));
    let awake = (Phase::Awake, 3, None);
    assert_table(
        DesiredState::Awake,
        &[
            ("ten minutes", Phase::Awake, silent(with_processes(agents(&[3])), SILENCE_LIMIT), stop),
            (
                "a second less",
                Phase::Awake,
                silent(with_processes(agents(&[3])), SILENCE_LIMIT - SECOND),
                awake,
            ),
            (
                "connected again",
                Phase::Awake,
                connected(silent(with_processes(agents(&[3])), SILENCE_LIMIT)),
                awake,
            ),
            (
                "processes unknown",
                Phase::Awake,
                silent(with_processes(RunningAgents::Unseen), SILENCE_LIMIT),
                awake,
            ),
        ],
    );
}

#[test]
fn unused_agent_that_ends_again_is_not_restarted() {
    let (stop, at_once) = (Some(Action::StopProcesses), pending(Duration::ZERO));
    let falling_asleep = (Phase::FallingAsleep, 3, stop);
    let with_failures = |failures, phase| Status { failures, ..status(phase) };
    let dead = ended(with_processes(agents(&[])), 3);
    let mute = silent(with_processes(agents(&[3])), SILENCE_LIMIT);
    let used_by_earlier = Observed { used_by: Some(2), ..dead.clone() };
    let wanted = || spec(DesiredState::Awake);
    assert_cases(&[
        ("first failure", wanted(), with_failures(0, Phase::Awake), dead.clone(), (at_once, 3, stop)),
        ("second failure, unused", wanted(), with_failures(1, Phase::Awake), dead.clone(), falling_asleep),
        (
            "used by an earlier agent only",
            wanted(),
            with_failures(1, Phase::Awake),
            used_by_earlier,
            falling_asleep,
        ),
        ("while preparing", wanted(), with_failures(1, PREPARING_IDLE), dead.clone(), falling_asleep),
        ("silent", wanted(), with_failures(1, Phase::Awake), mute, falling_asleep),
        (
            "used",
            wanted(),
            with_failures(1, Phase::Awake),
            used(dead.clone()),
            (pending(MIN_BACKOFF), 3, stop),
        ),
    ]);
    // The workspace stays asleep until the next request.
    let stopping = decide(&wanted(), &with_failures(1, Phase::Awake), &dead, NOW).status;
    let asleep = decide(&wanted(), &stopping, &with_processes(RunningAgents::None), NOW).status;
    assert_eq!((asleep.phase, asleep.failures), (Phase::Asleep, 0));
    let (request, lost) = (requested(DesiredState::Awake), with_failures(1, Phase::Awake));
    let restarted = outcome(&request, &lost, &dead).0;
    assert!(matches!(restarted, Phase::Pending { .. }), "a request is pending: {restarted:?}");
}

#[test]
fn failures_are_cleared_when_used_and_connected() {
    let failed_before = |ago: Duration| Status {
        failures: 4,
        since: Timestamp(NOW.0 - ago.as_millis() as u64),
        ..status(Phase::Awake)
    };
    let failures = |status: &Status, observed: &Observed| {
        decide(&spec(DesiredState::Awake), status, observed, NOW).status.failures
    };
    let in_use = used(served());
    assert_eq!(failures(&failed_before(HEALTHY_AFTER), &in_use), 0);
    assert_eq!(failures(&failed_before(HEALTHY_AFTER - SECOND), &in_use), 4, "cleared too early");
    assert_eq!(failures(&failed_before(HEALTHY_AFTER), &served()), 4, "cleared without use");
    assert_eq!(failures(&failed_before(HEALTHY_AFTER), &with_processes(agents(&[3]))), 4, "not connected");
    let again = decide(
        &spec(DesiredState::Awake),
        &failed_before(SECOND),
        &used(ended(with_processes(agents(&[])), 3)),
        NOW,
    )
    .status;
    assert_eq!(
        again.phase,
        pending(MIN_BACKOFF * 8),
        "an agent that ends repeatedly restarts without back-off"
    );
}

#[test]
fn quota_reservation_follows_requested_resources() {
    let cpu = |cpu_millis| Resources { cpu_millis, memory_bytes: 1 };
    let allocated = |phase, has, queued_at| Status { allocated: Some(cpu(has)), queued_at, ..status(phase) };
    let since = Some(OBSERVED_TIME - SECOND);
    let after = |wants, status: Status, admitted| {
        let spec = Spec { resources: cpu(wants), ..spec(DesiredState::Awake) };
        let observed = Observed { admitted, ..served() };
        let decided = decide(&spec, &status, &observed, NOW).status;
        assert_eq!(decided.phase, status.phase, "the phase changes");
        (decided.allocated.expect("quota is reserved").cpu_millis, decided.queued_at)
    };
    for phase in [Phase::Awake, Phase::Pending { not_before: NOW.plus(SECOND) }] {
        assert_eq!(after(2, allocated(phase, 2, None), false), (2, None), "unchanged request");
        assert_eq!(
            after(1, allocated(phase, 2, None), false),
            (1, None),
            "a smaller request is not released at once"
        );
        assert_eq!(
            after(3, allocated(phase, 2, None), false),
            (2, Some(OBSERVED_TIME)),
            "a larger request does not join the admission queue"
        );
        assert_eq!(after(3, allocated(phase, 2, since), false), (2, since), "the queue position is lost");
        assert_eq!(
            after(3, allocated(phase, 2, since), true),
            (3, None),
            "an admitted resize is not allocated"
        );
        assert_eq!(after(2, allocated(phase, 2, since), false), (2, None), "a withdrawn resize stays queued");
        assert_eq!(after(1, allocated(phase, 2, since), false), (1, None), "a smaller request stays queued");
    }
    let old_record = Status { allocated: None, ..status(Phase::Awake) };
    assert_eq!(after(2, old_record, false), (2, None), "a record without a reservation is not migrated");
    // CPU and memory are allocated together or not at all.
    let spec = Spec { resources: Resources { cpu_millis: 1, memory_bytes: 9 }, ..spec(DesiredState::Awake) };
    let both = decide(&spec, &allocated(Phase::Awake, 2, None), &served(), NOW).status;
    assert_eq!((both.allocated, both.queued_at), (Some(cpu(2)), Some(OBSERVED_TIME)));
    // A sleeping workspace holds no quota.
    let asleep =
        decide(&spec, &allocated(Phase::FallingAsleep, 2, since), &with_processes(RunningAgents::None), NOW)
            .status;
    assert_eq!((asleep.phase, asleep.allocated, asleep.queued_at), (Phase::Asleep, None, None));
}

#[test]
fn running_agent_is_resized_to_allocated_resources() {
    let (small, large) = (Resources::default(), Resources { cpu_millis: 2000, memory_bytes: 2 << 30 });
    let resize = |resources| Some(Action::Resize { epoch: 3, resources });
    let actual = |epoch, resources| Observed { actual: Some((epoch, resources)), ..served() };
    let requests = |resources| Spec { resources, ..spec(DesiredState::Awake) };
    let awake = |allocated| Status { allocated: Some(allocated), ..status(Phase::Awake) };
    let unknown = Observed { actual: None, ..served() };
    let stays = |action| (Phase::Awake, 3, action);
    let just_failed = failed(actual(3, small), Action::Resize { epoch: 3, resources: large }, 1);
    assert_cases(&[
        ("resources match", requests(small), awake(small), actual(3, small), stays(None)),
        ("actual resources unknown", requests(small), awake(small), unknown, stays(resize(small))),
        (
            "reported for an earlier agent",
            requests(small),
            awake(small),
            actual(2, small),
            stays(resize(small)),
        ),
        ("more is allocated", requests(large), awake(large), actual(3, small), stays(resize(large))),
        ("admitted", requests(large), awake(small), admitted(actual(3, small)), stays(resize(large))),
        ("less is requested", requests(small), awake(large), actual(3, large), stays(resize(small))),
        ("not admitted", requests(large), awake(small), actual(3, small), stays(None)),
        ("the resize has just failed", requests(large), awake(large), just_failed, stays(None)),
        (
            "processes unknown",
            requests(large),
            awake(large),
            Observed { actual: None, ..connected(with_processes(RunningAgents::Unseen)) },
            stays(None),
        ),
    ]);
}

#[test]
fn resize_wait_is_the_reason_until_the_wait_ends() {
    let waits = Wait { reason: WaitReason::QuotaExceeded, detail: "the namespace is full".into() };
    let waiting = Observed { waits: Some(waits.clone()), ..served() };
    let (spec, allocated) = (spec(DesiredState::Awake), Some(Resources::default()));
    let held = decide(&spec, &Status { allocated, ..status(Phase::Awake) }, &waiting, NOW).status;
    assert_eq!((held.reason.clone(), held.phase), (StateReason::Waiting(waits), Phase::Awake));
    let resize = Action::Resize { epoch: 3, resources: Resources::default() };
    let resize_failed = failed(Observed { actual: None, ..served() }, resize, 1);
    let failed = decide(&spec, &held, &resize_failed, NOW).status;
    assert_eq!(
        failed.reason,
        StateReason::ActionFailed { operation: Operation::Resize, detail: "disk error".into() }
    );
    let done = decide(&spec, &failed, &served(), NOW).status;
    assert_eq!((done.reason, done.waits), (StateReason::AgentConnected, None));
}

#[test]
fn failing_command_is_the_reason_while_awake() {
    let spec = spec(DesiredState::Awake);
    let reported = |command| Observed { command, ..served() };
    let reason = |status: &Status, command| decide(&spec, status, &reported(command), NOW).status.reason;
    let failing = |detail: &str| CommandHealth::Failing(detail.into());
    let failed = |detail: &str| StateReason::CommandFailed { detail: detail.into() };
    let awake = |reason| Status { reason, ..status(Phase::Awake) };

    let good = awake(StateReason::AgentConnected);
    assert_eq!(reason(&good, failing("ide: no such program")), failed("ide: no such program"));
    let bad = awake(failed("ide: no such program"));
    assert_eq!(reason(&bad, failing("ide ended: exit code 1")), failed("ide ended: exit code 1"));
    assert_eq!(reason(&bad, CommandHealth::Good), StateReason::AgentConnected, "the command recovered");
    assert_eq!(
        reason(&bad, CommandHealth::Unknown),
        failed("ide: no such program"),
        "a restarted control plane keeps the reason until the agent reports"
    );
    let used_again = awake(StateReason::UsedAgain);
    assert_eq!(reason(&used_again, failing("ide ended")), StateReason::UsedAgain, "that reason says more");
}

#[test]
fn container_that_is_not_ready_is_the_reason_while_awake() {
    let spec = spec(DesiredState::Awake);
    let broken = || Observed { container_problem: Some("proxy: exit code 3".into()), ..served() };
    let reason = StateReason::ContainerNotReady { detail: "proxy: exit code 3".into() };
    let connected = Status { reason: StateReason::AgentConnected, ..status(Phase::Awake) };
    let told = decide(&spec, &connected, &broken(), NOW).status;
    assert_eq!((told.phase, told.reason.clone(), told.waits.clone()), (Phase::Awake, reason.clone(), None));

    // A resize and the workspace's own command concern the user more.
    let waits = Wait { reason: WaitReason::ResizeDeferred, detail: "no free CPU".into() };
    let resizing = decide(&spec, &told, &Observed { waits: Some(waits.clone()), ..broken() }, NOW).status;
    assert_eq!(resizing.reason, StateReason::Waiting(waits));
    assert_eq!(decide(&spec, &resizing, &broken(), NOW).status.reason, reason, "the resize is over");
    let failing = Observed { command: CommandHealth::Failing("ide ended".into()), ..broken() };
    let failing = decide(&spec, &told, &failing, NOW).status.reason;
    assert_eq!(failing, StateReason::CommandFailed { detail: "ide ended".into() });

    let repaired = decide(&spec, &told, &served(), NOW).status.reason;
    assert_eq!(repaired, StateReason::AgentConnected);
}
