//! The state machine of a workspace. Computes its next status, the action that is due, and when to
//! decide again.
//!
//! ```text
//! created ──▶ Queued ── admit ──▶ Pending ── start ──▶ Starting ── hello ──▶ Awake ⟲ healthy, resized
//!              ▲  ▲                │ ▲                  │ │                  │ │ ▲
//!              │  │                │ ├── start_failed ──┘ │                  │ │ │
//!              │  │                │ ├── agent_ended ─────┼──────────────────┤ │ │
//!              │  │                │ └── agent_silent ────┼──────────────────┤ │ │
//!              │  │                ▼                      ▼                  │ │ cancel_sleep, declined
//!              │  │             FallingAsleep ◀─ stop_now ┴─── stop_awake ───┘ ▼ │
//!              │  │              │      ▲ ◀────────── stop_awake ──────── Preparing
//!              │  │      stopped │      │                                      │ prepared
//!              │  │              ▼      └── ready, give_up ── Committing ◀─────┘
//!              │  └─── wake ── Asleep ◀─ archived, retry_later ────────────────────────────────────┐
//!              │                │  └─ archive_due ─▶ Archive: Starting ─ maintenance_started ─▶ Running
//!           restored            │ release_storage
//!              │                ▼
//!              │             Archived ◀─ retry_later ──────────────────────────────────────────────┐
//!              │                │  └─ restore ─────▶ Restore: Starting ─ maintenance_started ─▶ Running
//!              └────────────────┼─────────────────────────────────────────────────────────────────────┘
//!                               │ nothing_left
//!   any ───── discard ─────▶ Deleting: StopProcesses, RemoveStorage, ExpireArchive each, RemoveRecord
//! ```
//!
//! `Archive` and `Restore` stand for the tasks of `Maintenance`.
//!
//! Transitions that are not drawn:
//! - `enqueue` gives a new `Queued` workspace its position in the admission queue.
//! - `resized` also applies in Pending and Starting.
//! - `requested_again` applies in Awake, when a request to wake arrives.
//! - `open_storage` applies in Starting, when the first agent of the workspace asks for its claim.
//! - `retry_later` also applies while the agent for the task is starting.
//! - `agent_ended` also leads from Preparing to Pending.
//! - `stop_restarting` leads from Awake and Preparing to FallingAsleep. It replaces `agent_ended`
//!   and `agent_silent` when the agent was restarted before, the workspace was not used since, and
//!   no request to wake is pending.
//! - `cancel_sleep` and `declined` lead to FallingAsleep if the sleep is forced and the agent
//!   declines it.
//! - `wake` also leads from Maintenance(Archive) to Queued, so that a request never waits for an
//!   archive.
//! - `cancel_archive` leads from Maintenance(Archive) to Asleep when the workspace is no longer due to
//!   be archived. `cancel_sleep` also applies when nothing forces a forced sleep any more. Both follow
//!   when a deletion is taken back.
//!
//! The machine is level-triggered. `decide` follows transitions until none applies. Then the phase
//! asks for one action until that action is observed to be done. The driver keeps at most one
//! action per workspace in flight. It orders an action only once the status that asks for it is
//! durable. While it is unknown which processes run, no action is ordered.
//!
//! Storage is removed in two phases only. A workspace with storage enters `Archived` only with a
//! proven archive of the present storage generation, or after an unfinished restore. A deleted
//! workspace without storage also enters `Archived`. A workspace enters `Deleting` on an explicit
//! discard, or when neither storage nor archives are left.

mod next;
mod transition;

use std::time::Duration;

pub use self::transition::{Transition, TransitionInput};
pub use crate::action::Action;

use crate::{
    archive::Archive,
    observed::{ActionFailure, CommandHealth, Observed, RunningAgents},
    reason::{NextStep, Operation, SleepCause, StateReason, Wait, WaitReason},
    status::{MaintenanceRetry, MaintenanceStage, MaintenanceTask, Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, Spec},
};

