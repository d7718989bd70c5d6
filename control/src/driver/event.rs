//! The driver's input: one closed enum of events, and their contents.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use podling_core::{
    archive::ArchiveKey,
    decide::Action,
    id::{Name, Owner, WorkspaceId},
    observed::Failure,
    policy::{Policy, PolicyOverrides},
    reason::SleepCause,
    status::Urgency,
    time::Timestamp,
    workspace::{Epoch, Resources, Spec},
};
use podling_proto::agent::v1::ActivityState;
use tokio::sync::{mpsc, oneshot};

use super::DriverError;
use crate::{
    backend::InstanceId,
    progress::TransferProgress,
    snapshot::{Fingerprint, WorkspaceView},
    store::WorkspaceRecord,
};

pub(crate) type Reply<T> = oneshot::Sender<Result<T, DriverError>>;

/// An event from the edges.
#[derive(Debug)]
pub(crate) enum DriverEvent {
    /// Creates a workspace, or finds the one that an earlier call created.
    Create(Box<NewWorkspace>, Reply<(Arc<WorkspaceView>, bool)>),
    Delete {
        id: WorkspaceId,
        discard: bool,
        reply: Reply<Arc<WorkspaceView>>,
    },
    /// Wakes the workspace and skips its back-off: a caller waits.
    Wake(WorkspaceId, Reply<Arc<WorkspaceView>>),
    Sleep {
        id: WorkspaceId,
        force: bool,
        reply: Reply<Arc<WorkspaceView>>,
    },
    /// Restores a workspace of which only archives are left.
    Restore(WorkspaceId, Reply<Arc<WorkspaceView>>),
    SetPolicy(WorkspaceId, Box<PolicyOverrides>, Reply<Arc<WorkspaceView>>),
    Resize(WorkspaceId, Resources, Reply<Arc<WorkspaceView>>),
    /// A workspace was created in the store, or became readable again.
    StoredWorkspace(Box<WorkspaceRecord>),
    /// The spec was edited in the store.
    SpecEdited(WorkspaceId, Box<SpecEdit>),
    /// Ends all processes, then the control plane.
    Down {
        force: bool,
        reply: Reply<()>,
    },
    /// Puts idle workspaces to sleep before the control plane stops.
    DrainIdle(Reply<()>),
    /// Progress of an action. Shown only; changes no status and is not stored.
    Progress {
        workspace: WorkspaceId,
        action: Action,
        progress: TransferProgress,
    },
    /// An authenticated agent said hello.
    Hello(Box<AgentHello>),
    Heartbeat(Heartbeat),
    DirectiveAnswered(DirectiveAnswer),
    /// An agent's stream ended.
    Disconnected(WorkspaceId, ConnectionId),
}

/// A validated request for a new workspace, with the template's values filled in.
#[derive(Debug, Clone)]
pub struct NewWorkspace {
    pub owner: Owner,
    pub name: Name,
    pub template: String,
    pub command: Vec<String>,
    /// The template's environment, overridden by the workspace's own.
    pub env: BTreeMap<String, String>,
    /// The template's policy, overridden by the workspace's own.
    pub policy: Policy,
    /// Resources requested while awake.
    pub resources: Resources,
    /// Archive to restore the storage from.
    pub source: Option<ArchiveKey>,
    /// Idempotency key: a repeated call finds the workspace again. Empty if there is none.
    pub request_id: String,
    /// Return the owner's workspace of this name if there is one.
    pub reconnect: bool,
}

/// A change of a workspace's spec made in the store, outside the API. Absent fields are unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecEdit {
    /// The `metadata.generation` of the resource.
    pub generation: i64,
    /// `true` wakes the workspace, `false` puts it to sleep.
    pub awake: Option<bool>,
    pub resources: Option<Resources>,
    pub policy: Option<Policy>,
    pub env: Option<BTreeMap<String, String>>,
    /// Delete the workspace: `false` archives it first, `true` discards its files and archives.
    pub deleted: Option<bool>,
}

/// Identifies one stream of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// An agent's introduction. The workspace follows from its credential; the other fields are the
/// agent's claims.
#[derive(Debug)]
pub struct AgentHello {
    /// Follows from the credential.
    pub workspace: WorkspaceId,
    pub connection: ConnectionId,
    pub instance: InstanceId,
    /// Identifies one run of the agent.
    pub boot_id: String,
    pub version: String,
    pub capabilities: Vec<String>,
    /// Fingerprint of the certificate that the agent presents to the gateway.
    pub fingerprint: Fingerprint,
    /// Channel to the agent. When it is full the agent does not read, and the driver drops the
    /// stream.
    pub to_agent: mpsc::Sender<ToAgent>,
}

/// A message from the driver to an agent.
#[derive(Debug, Clone)]
pub enum ToAgent {
    /// Stay connected: the backend has not reported the agent's instance yet.
    Wait,
    Claim(ClaimContent),
    /// A step of the two-phase sleep. The agent replies with a [`DirectiveAnswer`].
    Sleep(DirectiveId, SleepStep),
    /// Warns viewers of sleep at this time; `None` withdraws the warning.
    Warn(Option<(Timestamp, SleepCause)>),
    /// End all processes in order.
    Drain {
        grace: Duration,
    },
    /// The agent is not the desired one; the text says why.
    Dismiss(String),
}

/// What an agent is to serve.
#[derive(Debug, Clone)]
pub struct ClaimContent {
    pub spec: Arc<Spec>,
    pub epoch: Epoch,
    /// Serve storage only: no terminals, no input.
    pub maintenance: bool,
}

/// Identifies a directive within one run of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectiveId(pub u64);

/// A step of the two-phase sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepStep {
    /// Check activity again; if idle, hold new input.
    Prepare(Urgency),
    /// End and save everything.
    Commit,
    /// Release held input and continue.
    Cancel,
}

/// An agent's answer to a directive.
#[derive(Debug)]
pub struct DirectiveAnswer {
    /// Follows from the credential.
    pub workspace: WorkspaceId,
    pub connection: ConnectionId,
    pub directive: DirectiveId,
    pub result: Result<(), Failure>,
    /// The agent's activity, if the answer includes it.
    pub activity: Option<Arc<ActivityState>>,
}

/// A heartbeat whose size the edge has bounded.
#[derive(Debug)]
pub struct Heartbeat {
    /// Follows from the credential.
    pub workspace: WorkspaceId,
    pub connection: ConnectionId,
    pub activity: Arc<ActivityState>,
    /// Receives `()` once the heartbeat is counted; only then may it be acknowledged. Dropped if
    /// the agent is not claimed.
    pub accepted: oneshot::Sender<()>,
}
