//! How what happens changes what is known.

use std::{collections::BTreeSet, time::Duration};

use super::{Achieved, Door, Ended, Failure, Observed, Processes, Trouble, Used};
use crate::{decide::Action, time::Timestamp, workspace::Epoch};

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
        match action {
            Action::Start(_) => {
                self.processes = Processes::Some(BTreeSet::new());
                self.silence = Duration::ZERO;
                self.waits = None;
                // Whatever was there, there will be storage.
                self.removed = false;
            }
            Action::Prepare { epoch, .. } => {
                self.door = Door::Unsure(epoch);
                self.asked = None;
            }
            Action::Cancel(epoch) => self.door = Door::Unsure(epoch),
            Action::Resize { .. } => self.waits = None,
            Action::Commit(_)
            | Action::Archive(_)
            | Action::Restore(_)
            | Action::Stop
            | Action::Remove
            | Action::Expire(_)
            | Action::Forget => {}
        }
    }

    /// An action came back.
    pub fn done(&mut self, action: Action, result: Result<Achieved, Failure>, now: Timestamp) {
        if let Action::Start(_) | Action::Resize { .. } = action {
            self.waits = None;
        }
        match result {
            Ok(achieved) => self.achieved(action, achieved),
            Err(failure) => self.failed(action, failure, now),
        }
    }

    fn achieved(&mut self, action: Action, achieved: Achieved) {
        if !matches!(action, Action::Start(_)) {
            self.trouble = None;
        }
        match action {
            Action::Start(epoch) => {
                // It may have ended before its start was reported.
                let ended = self.ended.as_ref().is_some_and(|ended| ended.epoch == epoch);
                if let (Processes::Some(agents), false) = (&mut self.processes, ended) {
                    agents.insert(epoch);
                }
            }
            Action::Prepare { epoch, .. } => self.door = Door::Shut(epoch),
            Action::Commit(epoch) => self.ready = Some(epoch),
            Action::Cancel(_) => self.door = Door::Open,
            Action::Resize { epoch, resources } => self.allotted = Some((epoch, resources)),
            Action::Archive(_) => {
                if let Achieved::Archived(archive) = achieved {
                    // Whatever was removed before, this one is there.
                    self.expired.remove(&archive.generation);
                    self.archived = Some(archive);
                }
            }
            Action::Restore(epoch) => self.restored = Some(epoch),
            Action::Stop => {
                self.processes = Processes::None;
                self.agent_gone();
            }
            Action::Remove => self.removed = true,
            Action::Expire(generation) => {
                self.expired.insert(generation);
            }
            Action::Forget => {}
        }
    }

    fn failed(&mut self, action: Action, failure: Failure, now: Timestamp) {
        if let Action::Resize { .. } = action {
            // It may have happened.
            self.allotted = None;
        }
        if let Action::Start(epoch) = action {
            self.ended = Some(Ended { epoch, how: failure.words().to_owned() });
            return;
        }
        // One that declines is as it was.
        if let (Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_), Failure::Declined(_)) =
            (action, &failure)
        {
            self.door = Door::Open;
        }
        let before = self.trouble.take().filter(|t| t.action == action).map_or(0, |t| t.failures);
        self.trouble = Some(Trouble { action, failures: before.saturating_add(1), at: now, failure });
    }

    /// The agent of this epoch is heard of: it is claimed, or its heartbeat came.
    pub fn heard(&mut self, epoch: Epoch) {
        self.connected = Some(epoch);
        self.silence = Duration::ZERO;
    }

    /// The agent is not heard of any more: what it said last is not known any more (law 4).
    pub fn link_lost(&mut self) {
        self.connected = None;
        self.asked = None;
        self.used = Used::Unknown;
    }

    /// The connected agent has said whether the workspace is used.
    pub fn use_told(&mut self, used: Used) {
        self.used = used;
        if used == Used::Yes {
            self.used_by = self.connected;
            self.asked = None;
        }
        // It has declined for a use that now shows; when that is over it may be asked again.
        if used == Used::Yes && matches!(self.trouble, Some(Trouble { action: Action::Prepare { .. }, .. })) {
            self.trouble = None;
        }
    }

    /// An agent has ended.
    pub fn agent_ended(&mut self, epoch: Epoch, how: String) {
        if let Processes::Some(agents) = &mut self.processes {
            agents.remove(&epoch);
        }
        if self.connected == Some(epoch) {
            self.agent_gone();
        }
        if self.ended.as_ref().is_none_or(|ended| ended.epoch < epoch) {
            self.ended = Some(Ended { epoch, how });
        }
    }

    fn agent_gone(&mut self) {
        self.link_lost();
        self.door = Door::Open;
    }
}
