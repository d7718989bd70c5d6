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

use super::{DriverError, Edit, event::Reply, links::AgentLink, steps::Asked};
use crate::{
    backend::Instance,
    progress::Progress,
    snapshot::{AgentView, WorkspaceView},
    store::WorkspaceRecord,
};

/// Everything the driver knows of one workspace.
#[derive(Debug)]
pub(super) struct Entry {
    /// What was decided last.
    pub(super) record: Arc<WorkspaceRecord>,
    /// What the store holds; `None`: nothing yet.
    pub(super) durable: Option<Arc<WorkspaceRecord>>,
    /// What was given to the writer last.
    pub(super) queued: Option<Arc<WorkspaceRecord>>,
    /// What was changed where it is stored, and the store does not hold yet: nobody would say it again.
    pub(super) unsaved: Option<Edit>,
    /// What was seen.
    pub(super) observed: Observed,
    /// What is being done.
    pub(super) in_flight: Option<Action>,
    /// How far that is, if it was told.
    pub(super) progress: Option<Progress>,
    /// What its agent has been asked, if that is what is being done.
    pub(super) asked: Option<Asked>,
    /// For when its agent last told people that it will sleep.
    pub(super) warned: Option<Timestamp>,
    /// What its agent was claimed with.
    pub(super) told_spec: Option<Arc<Spec>>,
    /// Its place in the line of those who wait for room.
    pub(super) place: Option<usize>,
    /// Of the start that is about to be ordered: only until then.
    pub(super) secret: Option<(Epoch, String)>,
    /// The agents that live.
    pub(super) instances: Vec<Instance>,
    /// Streams from agents.
    pub(super) links: Vec<AgentLink>,
    /// Of the agent of the present epoch, once it said hello.
    pub(super) agent: Option<Arc<AgentView>>,
    /// Of its last heartbeat.
    pub(super) activity: Option<Arc<ActivityState>>,
    /// When to look again, for people.
    pub(super) next: Option<(Timestamp, NextStep)>,
    /// When to look again, by the clock that nobody sets.
    pub(super) wakes: Option<Instant>,
    /// Who is told once the record is durable.
    pub(super) waiting: Vec<Waiting>,
    /// As published.
    pub(super) view: Option<Arc<WorkspaceView>>,
}

/// An answer that waits for durability.
#[derive(Debug)]
pub(super) enum Waiting {
    Created(Reply<(Arc<WorkspaceView>, bool)>, bool),
    View(Reply<Arc<WorkspaceView>>),
    /// That it is gone has to be durable first.
    Restore(Reply<Arc<WorkspaceView>>),
}

impl Entry {
    pub(super) fn new(record: WorkspaceRecord, durable: bool, observed: Observed) -> Self {
        let record = Arc::new(record);
        Self {
            durable: durable.then(|| record.clone()),
            record,
            queued: None,
            unsaved: None,
            observed,
            in_flight: None,
            progress: None,
            asked: None,
            warned: None,
            told_spec: None,
            place: None,
            secret: None,
            instances: Vec::new(),
            links: Vec::new(),
            agent: None,
            activity: None,
            next: None,
            wakes: None,
            waiting: Vec::new(),
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
        if self.queued.as_ref().is_some_and(|queued| Arc::ptr_eq(queued, &self.record)) {
            return None;
        }
        self.queued = Some(self.record.clone());
        self.queued.clone()
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
    pub(super) fn rests(&self) -> bool {
        self.is_settled()
            && self.observed.processes == Processes::None
            && matches!(self.record.status.phase, Phase::Asleep | Phase::Archived | Phase::Deleting)
    }

    pub(super) fn decide(&self, now: Timestamp) -> Decision {
        decide(&self.record.spec, &self.record.status, &self.observed, now)
    }

    /// An agent lives.
    pub(super) fn instance_lives(&mut self, instance: Instance) {
        // It may have ended before its start was reported.
        let ended = |ended: &AgentEnd| ended.epoch == instance.epoch;
        let known = self.instances.iter().any(|known| known.id == instance.id);
        if !self.observed.ended.as_ref().is_some_and(ended) && !known {
            self.observed.actual = instance.resources.map(|has| (instance.epoch, has));
            self.instances.push(instance);
        }
    }

    /// These of its agents live, and no others.
    pub(super) fn listed<'a>(&mut self, living: impl Iterator<Item = &'a Instance> + Clone) {
        let epoch = self.epoch();
        self.observed.listed(living.clone().map(|instance| instance.epoch).collect(), epoch);
        self.instances.clear();
        for instance in living {
            if self.observed.processes.lives(instance.epoch) {
                self.instance_lives(instance.clone());
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
    pub(super) fn nothing_runs(&mut self) {
        self.instances.clear();
        self.forget_agent();
    }

    /// Drops what was known of an agent that is not the present one any more.
    fn forget_agent(&mut self) {
        if self.instance().is_none() {
            self.agent = None;
            self.activity = None;
            self.warned = None;
            self.told_spec = None;
        }
    }

    /// How it looks from outside: what is durable, and what was seen last. `None` before it is durable.
    pub(super) fn look(&self, version: u64) -> Option<WorkspaceView> {
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
            queue_position: self.place,
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
    pub(super) fn refuse(&mut self, refused: &DriverError) {
        for waiting in self.waiting.drain(..) {
            // Who has gone away needs no answer.
            match waiting {
                Waiting::Created(reply, _) => drop(reply.send(Err(refused.clone()))),
                Waiting::View(reply) | Waiting::Restore(reply) => drop(reply.send(Err(refused.clone()))),
            }
        }
    }

    /// Answers everybody who waits, but for those who want it back: for them it is time now.
    pub(super) fn answer(&mut self) -> Vec<Reply<Arc<WorkspaceView>>> {
        let mut restores = Vec::new();
        let Some(view) = &self.view else { return restores };
        for waiting in self.waiting.drain(..) {
            // Who has gone away needs no answer.
            match waiting {
                Waiting::Created(reply, created) => drop(reply.send(Ok((view.clone(), created)))),
                Waiting::View(reply) => drop(reply.send(Ok(view.clone()))),
                Waiting::Restore(reply) => restores.push(reply),
            }
        }
        restores
    }
}
