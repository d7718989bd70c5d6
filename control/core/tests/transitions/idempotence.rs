//! Properties of `decide` for any status and any observations. A decision ends, is idempotent, and
//! misses no step that becomes due by time alone.

use std::time::Duration;

use podling_core::{
    decide::{Action, decide},
    observed::{
        ActionFailure, AgentEnd, CommandHealth, Failure, Observed, PrepareState, RunningAgents, UseState,
    },
    reason::{DeclineReason, SleepRequest, StateReason, Wait, WaitReason},
    status::{MaintenanceRetry, MaintenanceStage, MaintenanceTask, Phase, Status, Urgency},
    time::Timestamp,
    workspace::{DesiredState, Resources, Spec},
};
use proptest::prelude::*;

use crate::fixture::*;

/// Generates mostly the present epoch (3) or the next one.
fn any_epoch() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(3_u64), 2 => Just(4), 1 => 1_u64..6]
}

fn any_phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Queued),
        (0_u64..1000).prop_map(|s| pending(Duration::from_secs(s))),
        Just(Phase::Starting),
        Just(Phase::Awake),
        (any_urgency(), 0_u32..3).prop_map(|(urgency, declined)| Phase::Preparing { urgency, declined }),
        Just(Phase::Committing),
        Just(Phase::FallingAsleep),
        Just(Phase::Asleep),
        any_task().prop_map(|task| Phase::Maintenance { task, stage: MaintenanceStage::Starting }),
        any_task().prop_map(|task| Phase::Maintenance { task, stage: MaintenanceStage::Running }),
        Just(Phase::Archived),
        Just(Phase::Deleting),
    ]
}

fn any_task() -> impl Strategy<Value = MaintenanceTask> {
    prop_oneof![Just(MaintenanceTask::Archive), Just(MaintenanceTask::Restore)]
}

fn any_urgency() -> impl Strategy<Value = Urgency> {
    prop_oneof![Just(Urgency::Idle), Just(Urgency::Requested), Just(Urgency::Forced)]
}

fn any_action() -> impl Strategy<Value = Action> {
    (any_epoch(), any_urgency(), 0..11).prop_map(|(n, urgency, which)| match which {
        0 => Action::StartAgent(n),
        1 => Action::Prepare { epoch: n, urgency },
        2 => Action::Commit(n),
        3 => Action::Cancel(n),
        4 => Action::StopProcesses,
        5 => Action::Archive(n),
        6 => Action::Restore(n),
        7 => Action::RemoveStorage,
        8 => Action::ExpireArchive(n),
        9 => Action::Resize { epoch: n, resources: Resources::default() },
        _ => Action::RemoveRecord,
    })
}

fn any_failure() -> impl Strategy<Value = ActionFailure> {
    (any_action(), 0_u32..9, 0_u64..1000, any::<bool>()).prop_map(|(action, failures, ago, declines)| {
        ActionFailure {
            action,
            failures,
            at: Timestamp(NOW.0 - ago * 1000),
            failure: if declines {
                Failure::Declined { reason: DeclineReason::InUse, detail: "refused".into() }
            } else {
                Failure::Failed("refused".into())
            },
        }
    })
}

fn any_wait(for_quota: bool) -> Wait {
    let reason = if for_quota { WaitReason::QuotaExceeded } else { WaitReason::Unschedulable };
    Wait { reason, detail: "0/1 nodes are available".into() }
}

/// Generates readings of observed time, from 50 days before the present one to 10 hours after it.
fn any_time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0_u64..200).prop_map(|h| OBSERVED_TIME + 10 * HOUR - Duration::from_secs(h * 600)),
        (0_u32..50).prop_map(|days| OBSERVED_TIME - days * 24 * HOUR),
    ]
}

fn any_status() -> impl Strategy<Value = Status> {
    let times = (any_time(), any_time(), any_time(), 0_u64..1000);
    let counts = (0_u32..9, 0_u64..3, any::<bool>(), 2_u64..4, 0_u32..9, 0_u64..=300);
    let archives = prop::collection::btree_set(0_u64..5, 0..3);
    (any_phase(), times, counts, archives).prop_map(|(phase, times, counts, archives)| Status {
        since: Timestamp(NOW.0 - times.3 * 1000),
        woke_at: times.0,
        requested_at: times.1,
        slept_at: times.2,
        failures: counts.0,
        observed_request: Some(counts.1),
        storage: counts.2,
        storage_generation: counts.3,
        allocated: (counts.1 > 0).then(Resources::default),
        waits: (counts.5 > 200).then(|| any_wait(counts.2)),
        reason: match counts.5 % 3 {
            0 => StateReason::AgentConnected,
            1 if counts.4 % 2 == 0 => StateReason::CommandFailed { detail: "ide ended".into() },
            1 => StateReason::ContainerNotReady { detail: "proxy ended".into() },
            _ => StateReason::UsedAgain,
        },
        maintenance_retry: MaintenanceRetry {
            failures: counts.4,
            not_before: NOW.plus(Duration::from_secs(counts.5)),
        },
        ..archived(status(phase), &archives.into_iter().collect::<Vec<_>>())
    })
}

