//! The interface of the driver: the handle that sends requests, and all events that the driver
//! handles.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use podling_core::{
    archive::ArchiveKey,
    decide::Action,
    id::{Owner, WorkspaceId, WorkspaceName},
    observed::Failure,
    policy::{Policy, PolicyOverrides},
    reason::SleepCause,
    status::Urgency,
    time::Timestamp,
    workspace::{Epoch, ResourceOverrides, Resources, Spec},
};
use tokio::sync::{mpsc, oneshot};

use super::DriverError;
use crate::{
    activity::ReportedActivity,
    backend::InstanceId,
    progress::TransferProgress,
    snapshot::{Fingerprint, SnapshotReceiver, WorkspaceView},
    store::{StoredSpec, WorkspaceRecord},
};

/// Capacity of the event queue. When the queue is full, senders wait. The driver handles an event
/// in about 10 µs.
pub(crate) const EVENT_QUEUE: usize = 1024;

/// Most wakes that [`DriverHandle::wake_each`] waits for at once, so that a slow one does not delay the
/// others.
const MAX_CONCURRENT_WAKES: usize = 64;

/// Sends requests to the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DriverHandle {
    events: mpsc::Sender<DriverEvent>,
    snapshots: SnapshotReceiver,
}

impl DriverHandle {
    pub(crate) fn new(events: mpsc::Sender<DriverEvent>, snapshots: SnapshotReceiver) -> Self {
        Self { events, snapshots }
    }

    pub fn snapshots(&self) -> SnapshotReceiver {
        self.snapshots.clone()
    }

    /// Returns the number of queued events.
    pub fn queue_length(&self) -> usize {
        self.events.max_capacity() - self.events.capacity()
    }

    /// Creates a workspace. Returns once the workspace is durable. The flag is `false` if the
    /// workspace existed already.
    pub async fn create(&self, new: NewWorkspace) -> Result<(Arc<WorkspaceView>, bool), DriverError> {
        self.ask(|reply| DriverEvent::Create(Box::new(new), reply)).await
    }

    /// Archives a workspace, then deletes it. With `discard`, deletes it with its files and
    /// archives instead. Returns once the request is durable.
    pub async fn delete(&self, id: WorkspaceId, discard: bool) -> Result<Arc<WorkspaceView>, DriverError> {
        self.change(id, WorkspaceChange::Delete { discard }).await
    }

    /// Takes the deletion of a workspace back, until its storage is released. Returns once that is
    /// durable. Does nothing for a workspace that is not being deleted.
    pub async fn undelete(&self, id: WorkspaceId) -> Result<Arc<WorkspaceView>, DriverError> {
        self.change(id, WorkspaceChange::Undelete).await
    }

    /// Puts a workspace to sleep. Unless `force` is set, fails if the workspace is in use or its
    /// activity is unknown. Returns once the request is durable. The snapshots show the progress.
    pub async fn sleep(&self, id: WorkspaceId, force: bool) -> Result<Arc<WorkspaceView>, DriverError> {
        self.change(id, WorkspaceChange::Sleep { force }).await
    }

    /// Restores an archived or deleted workspace of which only archives are left. Returns once the
    /// request is durable.
    pub async fn restore(&self, id: WorkspaceId) -> Result<Arc<WorkspaceView>, DriverError> {
        self.change(id, WorkspaceChange::Restore).await
    }

    /// Changes a workspace's requested resources. A resource without an override keeps its value. Returns
    /// once the request is durable. An increase may still wait in the admission queue.
    pub async fn resize(
        &self,
        id: WorkspaceId,
        overrides: ResourceOverrides,
    ) -> Result<Arc<WorkspaceView>, DriverError> {
        self.change(id, WorkspaceChange::Resize(overrides)).await
    }

    /// Overrides parts of a workspace's policy. Returns once the change is durable. The agent is
    /// then sent the new policy.
    pub async fn set_policy(
        &self,
        id: WorkspaceId,
        policy: PolicyOverrides,
    ) -> Result<Arc<WorkspaceView>, DriverError> {
        self.change(id, WorkspaceChange::SetPolicy(Box::new(policy))).await
    }

    /// Wakes a workspace and shortens the back-off of a failed start to at most 1 s after the
    /// failure. Returns once the request is durable. The snapshots show the progress.
    pub async fn wake(&self, id: WorkspaceId) -> Result<Arc<WorkspaceView>, DriverError> {
        self.change(id, WorkspaceChange::Wake).await
    }

