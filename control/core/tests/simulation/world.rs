//! The world: clocks, what is real, the store, and the control plane while it lives.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use podling_core::{
    quota::{Quota, Quotas},
    time::Timestamp,
};

use super::{
    control::{Control, Store},
    coverage::Coverage,
    durable::Death,
    real::Real,
    rng::Rng,
};

/// Lines of the trace that a failure shows.
const TRACE: usize = 120;
/// Where the wall clock begins: jumps of a year both ways stay in its range.
const EPOCH: u64 = 1_700_000_000_000;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) steps: u64,
    /// Milliseconds, by the clock that nobody sets.
    pub(crate) clock: u64,
    /// What was set at the wall clock, milliseconds.
    pub(crate) set: i64,
    /// Time that control planes really watched.
    pub(crate) watched: Duration,
    pub(crate) real: BTreeMap<usize, Real>,
    pub(crate) store: Store,
    pub(crate) control: Option<Control>,
    pub(crate) quotas: Quotas,
    pub(crate) made: usize,
    pub(crate) contents: u64,
    pub(crate) connections: u64,
    /// Of a thousand things that may go wrong, so many do.
    pub(crate) fault_rate: u64,
    /// Where the control plane dies next, when it comes there.
    pub(crate) dies_at: Option<Death>,
    /// Nobody reaches the backup store.
    pub(crate) store_away: bool,
    pub(crate) coverage: Coverage,
    pub(crate) trace: VecDeque<String>,
    pub(crate) broken: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            steps: 0,
            clock: 0,
            set: 0,
            watched: Duration::ZERO,
            real: BTreeMap::new(),
            store: Store::default(),
            control: Some(Control::default()),
            quotas: Quotas {
                owner: Quota { awake: Some(2), cpu_millis: Some(3), memory_bytes: None },
                total: Quota { awake: Some(4), cpu_millis: Some(5), memory_bytes: None },
            },
            made: 0,
            contents: 0,
            connections: 0,
            fault_rate: 0,
            dies_at: None,
            store_away: false,
            coverage: Coverage::default(),
            trace: VecDeque::new(),
            broken: None,
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp((EPOCH + self.clock).saturating_add_signed(self.set))
    }

    /// The control plane, while it lives and is not stopped.
    pub(crate) fn acting(&mut self) -> Option<&mut Control> {
        self.control.as_mut().filter(|control| control.stopped <= self.clock)
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() >= TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>7} {:>10.1}s  {}", self.steps, self.clock as f64 / 1000.0, line()));
    }

    /// A law. The first that is broken ends the run.
    pub(crate) fn law(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    /// Something that may go wrong does.
    pub(crate) fn fails(&mut self) -> bool {
        let rate = self.fault_rate;
        self.rng.per_mille(rate)
    }

    pub(crate) fn living(&self) -> Vec<usize> {
        self.real.keys().copied().collect()
    }
}
