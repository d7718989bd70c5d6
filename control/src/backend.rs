//! Backends run the agents of workspaces and keep their storage.
//!
//! Must not know why an agent is started or stopped; `podling_core::decide` decides that.

pub mod kubernetes;
pub mod local;
mod reviewer;

use std::{collections::BTreeSet, fmt, future::Future, sync::Arc};

use futures_util::Stream;
use podling_core::{
    id::WorkspaceId,
    reason::Wait,
    workspace::{Epoch, Resources, Spec},
};
use tokio_util::sync::CancellationToken;

pub use self::reviewer::{AgentReviewer, ReportedProcess, ReviewedCredential};
use crate::snapshot::AgentAddress;

/// Runs agents and keeps storage.
///
/// The contract:
/// - Every call is idempotent. A call that is repeated after a failure, also by another control
///   plane, continues the work.
/// - Calls for one workspace are sequential; calls for different workspaces are concurrent.
/// - An error does not tell how far a call got. The driver calls [`Backend::stop`] before it starts
///   anything else.
/// - Two agents of one workspace may run at once, when a lost machine comes back. No call may
///   assume otherwise. The epoch tells them apart, and the driver claims only one.
/// - The result of a call may be outdated at once; [`Backend::observe`] reports changes.
pub trait Backend: Send + Sync + 'static {
    /// Ensures that the agent of this epoch runs, with storage; creates both as needed. Does not
    /// wait for the agent's hello. An agent that already runs is returned. An agent that ran and
    /// has ended is an error, because its epoch is used up. What the start waits for (quota, a
    /// node) is reported as [`Observation::Waits`]; the wait lasts until the plan is cancelled.
    fn ensure(&self, plan: StartPlan) -> impl Future<Output = Result<Instance, BackendError>> + Send;

    /// Sets the resources of the running agent of this epoch, without ending any process. Returns
    /// once they are in force. What the resize waits for is reported as for a start. An error means
    /// that the resize can never take effect.
    fn resize(&self, resize: ResizePlan) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Ends every process of the workspace, agents or not: first gracefully, then by force. Returns
    /// when none is left. Processes of a start after `last` are left alone: they belong to another
    /// control plane that has taken over.
    fn stop(
        &self,
        workspace: WorkspaceId,
        last: Epoch,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Removes the storage. Called only after [`Backend::stop`] has succeeded and nothing was
    /// started since.
    fn remove(&self, workspace: WorkspaceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Reports the running agents ([`Observation::Listed`]) and the end of every agent. Agents that
    /// could not be seen at first are listed later. An end may be reported before the list that
    /// still names the agent. Called once, before any other method.
    fn observe(&self) -> impl Stream<Item = Observation> + Send + 'static;
}

/// One start of an agent.
#[derive(Clone)]
pub struct StartPlan {
    pub workspace: WorkspaceId,
    pub epoch: Epoch,
    /// Credential with which the agent authenticates. Never logged.
    pub secret: String,
    pub spec: Arc<Spec>,
    /// CPU and memory of the agent and its programs.
    pub resources: Resources,
    /// Cancelled when the start is no longer wanted.
    pub cancellation: CancellationToken,
}

/// A change of a running agent's resources.
#[derive(Debug, Clone)]
pub struct ResizePlan {
    pub workspace: WorkspaceId,
    pub epoch: Epoch,
    pub resources: Resources,
    /// Cancelled when the resize is no longer wanted.
    pub cancellation: CancellationToken,
}

/// A report of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// All running agents, as far as they can be seen.
    Listed {
        running: Vec<Instance>,
        /// Workspaces whose agents cannot be seen; they may or may not run, and no end is reported
        /// for them.
        unknown: BTreeSet<WorkspaceId>,
    },
    Ended {
        instance: Instance,
        /// Text for people: "killed by SIGKILL".
        detail: String,
    },
    /// A start or a resize in progress waits for something. `None`: it no longer waits.
    Waits { workspace: WorkspaceId, epoch: Epoch, waits: Option<Wait> },
}

/// Identifies one start of an agent, globally. Locally it is the process id, its start time and the
/// machine's boot id; in a cluster it is the pod's uid. An [`AgentReviewer`] reports the same id
/// for the agent's credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(pub String);

/// An agent that a backend runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub workspace: WorkspaceId,
    /// Epoch of the start.
    pub epoch: Epoch,
    pub id: InstanceId,
    /// Boot id of the agent, if known. Before its hello it is known only of an adopted agent.
    pub boot_id: Option<String>,
    pub address: AgentAddress,
    /// Actual CPU and memory, where the backend knows them.
    pub resources: Option<Resources>,
    /// Digest of the image that it runs from, where the backend has images.
    pub image: Option<String>,
}

/// Why a backend operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {problem}")]
pub struct BackendError {
    /// The operation with its subject: "starting /usr/bin/podling".
    pub operation: String,
    pub problem: String,
}

impl BackendError {
    /// Creates an error from the operation and its cause.
    pub fn new(operation: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { operation: operation.into(), problem: problem.to_string() }
    }
}

impl fmt::Debug for StartPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartPlan")
            .field("workspace", &self.workspace)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
