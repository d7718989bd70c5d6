//! How everybody else asks the driver for something.

use std::sync::Arc;

use podling_core::{id::WorkspaceId, policy::PolicyOverrides, workspace::Resources};
use tokio::sync::{mpsc, oneshot};

use super::{
    AgentHello, ConnectionId, DirectiveAnswer, DriverError, Heartbeat, NewWorkspace, SpecEdit,
    event::{DriverEvent, Reply},
};
use crate::{
    snapshot::{Snapshots, WorkspaceView},
    store::WorkspaceRecord,
};

/// Events that wait for the driver. When it is full, who asks waits; the driver takes some 10 µs for each.
pub(super) const EVENT_QUEUE: usize = 1024;

/// Asks the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DriverHandle {
    events: mpsc::Sender<DriverEvent>,
    snapshots: Snapshots,
}

impl DriverHandle {
    pub(super) fn new(events: mpsc::Sender<DriverEvent>, snapshots: Snapshots) -> Self {
        Self { events, snapshots }
    }

    /// The picture that everybody may look at.
    pub fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }

    /// How many events wait for the driver.
    pub fn queue_length(&self) -> usize {
        self.events.max_capacity() - self.events.capacity()
    }

    /// Makes a workspace; answers once it is durable. `false`: it was there already.
    pub async fn create(&self, new: NewWorkspace) -> Result<(Arc<WorkspaceView>, bool), DriverError> {
        self.ask(|reply| DriverEvent::Create(Box::new(new), reply)).await
    }

    /// Wants a workspace gone: archived first, or (`discard`) with its files and archives. Answers once that is durable.
    pub async fn delete(&self, id: WorkspaceId, discard: bool) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Delete { id, discard, reply }).await
    }

    /// Wants a workspace asleep, though it be used (`force`). Answers once that is durable; follow the snapshots for the rest.
    pub async fn sleep(&self, id: WorkspaceId, force: bool) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Sleep { id, force, reply }).await
    }

    /// Wants a workspace back of which only its archive is drain_reply, also one that was deleted. Answers once that is durable.
    pub async fn restore(&self, id: WorkspaceId) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Restore(id, reply)).await
    }

    /// Gives a workspace another quota_inputs of its owner's room. Answers once that is durable; more may have to be waited for in line.
    pub async fn resize(
        &self,
        id: WorkspaceId,
        resources: Resources,
    ) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Resize(id, resources, reply)).await
    }

    /// Gives a workspace another policy, where `policy` says so; its agent is told. Answers once that is durable.
    pub async fn set_policy(
        &self,
        id: WorkspaceId,
        policy: PolicyOverrides,
    ) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::SetPolicy(id, Box::new(policy), reply)).await
    }

    /// Somebody waits for a workspace: one that sleeps wakes, one whose start failed is tried again now. Answers with what it is
    /// now; follow the snapshots for the rest.
    pub async fn wake(&self, id: WorkspaceId) -> Result<Arc<WorkspaceView>, DriverError> {
        self.ask(|reply| DriverEvent::Wake(id, reply)).await
    }

    /// Ends all workspaces' processes, keeps their storage, then ends the control plane. Answers when it has begun; follow the
    /// snapshots for the rest.
    pub async fn down(&self, force: bool) -> Result<(), DriverError> {
        self.ask(|reply| DriverEvent::Down { force, reply }).await
    }

    /// Puts to sleep what is idle, and answers when that is done; what is used runs on. Nothing is made or woken from here on.
    pub async fn drain_idle(&self) -> Result<(), DriverError> {
        self.ask(DriverEvent::DrainIdle).await
    }

    /// Somebody has made a workspace where it is stored.
    pub async fn add_stored(&self, record: WorkspaceRecord) -> Result<(), DriverError> {
        self.send(DriverEvent::StoredWorkspace(Box::new(record))).await
    }

    /// Somebody has changed a workspace where it is stored.
    pub async fn apply_edit(&self, id: WorkspaceId, edit: SpecEdit) -> Result<(), DriverError> {
        self.send(DriverEvent::SpecEdited(id, Box::new(edit))).await
    }

    /// An agent introduces itself; the answers come over its `to_agent`.
    pub async fn hello(&self, hello: AgentHello) -> Result<(), DriverError> {
        self.send(DriverEvent::Hello(Box::new(hello))).await
    }

    /// An agent's heartbeat.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Result<(), DriverError> {
        self.send(DriverEvent::Heartbeat(beat)).await
    }

    /// An agent's answer to a directive.
    pub async fn directive_answered(&self, answer: DirectiveAnswer) -> Result<(), DriverError> {
        self.send(DriverEvent::DirectiveAnswered(answer)).await
    }

    /// An agent's stream has ended.
    pub async fn disconnected(&self, id: WorkspaceId, connection: ConnectionId) -> Result<(), DriverError> {
        self.send(DriverEvent::Disconnected(id, connection)).await
    }

    async fn ask<T>(&self, event: impl FnOnce(Reply<T>) -> DriverEvent) -> Result<T, DriverError> {
        let (reply, answer) = oneshot::channel();
        self.send(event(reply)).await?;
        answer.await.unwrap_or(Err(DriverError::ShuttingDown))
    }

    async fn send(&self, event: DriverEvent) -> Result<(), DriverError> {
        self.events.send(event).await.map_err(|_| DriverError::ShuttingDown)
    }
}
