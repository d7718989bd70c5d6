//! The control plane's memory: what `control/src/driver` keeps. All of it is lost when it dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use podling_core::{
    decide::Action,
    observed::{Achieved, Failure, Observed, Processes},
    quota::{self, QuotaRequest, Quotas},
    status::{MaintenanceStage, Phase, Status},
    workspace::{Epoch, Resources, Spec},
};

/// What the store holds of one workspace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) spec: Spec,
    pub(crate) status: Status,
}

/// Survives everything.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) records: BTreeMap<usize, Rc<Record>>,
    /// Written with every batch, so that no stored status is younger than it.
    pub(crate) observed_time: Duration,
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put(Rc<Record>),
    Forget,
}

#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) entries: BTreeMap<usize, Entry>,
    pub(crate) queue: BTreeMap<usize, Change>,
    pub(crate) writing: Option<BTreeMap<usize, Change>>,
    pub(crate) observed_time: Duration,
    pub(crate) shutting_down: bool,
    /// Not running until then (SIGSTOP).
    pub(crate) stopped: u64,
    pub(crate) orders: u64,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Rc<Record>,
    pub(crate) durable: Option<Rc<Record>>,
    pub(crate) queued_at: Option<Rc<Record>>,
    pub(crate) observed: Observed,
    pub(crate) flight: Option<Flight>,
    /// Of the start that is about to be ordered.
    pub(crate) secret: Option<Epoch>,
    /// Streams that said hello: whose, and which.
    pub(crate) hellos: BTreeMap<Epoch, u64>,
    pub(crate) claimed: Option<(Epoch, u64)>,
    /// No beat came on the claimed stream for so long.
    pub(crate) quiet: Duration,
    /// When to look again.
    pub(crate) wakes: Option<u64>,
    /// Somebody waits to be told that it will wake.
    pub(crate) asked: bool,
    // For the laws alone.
    /// What the last beat said, while the link has held since.
    pub(crate) told: Option<Duration>,
    /// Whose beat has told of use last.
    pub(crate) used_by: Option<Epoch>,
    /// Its agent has said that its door is shut.
    pub(crate) prepared: Option<Epoch>,
    pub(crate) commits_failed: u32,
    pub(crate) refused: bool,
    /// `World::watched` when its agent was heard last.
    pub(crate) heard: Duration,
    /// The order that came back last, until what follows is durable.
    pub(crate) after: Option<Action>,
}

/// An order that was given.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) action: Action,
    pub(crate) number: u64,
    pub(crate) phase: Phase,
    pub(crate) deadline: u64,
    pub(crate) generation: u64,
    /// It happened, or did not, and that is on its way.
    pub(crate) result: Option<Result<Achieved, Failure>>,
}

impl Entry {
    pub(crate) fn new(record: Rc<Record>, durable: bool, observed: Observed) -> Self {
        Self {
            durable: durable.then(|| record.clone()),
            record,
            queued_at: None,
            observed,
            flight: None,
            secret: None,
            hellos: BTreeMap::new(),
            claimed: None,
            quiet: Duration::ZERO,
            wakes: None,
            asked: false,
            told: None,
            used_by: None,
            prepared: None,
            commits_failed: 0,
            refused: false,
            heard: Duration::ZERO,
            after: None,
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| Rc::ptr_eq(durable, &self.record))
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
                | Phase::Maintenance { task: _, stage: MaintenanceStage::Starting }
                | Phase::Maintenance { task: _, stage: MaintenanceStage::Running }
        )
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.observed.connected == Some(self.epoch())
    }

    pub(crate) fn link_lost(&mut self) {
        self.observed.disconnected();
        self.claimed = None;
        self.told = None;
    }

    /// The spec changes by somebody's request.
    pub(crate) fn change(&mut self, spec: Spec) {
        self.record = Rc::new(Record { spec, status: self.record.status.clone() });
    }

    fn claimant(&self) -> Option<QuotaRequest<'_>> {
        let Record { spec, status } = &*self.record;
        let ends = self.phase() == Phase::Deleting && self.observed.processes != Processes::None;
        QuotaRequest::of(spec, status, self.durable.as_ref().map(|durable| &durable.status), ends)
    }

    /// It stands in the line, and would take what it waits for.
    fn waits(&self) -> bool {
        let takes =
            matches!(self.phase(), Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake);
        takes && self.claimant().is_some_and(|claimant| claimant.waits.is_some())
    }

    /// What it has of its owner's share.
    pub(crate) fn has(&self) -> Option<Resources> {
        self.claimant()?.has
    }
}

impl Control {
    fn claimants(&self) -> impl Iterator<Item = QuotaRequest<'_>> {
        self.entries.values().filter_map(Entry::claimant)
    }

    /// Those who wait and have room.
    pub(crate) fn admitted(&self, quotas: &Quotas) -> BTreeSet<usize> {
        if !self.entries.values().any(Entry::waits) {
            return BTreeSet::new();
        }
        let line = quota::admission_queue(self.claimants(), quotas);
        let waits = |entry: &Entry| entry.waits() && !line.contains_key(&entry.record.spec.id);
        self.entries.iter().filter(|(_, entry)| waits(entry)).map(|(w, _)| *w).collect()
    }

    /// Its place in the line.
    pub(crate) fn place(&self, w: usize, quotas: &Quotas) -> Option<usize> {
        let id = &self.entries.get(&w)?.record.spec.id;
        quota::admission_queue(self.claimants(), quotas).get(id).copied()
    }

    pub(crate) fn holders(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.has().is_some())
    }
}
