//! Observations of a workspace's processes and agent. They are never stored: a restarted driver
//! observes again.

mod fold;

use std::{collections::BTreeSet, time::Duration};

use crate::{
    archive::Archive,
    decide::Action,
    reason::{DeclineReason, Operation, SleepRequest, StateReason, Wait},
    time::Timestamp,
    workspace::{Epoch, Resources},
};

/// Observations of one workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub processes: Processes,
    /// What the start or resize under way waits for, as the backend reports it.
    pub waits: Option<Wait>,
    /// Resources that the agent of an epoch has, as the backend reports them.
    pub actual: Option<(Epoch, Resources)>,
    /// The last agent that ended or failed to start.
    pub ended: Option<AgentEnd>,
    /// Epoch of the agent that is claimed and sends heartbeats.
    pub connected: Option<Epoch>,
    /// Time without a heartbeat from the running agent of the current epoch, counted in driver
    /// ticks. A driver or a machine that sleeps adds nothing.
    pub silence: Duration,
    /// Use that the connected agent last reported.
    pub used: Used,
    /// Epoch of the agent that last reported use.
    pub used_by: Option<Epoch>,
    /// A pending request to sleep unless in use. It is cleared once it was acted on, or when the
    /// workspace is used.
    pub sleep_request: Option<SleepRequest>,
    pub prepare_state: PrepareState,
    /// Epoch of the agent that has ended its programs and saved.
    pub ready: Option<Epoch>,
    /// The archive that was proven last.
    pub archived: Option<Box<Archive>>,
    /// Epoch of the agent that has filled the storage from an archive.
    pub restored: Option<Epoch>,
    /// Generations whose archives are confirmed to be removed.
    pub expired: BTreeSet<u64>,
    /// The last failed action. (A failed start is `ended` instead.)
    pub last_failure: Option<ActionFailure>,
    /// Whether the storage is confirmed to be removed.
    pub removed: bool,
    /// Whether the quota admits the workspace, or the resize that it waits for.
    pub admitted: bool,
    /// Whether every slot for archiving is taken.
    pub archive_slots_full: bool,
    /// Whether the control plane is shutting down, so that nothing may run.
    pub shutting_down: bool,
    /// Total time that the control plane has been running, over all its restarts. Only driver ticks
    /// add to it, so a changed clock or a power cut makes no archive older.
    pub observed_time: Duration,
}

/// Whether a workspace is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Used {
    /// No connected agent has reported it.
    #[default]
    Unknown,
    Yes,
    /// Not in use, with the idle time that counts.
    No(Duration),
}

/// Whether the agent of the current epoch is prepared to sleep. A prepared agent holds new
/// requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrepareState {
    /// Not prepared, as far as is known. A hold that the driver forgot expires at the agent.
    #[default]
    NotPrepared,
    /// Prepare or cancel was sent, and the agent has not answered.
    Unconfirmed(Epoch),
    /// The agent confirmed prepare.
    Prepared(Epoch),
}

/// The processes of a workspace. Two agents may run at once after a lost node comes back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Processes {
    /// The backend has not reported yet.
    #[default]
    Unseen,
    /// Confirmed: no process is left.
    None,
    /// Agents of these epochs run. If the set is empty, no agent runs, but leftover processes may
    /// run or an agent is being started.
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
    /// When it last failed.
    pub at: Timestamp,
    pub failure: Failure,
}

/// How an action failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The agent declined, and nothing was changed.
    Declined { reason: DeclineReason, detail: String },
    /// The action failed, possibly halfway.
    Failed(String),
}

/// The result of a successful action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Achieved {
    Done,
    /// An archive was written and proven.
    Archived(Box<Archive>),
}

impl Processes {
    /// Whether the agent of this epoch runs.
    pub fn lives(&self, epoch: Epoch) -> bool {
        matches!(self, Self::Some(agents) if agents.contains(&epoch))
    }
}

impl PrepareState {
    /// Epoch of the agent that is, or may be, prepared.
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
