//! Sessions of agents: claims, dismissals, heartbeats, the detection of silence, and the directives
//! of the two-phase sleep.

use std::{sync::Arc, time::Duration};

use podling_core::{
    decide::Action,
    observed::{ActionSuccess, CommandHealth, Failure, RunningAgents},
    reason::{DeclineReason, SleepCause},
    status::Phase,
    time::Timestamp,
    workspace::Spec,
};
use tokio::{sync::mpsc, time::Instant};

use super::WorkspaceEntry;
use crate::{
    activity::ReportedActivity,
    clock,
    driver::{
        AgentDirective, AgentHello, ClaimContent, ConnectionId, DirectiveAnswer, DirectiveId, Heartbeat,
        SleepStep,
    },
    executor::failpoint,
    snapshot::AgentView,
};

/// Most sessions of one workspace: two agents, each with a current session and an older one whose
/// end has not been noticed. A further hello ends the oldest session.
pub const MAX_AGENT_SESSIONS: usize = 4;
/// Silence after which the connection is unknown: three and a half heartbeat intervals.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(53);

/// Shortest time between two stored failures of the workspace's command. An agent may report another
/// failure with each heartbeat, and each stored failure is a write.
const MIN_FAILURE_INTERVAL: Duration = Duration::from_secs(10);

/// Time that an agent has to answer a prepare or cancel. Agents need milliseconds.
const PREPARE_LIMIT: Duration = Duration::from_secs(15);
/// Time that an agent has to answer a commit. The agent ends all programs (HUP, TERM and KILL take
/// some seconds) and saves the terminals.
const COMMIT_LIMIT: Duration = Duration::from_secs(45);
/// Largest change of the announced sleep time for which no new warning is sent. Each heartbeat
/// changes the time slightly.
const WARNING_SLACK: Duration = Duration::from_secs(5);

/// The sessions of a workspace's agents, and what follows from the claimed one.
#[derive(Debug, Default)]
pub(super) struct AgentSessions {
    /// Oldest first; at most [`MAX_AGENT_SESSIONS`].
    open: Vec<SessionEntry>,
    /// The claimed agent of the current epoch.
    agent: Option<Arc<AgentView>>,
    /// The spec in the last claim that the agent was sent.
    claimed_spec: Option<Arc<Spec>>,
    /// The activity that the agent reported last.
    activity: Option<Arc<ReportedActivity>>,
    /// When a failure of the workspace's command was recorded last.
    command_failed_at: Option<Instant>,
    /// Time of the sleep in the last warning that the agent was sent.
    warned_for: Option<Timestamp>,
    /// The sleep directive that the agent has not answered yet.
    pending_directive: Option<PendingDirective>,
}

/// The stream of an agent that has said hello.
#[derive(Debug)]
struct SessionEntry {
    hello: AgentHello,
    claim: ClaimState,
    /// Observed time since the last heartbeat.
    silence: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClaimState {
    /// The driver has sent no message.
    New,
    /// The agent was told to wait for its claim.
    Waiting,
    Claimed,
}

/// A sleep directive that the agent has not answered yet.
#[derive(Debug)]
struct PendingDirective {
    directive: DirectiveId,
    action: Action,
    /// Observed time since it was sent.
    waited: Duration,
}

impl WorkspaceEntry {
    pub(crate) fn hello(&mut self, hello: AgentHello) {
        if self.sessions.open.len() >= MAX_AGENT_SESSIONS {
            self.session_ended(self.sessions.open[0].hello.connection);
        }
        self.sessions.open.push(SessionEntry { hello, claim: ClaimState::New, silence: Duration::ZERO });
    }

    /// Handles a heartbeat. Heartbeats of sessions that are not claimed are ignored.
    pub(crate) fn heartbeat(&mut self, heartbeat: Heartbeat) {
        let epoch = self.epoch();
        let session =
            self.sessions.open.iter_mut().find(|session| session.hello.connection == heartbeat.connection);
        let Some(session) = session.filter(|session| session.claim == ClaimState::Claimed) else { return };
        session.silence = Duration::ZERO;
        if self.sessions.agent.as_ref().is_some_and(|agent| agent.epoch == epoch) {
            self.observed.heartbeat(epoch);
        }
        self.take_activity(heartbeat.activity);
        // If the stream has ended meanwhile, no acknowledgement is needed.
        let _gone = heartbeat.accepted.send(());
    }

