//! Transitions from awake to asleep in two phases, and back to awake.

use super::{TransitionInput, serving};
use crate::{
    decide::{Action, MAX_COMMIT_ATTEMPTS, SILENCE_LIMIT, backoff},
    mutant::{self, Mutant},
    observed::{ActionFailure, Failure, PrepareState, RunningAgents, UseState},
    reason::StateReason,
    status::{Phase, Status, Urgency},
    workspace::DesiredState,
};

/// Applies when a sleep or deletion is requested while the agent is not connected, and to every
/// workspace after `podling down`. Ends the processes without asking the agent. An agent that
/// receives SIGTERM still saves its terminals.
pub(super) fn stop_now(input: TransitionInput<'_>) -> Option<Status> {
    let one_phase = input.observed.shutting_down || mutant::is(Mutant::SleepsInOnePhase);
    if one_phase || (!input.connected() && input.observed.processes != RunningAgents::Unseen) {
        return serving::stop_now(input);
    }
    None
}

/// Applies when the workspace was idle for its idle timeout, has been awake for its longest allowed
/// time, or was asked to sleep. Begins the first phase of sleep.
pub(super) fn fall_asleep(input: TransitionInput<'_>) -> Option<Status> {
    if !input.connected() {
        return None;
    }
    let policy = &input.spec.policy;
    let observed_since = |then| input.observed.observed_time.saturating_sub(then);
    // A request restarts the idle timeout, because its client has had no time to act yet. While the
    // answer to a prepare or cancel is outstanding, the agent is not asked again.
    let is_open = input.observed.prepare_state == PrepareState::NotPrepared;
    let may_be_asked = observed_since(input.status.requested_at) >= policy.idle_timeout && is_open;
    let request = input.observed.sleep_request.filter(|_| is_open);
    let (urgency, reason) = match (input.spec.desired_state, input.observed.used, request) {
        (DesiredState::Asleep, ..) => (Urgency::Forced, StateReason::SleepRequested),
        (DesiredState::Deleted, ..) => (Urgency::Forced, StateReason::DeleteRequested),
        _ if is_overdue(input) => (Urgency::Forced, StateReason::MaxAwakeReached),
        // Only the agent knows for certain whether the workspace is in use, so the agent is asked.
        (_, UseState::No(_) | UseState::Unknown, Some(request)) => (Urgency::Requested, request.into()),
        (_, UseState::No(counted), None) if counted >= policy.idle_timeout && may_be_asked => {
            (Urgency::Idle, StateReason::Idle)
        }
        (_, UseState::Unknown, None) if may_be_asked && mutant::is(Mutant::SleepsOnUnknown) => {
            (Urgency::Idle, StateReason::ActivityUnknown)
        }
        _ => return None,
    };
    if is_paused(input, urgency) {
        return None;
    }
    let mut next = input.to(Phase::Preparing { urgency, declined: declines(input, urgency) }, reason);
    next.observed_request = input.spec.request_seq;
    Some(next)
}

/// Returns whether the workspace has been awake for as long as its policy allows.
fn is_overdue(input: TransitionInput<'_>) -> bool {
    let awake = input.observed.observed_time.saturating_sub(input.status.woke_at);
    input.spec.policy.max_awake.is_some_and(|longest| awake >= longest)
}

/// Returns how many times in a row prepare failed or was declined.
fn declines(input: TransitionInput<'_>, urgency: Urgency) -> u32 {
    prepare_failure(input, urgency).map_or(0, |last| last.failures)
}

fn prepare_failure(input: TransitionInput<'_>, urgency: Urgency) -> Option<&ActionFailure> {
    let action = Action::Prepare { epoch: input.status.epoch, urgency };
    input.observed.last_failure.as_ref().filter(|last| last.action == action)
}

fn is_paused(input: TransitionInput<'_>, urgency: Urgency) -> bool {
    let last = prepare_failure(input, urgency).or_else(|| commit_failure(input));
    last.is_some_and(|last| backoff::of(last.action, input.observed, input.now).is_some())
}

/// Applies when the workspace is used, a request arrives, the agent is not connected, or prepare
/// failed or was declined. The workspace stays awake. If the sleep was forced and prepare failed,
/// the processes are ended without a commit.
pub(super) fn cancel_sleep(input: TransitionInput<'_>, urgency: Urgency, declined: u32) -> Option<Status> {
    // After the longest time awake, the next decision would begin the sleep again. The request then
    // waits until the workspace is asleep.
    if input.is_requested() && !is_overdue(input) {
        let mut next = input.to(Phase::Awake, StateReason::RequestedDuringSleep);
        next.requested_at = input.observed.observed_time;
        next.observed_request = input.spec.request_seq;
        return Some(next);
    }
    let refused = prepare_failure(input, urgency).filter(|last| last.failures != declined);
    match (refused, urgency) {
        (Some(_), Urgency::Forced) => serving::stop_now(input)
            .or_else(|| Some(input.to(Phase::FallingAsleep, StateReason::MaxAwakeReached))),
        (Some(last), Urgency::Idle | Urgency::Requested) => {
            Some(input.to(Phase::Awake, last.failure.as_reason(last.action)))
        }
        _ if !input.connected() && input.observed.processes != RunningAgents::Unseen => {
            Some(input.to(Phase::Awake, StateReason::ActivityUnknown))
        }
        _ if urgency == Urgency::Forced && !is_forced(input) => {
            let reason = match input.status.reason {
                StateReason::MaxAwakeReached => StateReason::AgentConnected,
                _ => StateReason::DeletionCancelled,
            };
            let mut next = input.to(Phase::Awake, reason);
            next.requested_at = input.observed.observed_time;
            Some(next)
        }
        _ if urgency != Urgency::Forced && input.observed.used == UseState::Yes => {
            Some(input.to(Phase::Awake, StateReason::UsedAgain))
        }
        _ => None,
    }
}

