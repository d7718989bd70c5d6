//! The agents' streams as the driver sees them: who is claimed, who waits, who is sent away, and who has fallen silent.

use std::{sync::Arc, time::Duration};

use podling_core::observed::{Failure, Processes, Used};
use podling_proto::agent::v1::{ActivityLevel, ActivityState};
use tokio::sync::mpsc;

use super::{AgentHello, ConnectionId, Heartbeat, ToAgent, entry::WorkspaceEntry};
use crate::snapshot::AgentView;

/// Streams of one workspace's agents at once: the present one, its next before the old one is known to be dead, and as much
/// again for a second agent. When it is full the oldest is given up.
pub const MAX_AGENT_SESSIONS: usize = 4;
/// Three beats and a half: then the session counts as lost.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(53);

/// One stream of one agent.
#[derive(Debug)]
pub(super) struct SessionEntry {
    hello: AgentHello,
    claim: ClaimState,
    /// How long no beat came, as far as the driver witnessed it.
    silence: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClaimState {
    /// Nothing has been said to it.
    New,
    /// ProgressSink to wait.
    Waiting,
    /// It serves the workspace.
    Claimed,
}

impl WorkspaceEntry {
    /// An agent introduces itself.
    pub(super) fn hello(&mut self, hello: AgentHello) {
        if self.sessions.len() >= MAX_AGENT_SESSIONS {
            self.session_ended(self.sessions[0].hello.connection);
        }
        self.sessions.push(SessionEntry { hello, claim: ClaimState::New, silence: Duration::ZERO });
    }

    /// A beat: taken only from the stream that is claimed.
    pub(super) fn heartbeat(&mut self, beat: Heartbeat) {
        let epoch = self.epoch();
        let session = self.sessions.iter_mut().find(|session| session.hello.connection == beat.connection);
        let Some(session) = session.filter(|session| session.claim == ClaimState::Claimed) else { return };
        session.silence = Duration::ZERO;
        if self.agent.as_ref().is_some_and(|agent| agent.epoch == epoch) {
            self.observed.heartbeat(epoch);
        }
        self.take_activity(beat.activity);
        // The stream may have ended meanwhile; then nobody needs the acknowledgement.
        let _gone = beat.accepted.send(());
    }

    /// What the agent says of the workspace's use.
    pub(super) fn take_activity(&mut self, activity: Arc<ActivityState>) {
        self.observed.use_reported(match activity.level() {
            ActivityLevel::Active | ActivityLevel::Busy => Used::Yes,
            ActivityLevel::Idle => {
                let counted = activity.counted_idle.and_then(|counted| Duration::try_from(counted).ok());
                Used::No(counted.unwrap_or_default())
            }
            ActivityLevel::Unspecified => Used::Unknown,
        });
        self.activity = Some(activity);
    }

    /// Says something to the agent that is claimed. `false`: nobody hears it.
    pub(super) fn send(&self, what: ToAgent) -> bool {
        self.sessions
            .iter()
            .find(|session| session.claim == ClaimState::Claimed)
            .is_some_and(|session| session.send(what))
    }

    /// The stream that is claimed.
    pub(super) fn claimed_connection(&self) -> Option<ConnectionId> {
        let claimed = self.sessions.iter().find(|session| session.claim == ClaimState::Claimed);
        claimed.map(|session| session.hello.connection)
    }

    /// The agent is not heard any more: nor will the answer be that it owes.
    fn connection_lost(&mut self) {
        self.observed.disconnected();
        self.finish_directive(Err(Failure::Failed("the connection to the agent was lost".into())));
        self.warned_for = None;
    }

    /// A stream has ended.
    pub(super) fn session_ended(&mut self, connection: ConnectionId) {
        let Some(at) = self.sessions.iter().position(|session| session.hello.connection == connection) else {
            return;
        };
        if self.sessions.remove(at).claim == ClaimState::Claimed {
            self.connection_lost();
        }
    }

    /// Brings streams and living agents together: the newest stream of the agent of the present epoch is claimed, streams of others
    /// are sent away, and where it is not known yet what lives, or what lives is about to be ended, they stay as they are. Whether
    /// an agent was claimed by that.
    pub(super) fn match_sessions(&mut self) -> bool {
        let stays =
            self.wants_agent() || self.instance().is_some() || self.observed.processes == Processes::Unseen;
        let Some(instance) = self.instance().filter(|_| self.wants_agent()).cloned() else {
            self.sessions.retain_mut(|session| match stays {
                true => session.wait(),
                false => session.dismiss("no agent is wanted for this workspace now"),
            });
            return false;
        };
        let named =
            self.agent.as_ref().map(|agent| agent.boot_id.clone()).or_else(|| instance.boot_id.clone());
        self.sessions.retain_mut(|session| {
            if session.hello.instance != instance.id {
                session.dismiss("another agent serves this workspace")
            } else if named.as_ref().is_some_and(|boot_id| *boot_id != session.hello.boot_id) {
                session.dismiss("this agent said hello with another boot id before")
            } else {
                true
            }
        });
        let claim = self.claim_content();
        // Of several streams of one agent the newest counts: it dials again only after it has given up the one before.
        if self.sessions.len() > 1 {
            self.sessions.drain(..self.sessions.len() - 1);
            if self.claimed_connection().is_none() {
                // What the one before was pending_directive it will not answer.
                self.connection_lost();
            }
        }
        let Some(session) = self.sessions.last_mut().filter(|session| session.claim != ClaimState::Claimed)
        else {
            return false;
        };
        if !session.send(ToAgent::Claim(claim)) {
            self.sessions.clear();
            return false;
        }
        // It counts as connected from its first beat on: that is its answer to the claim. Before that it would refuse every request_wake.
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

    /// Tells the agent that its end has come: it knows best how to end its processes in good order.
    pub(super) fn drain(&mut self, grace: Duration) {
        self.sessions.retain_mut(|session| {
            session.claim != ClaimState::Claimed || session.send(ToAgent::Drain { grace })
        });
    }

    /// So much time was witnessed. Whether anything follows from it.
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
        let step_over = self.age_directive(gap);
        let epoch = self.epoch();
        if self.observed.connected != Some(epoch) && self.observed.processes.lives(epoch) {
            self.observed.silence = self.observed.silence.saturating_add(gap);
        }
        was != self.observed.connected || step_over
    }
}

impl SessionEntry {
    /// Whether the stream still takes what is said. One that is full is not read by its agent: it is given up.
    fn send(&self, what: ToAgent) -> bool {
        match self.hello.to_agent.try_send(what) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    fn wait(&mut self) -> bool {
        if self.claim != ClaimState::New {
            return true;
        }
        self.claim = ClaimState::Waiting;
        self.send(ToAgent::Wait)
    }

    /// Sends it away: its stream goes.
    fn dismiss(&self, why: &str) -> bool {
        tracing::info!(workspace = %self.hello.workspace, instance = %self.hello.instance, why, "an agent is dismissed");
        let _gone = self.send(ToAgent::Dismiss(why.to_owned()));
        false
    }
}
