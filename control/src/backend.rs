//! What runs workspaces: the seam between deciding and doing.
//!
//! Must not know why something is started or ended; that is `podling_core::decide`.

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
/// - Every call is idempotent: repeated after any failure, also by another control plane, it carries on.
/// - Calls for one workspace come one after the other; calls for different ones come at once.
/// - An error says nothing about how far a call got. The driver sweeps with [`Backend::stop`] before it starts anything else.
/// - Two agents of one workspace may live at once (a machine is lost, and comes back): neither call may assume otherwise. What
///   keeps them apart is the epoch, and that the driver claims only one.
/// - What a call has returned may be outdated at once; [`Backend::observe`] tells.
pub trait Backend: Send + Sync + 'static {
    /// Sees to it that the agent of this epoch runs, with storage; makes both as needed. Does not wait for its hello. One that
    /// runs already is returned; one that ran and has ended is an error, for its epoch is used up. What it waits for (room, a
    /// machine) it tells by [`Observation::Waits`], and goes on waiting until the plan is given up.
    fn ensure(&self, plan: StartPlan) -> impl Future<Output = Result<Instance, BackendError>> + Send;

    /// Gives the agent of this epoch what it shall have, and ends nothing for it. Returns when that is in force; what it waits for meanwhile it
    /// tells as a start does, and an error says why it never will be.
    fn resize(&self, resize: ResizePlan) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Ends every process of the workspace, agents or not, in good order and then by force. Returns when none is left. None is touched that
    /// a later start than `last` has made: that is another control plane's, which has taken over.
    fn stop(
        &self,
        workspace: WorkspaceId,
        last: Epoch,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Removes the storage. Only called after [`Backend::stop`] has succeeded with nothing started since.
    fn remove(&self, workspace: WorkspaceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// What runs now ([`Observation::Listed`], again for those that could not be seen the first time), and every end. An end may be
    /// told before the list that still names it. Called once, before anything else.
    fn observe(&self) -> impl Stream<Item = Observation> + Send + 'static;
}

/// What shall run.
#[derive(Clone)]
pub struct StartPlan {
    /// Whose.
    pub workspace: WorkspaceId,
    /// Which start.
    pub epoch: Epoch,
    /// What the agent will prove itself with. Never logged.
    pub secret: String,
    /// What the workspace shall be.
    pub spec: Arc<Spec>,
    /// What it may take.
    pub resources: Resources,
    /// Set when this start is not wanted any more.
    pub cancellation: CancellationToken,
}

/// What a running agent shall have.
#[derive(Debug, Clone)]
pub struct ResizePlan {
    /// Whose.
    pub workspace: WorkspaceId,
    /// Which start.
    pub epoch: Epoch,
    /// So much.
    pub resources: Resources,
    /// Set when this is not wanted any more.
    pub cancellation: CancellationToken,
}

/// What a backend saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// All agents that live, as far as could be seen.
    Listed {
        /// They live.
        running: Vec<Instance>,
        /// Nothing is known of these yet, and nothing follows for them.
        unknown: BTreeSet<WorkspaceId>,
    },
    /// One has ended.
    Ended {
        /// Which.
        instance: Instance,
        /// For people: "killed by SIGKILL".
        how: String,
    },
    /// A start or a resize under way waits for something, or (`None`) does not wait any more.
    Waits {
        /// Whose.
        workspace: WorkspaceId,
        /// Which start.
        epoch: Epoch,
        /// For what.
        waits: Option<Wait>,
    },
}

/// Names one started agent among all that ever were: locally its process id, start time and the machine's boot, in a cluster
/// the pod's uid. What an [`AgentReviewer`] makes of an agent is compared with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(pub String);

/// An agent that a backend runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Whose.
    pub workspace: WorkspaceId,
    /// The start that made it.
    pub epoch: Epoch,
    /// Which one it is.
    pub id: InstanceId,
    /// What it called itself, if the backend knows: only an adopted agent's is known before its hello.
    pub boot_id: Option<String>,
    /// Where it listens.
    pub address: AgentAddress,
    /// What it has, where the backend knows.
    pub resources: Option<Resources>,
    /// The image it runs from, by its digest, where it has one.
    pub image: Option<String>,
}

/// Why a backend could not do it.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {problem}")]
pub struct BackendError {
    /// What was tried, with its subject: "starting /usr/bin/podling".
    pub operation: String,
    /// Why it failed.
    pub problem: String,
}

impl BackendError {
    /// Trying `operation` failed with this.
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
