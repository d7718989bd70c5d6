//! What agents and control plane tell each other, and how their streams come and go.

use podling_core::observed::{Achieved, Failure, Processes, Used};

use super::{
    real::{Agent, Down, Up},
    world::World,
};

impl World {
    /// Brings streams and living agents together. Whether an agent was claimed by that.
    pub(crate) fn pair(&mut self, w: usize) -> bool {
        let watched = self.watched;
        let Some(entry) = self.control.as_mut().and_then(|control| control.entries.get_mut(&w)) else {
            return false;
        };
        let epoch = entry.epoch();
        let Some(real) = self.real.get_mut(&w) else { return false };
        let serves = entry.wants_agent() && entry.observed.processes.lives(epoch);
        let known = entry.observed.processes != Processes::Unseen;
        let mut claimed = false;
        for (other, connection) in entry.hellos.clone() {
            let link = real.agents.get_mut(&other).and_then(|agent| agent.link.as_mut());
            let Some(link) = link.filter(|link| link.connection == connection) else {
                entry.hellos.remove(&other);
                continue;
            };
            if serves && other == epoch {
                if entry.claimed != Some((epoch, connection)) {
                    let idle_timeout = entry.record.spec.policy.idle_timeout;
                    link.down.push_back(Down::Claim { idle_timeout });
                    entry.claimed = Some((epoch, connection));
                    entry.quiet = Default::default();
                    entry.heard = watched;
                    claimed = true;
                }
            } else if known && !entry.observed.processes.lives(other) && entry.flight.is_none() {
                link.down.push_back(Down::Dismiss);
                entry.hellos.remove(&other);
            }
        }
        claimed
    }

    /// An agent is told another policy.
    pub(crate) fn claim_again(&mut self, w: usize) {
        let entry = self.acting().and_then(|control| control.entries.get(&w));
        let claim = entry.and_then(|entry| Some((entry.claimed?, entry.record.spec.policy.idle_timeout)));
        let Some(((epoch, connection), idle_timeout)) = claim else { return };
        let link = self.agent(w, epoch).and_then(|agent| agent.link.as_mut());
        if let Some(link) = link.filter(|link| link.connection == connection) {
            link.down.push_back(Down::Claim { idle_timeout });
        }
    }

    /// The control plane reads what an agent said.
    pub(crate) fn hear(&mut self, w: usize, epoch: u64) {
        let clock = self.clock;
        let watched = self.watched;
        if self.acting().is_none() {
            return;
        }
        let Some((up, connection)) = self.agent(w, epoch).and_then(|agent| {
            let link = agent.link.as_mut().filter(|link| link.parted <= clock)?;
            Some((link.up.pop_front()?, link.connection))
        }) else {
            return;
        };
        let Some(entry) = self.acting().and_then(|control| control.entries.get_mut(&w)) else { return };
        match up {
            Up::Hello => {
                entry.hellos.insert(epoch, connection);
            }
            Up::Beat { sequence, used } => {
                if entry.claimed != Some((epoch, connection)) {
                    return;
                }
                entry.quiet = Default::default();
                entry.heard = watched;
                entry.told = match used {
                    Used::No(idle) => Some(idle),
                    Used::Yes | Used::Unknown => None,
                };
                if used == Used::Yes {
                    entry.used_by = Some(epoch);
                }
                entry.observed.heartbeat(epoch);
                entry.observed.use_reported(used);
                if let Some(link) = self.agent(w, epoch).and_then(|agent| agent.link.as_mut()) {
                    link.down.push_back(Down::Ack { sequence });
                }
            }
            Up::Result { order, result } => {
                if let Some(flight) =
                    entry.flight.as_mut().filter(|flight| flight.number == order && flight.result.is_none())
                {
                    let declined = |why: &str| Failure::Declined {
                        reason: podling_core::reason::DeclineReason::InUse,
                        detail: why.to_owned(),
                    };
                    flight.result = Some(result.map(|()| Achieved::Done).map_err(declined));
                }
                return;
            }
        }
        self.advance(w);
    }

    /// An agent reads what the control plane said.
    pub(crate) fn tell(&mut self, w: usize, epoch: u64) {
        let clock = self.clock;
        let Some(agent) = self.agent(w, epoch).filter(|agent| agent.stuck <= clock) else { return };
        let Some(link) = agent.link.as_mut().filter(|link| link.parted <= clock) else { return };
        let Some(down) = link.down.pop_front() else { return };
        if !agent.told(down, clock)
            && let Some(real) = self.real.get_mut(&w)
        {
            real.end(epoch);
            self.note(|| format!("w{w} agent {epoch} was dismissed"));
        }
    }

    pub(crate) fn agent(&mut self, w: usize, epoch: u64) -> Option<&mut Agent> {
        self.real.get_mut(&w)?.agents.get_mut(&epoch)
    }

    /// A stream breaks: what was on its way is lost, and either side notices.
    pub(crate) fn breaks(&mut self, w: usize, epoch: u64) {
        let Some(agent) = self.agent(w, epoch) else { return };
        let Some(connection) = agent.link.as_ref().map(|link| link.connection) else { return };
        agent.unlinked();
        self.note(|| format!("w{w} agent {epoch}: its stream broke"));
        let noticed = self.rng.per_mille(700);
        let Some(entry) = self.acting().and_then(|control| control.entries.get_mut(&w)) else { return };
        if noticed && entry.claimed == Some((epoch, connection)) {
            entry.link_lost();
            self.advance(w);
        }
    }

    /// Agents without a stream dial.
    pub(crate) fn dial(&mut self) {
        if self.acting().is_none() {
            return;
        }
        let clock = self.clock;
        for real in self.real.values_mut() {
            for agent in real.agents.values_mut().filter(|agent| agent.stuck <= clock && agent.link.is_none())
            {
                self.connections += 1;
                agent.dial(self.connections);
            }
        }
    }
}
