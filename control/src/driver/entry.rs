//! The driver's memory of one workspace.

use std::sync::Arc;

use podling_core::{
    decide::{Action, Decision, decide},
    observed::{AgentEnd, Observed, RunningAgents},
    reason::NextStep,
    status::{MaintenanceStage, Phase},
    time::Timestamp,
    workspace::{AgentConnection, DesiredState, Epoch, Spec},
};
use podling_proto::agent::v1::ActivityState;
use tokio::time::Instant;

use super::{
    DriverError, SpecEdit, agent_sessions::SessionEntry, error::CannotUndeleteCause, event::Reply,
    sleep_directives::PendingDirective,
};
use crate::{
    backend::Instance,
    progress::TransferProgress,
    snapshot::{AgentView, WorkspaceView},
    store::WorkspaceRecord,
};

/// The driver's memory of one workspace: its record, observations, sessions and pending work.
#[derive(Debug)]
pub(super) struct WorkspaceEntry {
    /// The latest decision. It is durable once `durable` is the same `Arc`.
    pub(super) record: Arc<WorkspaceRecord>,
    /// The record in the store. `None` before the first successful write.
    pub(super) durable: Option<Arc<WorkspaceRecord>>,
    /// The record that the writer was given last.
    pub(super) submitted: Option<Arc<WorkspaceRecord>>,
    /// Edits of the stored spec that are not in a durable record yet. The store reports each edit
    /// only once.
    pub(super) unsaved_edit: Option<SpecEdit>,
    /// Whether the workspace was deleted in the store. Such a deletion cannot be taken back.
    pub(super) deleted_in_store: bool,
    pub(super) observed: Observed,
    pub(super) in_flight: Option<Action>,
    /// Progress of the action in flight, if any was reported.
    pub(super) progress: Option<TransferProgress>,
    /// The sleep directive that the agent has not answered yet.
    pub(super) pending_directive: Option<PendingDirective>,
    /// Time of the sleep in the last warning that the agent was sent.
    pub(super) warned_for: Option<Timestamp>,
    /// The spec in the last claim that the agent was sent.
    pub(super) claimed_spec: Option<Arc<Spec>>,
    /// Position in the admission queue; 1 is next.
    pub(super) queue_position: Option<usize>,
    /// Epoch and secret of the next start. Moved into the request when the start begins.
    pub(super) secret: Option<(Epoch, String)>,
    /// Running agents of all epochs.
    pub(super) instances: Vec<Instance>,
    /// Sessions of agents, oldest first; at most `MAX_AGENT_SESSIONS`.
    pub(super) sessions: Vec<SessionEntry>,
    /// The claimed agent of the current epoch.
    pub(super) agent: Option<Arc<AgentView>>,
    /// The activity that the agent reported last.
    pub(super) activity: Option<Arc<ActivityState>>,
    /// When the observed state of the workspace's command changed last.
    pub(super) command_changed_at: Option<Instant>,
    /// The next step and its wall-clock time, for display.
    pub(super) next: Option<(Timestamp, NextStep)>,
    /// When the next decision is due, on the monotonic clock.
    pub(super) scheduled_at: Option<Instant>,
    /// Replies that are sent once the record is durable.
    pub(super) pending_replies: Vec<PendingReply>,
    /// The view in the published snapshot.
    pub(super) view: Option<Arc<WorkspaceView>>,
}

/// A reply that is sent once the workspace's record is durable.
#[derive(Debug)]
pub(super) enum PendingReply {
    Created(Reply<(Arc<WorkspaceView>, bool)>, bool),
    View(Reply<Arc<WorkspaceView>>),
    /// A request to restore, which is handled once the deletion is durable.
    Restore(Reply<Arc<WorkspaceView>>),
}

impl WorkspaceEntry {
    pub(super) fn new(record: WorkspaceRecord, durable: bool, observed: Observed) -> Self {
        let record = Arc::new(record);
        Self {
            durable: durable.then(|| record.clone()),
            record,
            submitted: None,
            unsaved_edit: None,
            deleted_in_store: false,
            observed,
            in_flight: None,
            progress: None,
            pending_directive: None,
            warned_for: None,
            claimed_spec: None,
            queue_position: None,
            secret: None,
            instances: Vec::new(),
            sessions: Vec::new(),
            agent: None,
            activity: None,
            command_changed_at: None,
            next: None,
            scheduled_at: None,
            pending_replies: Vec::new(),
            view: None,
        }
    }

    /// Returns the epoch of the last decided start.
    pub(super) fn epoch(&self) -> Epoch {
        self.record.status.epoch
    }

