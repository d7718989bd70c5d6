//! Transitions of a workspace that is queued, starting or awake.

use std::collections::BTreeSet;

use super::TransitionInput;
use crate::{
    decide::{HEALTHY_AFTER, HELLO_LIMIT, SILENCE_LIMIT, backoff},
    mutant::{self, Mutant},
    observed::RunningAgents,
    reason::StateReason,
    status::{Phase, Status},
    time::Timestamp,
    workspace::DesiredState,
};

/// Applies when the workspace is desired asleep or deleted, or when the control plane is shutting
/// down. Ends the processes without asking the agent.
pub(super) fn stop_now(input: TransitionInput<'_>) -> Option<Status> {
    let reason = match input.spec.desired_state {
        _ if input.observed.shutting_down => StateReason::ShuttingDown,
        DesiredState::Asleep => StateReason::SleepRequested,
        DesiredState::Deleted => StateReason::DeleteRequested,
        DesiredState::Awake | DesiredState::Discarded => return None,
    };
    let mut next = input.to(Phase::FallingAsleep, reason);
    next.observed_request = input.spec.request_seq;
    Some(next)
}

/// Applies when a queued workspace has no position yet. It joins the admission queue.
pub(super) fn enqueue(input: TransitionInput<'_>) -> Option<Status> {
    let joined = Some(input.observed.observed_time);
    input.status.queued_at.is_none().then(|| Status { queued_at: joined, ..input.status.clone() })
}

/// Applies when the quota admits the workspace. Allocates the requested resources.
pub(super) fn admit(input: TransitionInput<'_>) -> Option<Status> {
    input.observed.admitted.then(|| Status {
        allocated: Some(input.spec.resources),
        queued_at: None,
        ..input.on_to(Phase::Pending { not_before: input.now })
    })
}

/// Applies when the requested resources differ from the allocated ones. A decrease is allocated at
/// once. An increase waits in the admission queue, and the workspace keeps its allocated resources
/// meanwhile. A withdrawn increase leaves the queue.
pub(super) fn resized(input: TransitionInput<'_>) -> Option<Status> {
    let requested = input.spec.resources;
    let unchanged = input.status.allocated == Some(requested);
    let admitted = input.observed.admitted || mutant::is(Mutant::AllocatesWithoutQuota);
    let is_allocated =
        input.status.allocated.is_none_or(|allocated| admitted || requested.fits_in(allocated));
    let status = input.status.clone();
    match (unchanged, input.status.queued_at) {
        (true, None) => None,
        (true, Some(_)) => Some(Status { queued_at: None, ..status }),
        (false, _) if is_allocated => Some(Status { allocated: Some(requested), queued_at: None, ..status }),
        (false, None) => Some(Status { queued_at: Some(input.observed.observed_time), ..status }),
        (false, Some(_)) => None,
    }
}

/// Applies when no process runs and the pause after a failure is over. Takes the next epoch and the
/// next storage generation.
pub(super) fn start(input: TransitionInput<'_>, not_before: Timestamp) -> Option<Status> {
    let something_runs = match input.observed.processes {
        RunningAgents::None => false,
        RunningAgents::Some(_) => !mutant::is(Mutant::StartsSecondAgent),
        RunningAgents::Unseen => true,
    };
    if something_runs || backoff::is_pending(not_before, input.now) {
        return None;
    }
    let reason = match input.status.failures {
        0 => StateReason::AgentStarting,
        failures => StateReason::AgentRestarting { failures, cause: input.status.reason.as_cause() },
    };
    let mut next = input.to(Phase::Starting, reason);
    if !(mutant::is(Mutant::ReusesEpoch) && next.failures > 0) {
        next.epoch += 1;
    }
    if !mutant::is(Mutant::KeepsGeneration) {
        next.storage_generation += 1;
    }
    Some(next)
}

