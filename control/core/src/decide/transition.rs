//! The transitions of the state machine. Each is a function that returns the new status, or `None`
//! if the transition does not apply. A table names all of them.

mod storage;

use std::collections::BTreeSet;

use super::{
    Action, HEALTHY_AFTER, HELLO_LIMIT, MAX_COMMIT_ATTEMPTS, SILENCE_LIMIT, StateMachine, backoff,
    due_action, is_pending, paused_until,
};
use crate::{
    observed::{ActionFailure, Failure, Observed, PrepareState, RunningAgents, UseState},
    reason::StateReason,
    status::{Phase, Status, Urgency},
    time::Timestamp,
    workspace::{DesiredState, Spec},
};

/// The arguments of every transition.
#[derive(Debug, Clone, Copy)]
pub struct TransitionInput<'a> {
    pub spec: &'a Spec,
    pub status: &'a Status,
    pub observed: &'a Observed,
    pub now: Timestamp,
}

/// Returns the status after the transition, or `None` if the transition does not apply.
pub type Transition = fn(TransitionInput<'_>) -> Option<Status>;

impl StateMachine {
    /// The state machine of every control plane.
    pub const PRODUCT: Self = Self {
        sync_archives: storage::sync_archives,
        discard,
        enqueue,
        admit,
        stop_now,
        resized,
        start,
        open_storage,
        start_failed,
        hello,
        agent_ended,
        agent_silent,
        stop_restarting,
        requested_again,
        healthy,
        stop_awake,
        fall_asleep,
        cancel_sleep,
        prepared,
        ready,
        give_up,
        declined,
        stopped,
        wake,
        release_storage: storage::release_storage,
        archive_due: storage::archive_due,
        cancel_archive: storage::cancel_archive,
        restore: storage::restore,
        maintenance_started: storage::maintenance_started,
        archived: storage::archived,
        restored: storage::restored,
        retry_later: storage::retry_later,
        nothing_left: storage::nothing_left,
        due_action,
    };
}

impl TransitionInput<'_> {
    fn connected(self) -> bool {
        self.observed.connected == Some(self.status.epoch)
    }

    fn is_running(self) -> bool {
        self.observed.processes.is_running(self.status.epoch)
    }

    /// Returns whether the agent of the present epoch has reported use.
    fn was_used(self) -> bool {
        self.observed.used_by == Some(self.status.epoch)
    }

    /// Returns whether a request to wake is pending. During a shutdown none is.
    fn is_requested(self) -> bool {
        self.spec.is_wake_requested(self.status) && !self.observed.shutting_down
    }

    fn to(self, phase: Phase, reason: StateReason) -> Status {
        Status { phase, reason, since: self.now, waits: None, ..self.status.clone() }
    }

    /// Enters `phase` and keeps the present reason.
    fn on_to(self, phase: Phase) -> Status {
        self.to(phase, self.status.reason.clone())
    }

    /// Enters the pause after `counted` failures in a row, and adds one to the status's failures.
    fn fail(self, reason: StateReason, counted: u32) -> Status {
        let not_before = self.now.plus(backoff(counted));
        let mut next = self.to(Phase::Pending { not_before }, reason);
        next.failures = next.failures.saturating_add(1);
        next
    }
}

// === Queued, starting and awake ===

/// Applies when a request discards the workspace with its files and archives.
fn discard(input: TransitionInput<'_>) -> Option<Status> {
    (input.spec.desired_state == DesiredState::Discarded && input.status.phase != Phase::Deleting)
        .then(|| input.to(Phase::Deleting, StateReason::DiscardRequested))
}

/// Applies when the workspace is desired asleep or deleted, or when the control plane is shutting
/// down. Ends the processes without asking the agent.
fn stop_now(input: TransitionInput<'_>) -> Option<Status> {
    let reason = match input.spec.desired_state {
        _ if input.observed.shutting_down => StateReason::ShuttingDown,
        DesiredState::Asleep => StateReason::SleepRequested,
        DesiredState::Deleted => StateReason::DeleteRequested,
        DesiredState::Awake | DesiredState::Discarded => return None,
    };
    let mut next = input.to(Phase::FallingAsleep, reason);
    next.observed_request = Some(input.spec.request_seq);
    Some(next)
}

/// Applies when a queued workspace has no position yet. It joins the admission queue.
fn enqueue(input: TransitionInput<'_>) -> Option<Status> {
    let joined = Some(input.observed.observed_time);
    input.status.queued_at.is_none().then(|| Status { queued_at: joined, ..input.status.clone() })
}

/// Applies when the quota admits the workspace. Allocates the requested resources.
fn admit(input: TransitionInput<'_>) -> Option<Status> {
    input.observed.admitted.then(|| Status {
        allocated: Some(input.spec.resources),
        queued_at: None,
        ..input.on_to(Phase::Pending { not_before: input.now })
    })
}

