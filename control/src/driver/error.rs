//! Why the driver does not do what it was asked, and how that is said on the wire.

use podling_core::id::{Name, WorkspaceId};
use podling_proto::error::{Reason, WireError};

/// The driver's refusals.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// There is none.
    #[error("there is no workspace {0}")]
    NoWorkspace(WorkspaceId),
    /// The owner has one of that name.
    #[error(
        "you have a workspace {name} already; take another name, or say reconnect to be given the one you have"
    )]
    NameTaken {
        /// The name.
        name: Name,
        /// Who has it.
        id: WorkspaceId,
    },
    /// It is on its way out.
    #[error("the workspace {0} is being deleted")]
    Deleting(WorkspaceId),
    /// One of the limits on the number of workspaces is reached.
    #[error("there are {limit} workspaces {what} already; delete one first")]
    TooManyWorkspaces {
        /// How many there may be.
        limit: usize,
        /// Counted over what: "of this owner", "here".
        what: &'static str,
    },
    /// It has its storage still.
    #[error(
        "the workspace {0} has its storage still: wake it, or give a name to restore into a new workspace"
    )]
    NotArchived(WorkspaceId),
    /// Larger than any room there may be.
    #[error("it asks for more CPU or memory than the quota allows one workspace; take a smaller template")]
    TooLarge,
    /// These are in use, or nobody knows whether they are.
    #[error("in use, or silent so that nobody knows: {}; end their work first, or force it", names(.0))]
    Busy(Vec<Name>),
    /// The control plane goes down.
    #[error("the control plane is shutting down")]
    ShuttingDown,
    /// What was asked could not be made durable, so it is not done.
    #[error("it could not be saved and was not done: {problem}")]
    NotSaved {
        /// Why.
        problem: String,
        /// There is no room on the disk.
        disk_full: bool,
    },
}

fn names(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

impl From<DriverError> for WireError {
    fn from(error: DriverError) -> Self {
        let message = error.to_string();
        match error {
            DriverError::NoWorkspace(id) => Self::new(Reason::WorkspaceNotFound, message).with("id", id),
            DriverError::NameTaken { id, .. } => Self::new(Reason::NameTaken, message).with("id", id),
            DriverError::Deleting(_) => Self::new(Reason::Deleting, message),
            DriverError::TooManyWorkspaces { limit, what } => {
                Self::new(Reason::TooManyWorkspaces, message).with("limit", limit).with("what", what)
            }
            DriverError::NotArchived(id) => Self::new(Reason::NotArchived, message).with("id", id),
            DriverError::TooLarge => {
                Self::new(Reason::TooLarge, message).with("what", "the workspace's resources")
            }
            DriverError::Busy(busy) => Self::new(Reason::Busy, message).with("workspaces", names(&busy)),
            DriverError::ShuttingDown => Self::new(Reason::ShuttingDown, message),
            DriverError::NotSaved { disk_full: true, .. } => {
                Self::new(Reason::DiskFull, message).with("what", "the control plane's store")
            }
            DriverError::NotSaved { disk_full: false, .. } => Self::new(Reason::Io, message),
        }
    }
}