/// Applies when the first agent of a workspace asks for its claim, with which it can write to the
/// storage. From then on the storage is removed only with an archive.
pub(super) fn open_storage(input: TransitionInput<'_>) -> Option<Status> {
    let asks = input.observed.greeted == Some(input.status.epoch);
    (asks && !input.status.storage).then(|| Status { storage: true, ..input.status.clone() })
}

/// Applies when the start failed: the agent ended, another agent runs, or the agent did not connect
/// in time.
pub(super) fn start_failed(input: TransitionInput<'_>) -> Option<Status> {
    let reason = start_failure(input)?;
    Some(input.fail(reason, input.status.failures.saturating_add(1)))
}

/// Returns why the agent that was started cannot serve, or `None` while the start may still
/// succeed.
pub(super) fn start_failure(input: TransitionInput<'_>) -> Option<StateReason> {
    let (status, observed) = (input.status, input.observed);
    let alone = BTreeSet::from([status.epoch]);
    match (&observed.ended, &observed.processes) {
        (Some(ended), _) if ended.epoch == status.epoch => {
            Some(StateReason::AgentStartFailed { detail: ended.detail.clone() })
        }
        (_, RunningAgents::Some(agents))
            if !agents.is_subset(&alone) && !mutant::is(Mutant::StartsSecondAgent) =>
        {
            Some(StateReason::EarlierAgentFound)
        }
        _ if input.is_running() && observed.silence >= HELLO_LIMIT => {
            Some(StateReason::AgentHelloTimeout { limit_seconds: HELLO_LIMIT.as_secs() })
        }
        _ => None,
    }
}

/// Applies when the agent that was started has connected.
pub(super) fn hello(input: TransitionInput<'_>) -> Option<Status> {
    (input.connected() && input.is_running()).then(|| {
        let mut next = input.to(Phase::Awake, StateReason::AgentConnected);
        next.woke_at = input.observed.observed_time;
        next.requested_at = input.observed.observed_time;
        next
    })
}

/// Applies when the agent no longer runs. The first restart follows without a pause.
pub(super) fn agent_ended(input: TransitionInput<'_>) -> Option<Status> {
    if input.observed.processes == RunningAgents::Unseen || input.is_running() {
        return None;
    }
    let ended = input.observed.ended.as_ref().filter(|ended| ended.epoch == input.status.epoch);
    let detail = ended.map(|ended| ended.detail.clone());
    Some(input.fail(StateReason::AgentEnded { detail }, input.status.failures))
}

/// Applies when the agent runs, but has sent no heartbeat for [`SILENCE_LIMIT`].
pub(super) fn agent_silent(input: TransitionInput<'_>) -> Option<Status> {
    let unheard = input.is_running() && !input.connected();
    let silent = input.observed.silence >= SILENCE_LIMIT || mutant::is(Mutant::EndsSilentAgent);
    (unheard && silent).then(|| {
        let reason = StateReason::AgentSilent { limit_seconds: SILENCE_LIMIT.as_secs() };
        input.fail(reason, input.status.failures)
    })
}

/// Applies when the agent is lost again and the workspace was not used since the last restart. The
/// workspace falls asleep instead of being restarted. Each new agent counts idle time from zero, so
/// repeated kills could otherwise keep a workspace awake for ever.
pub(super) fn stop_restarting(input: TransitionInput<'_>) -> Option<Status> {
    let lost = agent_ended(input).or_else(|| agent_silent(input))?;
    (input.status.failures > 0 && !input.was_used()).then(|| {
        let reason = StateReason::AgentLostUnused { cause: lost.reason.as_cause() };
        Status { observed_request: input.spec.request_seq, ..input.to(Phase::FallingAsleep, reason) }
    })
}

/// Applies when a workspace with failures has been awake for [`HEALTHY_AFTER`], is connected and
/// was used. Clears the failures.
pub(super) fn healthy(input: TransitionInput<'_>) -> Option<Status> {
    let for_a_while = input.now.since(input.status.since) >= HEALTHY_AFTER;
    let healthy = input.connected() && input.was_used() && for_a_while && input.status.failures > 0;
    healthy.then(|| Status { failures: 0, ..input.status.clone() })
}
