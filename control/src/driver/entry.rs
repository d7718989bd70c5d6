//! One workspace in the driver's memory.

use std::sync::Arc;

use podling_core::{
    decide::{Action, Decision, decide},
    observed::{AgentEnd, Observed, Processes},
    reason::NextStep,
    status::{MaintenanceStage, Phase},
    time::Timestamp,
    workspace::{AgentConnection, Epoch, Spec},
};
use podling_proto::agent::v1::ActivityState;
use tokio::time::Instant;

use super::{
    DriverError, SpecEdit, agent_sessions::SessionEntry, event::Reply, sleep_directives::PendingDirective,
};
use crate::{
    backend::Instance,
    progress::TransferProgress,
    snapshot::{AgentView, WorkspaceView},
    store::WorkspaceRecord,
};

/// Everything the driver knows of one workspace.
#[derive(Debug)]
pub(super) struct WorkspaceEntry {
    /// What was decided last.
    pub(super) record: Arc<WorkspaceRecord>,
    /// What the store holds; `None`: nothing yet.
    pub(super) durable: Option<Arc<WorkspaceRecord>>,
    /// What was given to the writer last.
    pub(super) submitted: Option<Arc<WorkspaceRecord>>,
    /// What was changed where it is stored, and the store does not hold yet: nobody would say it again.
    pub(super) unsaved_edit: Option<SpecEdit>,
    /// What was seen.
    pub(super) observed: Observed,
    /// What is being done.
    pub(super) in_flight: Option<Action>,
    /// How far that is, if it was told.
    pub(super) progress: Option<TransferProgress>,
    /// What its agent has been pending_directive, if that is what is being done.
    pub(super) pending_directive: Option<PendingDirective>,
    /// For when its agent last told people that it will sleep.
    pub(super) warned_for: Option<Timestamp>,
    /// What its agent was claimed with.
    pub(super) claimed_spec: Option<Arc<Spec>>,
    /// Its place in the line of those who wait for room.
    pub(super) queue_position: Option<usize>,
    /// Of the start that is about to be ordered: only until then.
    pub(super) secret: Option<(Epoch, String)>,
    /// The agents that live.
    pub(super) instances: Vec<Instance>,
    /// Streams from agents.
    pub(super) sessions: Vec<SessionEntry>,
    /// Of the agent of the present epoch, once it said hello.
    pub(super) agent: Option<Arc<AgentView>>,
    /// Of its last heartbeat.
    pub(super) activity: Option<Arc<ActivityState>>,
    /// When to look again, for people.
    pub(super) next: Option<(Timestamp, NextStep)>,
    /// When to look again, by the clock that nobody sets.
    pub(super) scheduled_at: Option<Instant>,
    /// Who is told once the record is durable.
    pub(super) pending_replies: Vec<PendingReply>,
    /// As published.
    pub(super) view: Option<Arc<WorkspaceView>>,
}

