//! What the tables are written with.

use std::{collections::BTreeSet, time::Duration};

use podling_core::{
    archive::{Archive, ArchiveKey},
    decide::{Action, decide},
    id::WorkspaceId,
    observed::{ActionFailure, AgentEnd, Failure, Observed, PrepareState, Processes, Used},
    policy::Policy,
    reason::DeclineReason,
    status::{MaintenanceStage, MaintenanceTask, Phase, Status, Urgency},
    time::Timestamp,
    workspace::{DesiredState, Resources, Spec},
};

pub(crate) const NOW: Timestamp = Timestamp(1_000_000_000);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
/// What control planes have watched until now: a hundred days.
pub(crate) const WITNESSED: Duration = Duration::from_secs(100 * 24 * 60 * 60);
/// Of `Policy::default()`.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

pub(crate) fn spec(desired_state: DesiredState) -> Spec {
    Spec {
        id: WorkspaceId::from_bits(7),
        name: "demo".parse().expect("a name"),
        owner: "me".parse().expect("an owner"),
        template: "shell".into(),
        command: Vec::new(),
        env: Default::default(),
        policy: Policy::default(),
        resources: Default::default(),
        desired_state,
        request_seq: 1,
        source: None,
        created: NOW,
        request_id: String::new(),
    }
}

/// Somebody has asked for it once more.
pub(crate) fn called(desired_state: DesiredState) -> Spec {
    Spec { request_seq: 2, ..spec(desired_state) }
}

/// Of a workspace whose third agent is (or was) the present one, which wrote to its storage, and which has answered what was asked.
pub(crate) fn status(phase: Phase) -> Status {
    let long_ago = WITNESSED - 20 * HOUR;
    Status {
        phase,
        epoch: 3,
        storage_generation: 3,
        storage: true,
        observed_request: 1,
        woke_at: long_ago,
        requested_at: long_ago,
        slept_at: WITNESSED - HOUR,
        ..Status::new(NOW)
    }
}

pub(crate) fn archive(generation: u64, age: Duration) -> Archive {
    Archive {
        key: ArchiveKey(format!("archive-{generation}")),
        generation,
        at: NOW,
        observed_time: WITNESSED - age,
        entries: 1,
        bytes: 1,
        archive_bytes: 1,
    }
}

/// With archives of these generations, just made.
pub(crate) fn archived(status: Status, generations: &[u64]) -> Status {
    Status { archives: generations.iter().map(|g| archive(*g, Duration::ZERO)).collect(), ..status }
}

pub(crate) fn pending(after: Duration) -> Phase {
    Phase::Pending { not_before: NOW.plus(after) }
}

pub(crate) const IDLY: Phase = Phase::Preparing { urgency: Urgency::Idle, declined: 0 };
pub(crate) const ASKED: Phase = Phase::Preparing { urgency: Urgency::Requested, declined: 0 };
pub(crate) const BY_FORCE: Phase = Phase::Preparing { urgency: Urgency::Forced, declined: 0 };
/// An agent in maintenance mode that is to archive has not said hello.
pub(crate) const OPENING: Phase =
    Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Starting };
pub(crate) const ARCHIVING: Phase =
    Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Running };
pub(crate) const RESTORING: Phase =
    Phase::Maintenance { task: MaintenanceTask::Restore, stage: MaintenanceStage::Running };

pub(crate) fn agents(epochs: &[u64]) -> Processes {
    Processes::Some(epochs.iter().copied().collect::<BTreeSet<_>>())
}

pub(crate) fn seen(processes: Processes) -> Observed {
    let actual = Some((3, Resources::default()));
    Observed { processes, actual, observed_time: WITNESSED, ..Observed::default() }
}

pub(crate) fn ended(observed: Observed, epoch: u64) -> Observed {
    Observed { ended: Some(AgentEnd { epoch, detail: "killed by SIGKILL".into() }), ..observed }
}

pub(crate) fn connected(observed: Observed) -> Observed {
    Observed { connected: Some(3), ..observed }
}

/// The third agent serves it.
pub(crate) fn served() -> Observed {
    connected(seen(agents(&[3])))
}

pub(crate) fn idle(counted: Duration) -> Observed {
    Observed { used: Used::No(counted), ..served() }
}

/// The third agent has told of use.
pub(crate) fn used(observed: Observed) -> Observed {
    Observed { used_by: Some(3), ..observed }
}

pub(crate) fn door(observed: Observed, prepare_state: PrepareState) -> Observed {
    Observed { prepare_state, ..observed }
}

pub(crate) fn silent(observed: Observed, silence: Duration) -> Observed {
    Observed { silence, ..observed }
}

pub(crate) fn standby(observed: Observed) -> Observed {
    Observed { shutting_down: true, ..observed }
}

pub(crate) fn room(observed: Observed) -> Observed {
    Observed { admitted: true, ..observed }
}

pub(crate) fn failed(observed: Observed, action: Action, failures: u32) -> Observed {
    trouble(observed, action, failures, Failure::Failed("it went wrong".into()))
}

pub(crate) fn declined(observed: Observed, action: Action, failures: u32) -> Observed {
    trouble(
        observed,
        action,
        failures,
        Failure::Declined { reason: DeclineReason::InUse, detail: "somebody types".into() },
    )
}

fn trouble(observed: Observed, action: Action, failures: u32, failure: Failure) -> Observed {
    Observed { last_failure: Some(ActionFailure { action, failures, at: NOW, failure }), ..observed }
}

pub(crate) fn prepare(urgency: Urgency) -> Action {
    Action::Prepare { epoch: 3, urgency }
}

/// What comes of it: the phase, the epoch, and the order.
pub(crate) type Outcome = (Phase, u64, Option<Action>);

pub(crate) fn follows(spec: &Spec, status: &Status, observed: &Observed) -> Outcome {
    let decision = decide(spec, status, observed, NOW);
    (decision.status.phase, decision.status.epoch, decision.action)
}

#[track_caller]
pub(crate) fn table(desired_state: DesiredState, rows: &[(&str, Phase, Observed, Outcome)]) {
    for (what, phase, observed, expected) in rows {
        assert_eq!(follows(&spec(desired_state), &status(*phase), observed), *expected, "{what}");
    }
}

/// As `table`, with each row's own spec and status.
#[track_caller]
pub(crate) fn cases(rows: &[(&str, Spec, Status, Observed, Outcome)]) {
    for (what, spec, status, observed, expected) in rows {
        assert_eq!(follows(spec, status, observed), *expected, "{what}");
    }
}