/// Applies when the requested resources differ from the allocated ones. A decrease is allocated at
/// once. An increase waits in the admission queue, and the workspace keeps its allocated resources
/// meanwhile. A withdrawn increase leaves the queue.
fn resized(input: TransitionInput<'_>) -> Option<Status> {
    let requested = input.spec.resources;
    let unchanged = input.status.allocated == Some(requested);
    let admitted = input.observed.admitted;
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
fn start(input: TransitionInput<'_>) -> Option<Status> {
    let Phase::Pending { not_before } = input.status.phase else { return None };
    if input.observed.processes != RunningAgents::None || is_pending(not_before, input.now) {
        return None;
    }
    let reason = match input.status.failures {
        0 => StateReason::AgentStarting,
        failures => StateReason::AgentRestarting { failures, cause: input.status.reason.as_cause() },
    };
    let mut next = input.to(Phase::Starting, reason);
    next.epoch += 1;
    next.storage_generation += 1;
    Some(next)
}

/// Applies when the first agent of a workspace asks for its claim, with which it can write to the
/// storage. From then on the storage is removed only with an archive.
fn open_storage(input: TransitionInput<'_>) -> Option<Status> {
    let asks = input.observed.greeted == Some(input.status.epoch);
    (asks && !input.status.storage).then(|| Status { storage: true, ..input.status.clone() })
}

/// Applies when the start failed: the agent ended, another agent runs, or the agent did not connect
/// in time.
fn start_failed(input: TransitionInput<'_>) -> Option<Status> {
    let reason = start_failure(input)?;
    Some(input.fail(reason, input.status.failures.saturating_add(1)))
}

/// Returns why the agent that was started cannot serve, or `None` while the start may still
/// succeed.
fn start_failure(input: TransitionInput<'_>) -> Option<StateReason> {
    let (status, observed) = (input.status, input.observed);
    let alone = BTreeSet::from([status.epoch]);
    match (&observed.ended, &observed.processes) {
        (Some(ended), _) if ended.epoch == status.epoch => {
            Some(StateReason::AgentStartFailed { detail: ended.detail.clone() })
        }
        (_, RunningAgents::Some(agents)) if !agents.is_subset(&alone) => Some(StateReason::EarlierAgentFound),
        _ if input.is_running() && observed.silence >= HELLO_LIMIT => {
            Some(StateReason::AgentHelloTimeout { limit_seconds: HELLO_LIMIT.as_secs() })
        }
        _ => None,
    }
}

/// Applies when the agent that was started has connected.
fn hello(input: TransitionInput<'_>) -> Option<Status> {
    (input.connected() && input.is_running()).then(|| {
        let mut next = input.to(Phase::Awake, StateReason::AgentConnected);
        next.woke_at = input.observed.observed_time;
        next.requested_at = input.observed.observed_time;
        next
    })
}

/// Applies when the agent no longer runs. The first restart follows without a pause.
fn agent_ended(input: TransitionInput<'_>) -> Option<Status> {
    if input.observed.processes == RunningAgents::Unseen || input.is_running() {
        return None;
    }
    let ended = input.observed.ended.as_ref().filter(|ended| ended.epoch == input.status.epoch);
    let detail = ended.map(|ended| ended.detail.clone());
    Some(input.fail(StateReason::AgentEnded { detail }, input.status.failures))
}

/// Applies when the agent runs, but has sent no heartbeat for [`SILENCE_LIMIT`].
fn agent_silent(input: TransitionInput<'_>) -> Option<Status> {
    let unheard = input.is_running() && !input.connected();
    (unheard && input.observed.silence >= SILENCE_LIMIT).then(|| {
        let reason = StateReason::AgentSilent { limit_seconds: SILENCE_LIMIT.as_secs() };
        input.fail(reason, input.status.failures)
    })
}

/// Applies when the agent is lost again, the workspace was not used since the last restart, and no
/// request to wake is pending. The workspace falls asleep instead of being restarted. Each new agent
/// counts idle time from zero, so repeated kills could otherwise keep a workspace awake for ever.
fn stop_restarting(input: TransitionInput<'_>) -> Option<Status> {
    let lost = agent_ended(input).or_else(|| agent_silent(input))?;
    (input.status.failures > 0 && !input.was_used() && !input.is_requested()).then(|| {
        let reason = StateReason::AgentLostUnused { cause: lost.reason.as_cause() };
        input.to(Phase::FallingAsleep, reason)
    })
}

/// Applies when a request to wake arrives while the workspace is awake. A later sleep must not count
/// as the answer to this request, and the client gets the idle timeout to act.
fn requested_again(input: TransitionInput<'_>) -> Option<Status> {
    // After the longest time awake, the request waits until the workspace is asleep.
    (input.is_requested() && !is_overdue(input)).then(|| Status {
        requested_at: input.observed.observed_time,
        observed_request: Some(input.spec.request_seq),
        ..input.status.clone()
    })
}

/// Applies when a workspace with failures has been awake for [`HEALTHY_AFTER`], is connected and
/// was used. Clears the failures.
fn healthy(input: TransitionInput<'_>) -> Option<Status> {
    let for_a_while = input.now.since(input.status.since) >= HEALTHY_AFTER;
    let healthy = input.connected() && input.was_used() && for_a_while && input.status.failures > 0;
    healthy.then(|| Status { failures: 0, ..input.status.clone() })
}

// === From awake to asleep in two phases, and back ===

/// Applies when a sleep or deletion is requested while the agent is not connected, and to every
/// workspace after `podling down`. Ends the processes without asking the agent. An agent that
/// receives SIGTERM still saves its terminals.
fn stop_awake(input: TransitionInput<'_>) -> Option<Status> {
    let is_unreachable = !input.connected() && input.observed.processes != RunningAgents::Unseen;
    if input.observed.shutting_down || is_unreachable { stop_now(input) } else { None }
}

/// Applies when the workspace was idle for its idle timeout, has been awake for its longest allowed
/// time, or was asked to sleep. Begins the first phase of sleep.
fn fall_asleep(input: TransitionInput<'_>) -> Option<Status> {
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
        _ => return None,
    };
    if is_paused(input, urgency) {
        return None;
    }
    Some(input.to(Phase::Preparing { urgency, declined: declines(input, urgency) }, reason))
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
    last.is_some_and(|last| paused_until(last.action, input.observed, input.now).is_some())
}

