//! Builders of specs, statuses and observations for the tests of transitions.

use std::{collections::BTreeSet, time::Duration};

use podling_core::{
    archive::{Archive, ArchiveKey},
    decide::{Action, decide},
    id::WorkspaceId,
    observed::{ActionFailure, AgentEnd, Failure, Observed, PrepareState, RunningAgents, UseState},
    policy::Policy,
    reason::DeclineReason,
    status::{MaintenanceStage, MaintenanceTask, Phase, Status, Urgency},
    time::Timestamp,
    workspace::{DesiredState, Resources, Spec},
};

pub(crate) const NOW: Timestamp = Timestamp(1_000_000_000);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
/// Observed time at [`NOW`]: a hundred days.
pub(crate) const OBSERVED_TIME: Duration = Duration::from_secs(100 * 24 * 60 * 60);
/// The idle timeout of `Policy::default()`.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

pub(crate) fn spec(desired_state: DesiredState) -> Spec {
    Spec {
        id: WorkspaceId::from_bits(7),
        name: "demo".parse().expect("valid name"),
        owner: "me".parse().expect("valid owner"),
        template: "shell".into(),
        command: Vec::new(),
        env: Default::default(),
        policy: Policy::default(),
        resources: Default::default(),
        storage_bytes: None,
        desired_state,
        request_seq: 1,
        source: None,
        created: NOW,
        request_id: String::new(),
    }
}

/// Returns a spec with a request that the status has not acted on yet.
pub(crate) fn requested(desired_state: DesiredState) -> Spec {
    Spec { request_seq: 2, ..spec(desired_state) }
}

/// Returns a status in which the agent of epoch 3 was started last. It had write access to the
/// storage, and the only request was acted on.
pub(crate) fn status(phase: Phase) -> Status {
    let long_ago = OBSERVED_TIME - 20 * HOUR;
    let is_archived = matches!(phase, Phase::Maintenance { task: MaintenanceTask::Archive, .. });
    Status {
        phase,
        epoch: 3,
        storage_generation: 3,
        storage: true,
        observed_request: Some(1),
        woke_at: long_ago,
        requested_at: long_ago,
        // An archive is due after a day.
        slept_at: OBSERVED_TIME - if is_archived { 25 * HOUR } else { HOUR },
        ..Status::new(NOW)
    }
}

pub(crate) fn archive(generation: u64, age: Duration) -> Archive {
    Archive {
        key: ArchiveKey(format!("archive-{generation}")),
        generation,
        at: NOW,
        observed_time: OBSERVED_TIME - age,
        entries: 1,
        left_out: 0,
        bytes: 1,
        archive_bytes: 1,
    }
}

/// Adds archives of these storage generations that were made just now.
pub(crate) fn archived(status: Status, generations: &[u64]) -> Status {
    Status { archives: generations.iter().map(|g| archive(*g, Duration::ZERO)).collect(), ..status }
}

pub(crate) fn pending(after: Duration) -> Phase {
    Phase::Pending { not_before: NOW.plus(after) }
}

pub(crate) const PREPARING_IDLE: Phase = Phase::Preparing { urgency: Urgency::Idle, declined: 0 };
pub(crate) const PREPARING_REQUESTED: Phase = Phase::Preparing { urgency: Urgency::Requested, declined: 0 };
pub(crate) const PREPARING_FORCED: Phase = Phase::Preparing { urgency: Urgency::Forced, declined: 0 };
pub(crate) const ARCHIVE_STARTING: Phase =
    Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Starting };
pub(crate) const ARCHIVE_RUNNING: Phase =
    Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Running };
pub(crate) const RESTORE_RUNNING: Phase =
    Phase::Maintenance { task: MaintenanceTask::Restore, stage: MaintenanceStage::Running };

pub(crate) fn agents(epochs: &[u64]) -> RunningAgents {
    RunningAgents::Some(epochs.iter().copied().collect::<BTreeSet<_>>())
}

pub(crate) fn with_processes(processes: RunningAgents) -> Observed {
    let actual = Some((3, Resources::default()));
    Observed { processes, actual, observed_time: OBSERVED_TIME, ..Observed::default() }
}

pub(crate) fn ended(observed: Observed, epoch: u64) -> Observed {
    Observed { ended: Some(AgentEnd { epoch, detail: "killed by SIGKILL".into() }), ..observed }
}

pub(crate) fn connected(observed: Observed) -> Observed {
    Observed { connected: Some(3), ..observed }
}

/// Returns observations in which the agent of epoch 3 runs and is connected.
pub(crate) fn served() -> Observed {
    connected(with_processes(agents(&[3])))
}

pub(crate) fn idle(counted: Duration) -> Observed {
    Observed { used: UseState::No(counted), ..served() }
}

/// Records that the agent of epoch 3 has reported use.
pub(crate) fn used(observed: Observed) -> Observed {
    Observed { used_by: Some(3), ..observed }
}

pub(crate) fn with_prepare_state(observed: Observed, prepare_state: PrepareState) -> Observed {
    Observed { prepare_state, ..observed }
}

pub(crate) fn silent(observed: Observed, silence: Duration) -> Observed {
    Observed { silence, ..observed }
}

pub(crate) fn shutting_down(observed: Observed) -> Observed {
    Observed { shutting_down: true, ..observed }
}

pub(crate) fn admitted(observed: Observed) -> Observed {
    Observed { admitted: true, ..observed }
}

pub(crate) fn failed(observed: Observed, action: Action, failures: u32) -> Observed {
    with_failure(observed, action, failures, Failure::Failed("disk error".into()))
}

pub(crate) fn declined(observed: Observed, action: Action, failures: u32) -> Observed {
    with_failure(
        observed,
        action,
        failures,
        Failure::Declined { reason: DeclineReason::InUse, detail: "a client types".into() },
    )
}

fn with_failure(observed: Observed, action: Action, failures: u32, failure: Failure) -> Observed {
    Observed { last_failure: Some(ActionFailure { action, failures, at: NOW, failure }), ..observed }
}

pub(crate) fn prepare(urgency: Urgency) -> Action {
    Action::Prepare { epoch: 3, urgency }
}

/// The phase, epoch and action after a decision.
pub(crate) type DecisionOutcome = (Phase, u64, Option<Action>);

pub(crate) fn outcome(spec: &Spec, status: &Status, observed: &Observed) -> DecisionOutcome {
    let decision = decide(spec, status, observed, NOW);
    (decision.status.phase, decision.status.epoch, decision.action)
}

#[track_caller]
pub(crate) fn assert_table(desired_state: DesiredState, rows: &[(&str, Phase, Observed, DecisionOutcome)]) {
    for (case, phase, observed, expected) in rows {
        assert_eq!(outcome(&spec(desired_state), &status(*phase), observed), *expected, "{case}");
    }
}

/// Checks a table like [`assert_table`], with a spec and a status in each row.
#[track_caller]
pub(crate) fn assert_cases(rows: &[(&str, Spec, Status, Observed, DecisionOutcome)]) {
    for (case, spec, status, observed, expected) in rows {
        assert_eq!(outcome(spec, status, observed), *expected, "{case}");
    }
}
