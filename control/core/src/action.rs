//! The actions that decisions ask for: side effects on agents, storage, archives and the record.

use crate::{
    reason::Operation,
    status::Urgency,
    workspace::{Epoch, Resources},
};

/// A side effect, as data. Every action is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Starts the agent of this epoch.
    StartAgent(Epoch),
    /// Asks the agent to prepare for sleep. The agent declines, or holds new requests from then on.
    Prepare {
        epoch: Epoch,
        urgency: Urgency,
    },
    /// Makes the agent end its programs and save the terminals.
    Commit(Epoch),
    /// Cancels the sleep. The agent admits the requests that it holds.
    Cancel(Epoch),
    /// Sets the resources of a running agent to the allocated ones, without ending any process.
    Resize {
        epoch: Epoch,
        resources: Resources,
    },
    /// Ends every process of the workspace. Done when it is confirmed that none is left.
    StopProcesses,
    /// Reads the storage into the backup store through this agent, and proves the archive.
    Archive(Epoch),
    /// Fills the storage from its archive through this agent.
    Restore(Epoch),
    RemoveStorage,
    /// Removes the archive of this storage generation.
    ExpireArchive(u64),
    /// Removes the record. The workspace's id is never reused.
    RemoveRecord,
}

impl From<Action> for Operation {
    fn from(action: Action) -> Self {
        match action {
            Action::StartAgent(_) => Self::StartAgent,
            Action::Prepare { .. } => Self::PrepareSleep,
            Action::Commit(_) => Self::CommitSleep,
            Action::Cancel(_) => Self::CancelSleep,
            Action::Resize { .. } => Self::Resize,
            Action::StopProcesses => Self::StopProcesses,
            Action::Archive(_) => Self::Archive,
            Action::Restore(_) => Self::Restore,
            Action::RemoveStorage => Self::RemoveStorage,
            Action::ExpireArchive(_) => Self::ExpireArchive,
            Action::RemoveRecord => Self::RemoveRecord,
        }
    }
}
