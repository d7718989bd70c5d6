//! Errors of requests to the driver, and their form on the wire.

use podling_core::id::{WorkspaceId, WorkspaceName};
use podling_proto::error::{Reason, WireError, with_causes};

use crate::store::StoreError;

/// Reason why the driver rejects a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    #[error("there is no workspace {0}")]
    NoWorkspace(WorkspaceId),
    #[error("the owner has another workspace named {name}; choose another name, or use that workspace")]
    NameTaken {
        name: WorkspaceName,
        /// The workspace that has the name.
        id: WorkspaceId,
    },
    /// The name is free among the owner's workspaces, but not among the resources of the namespace.
    #[error("a workspace named {name} exists in this namespace; choose another name")]
    ResourceNameTaken { name: String },
    #[error("the workspace {id} is being deleted{}", undelete_hint(.undelete))]
    Deleting {
        id: WorkspaceId,
        /// Whether the deletion can be taken back.
        undelete: bool,
    },
    #[error("cannot take the deletion of {id} back: {cause}")]
    CannotUndelete { id: WorkspaceId, cause: CannotUndeleteCause },
    /// The number of workspaces has reached a limit.
    #[error("the limit of {limit} workspaces {what} is reached; delete one first")]
    TooManyWorkspaces {
        limit: usize,
        /// Scope of the limit: "of this owner" or "in total".
        what: &'static str,
    },
    #[error("cannot change workspace {id}: {limit} changes of its spec are waiting; retry later")]
    TooManyChanges { id: WorkspaceId, limit: usize },
    /// The workspace still has its storage, so there is nothing to restore.
    #[error(
        "the workspace {0} still has its storage; wake it, or give a name to restore into a new workspace"
    )]
    NotArchived(WorkspaceId),
    /// The resources exceed the quota of the owner or of the control plane.
    #[error("the requested CPU or memory exceeds the quota; request less, or choose a smaller template")]
    TooLarge,
    /// These workspaces are in use, or their agents are not connected and their activity is
    /// unknown.
    #[error(
        "these workspaces are in use, or not connected so that their activity is unknown: {}; end their work \
         first, or use force",
        names(.0)
    )]
    Busy(Vec<WorkspaceName>),
    #[error("the control plane is shutting down")]
    ShuttingDown,
    /// The store write failed. A decision was rolled back. A change of the spec may still have been made.
    #[error("failed to save the change, so it was not made: {problem}")]
    NotSaved {
        /// The store's error with its causes.
        problem: String,
        disk_full: bool,
    },
}

/// Why a deletion cannot be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotUndeleteCause {
    #[error("its files and archives are being discarded")]
    Discarded,
    #[error("its storage is gone already; restore its newest archive instead")]
    Deleted,
    /// The Workspace resource has a deletionTimestamp, which cannot be removed.
    #[error(
        "it was deleted in Kubernetes, which cannot take that back; its volume claim still has the files, \
         and a pod that mounts the claim can repair them"
    )]
    Kubernetes,
}

impl CannotUndeleteCause {
    /// Returns the word for the error's metadata.
    fn word(self) -> &'static str {
        match self {
            Self::Discarded => "discarded",
            Self::Deleted => "deleted",
            Self::Kubernetes => "kubernetes",
        }
    }
}

impl DriverError {
    /// Converts the error of a store write, for the requests that the write would have fulfilled.
    pub(crate) fn not_saved(error: &StoreError) -> Self {
        match error {
            StoreError::NameTaken { name } => Self::ResourceNameTaken { name: name.clone() },
            _ => Self::NotSaved { problem: with_causes(error), disk_full: error.is_disk_full() },
        }
    }
}

/// Renders that a deletion can be taken back, if it can.
fn undelete_hint(undelete: &bool) -> &'static str {
    if *undelete { "; undelete takes that back" } else { "" }
}

fn names(names: &[WorkspaceName]) -> String {
    names.iter().map(WorkspaceName::as_str).collect::<Vec<_>>().join(", ")
}

impl From<DriverError> for WireError {
    fn from(error: DriverError) -> Self {
        let message = error.to_string();
        match error {
            DriverError::NoWorkspace(id) => Self::new(Reason::WorkspaceNotFound, message).with("id", id),
            DriverError::NameTaken { id, .. } => Self::new(Reason::NameTaken, message).with("id", id),
            DriverError::ResourceNameTaken { .. } => Self::new(Reason::NameTaken, message),
            DriverError::Deleting { id, undelete } => {
                Self::new(Reason::Deleting, message).with("id", id).with("undelete", undelete)
            }
            DriverError::CannotUndelete { id, cause } => {
                Self::new(Reason::CannotUndelete, message).with("id", id).with("cause", cause.word())
            }
            DriverError::TooManyWorkspaces { limit, what } => {
                Self::new(Reason::TooManyWorkspaces, message).with("limit", limit).with("what", what)
            }
            DriverError::TooManyChanges { id, limit } => {
                let what = format!("changes of the workspace {id}");
                Self::new(Reason::TooManyHeldCalls, message).with("what", what).with("limit", limit)
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

#[cfg(test)]
mod tests {
    use podling_proto::error;
    use tonic::Code;

    use super::*;

    #[test]
    fn taken_resource_name_is_reported_as_name_taken() {
        let refused = DriverError::not_saved(&StoreError::NameTaken { name: "demo".into() });
        let wire = WireError::from(refused);
        assert_eq!(
            (wire.reason(), error::code(wire.reason()), wire.http_status().as_u16()),
            (Reason::NameTaken, Code::AlreadyExists, 409)
        );
    }
}
