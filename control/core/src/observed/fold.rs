//! Folds events into observations.

use std::{collections::BTreeSet, time::Duration};

use super::{
    ActionFailure, ActionSuccess, AgentEnd, CommandHealth, Failure, Observed, PrepareState, RunningAgents,
    UseState,
};
use crate::{decide::Action, time::Timestamp, workspace::Epoch};

impl Observed {
    /// Creates the observations of a new workspace. No process can run under an id that was never
    /// used.
    pub fn for_new_workspace() -> Self {
        Self { processes: RunningAgents::None, ..Self::default() }
    }

    /// Applies the backend's first list of running agents. Later lists are ignored. If the agent of
    /// `epoch`, the last start, is missing, it has ended or was never started. In both cases its
    /// epoch is used up. An agent whose end was reported does not run, even if the list contains
    /// it.
    pub fn apply_first_list(&mut self, mut living: BTreeSet<Epoch>, epoch: Epoch) {
        if self.processes != RunningAgents::Unseen {
            return;
        }
        if let Some(ended) = &self.ended {
            living.remove(&ended.epoch);
        }
        let known = self.ended.as_ref().is_some_and(|ended| ended.epoch == epoch);
        if !living.contains(&epoch) && !known {
            self.ended =
                Some(AgentEnd { epoch, detail: "not running when the control plane started".into() });
        }
        self.processes = RunningAgents::Some(living);
    }

    /// Records that an action was ordered. From then on its effects may have happened.
    pub fn action_started(&mut self, action: Action) {
        match action {
            Action::StartAgent(_) => {
                self.processes = RunningAgents::Some(BTreeSet::new());
                self.silence = Duration::ZERO;
                self.waits = None;
                self.command = CommandHealth::Unknown;
                // A start creates the storage again.
                self.removed = false;
            }
            Action::Prepare { epoch, .. } => {
                self.prepare_state = PrepareState::Unconfirmed(epoch);
                self.sleep_request = None;
            }
            Action::Cancel(epoch) => self.prepare_state = PrepareState::Unconfirmed(epoch),
            Action::Resize { .. } => self.waits = None,
            Action::Commit(_)
            | Action::Archive(_)
            | Action::Restore(_)
            | Action::StopProcesses
            | Action::RemoveStorage
            | Action::ExpireArchive(_)
            | Action::RemoveRecord => {}
        }
    }

    /// Records the result of an action.
    pub fn done(&mut self, action: Action, result: Result<ActionSuccess, Failure>, now: Timestamp) {
        if let Action::StartAgent(_) | Action::Resize { .. } = action {
            self.waits = None;
        }
        match result {
            Ok(achieved) => self.achieved(action, achieved),
            Err(failure) => self.failed(action, failure, now),
        }
    }

    fn achieved(&mut self, action: Action, achieved: ActionSuccess) {
        if !matches!(action, Action::StartAgent(_)) {
            self.last_failure = None;
        }
        match action {
            Action::StartAgent(epoch) => {
                // The end of an agent may be reported before the result of its start.
                let ended = self.ended.as_ref().is_some_and(|ended| ended.epoch == epoch);
                if let (RunningAgents::Some(agents), false) = (&mut self.processes, ended) {
                    agents.insert(epoch);
                }
            }
            Action::Prepare { epoch, .. } => self.prepare_state = PrepareState::Prepared(epoch),
            Action::Commit(epoch) => self.ready = Some(epoch),
            Action::Cancel(_) => self.prepare_state = PrepareState::NotPrepared,
            Action::Resize { epoch, resources } => self.actual = Some((epoch, resources)),
            Action::Archive(_) => {
                if let ActionSuccess::Archived(archive) = achieved {
                    // An earlier archive of this generation may have been removed. It exists again.
                    self.expired.remove(&archive.generation);
                    self.archived = Some(archive);
                }
            }
            Action::Restore(epoch) => self.restored = Some(epoch),
            Action::StopProcesses => {
                self.processes = RunningAgents::None;
                self.clear_agent();
            }
            Action::RemoveStorage => self.removed = true,
            Action::ExpireArchive(generation) => {
                self.expired.insert(generation);
            }
            Action::RemoveRecord => {}
        }
    }

    fn failed(&mut self, action: Action, failure: Failure, now: Timestamp) {
        if let Action::Resize { .. } = action {
            // The resize may have happened in part.
            self.actual = None;
        }
        if let Action::StartAgent(epoch) = action {
            self.ended = Some(AgentEnd { epoch, detail: failure.detail().to_owned() });
            return;
        }
        // An agent that declines is not prepared.
        if let (Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_), Failure::Declined { .. }) =
            (action, &failure)
        {
            self.prepare_state = PrepareState::NotPrepared;
        }
        let before =
            self.last_failure.take().filter(|last| last.action == action).map_or(0, |last| last.failures);
        self.last_failure =
            Some(ActionFailure { action, failures: before.saturating_add(1), at: now, failure });
    }

    /// Records a heartbeat of the claimed agent, which runs in this epoch.
    pub fn heartbeat(&mut self, epoch: Epoch) {
        self.connected = Some(epoch);
        self.silence = Duration::ZERO;
    }

    /// Records that the connection to the agent is lost. The last report is discarded, because
    /// unknown activity never counts as idle.
    pub fn disconnected(&mut self) {
        self.connected = None;
        self.sleep_request = None;
        self.used = UseState::Unknown;
    }

    /// Records whether the connected agent reports the workspace as used.
    pub fn use_reported(&mut self, used: UseState) {
        self.used = used;
        if used == UseState::Yes {
            self.used_by = self.connected;
            self.sleep_request = None;
        }
        // The agent declined to prepare because of this use. Once the use is over, the agent may be
        // asked again without a pause.
        if used == UseState::Yes
            && matches!(self.last_failure, Some(ActionFailure { action: Action::Prepare { .. }, .. }))
        {
            self.last_failure = None;
        }
    }

    /// Records that the agent of this epoch ended.
    pub fn agent_ended(&mut self, epoch: Epoch, detail: String) {
        if let RunningAgents::Some(agents) = &mut self.processes {
            agents.remove(&epoch);
        }
        if self.connected == Some(epoch) {
            self.clear_agent();
        }
        if self.ended.as_ref().is_none_or(|ended| ended.epoch < epoch) {
            self.ended = Some(AgentEnd { epoch, detail });
        }
    }

    fn clear_agent(&mut self) {
        self.disconnected();
        self.command = CommandHealth::Unknown;
        self.prepare_state = PrepareState::NotPrepared;
    }
}
