//! Observed: what the driver knows of the world at this moment. Never stored: after a restart it is observed anew.

use std::{collections::BTreeSet, time::Duration};

use crate::{decide::Action, time::Timestamp, workspace::Epoch};

/// What is known of one workspace's outside world.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What runs.
    pub processes: Processes,
    /// The last agent that ended, or never came to life.
    pub ended: Option<Ended>,
    /// The agent that is claimed and whose heartbeats arrive.
    pub connected: Option<Epoch>,
    /// How long the living agent of the present epoch has not been heard of, as far as the driver witnessed it: while the driver
    /// or the machine slept nothing is added.
    pub silence: Duration,
    /// The last order went wrong (a start that did is `ended`).
    pub trouble: Option<Trouble>,
    /// The storage is confirmed gone.
    pub removed: bool,
    /// The control plane is going down: nothing shall run.
    pub standby: bool,
}

/// The processes of a workspace. Two agents may live at once: a machine may be lost and come back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Processes {
    /// The backend has not said yet.
    #[default]
    Unseen,
    /// Confirmed: none is left.
    None,
    /// Agents of these epochs live. Empty: no agent, but what one left behind may run, or one is being started.
    Some(BTreeSet<Epoch>),
}

/// An agent's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which start made it.
    pub epoch: Epoch,
    /// For people: "killed by SIGKILL", "no such program".
    pub how: String,
}

/// An order that failed and still stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Which.
    pub action: Action,
    /// How often in a row.
    pub failures: u32,
    /// The last time.
    pub at: Timestamp,
    /// For people.
    pub error: String,
}

impl Observed {
    /// Of a workspace that has just been made: nothing can run under an id that was never used.
    pub fn of_new() -> Self {
        Self { processes: Processes::None, ..Self::default() }
    }

    /// The backend has said for the first time which agents live. One that was ordered (`epoch`) and is not among them has ended,
    /// or its start was never carried out: either way its epoch is used up. One whose end was told does not live, whatever the list says.
    pub fn listed(&mut self, mut living: BTreeSet<Epoch>, epoch: Epoch) {
        if self.processes != Processes::Unseen {
            return;
        }
        if let Some(ended) = &self.ended {
            living.remove(&ended.epoch);
        }
        let known = self.ended.as_ref().is_some_and(|ended| ended.epoch == epoch);
        if !living.contains(&epoch) && !known {
            self.ended = Some(Ended { epoch, how: "it was gone when the control plane came up".into() });
        }
        self.processes = Processes::Some(living);
    }

    /// An action is given away: from here on it may have happened.
    pub fn ordered(&mut self, action: Action) {
        if let Action::Start(_) = action {
            self.processes = Processes::Some(BTreeSet::new());
            self.silence = Duration::ZERO;
        }
    }

    /// An action came back.
    pub fn done(&mut self, action: Action, result: Result<(), String>, now: Timestamp) {
        match (action, result) {
            (Action::Start(epoch), Ok(())) => {
                // It may have ended before its start was reported.
                let ended = self.ended.as_ref().is_some_and(|ended| ended.epoch == epoch);
                if let (Processes::Some(agents), false) = (&mut self.processes, ended) {
                    agents.insert(epoch);
                }
            }
            (Action::Start(epoch), Err(how)) => self.ended = Some(Ended { epoch, how }),
            (Action::Stop, Ok(())) => {
                self.processes = Processes::None;
                self.connected = None;
                self.trouble = None;
            }
            (Action::Remove, Ok(())) => {
                self.removed = true;
                self.trouble = None;
            }
            (Action::Forget, Ok(())) => self.trouble = None,
            (Action::Stop | Action::Remove | Action::Forget, Err(error)) => {
                let before = self.trouble.take().filter(|t| t.action == action).map_or(0, |t| t.failures);
                self.trouble = Some(Trouble { action, failures: before.saturating_add(1), at: now, error });
            }
        }
    }

    /// An agent has ended.
    pub fn agent_ended(&mut self, epoch: Epoch, how: String) {
        if let Processes::Some(agents) = &mut self.processes {
            agents.remove(&epoch);
        }
        if self.connected == Some(epoch) {
            self.connected = None;
        }
        if self.ended.as_ref().is_none_or(|ended| ended.epoch < epoch) {
            self.ended = Some(Ended { epoch, how });
        }
    }
}

impl Processes {
    /// Whether this agent lives.
    pub fn lives(&self, epoch: Epoch) -> bool {
        matches!(self, Self::Some(agents) if agents.contains(&epoch))
    }
}