/// Returns whether the workspace must sleep even if it is in use. The deletion that began a sleep may
/// be taken back, and the policy may change.
fn is_forced(input: TransitionInput<'_>) -> bool {
    input.spec.desired_state != DesiredState::Awake || is_overdue(input)
}

/// Applies when the agent has confirmed that it holds new requests.
pub(super) fn prepared(input: TransitionInput<'_>) -> Option<Status> {
    let prepared = input.observed.prepare_state == PrepareState::Prepared(input.status.epoch);
    (prepared || mutant::is(Mutant::IgnoresPrepare)).then(|| input.on_to(Phase::Committing))
}

/// Applies when the agent has ended every program and saved everything.
pub(super) fn ready(input: TransitionInput<'_>) -> Option<Status> {
    let ready = input.observed.ready == Some(input.status.epoch) || mutant::is(Mutant::EndsBeforeReady);
    ready.then(|| input.on_to(Phase::FallingAsleep))
}

/// Applies when the agent ends, goes silent or repeatedly fails to commit. A commit cannot be
/// undone, so the remaining processes are ended.
pub(super) fn give_up(input: TransitionInput<'_>) -> Option<Status> {
    let reason = if input.observed.processes == RunningAgents::Unseen {
        return None;
    } else if !input.is_running() {
        StateReason::AgentEndedFallingAsleep
    } else if !input.connected() && (input.observed.silence >= SILENCE_LIMIT || input.observed.shutting_down)
    {
        StateReason::AgentSilentFallingAsleep
    } else if commit_failure(input).is_some_and(|last| {
        last.failures >= MAX_COMMIT_ATTEMPTS && matches!(last.failure, Failure::Failed(_))
    }) {
        StateReason::AgentNotStopping
    } else {
        return None;
    };
    Some(input.to(Phase::FallingAsleep, reason))
}

/// Applies when the agent declined the commit because a request arrived after prepare. The
/// workspace stays awake, unless its sleep was forced. A prepare that succeeded since then
/// supersedes the refusal.
pub(super) fn declined(input: TransitionInput<'_>) -> Option<Status> {
    if input.observed.prepare_state == PrepareState::Prepared(input.status.epoch) {
        return None;
    }
    let last = commit_failure(input)?;
    match &last.failure {
        Failure::Declined { .. } if mutant::is(Mutant::IgnoresDecline) => {
            Some(input.to(Phase::FallingAsleep, last.failure.as_reason(last.action)))
        }
        // A forced sleep does not ask the agent a second time. An agent that declines is ended.
        Failure::Declined { .. } if is_forced(input) => Some(input.on_to(Phase::FallingAsleep)),
        Failure::Declined { .. } => Some(input.to(Phase::Awake, last.failure.as_reason(last.action))),
        Failure::Failed(_) => None,
    }
}

fn commit_failure(input: TransitionInput<'_>) -> Option<&ActionFailure> {
    input.observed.last_failure.as_ref().filter(|last| last.action == Action::Commit(input.status.epoch))
}

/// Applies when no process is left. Releases the workspace's quota.
pub(super) fn stopped(input: TransitionInput<'_>) -> Option<Status> {
    (input.observed.processes == RunningAgents::None).then(|| {
        let mut next = input.on_to(Phase::Asleep);
        next.slept_at = input.observed.observed_time;
        if next.reason == StateReason::DeleteRequested && !input.spec.desired_state.is_gone() {
            next.reason = StateReason::DeletionCancelled;
        }
        (next.allocated, next.queued_at) = (None, None);
        next.failures = 0;
        if mutant::is(Mutant::LosesWake) {
            next.observed_request = input.spec.request_seq;
        }
        next
    })
}

/// Applies when a request to wake is pending. The workspace joins the admission queue now.
pub(super) fn wake(input: TransitionInput<'_>) -> Option<Status> {
    input.is_requested().then(|| {
        let mut next = input.to(Phase::Queued, StateReason::WakeRequested);
        next.queued_at = Some(input.observed.observed_time);
        next.observed_request = input.spec.request_seq;
        next.maintenance_retry = Default::default();
        next
    })
}