/// Pause before the first retry of a failed action. Each further failure doubles the pause.
pub const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// Longest pause before a retry. A workspace that cannot start then costs one start every five
/// minutes.
pub const MAX_BACKOFF: Duration = Duration::from_secs(5 * 60);
/// Time that a running agent has to connect. Agents need milliseconds. Time before the agent runs,
/// such as for pulling its image, is not included.
pub const HELLO_LIMIT: Duration = Duration::from_secs(60);
/// Time without a heartbeat after which the agent of an awake workspace is restarted. Otherwise a
/// broken connection could keep a workspace awake for ever.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Time since waking after which earlier failures are cleared, if the agent is connected and the
/// workspace was used.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(120);
/// Number of failed commits in a row after which the control plane ends the processes itself.
pub const MAX_COMMIT_ATTEMPTS: u32 = 3;
/// Most archives retained per workspace. With more, the oldest is removed before its retention is
/// over.
pub const MAX_ARCHIVES: usize = 100;

/// Most transitions that one decision follows. The longest path in the drawing has nine. A decision
/// that reaches the limit has found a cycle, which is a bug. It fails an assertion in debug builds.
/// In release builds it stops, so that one workspace does not block the others.
const MAX_TRANSITIONS: usize = 16;

/// The arrows of the drawing above, and the choice of the action, as a table.
///
/// The product has one table, [`StateMachine::PRODUCT`]. The simulation proves that its laws notice
/// mistakes: it runs tables in which one function is wrong.
#[derive(Debug, Clone, Copy)]
pub struct StateMachine {
    pub sync_archives: Transition,
    pub discard: Transition,
    pub enqueue: Transition,
    pub admit: Transition,
    pub stop_now: Transition,
    pub resized: Transition,
    pub start: Transition,
    pub open_storage: Transition,
    pub start_failed: Transition,
    pub hello: Transition,
    pub agent_ended: Transition,
    pub agent_silent: Transition,
    pub stop_restarting: Transition,
    pub requested_again: Transition,
    pub healthy: Transition,
    pub stop_awake: Transition,
    pub fall_asleep: Transition,
    pub cancel_sleep: Transition,
    pub prepared: Transition,
    pub ready: Transition,
    pub give_up: Transition,
    pub declined: Transition,
    pub stopped: Transition,
    pub wake: Transition,
    pub release_storage: Transition,
    pub archive_due: Transition,
    pub cancel_archive: Transition,
    pub restore: Transition,
    pub maintenance_started: Transition,
    pub archived: Transition,
    pub restored: Transition,
    pub retry_later: Transition,
    pub nothing_left: Transition,
    /// Returns the action that the status asks for.
    pub due_action: fn(&Spec, &Status, &Observed) -> Option<Action>,
}

/// The result of [`decide()`]: the new status, and what the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub status: Status,
    /// The one action that is due now.
    pub action: Option<Action>,
    /// When to decide again if no event comes before, and the step that is due then.
    pub next: Option<(Timestamp, NextStep)>,
    /// When and why the workspace falls asleep, if its users must be warned now.
    pub warning: Option<(Timestamp, SleepCause)>,
}