    /// Wakes each requested workspace, at most 64 at a time. Returns when the channel
    /// is closed. Drops a request for a workspace whose wake is in progress.
    pub async fn wake_each(&self, mut requests: mpsc::Receiver<WorkspaceId>) {
        let requests = stream::poll_fn(|context| requests.poll_recv(context));
        let in_progress = Mutex::<BTreeSet<WorkspaceId>>::default();
        let in_progress = || in_progress.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = async |id: WorkspaceId| {
            if !in_progress().insert(id.clone()) {
                return;
            }
            if let Err(error) = self.wake(id.clone()).await {
                tracing::debug!(workspace = %id, %error, "failed to wake workspace");
            }
            in_progress().remove(&id);
        };
        requests.for_each_concurrent(MAX_CONCURRENT_WAKES, wake).await;
    }

    /// Ends the processes of all workspaces, then the control plane. Storage stays. Unless `force`
    /// is set, fails if a workspace is in use or its activity is unknown. Returns once the shutdown
    /// has begun. The snapshots show the progress.
    pub async fn down(&self, force: bool) -> Result<(), DriverError> {
        self.ask(|reply| DriverEvent::Down { force, reply }).await
    }

    /// Puts idle workspaces to sleep, and returns once they are asleep. The others continue to run.
    /// From now on, new workspaces and wakes are rejected.
    pub async fn drain_idle(&self) -> Result<(), DriverError> {
        self.ask(DriverEvent::DrainIdle).await
    }

    /// Reports a workspace that was created in the store.
    pub async fn add_stored(&self, record: WorkspaceRecord) -> Result<(), DriverError> {
        self.send(DriverEvent::StoredWorkspace(Box::new(record))).await
    }

    /// Reports the spec of a workspace in the store.
    pub async fn observe_spec(&self, id: WorkspaceId, stored: StoredSpec) -> Result<(), DriverError> {
        self.send(DriverEvent::Spec(id, Box::new(stored))).await
    }

    /// Reports an agent's hello. The driver answers through the queue `directives`.
    pub async fn hello(&self, hello: AgentHello) -> Result<(), DriverError> {
        self.send(DriverEvent::Hello(Box::new(hello))).await
    }

    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<(), DriverError> {
        self.send(DriverEvent::Heartbeat(heartbeat)).await
    }

    pub async fn directive_answered(&self, answer: DirectiveAnswer) -> Result<(), DriverError> {
        self.send(DriverEvent::DirectiveAnswered(answer)).await
    }

    /// Reports the end of an agent's stream.
    pub async fn disconnected(&self, id: WorkspaceId, connection: ConnectionId) -> Result<(), DriverError> {
        self.send(DriverEvent::Disconnected(id, connection)).await
    }

    async fn change(
        &self,
        id: WorkspaceId,
        change: WorkspaceChange,
    ) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Change(id, change, reply)).await
    }

    async fn ask<T>(&self, event: impl FnOnce(Reply<T>) -> DriverEvent) -> Result<T, DriverError> {
        let (reply, receiver) = oneshot::channel();
        self.send(event(reply)).await?;
        receiver.await.unwrap_or(Err(DriverError::ShuttingDown))
    }

    async fn send(&self, event: DriverEvent) -> Result<(), DriverError> {
        self.events.send(event).await.map_err(|_| DriverError::ShuttingDown)
    }
}

// === Events ===

pub(crate) type Reply<T> = oneshot::Sender<Result<T, DriverError>>;