/// An answer that waits for durability.
#[derive(Debug)]
pub(super) enum PendingReply {
    Created(Reply<(Arc<WorkspaceView>, bool)>, bool),
    View(Reply<Arc<WorkspaceView>>),
    /// That it is gone has to be durable first.
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
            next: None,
            scheduled_at: None,
            pending_replies: Vec::new(),
            view: None,
        }
    }

    /// Of the last start that was ordered.
    pub(super) fn epoch(&self) -> Epoch {
        self.record.status.epoch
    }

    /// Whether the store holds what was decided.
    pub(super) fn is_settled(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| Arc::ptr_eq(durable, &self.record))
    }

    /// What the writer has not been given yet.
    pub(super) fn take_unwritten(&mut self) -> Option<Arc<WorkspaceRecord>> {
        if self.submitted.as_ref().is_some_and(|submitted| Arc::ptr_eq(submitted, &self.record)) {
            return None;
        }
        self.submitted = Some(self.record.clone());
        self.submitted.clone()
    }

    /// Whether an agent is wanted and served just now.
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

    /// Whether the agent is only to see to the storage.
    pub(super) fn wants_maintenance(&self) -> bool {
        matches!(self.record.status.phase, Phase::Maintenance { .. })
    }

    /// The living agent of the present epoch.
    pub(super) fn instance(&self) -> Option<&Instance> {
        let epoch = self.epoch();
        self.instances.iter().find(|instance| instance.epoch == epoch)
    }

    /// Whether nothing of it keeps the control plane from going down.
    pub(super) fn allows_shutdown(&self) -> bool {
        self.is_settled()
            && self.observed.processes == Processes::None
            && matches!(self.record.status.phase, Phase::Asleep | Phase::Archived | Phase::Deleting)
    }

    pub(super) fn decide(&self, now: Timestamp) -> Decision {
        decide(&self.record.spec, &self.record.status, &self.observed, now)
    }

    /// An agent lives.
    pub(super) fn add_instance(&mut self, instance: Instance) {
        // It may have ended before its start was reported.
        let ended = |ended: &AgentEnd| ended.epoch == instance.epoch;
        let known = self.instances.iter().any(|known| known.id == instance.id);
        if !self.observed.ended.as_ref().is_some_and(ended) && !known {
            self.observed.actual = instance.resources.map(|has| (instance.epoch, has));
            self.instances.push(instance);
        }
    }

    /// These of its agents live, and no others.
    pub(super) fn set_instances<'a>(&mut self, living: impl Iterator<Item = &'a Instance> + Clone) {
        let epoch = self.epoch();
        self.observed.listed(living.clone().map(|instance| instance.epoch).collect(), epoch);
        self.instances.clear();
        for instance in living {
            if self.observed.processes.lives(instance.epoch) {
                self.add_instance(instance.clone());
            }
        }
    }

    /// An agent has ended.
    pub(super) fn instance_ended(&mut self, instance: &Instance, how: String) {
        self.instances.retain(|other| other.id != instance.id);
        self.observed.agent_ended(instance.epoch, how);
        self.forget_agent();
    }

    /// Nothing runs any more.
    pub(super) fn clear_instances(&mut self) {
        self.instances.clear();
        self.forget_agent();
    }

    /// Drops what was known of an agent that is not the present one any more.
    fn forget_agent(&mut self) {
        if self.instance().is_none() {
            self.agent = None;
            self.activity = None;
            self.warned_for = None;
            self.claimed_spec = None;
        }
    }

    /// How it looks from outside: what is durable, and what was seen last. `None` before it is durable.
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
            queue_position: self.queue_position,
            progress: self.progress.filter(|_| {
                matches!(record.status.phase, Phase::Maintenance { stage: MaintenanceStage::Running, .. })
            }),
            archives: record.status.archives.clone(),
            log: record.log.clone(),
            credential: record.credential.map(|credential| credential.digest),
            version,
        })
    }

    /// Tells everybody who waits that it is not to be.
    pub(super) fn reject_pending(&mut self, refused: &DriverError) {
        for waiting in self.pending_replies.drain(..) {
            // Who has gone away needs no answer.
            match waiting {
                PendingReply::Created(reply, _) => drop(reply.send(Err(refused.clone()))),
                PendingReply::View(reply) | PendingReply::Restore(reply) => {
                    drop(reply.send(Err(refused.clone())))
                }
            }
        }
    }

    /// Answers everybody who waits, but for those who set_desired_state it back: for them it is time now.
    pub(super) fn answer_pending(&mut self) -> Vec<Reply<Arc<WorkspaceView>>> {
        let mut restores = Vec::new();
        let Some(view) = &self.view else { return restores };
        for waiting in self.pending_replies.drain(..) {
            // Who has gone away needs no answer.
            match waiting {
                PendingReply::Created(reply, created) => drop(reply.send(Ok((view.clone(), created)))),
                PendingReply::View(reply) => drop(reply.send(Ok(view.clone()))),
                PendingReply::Restore(reply) => restores.push(reply),
            }
        }
        restores
    }
}