    /// Records the activity that the agent has reported.
    fn take_activity(&mut self, activity: Arc<ReportedActivity>) {
        self.observed.use_reported(activity.use_state());
        self.take_command_health(activity.command_health());
        self.sessions.activity = Some(activity);
    }

    /// Records the state of the workspace's command: a recovery at once, a new failure at most once
    /// per [`MIN_FAILURE_INTERVAL`]. A later heartbeat repeats a failure that comes too early.
    fn take_command_health(&mut self, health: CommandHealth) {
        if health == self.observed.command {
            return;
        }
        if let CommandHealth::Failing(_) = health {
            let failed_at = self.sessions.command_failed_at;
            if failed_at.is_some_and(|at| at.elapsed() < MIN_FAILURE_INTERVAL) {
                return;
            }
            self.sessions.command_failed_at = Some(Instant::now());
        }
        self.observed.command = health;
    }

    /// Sends a message to the claimed agent. Returns `false` if no agent is claimed or its stream
    /// is full or closed.
    fn send(&self, what: AgentDirective) -> bool {
        self.sessions
            .open
            .iter()
            .find(|session| session.claim == ClaimState::Claimed)
            .is_some_and(|session| session.send(what))
    }

    fn claimed_connection(&self) -> Option<ConnectionId> {
        let claimed = self.sessions.open.iter().find(|session| session.claim == ClaimState::Claimed);
        claimed.map(|session| session.hello.connection)
    }

    /// Records that the connection to the claimed agent is lost. The pending directive fails,
    /// because its answer cannot arrive.
    fn connection_lost(&mut self) {
        self.observed.disconnected();
        self.finish_directive(Err(Failure::Failed("the connection to the agent was lost".into())));
        self.sessions.warned_for = None;
    }

    pub(crate) fn session_ended(&mut self, connection: ConnectionId) {
        let Some(at) = self.sessions.open.iter().position(|session| session.hello.connection == connection)
        else {
            return;
        };
        if self.sessions.open.remove(at).claim == ClaimState::Claimed {
            self.connection_lost();
        }
    }

    /// Matches sessions with running agents. Claims the newest session of the current epoch's
    /// agent, and dismisses sessions of other agents. Sessions wait while the backend has not
    /// listed the running agents, while an agent is about to be stopped, or until the durable status
    /// permits the claim.
    ///
    /// Returns whether an agent was claimed, or asks for a claim that is not permitted yet.
    pub(super) fn match_sessions(&mut self) -> bool {
        let stays = self.wants_agent()
            || self.instance().is_some()
            || self.observed.processes == RunningAgents::Unseen;
        let Some(instance) = self.instance().filter(|_| self.wants_agent()).cloned() else {
            self.sessions.open.retain_mut(|session| match stays {
                true => session.wait(),
                false => session.dismiss("this workspace needs no agent now"),
            });
            return false;
        };
        let named = self
            .sessions
            .agent
            .as_ref()
            .map(|agent| agent.boot_id.clone())
            .or_else(|| instance.boot_id.clone());
        self.sessions.open.retain_mut(|session| {
            if session.hello.instance != instance.id {
                session.dismiss("another agent serves this workspace")
            } else if named.as_ref().is_some_and(|boot_id| *boot_id != session.hello.boot_id) {
                session.dismiss("an agent with another boot id already serves this start")
            } else {
                true
            }
        });
        let claim = self.claim_content();
        // An agent connects again only after it has given up its earlier stream, so the newest
        // session is the valid one.
        if self.sessions.open.len() > 1 {
            self.sessions.open.drain(..self.sessions.open.len() - 1);
            if self.claimed_connection().is_none() {
                // The directive was sent to the earlier session, which cannot answer it.
                self.connection_lost();
            }
        }
        let permitted = self.durable.as_ref().is_some_and(|durable| durable.status.permits_claim());
        let epoch = self.epoch();
        let Some(session) =
            self.sessions.open.last_mut().filter(|session| session.claim != ClaimState::Claimed)
        else {
            return false;
        };
        if !permitted {
            return self.observed.greeted.replace(epoch) != Some(epoch);
        }
        if !session.send(AgentDirective::Claim(claim)) {
            self.sessions.open.clear();
            return false;
        }
        // The agent becomes connected with its first heartbeat, which confirms the claim. Before
        // that it would reject every call.
        session.claim = ClaimState::Claimed;
        self.sessions.claimed_spec = Some(self.record.spec.clone());
        self.sessions.agent = Some(Arc::new(AgentView {
            boot_id: session.hello.boot_id.clone(),
            epoch: instance.epoch,
            version: session.hello.version.clone(),
            capabilities: session.hello.capabilities.clone(),
            address: instance.address,
            fingerprint: session.hello.fingerprint,
            instance: instance.id,
            image: instance.image,
        }));
        true
    }

