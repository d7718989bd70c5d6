//! The interface of a backend, which runs the agents of workspaces, holds their storage, and
//! authenticates agents when they connect.
//!
//! A backend never decides when an agent starts or stops; `podling_core::decide` decides that.

pub mod kubernetes;
pub mod local;

use std::{collections::BTreeSet, fmt, future::Future, sync::Arc};

use futures_util::Stream;
use podling_core::{
    id::WorkspaceId,
    reason::Wait,
    status::{MaintenanceTask, Phase},
    workspace::{Epoch, Resources, Spec},
};
use tokio_util::sync::CancellationToken;

use crate::agent_address::AgentAddress;
pub use crate::agent_address::InstanceId;

/// Runs agents and holds storage.
///
/// Implementations and the driver keep this contract:
/// - Every call is idempotent. The same or another control plane may repeat a failed call, which
///   then continues the work.
/// - Calls for one workspace are sequential. Calls for different workspaces are concurrent.
/// - An error does not say how far a call got. After a failed start the driver therefore calls
///   [`Backend::stop`] before it starts another agent.
/// - Two agents of one workspace may run at once, for example when an unreachable machine comes
///   back. Their epochs differ, and the driver claims only one of them.
/// - The result of a call may be outdated at once. [`Backend::observe`] reports later changes.
pub trait Backend: Send + Sync + 'static {
    /// Ensures that the storage exists and that the agent of this epoch runs. Returns without
    /// waiting for the agent's hello. Fails if the agent of this epoch has already run and ended,
    /// because each epoch is started only once. If the start is delayed, for example by a quota,
    /// reports the reason as [`Observation::Waits`] and waits until the start succeeds or is
    /// cancelled. A start for [`StartPurpose::Archive`] fails if its template is missing. A start that
    /// [expects files](StartPlan::expects_files) fails if the storage does not exist.
    fn ensure(&self, plan: StartPlan) -> impl Future<Output = Result<Instance, BackendError>> + Send;

    /// Sets the resources of the running agent of this epoch without ending any process. Returns
    /// once the resources are in force. A delay is reported as for a start. An error means that
    /// waiting longer would not help.
    fn resize(&self, resize: ResizePlan) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Ends all processes of the workspace, with or without an agent, by SIGTERM and then SIGKILL.
    /// Returns when no process is left. Does not end processes of an epoch after `last`, because
    /// another control plane that has taken over started them.
    fn stop(
        &self,
        workspace: WorkspaceId,
        last: Epoch,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Removes the storage. Called only after [`Backend::stop`] has succeeded, and not after a
    /// later start.
    fn remove(&self, workspace: WorkspaceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Reports the running agents as [`Observation::Listed`], and the end of each agent. Agents
    /// that could not be inspected at first are listed later. The end of an agent may be reported
    /// before the list that names the agent as running. Called once, before any other method.
    fn observe(&self) -> impl Stream<Item = Observation> + Send + 'static;
}

/// One start of an agent.
#[derive(Clone)]
pub struct StartPlan {
    pub workspace: WorkspaceId,
    pub epoch: Epoch,
    pub purpose: StartPurpose,
    /// Whether the storage may hold files of the workspace, so that it must exist already. An empty
    /// storage is created only for a first start and for a restore.
    pub expects_files: bool,
    /// Credential with which the agent authenticates. Never logged.
    pub secret: String,
    pub spec: Arc<Spec>,
    /// CPU and memory of the agent and its programs.
    pub resources: Resources,
    /// The driver cancels it to give up the start.
    pub cancellation: CancellationToken,
}

/// The work that an agent is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPurpose {
    /// To serve the workspace to users.
    Serve,
    /// To archive the storage in maintenance mode. Such a start fails instead of waiting for what
    /// may never come, so that the workspace shows why it is not archived. The driver retries it.
    Archive,
    /// To restore the storage in maintenance mode.
    Restore,
}

