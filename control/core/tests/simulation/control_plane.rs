//! Model of the memory that `control/src/driver` has. A crash of the control plane loses all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use podling_core::{
    decide::{Action, request_before_sleep},
    observed::{ActionSuccess, Failure, Observed, RunningAgents},
    quota::{self, AdmissionQueue, QuotaRequest, Quotas},
    status::{Phase, Status},
    workspace::{Epoch, Resources, Spec},
};

use super::{
    mutant::Mutant,
    specs::{SimulatedSpec, SpecTraffic},
};

/// The record of one workspace in the model store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SimulatedRecord {
    pub(crate) spec: Spec,
    pub(crate) status: Status,
}

/// The persisted records. Crashes of the control plane and of the machine do not change them.
#[derive(Debug, Default)]
pub(crate) struct SimulatedStore {
    pub(crate) records: BTreeMap<usize, Rc<SimulatedRecord>>,
    /// The specs, which the control plane and users change.
    pub(crate) specs: BTreeMap<usize, SimulatedSpec>,
    /// Generation of the spec that each stored status reflects.
    pub(crate) generations: BTreeMap<usize, i64>,
    /// Written with every batch, so that no stored status has a later observed time.
    pub(crate) observed_time: Duration,
}

#[derive(Debug, Clone)]
pub(crate) enum StoreWrite {
    /// A status, with the spec that it reflects and the generation of that spec.
    Put(Rc<SimulatedRecord>, i64),
    Remove,
}

#[derive(Debug, Default)]
pub(crate) struct ControlPlane {
    pub(crate) entries: BTreeMap<usize, WorkspaceEntry>,
    pub(crate) queue: BTreeMap<usize, StoreWrite>,
    pub(crate) writing: Option<BTreeMap<usize, StoreWrite>>,
    pub(crate) specs: SpecTraffic,
    pub(crate) observed_time: Duration,
    pub(crate) shutting_down: bool,
    /// The control plane is suspended (SIGSTOP) until this time of the simulation's clock, in
    /// milliseconds.
    pub(crate) suspended_until: u64,
    pub(crate) last_order: u64,
}

#[derive(Debug)]
pub(crate) struct WorkspaceEntry {
    pub(crate) record: Rc<SimulatedRecord>,
    pub(crate) durable: Option<Rc<SimulatedRecord>>,
    /// Generation of the spec in `record`.
    pub(crate) generation: i64,
    /// The change that records a sleep is requested, and its result has not arrived.
    pub(crate) sleep_record_in_flight: bool,
    pub(crate) queued_write: Option<Rc<SimulatedRecord>>,
    /// The largest reservation of the records that were queued since the last queued one was durable.
    pub(crate) queued_reservation: Option<Resources>,
    pub(crate) observed: Observed,
    pub(crate) in_flight: Option<InFlightAction>,
    /// Epoch of the next start, while the control plane holds the secret for it.
    pub(crate) start_secret: Option<Epoch>,
    /// Connections whose hello arrived, by the epoch of their agent.
    pub(crate) hellos: BTreeMap<Epoch, u64>,
    pub(crate) claimed: Option<(Epoch, u64)>,
    /// Time without a heartbeat on the claimed stream.
    pub(crate) since_heartbeat: Duration,
    /// When the next decision is due, on the simulation's clock in milliseconds.
    pub(crate) decide_at: Option<u64>,
    /// A request to wake is not durable yet, so its caller has no reply.
    pub(crate) wake_pending: bool,
    // Only the checks in `laws` use the fields below.
    /// Idle time in the last heartbeat. `None` once the connection was lost since then.
    pub(crate) reported_idle: Option<Duration>,
    /// Epoch of the agent that last reported use.
    pub(crate) used_by: Option<Epoch>,
    /// Epoch of the agent that confirmed prepare.
    pub(crate) prepared: Option<Epoch>,
    pub(crate) failed_commits: u32,
    pub(crate) prepare_failed: bool,
    /// `Simulation::true_observed_time` at the last heartbeat of the agent.
    pub(crate) heard_at: Duration,
    /// The action that completed last, until the status after it is durable.
    pub(crate) last_completed: Option<Action>,
}

/// An action that was ordered and whose result has not been received.
#[derive(Debug)]
pub(crate) struct InFlightAction {
    pub(crate) action: Action,
    pub(crate) number: u64,
    pub(crate) phase: Phase,
    pub(crate) deadline: u64,
    pub(crate) generation: u64,
    /// The result, from the end of the action until the control plane receives it.
    pub(crate) result: Option<Result<ActionSuccess, Failure>>,
}