/// Decides what follows from the spec, the status and the observations, by the product's
/// [`StateMachine`].
pub fn decide(spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Decision {
    StateMachine::PRODUCT.decide(spec, status, observed, now)
}

impl StateMachine {
    /// Decides what follows from the spec, the status and the observations. Pure. Deciding again from
    /// the returned status changes nothing.
    pub fn decide(&self, spec: &Spec, status: &Status, observed: &Observed, now: Timestamp) -> Decision {
        let mut status = status.clone();
        // The loop ends, because no transition leads back under the same observations. A new start
        // needs a higher epoch than the one that ended. Every failure is followed by a pause, or by
        // processes that have to end first.
        for followed in 0.. {
            let input = TransitionInput { spec, status: &status, observed, now };
            let Some(next) = self.follow(input) else { break };
            debug_assert!(followed < MAX_TRANSITIONS, "{status:?} cycles under {observed:?}");
            if followed >= MAX_TRANSITIONS {
                break;
            }
            status = next;
        }
        // The next `Awake` is a request, also if its client sets no number.
        if spec.desired_state != DesiredState::Awake {
            status.observed_request = None;
        }
        let due = (self.due_action)(spec, &status, observed);
        status = with_wait(status, observed, due);
        let retried = due.and_then(|action| Some((paused_until(action, observed, now)?, action)));
        if let (Some(_), Some(last)) = (retried, &observed.last_failure) {
            status.reason = last.failure.as_reason(last.action);
        }
        let retry = retried.map(|(at, action)| (at, NextStep::RetryAction(action.into())));
        let next = retry.into_iter().chain(next::of(spec, &status, observed, now)).min();
        let warning = next::warning(spec, &status, observed, now);
        Decision { action: due.filter(|_| retried.is_none()), status, next, warning }
    }

    /// Returns the status after the first transition that applies, or `None` if none applies.
    pub fn follow(&self, input: TransitionInput<'_>) -> Option<Status> {
        use MaintenanceStage::{Running, Starting};
        use MaintenanceTask::{Archive, Restore};
        let arrows: &[Transition] = match input.status.phase {
            Phase::Queued => &[self.stop_now, self.enqueue, self.admit],
            Phase::Pending { .. } => &[self.stop_now, self.resized, self.start],
            Phase::Starting => {
                &[self.open_storage, self.stop_now, self.resized, self.start_failed, self.hello]
            }
            Phase::Awake => &[
                self.stop_restarting,
                self.agent_ended,
                self.stop_awake,
                self.agent_silent,
                self.requested_again,
                self.fall_asleep,
                self.resized,
                self.healthy,
            ],
            Phase::Preparing { .. } => {
                &[self.stop_restarting, self.agent_ended, self.stop_awake, self.cancel_sleep, self.prepared]
            }
            Phase::Committing => &[self.ready, self.give_up, self.declined],
            Phase::FallingAsleep => &[self.stopped],
            Phase::Asleep => &[self.wake, self.release_storage, self.archive_due],
            Phase::Maintenance { task: Archive, stage: Starting } => {
                &[self.wake, self.cancel_archive, self.retry_later, self.maintenance_started]
            }
            Phase::Maintenance { task: Archive, stage: Running } => {
                &[self.wake, self.cancel_archive, self.archived, self.retry_later]
            }
            Phase::Maintenance { task: Restore, stage: Starting } => {
                &[self.retry_later, self.maintenance_started]
            }
            Phase::Maintenance { task: Restore, stage: Running } => &[self.restored, self.retry_later],
            Phase::Archived => &[self.nothing_left, self.restore],
            Phase::Deleting => &[],
        };
        [self.sync_archives, self.discard].iter().chain(arrows).find_map(|arrow| arrow(input))
    }
}

/// Returns the action that the status asks for now.
fn due_action(spec: &Spec, status: &Status, observed: &Observed) -> Option<Action> {
    let epoch = status.epoch;
    let connected = observed.connected == Some(epoch);
    match (status.phase, &observed.processes) {
        (_, RunningAgents::Unseen) => None,
        (Phase::Awake, _) if connected && observed.prepare_state.may_be_prepared() == Some(epoch) => {
            Some(Action::Cancel(epoch))
        }
        (Phase::Awake, _) => expire(spec, status, observed).or_else(|| resize(status, observed)),
        (Phase::Preparing { urgency, .. }, _) if connected => Some(Action::Prepare { epoch, urgency }),
        (Phase::Committing, _) if connected => Some(Action::Commit(epoch)),
        (Phase::Maintenance { task, stage: MaintenanceStage::Running }, _) if connected => Some(match task {
            MaintenanceTask::Archive => Action::Archive(epoch),
            MaintenanceTask::Restore => Action::Restore(epoch),
        }),
        (
            Phase::Preparing { .. }
            | Phase::Committing
            | Phase::Maintenance { stage: MaintenanceStage::Running, .. },
            _,
        ) => None,
        (Phase::Starting | Phase::Maintenance { .. }, RunningAgents::None) => Some(Action::StartAgent(epoch)),
        (Phase::Starting | Phase::Maintenance { .. }, RunningAgents::Some(_)) => None,
        (_, RunningAgents::Some(_)) => Some(Action::StopProcesses),
        (Phase::Deleting, RunningAgents::None) if !observed.removed => Some(Action::RemoveStorage),
        (Phase::Deleting, RunningAgents::None) => Some(
            status
                .archives
                .first()
                .map_or(Action::RemoveRecord, |oldest| Action::ExpireArchive(oldest.generation)),
        ),
        (Phase::Archived, RunningAgents::None) if status.storage => Some(Action::RemoveStorage),
        (
            Phase::Queued | Phase::Pending { .. } | Phase::FallingAsleep | Phase::Asleep | Phase::Archived,
            RunningAgents::None,
        ) => expire(spec, status, observed),
    }
}

/// Returns a resize unless the agent is known to have the allocated resources.
fn resize(status: &Status, observed: &Observed) -> Option<Action> {
    let (epoch, resources) = (status.epoch, status.allocated?);
    let is_actual = observed.actual == Some((epoch, resources));
    (!is_actual && observed.processes.is_running(epoch)).then_some(Action::Resize { epoch, resources })
}

/// Returns the removal of the oldest archive if its retention is over in observed time, or if there
/// are more than [`MAX_ARCHIVES`].
fn expire(spec: &Spec, status: &Status, observed: &Observed) -> Option<Action> {
    // A pending request needs this archive to restore the workspace.
    if status.phase == Phase::Archived && spec.is_wake_requested(status) {
        return None;
    }
    let oldest = oldest_archive(status)?;
    let over =
        archive_age(oldest, observed) >= spec.policy.keep_archives || status.archives.len() > MAX_ARCHIVES;
    over.then_some(Action::ExpireArchive(oldest.generation))
}

/// Returns the oldest archive, which is the next to expire. Returns `None` if that archive holds
/// the content of the present storage, because the storage is removed only while the archive
/// exists.
fn oldest_archive(status: &Status) -> Option<&Archive> {
    let needed = |archive: &&Archive| status.storage && archive.generation == status.storage_generation;
    status.archives.first().filter(|archive| !needed(archive))
}

/// Returns the age of an archive in observed time.
fn archive_age(archive: &Archive, observed: &Observed) -> Duration {
    observed.observed_time.saturating_sub(archive.observed_time)
}

/// Returns the status with its wait up to date. The reason of a start or resize names what it waits
/// for. The reason of an awake workspace names an action that failed and is retried, or else a
/// command of the workspace that fails, or else a container that is not ready. Once the wait is over,
/// the phase's usual reason returns.
fn with_wait(status: Status, observed: &Observed, due: Option<Action>) -> Status {
    let usual = match status.phase {
        Phase::Starting => StateReason::AgentStarting,
        Phase::Maintenance { stage: MaintenanceStage::Starting, .. } => StateReason::AgentStarting,
        Phase::Awake => match (&observed.command, &status.reason) {
            (CommandHealth::Failing(detail), _) => StateReason::CommandFailed { detail: detail.clone() },
            // After a restart of the control plane, the reason stays until the agent reports.
            (CommandHealth::Unknown, failed @ StateReason::CommandFailed { .. }) => failed.clone(),
            _ => match &observed.container_problem {
                Some(detail) => StateReason::ContainerNotReady { detail: detail.clone() },
                None => StateReason::AgentConnected,
            },
        },
        _ => return status,
    };
    let concerns = |last: &&ActionFailure| status.phase == Phase::Awake && Some(last.action) == due;
    let failure = observed.last_failure.as_ref().filter(concerns).map(|last| Wait {
        reason: WaitReason::ActionFailed(Operation::from(last.action)),
        detail: last.failure.detail().to_owned(),
    });
    let waits = observed.waits.clone().or(failure);
    if waits == status.waits {
        // A reason that says more, such as a declined sleep, is not replaced.
        let is_usual = matches!(
            status.reason,
            StateReason::AgentConnected
                | StateReason::CommandFailed { .. }
                | StateReason::ContainerNotReady { .. }
        );
        return match status.phase {
            Phase::Awake if waits.is_none() && is_usual => Status { reason: usual, ..status },
            _ => status,
        };
    }
    let reason = waits.as_ref().map_or(usual, Wait::as_reason);
    Status { reason, waits, ..status }
}

/// Returns the status after an observed change of the spec. A request to wake and a deletion shorten
/// the pause after failures. If a deletion was cancelled, the status says so.
pub fn observe_spec(before: &Spec, after: &Spec, status: &Status, now: Timestamp) -> Status {
    let request = |spec: &Spec| (spec.desired_state, spec.request_seq);
    match after.desired_state {
        _ if request(before) == request(after) => status.clone(),
        DesiredState::Awake | DesiredState::Asleep if before.desired_state.is_gone() => undelete(status, now),
        DesiredState::Asleep => status.clone(),
        DesiredState::Awake | DesiredState::Deleted | DesiredState::Discarded => shorten_backoff(status, now),
    }
}

/// Returns the number of the last request that was acted on, if the workspace is asleep or falling
/// asleep. A request to wake then needs another number.
pub fn request_before_sleep(status: &Status) -> Option<u64> {
    let is_falling_asleep = matches!(status.phase, Phase::Preparing { .. } | Phase::Committing);
    status.observed_request.filter(|_| is_falling_asleep || is_asleep(status.phase))
}

/// Returns whether the workspace is asleep, archived or in maintenance mode, or has committed its sleep.
pub fn is_asleep(phase: Phase) -> bool {
    match phase {
        Phase::FallingAsleep | Phase::Asleep | Phase::Maintenance { .. } | Phase::Archived => true,
        Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake => false,
        Phase::Preparing { .. } | Phase::Committing | Phase::Deleting => false,
    }
}

/// Returns whether the workspace fell asleep while the spec still says `Awake`. The driver then records
/// `Asleep`, so that a later `Awake` is a request.
pub fn is_unrecorded_sleep(spec: &Spec, status: &Status) -> bool {
    is_asleep(status.phase) && spec.desired_state == DesiredState::Awake && !spec.is_wake_requested(status)
}

/// Records in the status that the deletion was taken back. A sleeping workspace also loses its failed
/// archives. Transitions leave the phases that the deletion began.
fn undelete(status: &Status, now: Timestamp) -> Status {
    let mut status = status.clone();
    match status.phase {
        Phase::Asleep => {
            status.since = now;
            status.maintenance_retry = MaintenanceRetry::default();
        }
        Phase::Maintenance { task: MaintenanceTask::Archive, .. } => {}
        _ => return status,
    }
    status.reason = StateReason::DeletionCancelled;
    status
}

/// Shortens the pause after failures, because a request waits for the workspace. The pause still
/// lasts [`MIN_BACKOFF`] from the failure, so that repeated requests cannot keep the machine busy.
pub fn shorten_backoff(status: &Status, now: Timestamp) -> Status {
    let mut status = status.clone();
    let soonest = status.since.plus(MIN_BACKOFF).max(now);
    if let Phase::Pending { not_before } = &mut status.phase {
        *not_before = soonest.min(*not_before);
    }
    status.maintenance_retry.not_before = soonest.min(status.maintenance_retry.not_before);
    status
}

/// Returns the end of the pause before `action` is retried. Returns `None` if the pause is over, or
/// if the last failure is of another action.
fn paused_until(action: Action, observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let last = observed.last_failure.as_ref().filter(|last| last.action == action)?;
    let until = last.at.plus(backoff(last.failures));
    is_pending(until, now).then_some(until)
}

/// Returns the pause after this many failures in a row. It doubles from [`MIN_BACKOFF`] to
/// [`MAX_BACKOFF`].
fn backoff(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => MIN_BACKOFF.saturating_mul(1 << doublings.min(16)).min(MAX_BACKOFF),
    }
}

/// Returns whether `until` is still to come. A pause longer than [`MAX_BACKOFF`] means that the
/// clock was set back, so the pause is taken as over.
fn is_pending(until: Timestamp, now: Timestamp) -> bool {
    let left = until.since(now);
    !left.is_zero() && left <= MAX_BACKOFF
}