/// A change of a running agent's resources.
#[derive(Debug, Clone)]
pub struct ResizePlan {
    pub workspace: WorkspaceId,
    pub epoch: Epoch,
    pub resources: Resources,
    /// The driver cancels it to give up the resize.
    pub cancellation: CancellationToken,
}

/// A report of a backend to the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// The running agents. The first list covers all workspaces. Each later list covers the
    /// workspaces that the list before it named as unknown.
    Listed {
        running: Vec<Instance>,
        /// Workspaces whose agent could not be inspected, so it may be running.
        unknown: BTreeSet<WorkspaceId>,
    },
    Ended {
        instance: Instance,
        /// English text, such as "killed by SIGKILL".
        detail: String,
    },
    /// Reason why a start or a resize in progress waits; `None` if it no longer waits.
    Waits { workspace: WorkspaceId, epoch: Epoch, waits: Option<Wait> },
    /// Problem of a container beside the agent of this epoch; `None` if there is none any more.
    ContainerProblem { workspace: WorkspaceId, epoch: Epoch, problem: Option<String> },
}

/// An agent that a backend runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub workspace: WorkspaceId,
    /// Epoch that the agent was started with.
    pub epoch: Epoch,
    pub id: InstanceId,
    /// Boot id of the agent. The local backend reads it when it adopts an agent; otherwise it is
    /// `None`, and the agent's hello reports it.
    pub boot_id: Option<String>,
    pub address: AgentAddress,
    /// Actual CPU and memory. `None` on the local backend, and while a resize is in progress.
    pub resources: Option<Resources>,
    /// Digest of the image that it runs from, where the backend has images.
    pub image: Option<String>,
}

/// Why a backend operation failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {problem}")]
pub struct BackendError {
    /// Infinitive of the operation, with its object: "start the agent of abcdefgh2345".
    pub operation: String,
    pub problem: String,
}

impl BackendError {
    /// Creates an error that renders as "cannot {operation}: {problem}".
    pub fn new(operation: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { operation: operation.into(), problem: problem.to_string() }
    }
}

impl StartPurpose {
    /// Returns the purpose of a start in this phase.
    pub fn of(phase: Phase) -> Self {
        match phase {
            Phase::Maintenance { task: MaintenanceTask::Archive, .. } => Self::Archive,
            Phase::Maintenance { task: MaintenanceTask::Restore, .. } => Self::Restore,
            _ => Self::Serve,
        }
    }
}

impl fmt::Debug for StartPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartPlan")
            .field("workspace", &self.workspace)
            .field("epoch", &self.epoch)
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

/// Authenticates agents by their credentials.
///
/// Implementations keep this contract:
/// - The credential alone determines the workspace.
/// - The credential also determines the instance if it names one, as the token of a pod does.
///   Otherwise the process that the agent reports determines the instance. This report is not
///   verified; it only distinguishes agents that have the same credential.
/// - Any client may present a credential at any time. The rejection of a wrong credential must be
///   cheap and must reveal nothing.
pub trait AgentReviewer: Send + Sync + 'static {
    /// The fact that a credential proves besides the workspace; `()` if there is none.
    type CredentialProof: Send + 'static;

    /// Returns what the credential proves; `None` if the credential is not valid. An error means
    /// that the credential could not be reviewed.
    fn review(
        &self,
        credential: &str,
    ) -> impl Future<Output = Result<Option<ReviewedCredential<Self::CredentialProof>>, BackendError>> + Send;

    /// Returns the id of the pod or process that runs this agent.
    fn instance(&self, proof: Self::CredentialProof, process: ReportedProcess) -> InstanceId;
}

/// The facts that a valid credential proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewedCredential<P> {
    /// The workspace that the agent serves.
    pub workspace: WorkspaceId,
    /// Proof that the caller passes to [`AgentReviewer::instance`].
    pub proof: P,
}

/// The process of an agent, as the agent reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportedProcess {
    /// Process id in the agent's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since the machine's boot.
    pub start_ticks: u64,
}
