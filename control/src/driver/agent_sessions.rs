//! Sessions of agents: claims, dismissals, heartbeats, and the detection of silence.

use std::{sync::Arc, time::Duration};

use podling_core::observed::{CommandHealth, Failure, RunningAgents, UseState};
use podling_proto::agent::v1::{ActivityLevel, ActivityState};
use tokio::{sync::mpsc, time::Instant};

use super::{AgentDirective, AgentHello, ConnectionId, Heartbeat, entry::WorkspaceEntry};
use crate::snapshot::AgentView;

/// Most sessions of one workspace: two agents, each with a current session and an older one whose
/// end has not been noticed. A further hello ends the oldest session.
pub const MAX_AGENT_SESSIONS: usize = 4;
/// Silence after which the connection is unknown: three and a half heartbeat intervals.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(53);

/// Shortest time between two stored texts of a command that keeps failing. An agent may report another
/// text with each heartbeat, and each stored text is a write.
const MIN_COMMAND_CHANGE: Duration = Duration::from_secs(10);

/// The stream of an agent that has said hello.
#[derive(Debug)]
pub(super) struct SessionEntry {
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

impl WorkspaceEntry {
    pub(super) fn hello(&mut self, hello: AgentHello) {
        if self.sessions.len() >= MAX_AGENT_SESSIONS {
            self.session_ended(self.sessions[0].hello.connection);
        }
        self.sessions.push(SessionEntry { hello, claim: ClaimState::New, silence: Duration::ZERO });
    }

    /// Handles a heartbeat. Heartbeats of sessions that are not claimed are ignored.
    pub(super) fn heartbeat(&mut self, heartbeat: Heartbeat) {
        let epoch = self.epoch();
        let session =
            self.sessions.iter_mut().find(|session| session.hello.connection == heartbeat.connection);
        let Some(session) = session.filter(|session| session.claim == ClaimState::Claimed) else { return };
        session.silence = Duration::ZERO;
        if self.agent.as_ref().is_some_and(|agent| agent.epoch == epoch) {
            self.observed.heartbeat(epoch);
        }
        self.take_activity(heartbeat.activity);
        // If the stream has ended meanwhile, no acknowledgement is needed.
        let _gone = heartbeat.accepted.send(());
    }

    /// Records the activity that the agent has reported.
    pub(super) fn take_activity(&mut self, activity: Arc<ActivityState>) {
        self.observed.use_reported(match activity.level() {
            ActivityLevel::Active | ActivityLevel::Busy => UseState::Yes,
            ActivityLevel::Idle => {
                let counted = activity.counted_idle.and_then(|counted| Duration::try_from(counted).ok());
                UseState::No(counted.unwrap_or_default())
            }
            ActivityLevel::Unspecified => UseState::Unknown,
        });
        self.take_command_health(match &activity.command_failure {
            Some(failure) => CommandHealth::Failing(failure.detail.clone()),
            None => CommandHealth::Good,
        });
        self.activity = Some(activity);
    }

    /// Records the state of the workspace's command. While the command keeps failing, its text changes
    /// at most once per [`MIN_COMMAND_CHANGE`].
    fn take_command_health(&mut self, health: CommandHealth) {
        let keeps_failing = matches!(
            (&self.observed.command, &health),
            (CommandHealth::Failing(_), CommandHealth::Failing(_))
        );
        let is_due = self.command_changed_at.is_none_or(|at| at.elapsed() >= MIN_COMMAND_CHANGE);
        if health != self.observed.command && (is_due || !keeps_failing) {
            self.observed.command = health;
            self.command_changed_at = Some(Instant::now());
        }
    }

    /// Sends a message to the claimed agent. Returns `false` if no agent is claimed or its stream
    /// is full or closed.
    pub(super) fn send(&self, what: AgentDirective) -> bool {
        self.sessions
            .iter()
            .find(|session| session.claim == ClaimState::Claimed)
            .is_some_and(|session| session.send(what))
    }

    pub(super) fn claimed_connection(&self) -> Option<ConnectionId> {
        let claimed = self.sessions.iter().find(|session| session.claim == ClaimState::Claimed);
        claimed.map(|session| session.hello.connection)
    }

    /// Records that the connection to the claimed agent is lost. The pending directive fails,
    /// because its answer cannot arrive.
    fn connection_lost(&mut self) {
        self.observed.disconnected();
        self.finish_directive(Err(Failure::Failed("the connection to the agent was lost".into())));
        self.warned_for = None;
    }

    pub(super) fn session_ended(&mut self, connection: ConnectionId) {
        let Some(at) = self.sessions.iter().position(|session| session.hello.connection == connection) else {
            return;
        };
        if self.sessions.remove(at).claim == ClaimState::Claimed {
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
            self.sessions.retain_mut(|session| match stays {
                true => session.wait(),
                false => session.dismiss("this workspace needs no agent now"),
            });
            return false;
        };
        let named =
            self.agent.as_ref().map(|agent| agent.boot_id.clone()).or_else(|| instance.boot_id.clone());
        self.sessions.retain_mut(|session| {
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
        if self.sessions.len() > 1 {
            self.sessions.drain(..self.sessions.len() - 1);
            if self.claimed_connection().is_none() {
                // The directive was sent to the earlier session, which cannot answer it.
                self.connection_lost();
            }
        }
        let permitted = self.durable.as_ref().is_some_and(|durable| durable.status.permits_claim());
        let epoch = self.epoch();
        let Some(session) = self.sessions.last_mut().filter(|session| session.claim != ClaimState::Claimed)
        else {
            return false;
        };
        if !permitted {
            return self.observed.greeted.replace(epoch) != Some(epoch);
        }
        if !session.send(AgentDirective::Claim(claim)) {
            self.sessions.clear();
            return false;
        }
        // The agent becomes connected with its first heartbeat, which confirms the claim. Before
        // that it would reject every call.
        session.claim = ClaimState::Claimed;
        self.claimed_spec = Some(self.record.spec.clone());
        self.agent = Some(Arc::new(AgentView {
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
        self.sessions.retain_mut(|session| {
            session.claim != ClaimState::Claimed || session.send(AgentDirective::Drain { grace })
        });
    }

    /// Adds observed time to the silence of the claimed session and of the running agent. Returns
    /// whether the workspace must be advanced.
    pub(super) fn advance_time(&mut self, gap: Duration) -> bool {
        let was = self.observed.connected;
        let mut lost = false;
        for session in self.sessions.iter_mut().filter(|session| session.claim == ClaimState::Claimed) {
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