/// An event for the driver, from the API, the store's watcher, or an agent.
#[derive(Debug)]
pub(crate) enum DriverEvent {
    /// Creates a workspace, or finds the one that an earlier call created. The reply contains
    /// `true` if it was created.
    Create(Box<NewWorkspace>, Reply<(Arc<WorkspaceView>, bool)>),
    /// Changes a workspace. Answered once the change is durable.
    Change(WorkspaceId, WorkspaceChange, Reply<Arc<WorkspaceView>>),
    /// A workspace was created in the store, or has become readable again.
    StoredWorkspace(Box<WorkspaceRecord>),
    /// The spec in the store, which may have changed.
    Spec(WorkspaceId, Box<StoredSpec>),
    /// Ends the processes of all workspaces, then the control plane.
    Down {
        force: bool,
        reply: Reply<()>,
    },
    /// Puts idle workspaces to sleep, because the control plane is about to stop.
    DrainIdle(Reply<()>),
    /// Progress of an action. Progress is only shown; it changes no status and is not stored.
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

/// A request to change a workspace.
#[derive(Debug)]
pub(crate) enum WorkspaceChange {
    Delete {
        discard: bool,
    },
    /// Takes the deletion of the workspace back.
    Undelete,
    /// Wakes the workspace and shortens its back-off to at most 1 s after the failure, because a
    /// caller waits.
    Wake,
    Sleep {
        force: bool,
    },
    /// Restores a workspace of which only archives are left.
    Restore,
    SetPolicy(Box<PolicyOverrides>),
    Resize(ResourceOverrides),
}

/// A validated request for a new workspace, with the template's values filled in.
#[derive(Debug, Clone)]
pub struct NewWorkspace {
    pub owner: Owner,
    pub name: WorkspaceName,
    pub template: String,
    pub command: Vec<String>,
    /// The template's environment, overridden by the variables in the request.
    pub env: BTreeMap<String, String>,
    /// The template's policy, overridden by the values in the request.
    pub policy: Policy,
    /// Resources requested while awake.
    pub resources: Resources,
    /// Requested size of the volume. `None` is the template's.
    pub storage_bytes: Option<u64>,
    /// Archive to restore the storage from.
    pub source: Option<ArchiveKey>,
    /// Idempotency key. A repeated call with the same key finds the workspace again. Empty if there
    /// is none.
    pub request_id: String,
    /// If the owner already has a workspace of this name, wakes and returns it.
    pub reconnect: bool,
}

/// Identifies one stream of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The first message of an agent. The workspace follows from the credential. Boot id, version,
/// capabilities and fingerprint are what the agent reports.
#[derive(Debug)]
pub struct AgentHello {
    /// The workspace that the agent's credential proves.
    pub workspace: WorkspaceId,
    pub connection: ConnectionId,
    pub instance: InstanceId,
    /// Identifies one run of the agent.
    pub boot_id: String,
    pub version: String,
    pub capabilities: Vec<String>,
    /// Fingerprint of the certificate that the agent presents to the gateway.
    pub fingerprint: Fingerprint,
    /// Queue of messages to the agent. A full queue means that the agent does not read. The driver
    /// then drops the session, which closes the stream.
    pub directives: mpsc::Sender<AgentDirective>,
}

/// A message from the driver to an agent.
#[derive(Debug, Clone)]
pub enum AgentDirective {
    /// Tells the agent to stay connected, because the backend has not reported it yet.
    Wait,
    Claim(ClaimContent),
    /// Sends a step of the two-phase sleep, and why the workspace falls asleep. The agent answers
    /// with a [`DirectiveAnswer`].
    Sleep(DirectiveId, SleepStep, Option<SleepCause>),
    /// Warns viewers of a sleep at this time. `None` withdraws the warning.
    Warn(Option<(Timestamp, SleepCause)>),
    /// Tells the agent to end all processes in order, within the grace period.
    Drain {
        grace: Duration,
    },
    /// Tells the agent to exit, with the reason as text.
    Dismiss(String),
}

/// The content of a claim: which workspace the agent serves, and how.
#[derive(Debug, Clone)]
pub struct ClaimContent {
    pub spec: Arc<Spec>,
    pub epoch: Epoch,
    /// The agent serves only the storage: it offers no terminals, processes or input.
    pub maintenance: bool,
}

/// Identifies a directive within one run of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectiveId(pub u64);

/// A step of the two-phase sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepStep {
    /// Checks activity again. If the workspace is idle, new input is held.
    Prepare(Urgency),
    /// Ends all programs and saves the terminals.
    Commit,
    /// Admits the held input and ends the preparation.
    Cancel,
}

/// An agent's answer to a directive.
#[derive(Debug)]
pub struct DirectiveAnswer {
    /// The workspace that the agent's credential proves.
    pub workspace: WorkspaceId,
    pub connection: ConnectionId,
    pub directive: DirectiveId,
    pub result: Result<(), Failure>,
    /// The agent's activity, if the answer includes it.
    pub activity: Option<Arc<ReportedActivity>>,
}

/// A heartbeat of an agent. The API has limited its size.
#[derive(Debug)]
pub struct Heartbeat {
    /// The workspace that the agent's credential proves.
    pub workspace: WorkspaceId,
    pub connection: ConnectionId,
    pub activity: Arc<ReportedActivity>,
    /// Receives `()` once the heartbeat was handled. Only then may it be acknowledged. Dropped if
    /// the agent is not claimed.
    pub accepted: oneshot::Sender<()>,
}
