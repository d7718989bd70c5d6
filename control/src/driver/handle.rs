//! The interface for requests to the driver.

use std::sync::Arc;

use podling_core::{id::WorkspaceId, policy::PolicyOverrides, workspace::Resources};
use tokio::sync::{mpsc, oneshot};

use super::{
    AgentHello, ConnectionId, DirectiveAnswer, DriverError, Heartbeat, NewWorkspace, SpecEdit,
    event::{DriverEvent, Reply},
};
use crate::{
    snapshot::{SnapshotReceiver, WorkspaceView},
    store::WorkspaceRecord,
};

/// Capacity of the event queue. When the queue is full, senders wait. The driver handles an event
/// in about 10 µs.
pub(super) const EVENT_QUEUE: usize = 1024;

/// Sends requests to the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DriverHandle {
    events: mpsc::Sender<DriverEvent>,
    snapshots: SnapshotReceiver,
}

impl DriverHandle {
    pub(super) fn new(events: mpsc::Sender<DriverEvent>, snapshots: SnapshotReceiver) -> Self {
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
        self.ask(|reply| DriverEvent::Delete { id, discard, reply }).await
    }

    /// Takes the deletion of a workspace back, until its storage is released. Returns once that is
    /// durable. Does nothing for a workspace that is not being deleted.
    pub async fn undelete(&self, id: WorkspaceId) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Undelete(id, reply)).await
    }

    /// Puts a workspace to sleep. Unless `force` is set, fails if the workspace is in use or its
    /// activity is unknown. Returns once the request is durable. The snapshots show the progress.
    pub async fn sleep(&self, id: WorkspaceId, force: bool) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Sleep { id, force, reply }).await
    }

    /// Restores an archived or deleted workspace of which only archives are left. Returns once the
    /// request is durable.
    pub async fn restore(&self, id: WorkspaceId) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Restore(id, reply)).await
    }

    /// Changes a workspace's requested resources. Returns once the request is durable. An increase
    /// may still wait in the admission queue.
    pub async fn resize(
        &self,
        id: WorkspaceId,
        resources: Resources,
    ) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Resize(id, resources, reply)).await
    }

    /// Overrides parts of a workspace's policy. Returns once the change is durable. The agent is
    /// then sent the new policy.
    pub async fn set_policy(
        &self,
        id: WorkspaceId,
        policy: PolicyOverrides,
    ) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::SetPolicy(id, Box::new(policy), reply)).await
    }

    /// Wakes a workspace and shortens the back-off of a failed start to at most 1 s after the
    /// failure. Returns once the request is durable. The snapshots show the progress.
    pub async fn wake(&self, id: WorkspaceId) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Wake(id, reply)).await
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

    /// Reports an edit of a workspace's spec in the store.
    pub async fn apply_edit(&self, id: WorkspaceId, edit: SpecEdit) -> Result<(), DriverError> {
        self.send(DriverEvent::SpecEdited(id, Box::new(edit))).await
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

    async fn ask<T>(&self, event: impl FnOnce(Reply<T>) -> DriverEvent) -> Result<T, DriverError> {
        let (reply, receiver) = oneshot::channel();
        self.send(event(reply)).await?;
        receiver.await.unwrap_or(Err(DriverError::ShuttingDown))
    }

    async fn send(&self, event: DriverEvent) -> Result<(), DriverError> {
        self.events.send(event).await.map_err(|_| DriverError::ShuttingDown)
    }
}
