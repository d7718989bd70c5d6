//! The agents' streams as the driver sees them: who is claimed, who waits, who is sent away, and who has fallen silent.

use std::{sync::Arc, time::Duration};

use podling_core::observed::{Failure, Processes, Used};
use podling_proto::agent::v1::{ActivityLevel, ActivityState};
use tokio::sync::mpsc;

use super::{AgentHello, ConnectionId, Heartbeat, ToAgent, entry::Entry};
use crate::snapshot::AgentView;

/// Streams of one workspace's agents at once: the present one, its next before the old one is known to be dead, and as much
/// again for a second agent. When it is full the oldest is given up.
pub const MAX_LINKS: usize = 4;
/// Three beats and a half: then the link counts as lost.
const LINK_LOST_AFTER: Duration = Duration::from_secs(53);

/// One stream of one agent.
#[derive(Debug)]
pub(super) struct AgentLink {
    hello: AgentHello,
    state: LinkState,
    /// How long no beat came, as far as the driver witnessed it.
    quiet: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    /// Nothing has been said to it.
    New,
    /// Told to wait.
    Waits,
    /// It serves the workspace.
    Claimed,
}

impl Entry {
    /// An agent introduces itself.
    pub(super) fn hello(&mut self, hello: AgentHello) {
        if self.links.len() >= MAX_LINKS {
            self.gone(self.links[0].hello.connection);
        }
        self.links.push(AgentLink { hello, state: LinkState::New, quiet: Duration::ZERO });
    }

    /// A beat: taken only from the stream that is claimed.
    pub(super) fn beat(&mut self, beat: Heartbeat) {
        let epoch = self.epoch();
        let link = self.links.iter_mut().find(|link| link.hello.connection == beat.connection);
        let Some(link) = link.filter(|link| link.state == LinkState::Claimed) else { return };
        link.quiet = Duration::ZERO;
        if self.agent.as_ref().is_some_and(|agent| agent.epoch == epoch) {
            self.observed.heartbeat(epoch);
        }
        self.take_activity(beat.activity);
        // The stream may have ended meanwhile; then nobody needs the acknowledgement.
        let _gone = beat.taken.send(());
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
    pub(super) fn say(&self, what: ToAgent) -> bool {
        self.links.iter().find(|link| link.state == LinkState::Claimed).is_some_and(|link| link.say(what))
    }

    /// The stream that is claimed.
    pub(super) fn claimed(&self) -> Option<ConnectionId> {
        let claimed = self.links.iter().find(|link| link.state == LinkState::Claimed);
        claimed.map(|link| link.hello.connection)
    }

    /// The agent is not heard any more: nor will the answer be that it owes.
    fn disconnected(&mut self) {
        self.observed.disconnected();
        self.step_ends(Err(Failure::Failed("the connection to the agent was lost".into())));
        self.warned = None;
    }

    /// A stream has ended.
    pub(super) fn gone(&mut self, connection: ConnectionId) {
        let Some(at) = self.links.iter().position(|link| link.hello.connection == connection) else { return };
        if self.links.remove(at).state == LinkState::Claimed {
            self.disconnected();
        }
    }

    /// Brings streams and living agents together: the newest stream of the agent of the present epoch is claimed, streams of others
    /// are sent away, and where it is not known yet what lives, or what lives is about to be ended, they stay as they are. Whether
    /// an agent was claimed by that.
    pub(super) fn pair(&mut self) -> bool {
        let stays =
            self.wants_agent() || self.instance().is_some() || self.observed.processes == Processes::Unseen;
        let Some(instance) = self.instance().filter(|_| self.wants_agent()).cloned() else {
            self.links.retain_mut(|link| match stays {
                true => link.wait(),
                false => link.dismiss("no agent is wanted for this workspace now"),
            });
            return false;
        };
        let named =
            self.agent.as_ref().map(|agent| agent.boot_id.clone()).or_else(|| instance.boot_id.clone());
        self.links.retain_mut(|link| {
            if link.hello.instance != instance.id {
                link.dismiss("another agent serves this workspace")
            } else if named.as_ref().is_some_and(|boot_id| *boot_id != link.hello.boot_id) {
                link.dismiss("this agent said hello with another boot id before")
            } else {
                true
            }
        });
        let claim = self.claim();
        // Of several streams of one agent the newest counts: it dials again only after it has given up the one before.
        if self.links.len() > 1 {
            self.links.drain(..self.links.len() - 1);
            if self.claimed().is_none() {
                // What the one before was asked it will not answer.
                self.disconnected();
            }
        }
        let Some(link) = self.links.last_mut().filter(|link| link.state != LinkState::Claimed) else {
            return false;
        };
        if !link.say(ToAgent::Claim(claim)) {
            self.links.clear();
            return false;
        }
        // It counts as connected from its first beat on: that is its answer to the claim. Before that it would refuse every call.
        link.state = LinkState::Claimed;
        self.told_spec = Some(self.record.spec.clone());
        self.agent = Some(Arc::new(AgentView {
            boot_id: link.hello.boot_id.clone(),
            epoch: instance.epoch,
            version: link.hello.version.clone(),
            capabilities: link.hello.capabilities.clone(),
            address: instance.address,
            fingerprint: link.hello.fingerprint,
            instance: instance.id,
            image: instance.image,
        }));
        true
    }

    /// Tells the agent that its end has come: it knows best how to end its processes in good order.
    pub(super) fn drain(&mut self, grace: Duration) {
        self.links.retain_mut(|link| link.state != LinkState::Claimed || link.say(ToAgent::Drain { grace }));
    }

    /// So much time was witnessed. Whether anything follows from it.
    pub(super) fn time_passes(&mut self, gap: Duration) -> bool {
        let was = self.observed.connected;
        let mut lost = false;
        for link in self.links.iter_mut().filter(|link| link.state == LinkState::Claimed) {
            link.quiet = link.quiet.saturating_add(gap);
            lost |= link.quiet >= LINK_LOST_AFTER;
        }
        if lost && was.is_some() {
            self.disconnected();
        }
        let step_over = self.step_waits(gap);
        let epoch = self.epoch();
        if self.observed.connected != Some(epoch) && self.observed.processes.lives(epoch) {
            self.observed.silence = self.observed.silence.saturating_add(gap);
        }
        was != self.observed.connected || step_over
    }
}

impl AgentLink {
    /// Whether the stream still takes what is said. One that is full is not read by its agent: it is given up.
    fn say(&self, what: ToAgent) -> bool {
        match self.hello.to_agent.try_send(what) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    fn wait(&mut self) -> bool {
        if self.state != LinkState::New {
            return true;
        }
        self.state = LinkState::Waits;
        self.say(ToAgent::Wait)
    }

    /// Sends it away: its stream goes.
    fn dismiss(&self, why: &str) -> bool {
        tracing::info!(workspace = %self.hello.workspace, instance = %self.hello.instance, why, "an agent is dismissed");
        let _gone = self.say(ToAgent::Dismiss(why.to_owned()));
        false
    }
}
