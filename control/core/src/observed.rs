//! Observations of a workspace's processes and agent, and how events change them. They are never
//! persisted. A restarted driver collects them again.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    action::Action,
    archive::Archive,
    reason::{DeclineReason, Operation, SleepRequest, StateReason, Wait},
    time::Timestamp,
    workspace::{Epoch, Resources},
};

/// Observations of one workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub processes: RunningAgents,
    /// Reason why the start or resize in progress waits, as the backend reports it.
    pub waits: Option<Wait>,
    /// Epoch of an agent and its actual resources, from the backend or from the last resize.
    pub actual: Option<(Epoch, Resources)>,
    /// The last agent that ended or failed to start.
    pub ended: Option<AgentEnd>,
    /// Epoch of the running agent that has said hello, while it may not be claimed yet. See
    /// [`crate::status::Status::permits_claim`].
    pub greeted: Option<Epoch>,
    /// Epoch of the agent that is claimed and sends heartbeats.
    pub connected: Option<Epoch>,
    /// Time without a heartbeat from the running agent of the current epoch. Counted in driver
    /// ticks, so time in which the driver or the machine is suspended is not included.
    pub silence: Duration,
    /// Use that the connected agent last reported.
    pub used: UseState,
    /// Epoch of the agent that last reported use.
    pub used_by: Option<Epoch>,
    /// State of the workspace's own command, as the agent of the current epoch last reported it.
    pub command: CommandHealth,
    /// Problem of a container beside the agent of the current epoch, as the backend last reported.
    /// The workspace is served all the same.
    pub container_problem: Option<String>,
    /// Pending request to sleep unless the workspace is in use. Cleared when prepare is ordered,
    /// when the workspace is used, or when the connection to the agent is lost.
    pub sleep_request: Option<SleepRequest>,
    pub prepare_state: PrepareState,
    /// Epoch of the agent that has ended its programs and saved the terminals.
    pub ready: Option<Epoch>,
    /// The archive that was proven last.
    pub archived: Option<Box<Archive>>,
    /// Epoch of the agent that has filled the storage from an archive.
    pub restored: Option<Epoch>,
    /// Storage generations whose archives are confirmed to be removed.
    pub expired: BTreeSet<u64>,
    /// The last failed action, until an action succeeds. A failed start sets `ended` instead.
    pub last_failure: Option<ActionFailure>,
    /// Whether the storage is confirmed to be removed.
    pub removed: bool,
    /// Whether the quota admits the workspace, or the resize that it waits for.
    pub admitted: bool,
    /// Whether no further archive may start at present.
    pub archive_slots_full: bool,
    /// Whether the control plane is shutting down, so that no workspace may run.
    pub shutting_down: bool,
    /// Total time that the control plane has been running, over all its restarts. Only driver ticks
    /// add to it, so a changed clock or a power cut makes no archive older.
    pub observed_time: Duration,
}

/// Whether a workspace is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UseState {
    /// No agent is connected, or the agent does not know.
    #[default]
    Unknown,
    Yes,
    /// Not in use, with the idle time that the agent has counted.
    No(Duration),
}

/// Whether the workspace's own command, such as an IDE, runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CommandHealth {
    /// The agent has not reported yet.
    #[default]
    Unknown,
    /// The command runs, or the workspace has none.
    Good,
    /// The command fails and is restarted. Holds the agent's description of the failure.
    Failing(String),
}

/// Whether the agent of the current epoch is prepared to sleep. A prepared agent holds new
/// requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrepareState {
    /// No prepare is known. After a restart of the driver, an agent may still hold requests until
    /// its hold expires.
    #[default]
    NotPrepared,
    /// Prepare or cancel was sent, and the agent has not answered.
    Unconfirmed(Epoch),
    /// The agent confirmed prepare.
    Prepared(Epoch),
}

/// The processes of a workspace. Two agents may run at once after a lost node comes back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RunningAgents {
    /// The backend has not reported yet.
    #[default]
    Unseen,
    /// It is certain that no process is left.
    None,
    /// Agents of these epochs run. An empty set means that leftover processes may run, or that an
    /// agent is being started.
    Some(BTreeSet<Epoch>),
}

/// An agent that ended or failed to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentEnd {
    pub epoch: Epoch,
    /// Free text: "killed by SIGKILL", "no such program".
    pub detail: String,
}

/// An action that failed and has not succeeded since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionFailure {
    pub action: Action,
    /// Failures in a row.
    pub failures: u32,
    /// Time of the last failure.
    pub at: Timestamp,
    pub failure: Failure,
}

/// The outcome of a failed action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The agent declined, and nothing was changed.
    Declined { reason: DeclineReason, detail: String },
    /// The action failed, possibly after a part of it was done. Holds the text of the error.
    Failed(String),
}

/// The result of a successful action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionSuccess {
    Done,
    /// An archive was written and proven.
    Archived(Box<Archive>),
}

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
                self.container_problem = None;
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

impl RunningAgents {
    /// Returns whether the agent of this epoch runs.
    pub fn is_running(&self, epoch: Epoch) -> bool {
        matches!(self, Self::Some(agents) if agents.contains(&epoch))
    }
}

impl PrepareState {
    /// Returns the epoch of the agent that is, or may be, prepared.
    pub fn may_be_prepared(self) -> Option<Epoch> {
        match self {
            Self::NotPrepared => None,
            Self::Unconfirmed(epoch) | Self::Prepared(epoch) => Some(epoch),
        }
    }
}

impl Failure {
    /// Returns the failure's free text.
    pub fn detail(&self) -> &str {
        match self {
            Self::Declined { detail, .. } | Self::Failed(detail) => detail,
        }
    }

    /// Converts this failure of `action` to the reason of a state.
    pub fn as_reason(&self, action: Action) -> StateReason {
        match self {
            Self::Declined { reason, detail } => {
                StateReason::SleepDeclined { reason: *reason, detail: detail.clone() }
            }
            Self::Failed(detail) => {
                StateReason::ActionFailed { operation: Operation::from(action), detail: detail.clone() }
            }
        }
    }
}