    /// Asks the agent to end its processes in order, before the backend stops it.
    pub(super) fn drain(&mut self, grace: Duration) {
        self.sessions.open.retain_mut(|session| {
            session.claim != ClaimState::Claimed || session.send(AgentDirective::Drain { grace })
        });
    }

    /// Adds observed time to the silence of the claimed session and of the running agent. Returns
    /// whether the workspace must be advanced.
    pub(crate) fn advance_time(&mut self, gap: Duration) -> bool {
        let was = self.observed.connected;
        let mut lost = false;
        for session in self.sessions.open.iter_mut().filter(|session| session.claim == ClaimState::Claimed) {
            session.silence = session.silence.saturating_add(gap);
            lost |= session.silence >= HEARTBEAT_TIMEOUT;
        }
        if lost && was.is_some() {
            self.connection_lost();
        }
        let timed_out = self.age_directive(gap);
        let epoch = self.epoch();
        if self.observed.connected != Some(epoch) && self.observed.processes.is_running(epoch) {
            self.observed.silence = self.observed.silence.saturating_add(gap);
        }
        was != self.observed.connected || timed_out
    }

    /// Returns whether an agent should be running and claimed in the current phase.
    fn wants_agent(&self) -> bool {
        match self.record.status.phase {
            Phase::Starting
            | Phase::Awake
            | Phase::Preparing { .. }
            | Phase::Committing
            | Phase::Maintenance { .. } => true,
            Phase::Queued
            | Phase::Pending { .. }
            | Phase::FallingAsleep
            | Phase::Asleep
            | Phase::Archived
            | Phase::Deleting => false,
        }
    }

    // === Directives of the two-phase sleep ===

    /// Sends a sleep directive to the agent. The directive fails at once if no agent is connected.
    pub(super) fn send_directive(&mut self, directive: DirectiveId, action: Action) {
        let step = match action {
            Action::Prepare { urgency, .. } => SleepStep::Prepare(urgency),
            Action::Commit(_) => SleepStep::Commit,
            Action::Cancel(_) => SleepStep::Cancel,
            Action::StartAgent(_)
            | Action::Resize { .. }
            | Action::StopProcesses
            | Action::Archive(_)
            | Action::Restore(_)
            | Action::RemoveStorage
            | Action::ExpireArchive(_)
            | Action::RemoveRecord => return,
        };
        self.in_flight = Some(action);
        self.observed.action_started(action);
        self.sessions.pending_directive =
            Some(PendingDirective { directive, action, waited: Duration::ZERO });
        if !self.sessions.agent.as_ref().is_some_and(|agent| agent.can("sleep")) {
            let detail = "the agent lacks the capability \"sleep\"".into();
            self.finish_directive(Err(Failure::Declined { reason: DeclineReason::Unspecified, detail }));
        } else if !self.send(AgentDirective::Sleep(directive, step, self.record.status.reason.sleep_cause()))
        {
            self.finish_directive(Err(Failure::Failed("the agent is not connected".into())));
        }
    }

    /// Handles an answer. Ignores it unless it answers the pending directive and comes from the
    /// claimed session.
    pub(crate) fn directive_answered(&mut self, answer: DirectiveAnswer) {
        let is_pending = self
            .sessions
            .pending_directive
            .as_ref()
            .is_some_and(|pending| pending.directive == answer.directive);
        if !is_pending || self.claimed_connection() != Some(answer.connection) {
            return;
        }
        if let Some(activity) = answer.activity {
            self.take_activity(activity);
        }
        self.finish_directive(answer.result);
    }