impl WorkspaceEntry {
    pub(crate) fn new(record: Rc<SimulatedRecord>, durable: bool, observed: Observed) -> Self {
        Self {
            durable: durable.then(|| record.clone()),
            record,
            generation: 0,
            sleep_record_in_flight: false,
            queued_write: None,
            queued_reservation: None,
            observed,
            in_flight: None,
            start_secret: None,
            hellos: BTreeMap::new(),
            claimed: None,
            since_heartbeat: Duration::ZERO,
            decide_at: None,
            wake_pending: false,
            reported_idle: None,
            used_by: None,
            prepared: None,
            failed_commits: 0,
            prepare_failed: false,
            heard_at: Duration::ZERO,
            last_completed: None,
        }
    }

    /// Returns whether the present record is durable.
    pub(crate) fn is_settled(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| Rc::ptr_eq(durable, &self.record))
    }

    /// Returns the number of a request after which the workspace falls asleep, by the last decision or
    /// by the durable status.
    pub(crate) fn request_before_sleep(&self) -> Option<u64> {
        let durable = self.durable.as_ref().and_then(|durable| request_before_sleep(&durable.status));
        request_before_sleep(&self.record.status).or(durable)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.record.status.phase
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.record.status.epoch
    }

    pub(crate) fn wants_agent(&self) -> bool {
        matches!(
            self.phase(),
            Phase::Starting
                | Phase::Awake
                | Phase::Preparing { .. }
                | Phase::Committing
                | Phase::Maintenance { .. }
        )
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.observed.connected == Some(self.epoch())
    }

    pub(crate) fn connection_lost(&mut self) {
        self.observed.disconnected();
        self.claimed = None;
        self.reported_idle = None;
    }

    fn quota_request(&self) -> Option<QuotaRequest<'_>> {
        let SimulatedRecord { spec, status } = &*self.record;
        let ending = self.phase() == Phase::Deleting && self.observed.processes != RunningAgents::None;
        let durable = self.durable.as_ref();
        let durable = durable.and_then(|durable| QuotaRequest::reservation(&durable.spec, &durable.status));
        QuotaRequest::of(spec, status, quota::larger(durable, self.queued_reservation), ending)
    }

    /// Returns whether the workspace waits for quota that it would use at once.
    fn waits(&self) -> bool {
        let would_use =
            matches!(self.phase(), Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake);
        would_use && self.quota_request().is_some_and(|quota_request| quota_request.requested.is_some())
    }

    /// Returns the resources that the workspace holds of its owner's quota.
    pub(crate) fn held(&self) -> Option<Resources> {
        self.quota_request()?.held
    }
}

impl ControlPlane {
    fn admission_queue(&self, quotas: &Quotas, mutant: Option<Mutant>) -> AdmissionQueue {
        let requests = self.entries.values().filter_map(WorkspaceEntry::quota_request);
        match mutant {
            None => quota::admission_queue(requests, quotas),
            Some(mutant) => {
                let requests = requests.map(|request| mutant.quota_request(request));
                quota::admission_queue(requests, &mutant.quotas(quotas))
            }
        }
    }

    /// Returns the indices of the waiting workspaces that the quotas admit.
    pub(crate) fn admitted(&self, quotas: &Quotas, mutant: Option<Mutant>) -> BTreeSet<usize> {
        if !self.entries.values().any(WorkspaceEntry::waits) {
            return BTreeSet::new();
        }
        let queue = self.admission_queue(quotas, mutant);
        let waits = |entry: &WorkspaceEntry| entry.waits() && !queue.contains_key(&entry.record.spec.id);
        self.entries.iter().filter(|(_, entry)| waits(entry)).map(|(w, _)| *w).collect()
    }

    /// Returns the position of a workspace in the admission queue; 1 is next.
    pub(crate) fn queue_position(&self, w: usize, quotas: &Quotas) -> Option<usize> {
        let id = &self.entries.get(&w)?.record.spec.id;
        self.admission_queue(quotas, None).get(id).copied()
    }

    pub(crate) fn holders(&self) -> impl Iterator<Item = &WorkspaceEntry> {
        self.entries.values().filter(|entry| entry.held().is_some())
    }
}