    /// Returns whether the latest decision is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| Arc::ptr_eq(durable, &self.record))
    }

    /// Returns the record if the writer was not given it yet, and marks it as given.
    pub(super) fn take_unwritten(&mut self) -> Option<Arc<WorkspaceRecord>> {
        if self.submitted.as_ref().is_some_and(|submitted| Arc::ptr_eq(submitted, &self.record)) {
            return None;
        }
        self.submitted = Some(self.record.clone());
        self.submitted.clone()
    }

    /// Returns whether an agent should be running and claimed in the current phase.
    pub(super) fn wants_agent(&self) -> bool {
        match self.record.status.phase {
            Phase::Starting
            | Phase::Awake
            | Phase::Preparing { .. }
            | Phase::Committing
            | Phase::Maintenance { .. } => true,
            Phase::Queued
            | Phase::Pending { .. }
            | Phase::FallingAsleep
            | Phase::Asleep
            | Phase::Archived
            | Phase::Deleting => false,
        }
    }

    /// Returns whether the agent should run in maintenance mode.
    pub(super) fn wants_maintenance(&self) -> bool {
        matches!(self.record.status.phase, Phase::Maintenance { .. })
    }

    /// Returns the running agent of the current epoch.
    pub(super) fn instance(&self) -> Option<&Instance> {
        let epoch = self.epoch();
        self.instances.iter().find(|instance| instance.epoch == epoch)
    }

    /// Returns whether the control plane may exit: the record is durable and no process of the
    /// workspace runs.
    pub(super) fn allows_shutdown(&self) -> bool {
        self.is_settled()
            && self.observed.processes == RunningAgents::None
            && matches!(self.record.status.phase, Phase::Asleep | Phase::Archived | Phase::Deleting)
    }

    pub(super) fn decide(&self, now: Timestamp) -> Decision {
        decide(&self.record.spec, &self.record.status, &self.observed, now)
    }

    /// Records a running agent, unless it is known already or has ended.
    pub(super) fn add_instance(&mut self, instance: Instance) {
        // The end of an agent may be reported before its start.
        let ended = |ended: &AgentEnd| ended.epoch == instance.epoch;
        let known = self.instances.iter().any(|known| known.id == instance.id);
        if !self.observed.ended.as_ref().is_some_and(ended) && !known {
            self.observed.actual = instance.resources.map(|has| (instance.epoch, has));
            self.instances.push(instance);
        }
    }

    /// Replaces the running agents with this complete list.
    pub(super) fn set_instances<'a>(&mut self, running: impl Iterator<Item = &'a Instance> + Clone) {
        let epoch = self.epoch();
        self.observed.apply_first_list(running.clone().map(|instance| instance.epoch).collect(), epoch);
        self.instances.clear();
        for instance in running {
            if self.observed.processes.is_running(instance.epoch) {
                self.add_instance(instance.clone());
            }
        }
    }

    pub(super) fn instance_ended(&mut self, instance: &Instance, how: String) {
        self.instances.retain(|other| other.id != instance.id);
        self.observed.agent_ended(instance.epoch, how);
        self.clear_agent();
    }

    /// Records that no agent runs.
    pub(super) fn clear_instances(&mut self) {
        self.instances.clear();
        self.clear_agent();
    }

    /// Removes the claimed agent unless it is the running agent of the current epoch.
    fn clear_agent(&mut self) {
        if self.instance().is_none() {
            self.agent = None;
            self.activity = None;
            self.warned_for = None;
            self.claimed_spec = None;
        }
    }

    /// Builds the view of the durable record and the last observations. Returns `None` before the
    /// first record is durable.
    pub(super) fn build_view(&self, version: u64) -> Option<WorkspaceView> {
        let record = self.durable.as_ref()?;
        let connected = self.observed.connected == Some(record.status.epoch);
        Some(WorkspaceView {
            spec: record.spec.clone(),
            state: record.status.state(),
            reason: record.status.reason.clone(),
            since: record.status.since,
            connection: if connected { AgentConnection::Connected } else { AgentConnection::Unknown },
            activity: self.activity.clone(),
            agent: self.agent.clone(),
            next: self.next,
            restarts: record.status.failures,
            allocated: record.status.allocated.filter(|_| record.status.phase.holds_quota()),
            actual: self.observed.actual.filter(|(of, _)| *of == self.epoch()).map(|(_, has)| has),
            waits: record.status.waits.clone(),
            storage: record.status.storage,
            queue_position: self.queue_position,
            progress: self.progress.filter(|_| {
                matches!(record.status.phase, Phase::Maintenance { stage: MaintenanceStage::Running, .. })
            }),
            archives: record.status.archives.clone(),
            log: record.log.clone(),
            credential: record.credential.map(|credential| credential.digest),
            undelete: self.check_undelete().is_ok(),
            version,
        })
    }

    /// Returns why the deletion of the workspace cannot be taken back, if it cannot.
    pub(super) fn check_undelete(&self) -> Result<(), CannotUndeleteCause> {
        let is_discarded = self.record.spec.desired_state == DesiredState::Discarded;
        match self.record.status.phase {
            _ if is_discarded => Err(CannotUndeleteCause::Discarded),
            Phase::Deleting => Err(CannotUndeleteCause::Deleted),
            _ if self.record.is_gone() => Err(CannotUndeleteCause::Deleted),
            _ if self.deleted_in_store => Err(CannotUndeleteCause::Kubernetes),
            _ => Ok(()),
        }
    }

    /// Rejects all pending requests with this error.
    pub(super) fn reject_pending(&mut self, error: &DriverError) {
        for pending in self.pending_replies.drain(..) {
            // A caller that has gone away needs no answer.
            match pending {
                PendingReply::Created(reply, _) => drop(reply.send(Err(error.clone()))),
                PendingReply::View(reply) | PendingReply::Restore(reply) => {
                    drop(reply.send(Err(error.clone())))
                }
            }
        }
    }

    /// Answers the pending requests with the current view, except requests to restore. Returns
    /// those, because they may begin now.
    pub(super) fn answer_pending(&mut self) -> Vec<Reply<Arc<WorkspaceView>>> {
        let mut restores = Vec::new();
        let Some(view) = &self.view else { return restores };
        for pending in self.pending_replies.drain(..) {
            // A caller that has gone away needs no answer.
            match pending {
                PendingReply::Created(reply, created) => drop(reply.send(Ok((view.clone(), created)))),
                PendingReply::View(reply) => drop(reply.send(Ok(view.clone()))),
                PendingReply::Restore(reply) => restores.push(reply),
            }
        }
        restores
    }
}
