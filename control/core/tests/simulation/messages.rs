//! Messages between agents and the control plane, and the streams that carry them.

use podling_core::observed::{ActionSuccess, Failure, RunningAgents, UseState};

use super::{
    mutant::Mutant,
    simulation::Simulation,
    workspace::{Agent, AgentMessage, ControlMessage, EMPTY, Storage},
};

impl Simulation {
    /// Matches sessions with running agents. Claims the agent of the present epoch, and dismisses
    /// agents that do not run according to the backend. Returns whether an agent was claimed, or asks
    /// for a claim that the durable status does not permit yet.
    pub(crate) fn match_sessions(&mut self, w: usize) -> bool {
        let true_observed_time = self.true_observed_time;
        let Some(entry) = self.control.as_mut().and_then(|control| control.entries.get_mut(&w)) else {
            return false;
        };
        let epoch = entry.epoch();
        let Some(workspace) = self.workspaces.get_mut(&w) else { return false };
        let permitted = entry.durable.as_ref().is_some_and(|durable| {
            durable.status.permits_claim() || self.mutant == Some(Mutant::ClaimsBeforeStorage)
        });
        let serves = entry.wants_agent() && entry.observed.processes.is_running(epoch);
        let listed = entry.observed.processes != RunningAgents::Unseen;
        let mut changed = false;
        for (other, connection) in entry.hellos.clone() {
            let stream = workspace.agents.get_mut(&other).and_then(|agent| agent.stream.as_mut());
            let Some(stream) = stream.filter(|stream| stream.connection == connection) else {
                entry.hellos.remove(&other);
                continue;
            };
            if serves && other == epoch && !permitted {
                changed |= entry.observed.greeted != Some(epoch);
                entry.observed.greeted = Some(epoch);
            } else if serves && other == epoch {
                if entry.claimed != Some((epoch, connection)) {
                    let idle_timeout = entry.record.spec.policy.idle_timeout;
                    stream.down.push_back(ControlMessage::Claim { idle_timeout });
                    entry.claimed = Some((epoch, connection));
                    entry.since_heartbeat = Default::default();
                    entry.heard_at = true_observed_time;
                    changed = true;
                }
            } else if listed && !entry.observed.processes.is_running(other) && entry.in_flight.is_none() {
                stream.down.push_back(ControlMessage::Dismiss);
                entry.hellos.remove(&other);
            }
        }
        changed
    }

    /// Sends the claim again, because the policy has changed.
    pub(crate) fn resend_claim(&mut self, w: usize) {
        let entry = self.running_control().and_then(|control| control.entries.get(&w));
        let claim = entry.and_then(|entry| Some((entry.claimed?, entry.record.spec.policy.idle_timeout)));
        let Some(((epoch, connection), idle_timeout)) = claim else { return };
        let stream = self.agent(w, epoch).and_then(|agent| agent.stream.as_mut());
        if let Some(stream) = stream.filter(|stream| stream.connection == connection) {
            stream.down.push_back(ControlMessage::Claim { idle_timeout });
        }
    }

    /// Delivers the next message of an agent to the control plane.
    pub(crate) fn receive_from_agent(&mut self, w: usize, epoch: u64) {
        let clock = self.clock;
        let true_observed_time = self.true_observed_time;
        if self.running_control().is_none() {
            return;
        }
        let Some((up, connection)) = self.agent(w, epoch).and_then(|agent| {
            let stream = agent.stream.as_mut().filter(|stream| stream.blocked_until <= clock)?;
            Some((stream.up.pop_front()?, stream.connection))
        }) else {
            return;
        };
        let Some(entry) = self.running_control().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        match up {
            AgentMessage::Hello => {
                entry.hellos.insert(epoch, connection);
            }
            AgentMessage::Heartbeat { sequence, used } => {
                if entry.claimed != Some((epoch, connection)) {
                    return;
                }
                entry.since_heartbeat = Default::default();
                entry.heard_at = true_observed_time;
                entry.reported_idle = match used {
                    UseState::No(idle) => Some(idle),
                    UseState::Yes | UseState::Unknown => None,
                };
                if used == UseState::Yes {
                    entry.used_by = Some(epoch);
                }
                entry.observed.heartbeat(epoch);
                entry.observed.use_reported(used);
                if let Some(stream) = self.agent(w, epoch).and_then(|agent| agent.stream.as_mut()) {
                    stream.down.push_back(ControlMessage::Ack { sequence });
                }
            }
            AgentMessage::Result { order, result } => {
                if let Some(in_flight) = entry
                    .in_flight
                    .as_mut()
                    .filter(|in_flight| in_flight.number == order && in_flight.result.is_none())
                {
                    let declined = |detail: &str| Failure::Declined {
                        reason: podling_core::reason::DeclineReason::InUse,
                        detail: detail.to_owned(),
                    };
                    in_flight.result = Some(result.map(|()| ActionSuccess::Done).map_err(declined));
                }
                return;
            }
        }
        self.advance(w);
    }

    /// Delivers the next message of the control plane to an agent.
    pub(crate) fn deliver_to_agent(&mut self, w: usize, epoch: u64) {
        let clock = self.clock;
        let Some(agent) = self.agent(w, epoch).filter(|agent| agent.suspended_until <= clock) else { return };
        let Some(stream) = agent.stream.as_mut().filter(|stream| stream.blocked_until <= clock) else {
            return;
        };
        let Some(down) = stream.down.pop_front() else { return };
        let stays = agent.receive(down, clock);
        let serves = agent.serves();
        let Some(workspace) = self.workspaces.get_mut(&w) else { return };
        if !stays {
            workspace.end(epoch);
            self.log(|| format!("w{w} agent {epoch} was dismissed"));
        } else if serves && workspace.storage == Storage::Complete(EMPTY) {
            // The first agent that is claimed starts programs, which write files.
            self.last_content += 1;
            workspace.storage = Storage::Complete(self.last_content);
            workspace.latest_content = self.last_content;
        }
    }

    pub(crate) fn agent(&mut self, w: usize, epoch: u64) -> Option<&mut Agent> {
        self.workspaces.get_mut(&w)?.agents.get_mut(&epoch)
    }

    /// Breaks a stream and loses its undelivered messages. The control plane may notice only later,
    /// when heartbeats are overdue.
    pub(crate) fn break_stream(&mut self, w: usize, epoch: u64) {
        let Some(agent) = self.agent(w, epoch) else { return };
        let Some(connection) = agent.stream.as_ref().map(|stream| stream.connection) else { return };
        agent.drop_stream();
        self.log(|| format!("w{w} agent {epoch}: stream broken"));
        let noticed = self.rng.per_mille(700);
        let Some(entry) = self.running_control().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        if noticed && entry.claimed == Some((epoch, connection)) {
            entry.connection_lost();
            self.advance(w);
        }
    }

    /// Connects every agent that has no stream.
    pub(crate) fn dial_agents(&mut self) {
        if self.running_control().is_none() {
            return;
        }
        let clock = self.clock;
        for workspace in self.workspaces.values_mut() {
            for agent in workspace
                .agents
                .values_mut()
                .filter(|agent| agent.suspended_until <= clock && agent.stream.is_none())
            {
                self.last_connection += 1;
                agent.connect(self.last_connection);
            }
        }
    }
}