fn any_observed() -> impl Strategy<Value = Observed> {
    let processes = prop_oneof![
        Just(RunningAgents::Unseen),
        Just(RunningAgents::None),
        prop::collection::btree_set(any_epoch(), 0..3).prop_map(RunningAgents::Some),
    ];
    let used = prop_oneof![
        Just(UseState::Unknown),
        Just(UseState::Yes),
        (0_u64..2000).prop_map(|s| UseState::No(Duration::from_secs(s))),
    ];
    let prepare_state = prop_oneof![
        Just(PrepareState::NotPrepared),
        any_epoch().prop_map(PrepareState::Unconfirmed),
        any_epoch().prop_map(PrepareState::Prepared),
    ];
    let epoch = || prop::option::of(any_epoch());
    let epochs = (epoch(), epoch(), epoch(), epoch(), epoch(), epoch());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let expired = prop::collection::btree_set(0_u64..5, 0..3);
    let failure = prop::option::of(any_failure());
    (processes, used, prepare_state, epochs, flags, expired, failure, 0_u64..1000).prop_map(
        |(processes, used, prepare_state, epochs, flags, expired, failure, silence)| Observed {
            processes,
            ended: epochs.0.map(|epoch| AgentEnd { epoch, detail: "ended".into() }),
            greeted: epochs.1,
            connected: epochs.1,
            silence: Duration::from_secs(silence),
            used,
            used_by: epochs.5,
            prepare_state,
            ready: epochs.2,
            archived: epochs.4.map(|generation| Box::new(archive(generation, SECOND))),
            restored: epochs.3,
            expired,
            last_failure: failure,
            removed: flags.0,
            sleep_request: flags.4.then_some(SleepRequest::User),
            admitted: flags.1,
            shutting_down: flags.2,
            archive_slots_full: flags.3,
            observed_time: OBSERVED_TIME,
            waits: (silence > 500).then(|| any_wait(flags.0)),
            command: match silence % 3 {
                0 => CommandHealth::Unknown,
                1 => CommandHealth::Good,
                _ => CommandHealth::Failing("ide: no such program".into()),
            },
            container_problem: (silence % 2 == 0).then(|| "proxy: exit code 3".into()),
            actual: (silence > 300).then(|| (3, Resources::default())),
        },
    )
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let desired_state = prop_oneof![
        4 => Just(DesiredState::Awake),
        1 => Just(DesiredState::Asleep),
        1 => Just(DesiredState::Deleted),
        1 => Just(DesiredState::Discarded),
    ];
    (desired_state, 0_u64..3, any::<bool>(), prop::option::of(0_u64..3000), 0_u64..1000).prop_map(
        |(desired_state, request_seq, source, max_awake, idle_timeout)| {
            let mut spec = Spec { request_seq, ..spec(desired_state) };
            spec.source = source.then(|| podling_core::archive::ArchiveKey("another-workspace".into()));
            spec.policy.max_awake = max_awake.map(|minutes| Duration::from_secs(minutes * 60));
            spec.policy.idle_timeout = Duration::from_secs(idle_timeout);
            spec
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The inputs include combinations that never occur. A decision that does not end fails an
    /// assertion on `MAX_TRANSITIONS` in `decide`.
    #[test]
    fn decide_ends_and_is_idempotent_for_any_input(
        spec in any_spec(), status in any_status(), observed in any_observed(),
    ) {
        let once = decide(&spec, &status, &observed, NOW);
        let twice = decide(&spec, &once.status, &observed, NOW);
        prop_assert_eq!(&twice, &once);
        if let Some(Action::StartAgent(epoch)) = once.action {
            prop_assert!(epoch >= status.epoch, "the epoch of a start decreases");
        }
        if once.status.phase == Phase::Archived && status.phase != Phase::Archived && once.status.storage {
            let restores = matches!(status.phase, Phase::Maintenance { task: MaintenanceTask::Restore, .. });
            let archived = once.status.archive().is_some();
            prop_assert!(restores || archived, "storage is released without a proven archive");
        }
    }

    /// Neither phase nor action changes between now and `next`, and `next` is always in the future.
    #[test]
    fn decision_is_unchanged_until_its_next_time(
        spec in any_spec(), status in any_status(), observed in any_observed(), part in 0.0_f64..1.0,
    ) {
        let first = decide(&spec, &status, &observed, NOW);
        if let Some((at, why)) = first.next {
            prop_assert!(at > NOW, "the next decision is due immediately, for {:?}", why);
        }
        let last_moment = |at: Timestamp| at.since(NOW).saturating_sub(Duration::from_millis(1));
        let until = first.next.map_or(40 * 24 * HOUR, |(at, _)| last_moment(at));
        let later = Duration::from_millis((until.as_millis() as f64 * part) as u64);
        let mut then = observed.clone();
        then.observed_time += later;
        if then.connected != Some(first.status.epoch) && then.processes.is_running(first.status.epoch) {
            then.silence += later;
        }
        let second = decide(&spec, &first.status, &then, NOW.plus(later));
        let unchanged = (first.status.phase, first.action);
        prop_assert_eq!((second.status.phase, second.action), unchanged, "after {:?}", later);
    }
}