/// Applies when the workspace is used, a request arrives, the agent is not connected, or prepare
/// failed or was declined. The workspace stays awake. If the sleep was forced and prepare failed,
/// the processes are ended without a commit.
fn cancel_sleep(input: TransitionInput<'_>) -> Option<Status> {
    let Phase::Preparing { urgency, declined } = input.status.phase else { return None };
    // After the longest time awake, the next decision would begin the sleep again. The request then
    // waits until the workspace is asleep.
    if input.is_requested() && !is_overdue(input) {
        let reason = match input.status.reason {
            StateReason::DeleteRequested => StateReason::DeletionCancelled,
            _ => StateReason::RequestedDuringSleep,
        };
        let mut next = input.to(Phase::Awake, reason);
        next.requested_at = input.observed.observed_time;
        next.observed_request = Some(input.spec.request_seq);
        return Some(next);
    }
    let refused = prepare_failure(input, urgency).filter(|last| last.failures != declined);
    match (refused, urgency) {
        (Some(_), Urgency::Forced) => {
            stop_now(input).or_else(|| Some(input.to(Phase::FallingAsleep, StateReason::MaxAwakeReached)))
        }
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
fn prepared(input: TransitionInput<'_>) -> Option<Status> {
    let prepared = input.observed.prepare_state == PrepareState::Prepared(input.status.epoch);
    prepared.then(|| input.on_to(Phase::Committing))
}

/// Applies when the agent has ended every program and saved everything.
fn ready(input: TransitionInput<'_>) -> Option<Status> {
    (input.observed.ready == Some(input.status.epoch)).then(|| input.on_to(Phase::FallingAsleep))
}

/// Applies when the agent ends, goes silent or repeatedly fails to commit. A commit cannot be
/// undone, so the remaining processes are ended.
fn give_up(input: TransitionInput<'_>) -> Option<Status> {
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
fn declined(input: TransitionInput<'_>) -> Option<Status> {
    if input.observed.prepare_state == PrepareState::Prepared(input.status.epoch) {
        return None;
    }
    let last = commit_failure(input)?;
    match &last.failure {
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
fn stopped(input: TransitionInput<'_>) -> Option<Status> {
    (input.observed.processes == RunningAgents::None).then(|| {
        let mut next = input.on_to(Phase::Asleep);
        next.slept_at = input.observed.observed_time;
        if next.reason == StateReason::DeleteRequested && !input.spec.desired_state.is_gone() {
            next.reason = StateReason::DeletionCancelled;
        }
        (next.allocated, next.queued_at) = (None, None);
        next.failures = 0;
        next
    })
}

/// Applies when a request to wake is pending. The workspace joins the admission queue now.
fn wake(input: TransitionInput<'_>) -> Option<Status> {
    input.is_requested().then(|| {
        let mut next = input.to(Phase::Queued, StateReason::WakeRequested);
        next.queued_at = Some(input.observed.observed_time);
        next.observed_request = Some(input.spec.request_seq);
        next.maintenance_retry = Default::default();
        next
    })
}
