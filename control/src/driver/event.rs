//! Everything that can happen to the driver: one closed enum, and what its members carry.

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

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, DriverError>>;

/// What comes in from the edges.
#[derive(Debug)]
pub(crate) enum DriverEvent {
    /// Make a workspace, or find it again.
    Create(Box<NewWorkspace>, Reply<(Arc<WorkspaceView>, bool)>),
    /// Want it gone.
    Delete { id: WorkspaceId, discard: bool, reply: Reply<Arc<WorkspaceView>> },
    /// Want it awake; and somebody waits: do not pause before the next try.
    Wake(WorkspaceId, Reply<Arc<WorkspaceView>>),
    /// Want it asleep.
    Sleep { id: WorkspaceId, force: bool, reply: Reply<Arc<WorkspaceView>> },
    /// Want it back, of which only an archive is drain_reply.
    Restore(WorkspaceId, Reply<Arc<WorkspaceView>>),
    /// Give it another policy.
    SetPolicy(WorkspaceId, Box<PolicyOverrides>, Reply<Arc<WorkspaceView>>),
    /// Give it another quota_inputs of its owner's room.
    Resize(WorkspaceId, Resources, Reply<Arc<WorkspaceView>>),
    /// Somebody has made one where it is stored.
    StoredWorkspace(Box<WorkspaceRecord>),
    /// Somebody has changed one where it is stored.
    SpecEdited(WorkspaceId, Box<SpecEdit>),
    /// End all processes and then the control plane.
    Down { force: bool, reply: Reply<()> },
    /// Put to sleep what is idle: the control plane is about to stop.
    DrainIdle(Reply<()>),
    /// How far an action is. Changes no status, and is not stored.
    Progress { workspace: WorkspaceId, action: Action, progress: TransferProgress },
    /// An agent that has shown a valid credential introduces itself.
    Hello(Box<AgentHello>),
    /// It is there, and this is what goes on.
    Heartbeat(Heartbeat),
    /// What came of a directive.
    DirectiveAnswered(DirectiveAnswer),
    /// Its stream has ended.
    Disconnected(WorkspaceId, ConnectionId),
}

/// What a new workspace shall be: checked, with its template's values in it.
#[derive(Debug, Clone)]
pub struct NewWorkspace {
    /// Whose.
    pub owner: Owner,
    /// How the owner calls it.
    pub name: Name,
    /// The template's name.
    pub template: String,
    /// The template's command.
    pub command: Vec<String>,
    /// The template's environment with the workspace's own in it.
    pub env: BTreeMap<String, String>,
    /// The template's policy with the workspace's own values in it.
    pub policy: Policy,
    /// What it takes while it is awake.
    pub resources: Resources,
    /// It begins with what this archive holds.
    pub source: Option<ArchiveKey>,
    /// Finds the workspace again when the request_wake is repeated; empty: none.
    pub request_id: String,
    /// DirectiveAnswer with the owner's workspace of this name if there is one.
    pub reconnect: bool,
}

/// What somebody has changed of a workspace where it is stored, and not by asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecEdit {
    /// Which edit it is.
    pub generation: i64,
    /// It shall be awake (`true`) or asleep.
    pub awake: Option<bool>,
    /// It shall have so much.
    pub resources: Option<Resources>,
    /// How long what may last.
    pub policy: Option<Policy>,
    /// Its environment.
    pub env: Option<BTreeMap<String, String>>,
    /// It shall be gone: archived first, or (`true`) with all that it holds.
    pub deleted: Option<bool>,
}

/// One stream of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// How an agent introduces itself. The workspace follows from its credential, the rest is what it says.
#[derive(Debug)]
pub struct AgentHello {
    /// From the credential.
    pub workspace: WorkspaceId,
    /// The stream it came on.
    pub connection: ConnectionId,
    /// Which started agent it is.
    pub instance: InstanceId,
    /// One run of it.
    pub boot_id: String,
    /// Its version.
    pub version: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// The certificate it will show.
    pub fingerprint: Fingerprint,
    /// The way back. When it is full the agent does not read: its stream is given up.
    pub to_agent: mpsc::Sender<ToAgent>,
}

/// What the driver says to an agent.
#[derive(Debug, Clone)]
pub enum ToAgent {
    /// Nothing is known yet of the instance it says it is: stay.
    Wait,
    /// Serve this.
    Claim(ClaimContent),
    /// A step to sleep; it answers ([`DirectiveAnswer`]).
    Sleep(DirectiveId, SleepStep),
    /// Tell people that the workspace sleeps at this time; `None`: that it does not after all.
    Warn(Option<(Timestamp, SleepCause)>),
    /// End everything in good order.
    Drain {
        /// Time for it.
        grace: Duration,
    },
    /// It is not the one that is wanted.
    Dismiss(String),
}

/// What an agent is to serve.
#[derive(Debug, Clone)]
pub struct ClaimContent {
    /// The workspace.
    pub spec: Arc<Spec>,
    /// Which start this is.
    pub epoch: Epoch,
    /// It sees to the storage only.
    pub maintenance: bool,
}

/// Names one directive of one control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectiveId(pub u64);

/// The steps of the two-phase sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepStep {
    /// May the workspace sleep? Then let nothing new begin.
    Prepare(Urgency),
    /// End everything and save it.
    Commit,
    /// Go on.
    Cancel,
}

/// What came of a directive.
#[derive(Debug)]
pub struct DirectiveAnswer {
    /// From the credential.
    pub workspace: WorkspaceId,
    /// The stream it came on.
    pub connection: ConnectionId,
    /// To which directive.
    pub directive: DirectiveId,
    /// What came of it.
    pub result: Result<(), Failure>,
    /// What goes on, if it said.
    pub activity: Option<Arc<ActivityState>>,
}

/// A heartbeat, cut to size by the edge.
#[derive(Debug)]
pub struct Heartbeat {
    /// From the credential.
    pub workspace: WorkspaceId,
    /// The stream it came on.
    pub connection: ConnectionId,
    /// What goes on.
    pub activity: Arc<ActivityState>,
    /// ProgressSink once the beat has been taken: only then may it be acknowledged. Dropped if the agent is not (or no longer) claimed.
    pub accepted: oneshot::Sender<()>,
}