    /// Records the result of the pending directive.
    fn finish_directive(&mut self, result: Result<(), Failure>) {
        let Some(pending) = self.sessions.pending_directive.take() else { return };
        failpoint(pending.action, "after");
        self.in_flight = None;
        if let Err(failure) = &result {
            tracing::info!(
                workspace = %self.record.spec.id, action = ?pending.action, ?failure, "sleep directive failed"
            );
        }
        self.observed.done(pending.action, result.map(|()| ActionSuccess::Done), clock::now());
    }

    /// Drops the pending directive after the decision has changed. Its answer is then ignored.
    pub(super) fn abandon_directive(&mut self) {
        if self.sessions.pending_directive.take().is_some() {
            self.in_flight = None;
        }
    }

    /// Adds observed time to the pending directive. Returns whether the directive timed out.
    fn age_directive(&mut self, gap: Duration) -> bool {
        let Some(pending) = &mut self.sessions.pending_directive else { return false };
        pending.waited = pending.waited.saturating_add(gap);
        let limit = match pending.action {
            Action::Commit(_) => COMMIT_LIMIT,
            _ => PREPARE_LIMIT,
        };
        let timed_out = pending.waited >= limit;
        if timed_out {
            self.finish_directive(Err(Failure::Failed(format!("the agent did not answer within {limit:?}"))));
        }
        timed_out
    }

    /// Sends the agent the time of its next sleep, if the time has changed by more than
    /// [`WARNING_SLACK`].
    pub(super) fn send_warning(&mut self, warning: Option<(Timestamp, SleepCause)>) {
        let moved = |sent: Timestamp, at: Timestamp| sent.since(at).max(at.since(sent)) > WARNING_SLACK;
        let changed = match (self.sessions.warned_for, warning) {
            (None, None) => false,
            (Some(sent), Some((at, _))) => moved(sent, at),
            (None, Some(_)) | (Some(_), None) => true,
        };
        if changed && self.send(AgentDirective::Warn(warning)) {
            self.sessions.warned_for = warning.map(|(at, _)| at);
        }
    }

    /// Sends the claim again if the policy has changed since the last claim.
    pub(super) fn resend_claim(&mut self) {
        // A policy is sent only once it is durable.
        let spec = self.record.spec.clone();
        if !self.is_settled()
            || self.sessions.claimed_spec.as_ref().is_none_or(|claimed| claimed.policy == spec.policy)
        {
            return;
        }
        let claim = self.claim_content();
        if self.send(AgentDirective::Claim(claim)) {
            self.sessions.claimed_spec = Some(spec);
        }
    }

    /// Returns the claim for the agent of the current epoch.
    fn claim_content(&self) -> ClaimContent {
        let maintenance = matches!(self.record.status.phase, Phase::Maintenance { .. });
        ClaimContent { spec: Arc::clone(&self.record.spec), epoch: self.epoch(), maintenance }
    }
}

impl AgentSessions {
    /// Returns the claimed agent of the current epoch.
    pub(super) fn agent(&self) -> Option<&Arc<AgentView>> {
        self.agent.as_ref()
    }

    /// Returns the activity that the agent reported last.
    pub(super) fn activity(&self) -> Option<&Arc<ReportedActivity>> {
        self.activity.as_ref()
    }

    /// Forgets the claimed agent, which has ended.
    pub(super) fn forget_agent(&mut self) {
        (self.agent, self.claimed_spec, self.activity, self.warned_for) = (None, None, None, None);
    }
}

impl SessionEntry {
    /// Queues a message to the agent. Returns `false` if the queue is full or closed; the caller
    /// then drops the session. A full queue means that the agent does not read.
    fn send(&self, message: AgentDirective) -> bool {
        match self.hello.directives.try_send(message) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    fn wait(&mut self) -> bool {
        if self.claim != ClaimState::New {
            return true;
        }
        self.claim = ClaimState::Waiting;
        self.send(AgentDirective::Wait)
    }

    /// Sends the reason to the agent. Returns `false`, so that the caller drops the session.
    fn dismiss(&self, why: &str) -> bool {
        tracing::info!(
            workspace = %self.hello.workspace, instance = %self.hello.instance, why, "agent dismissed"
        );
        let _gone = self.send(AgentDirective::Dismiss(why.to_owned()));
        false
    }
}
