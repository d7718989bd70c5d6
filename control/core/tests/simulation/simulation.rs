//! State of a simulation: clocks, workspaces, the store, and the control plane while it runs.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use podling_core::{
    decide::StateMachine,
    quota::{Quota, Quotas},
    time::Timestamp,
};

use super::{
    control_plane::{ControlPlane, SimulatedStore},
    coverage::Coverage,
    mutant::Mutant,
    persistence::Failpoint,
    rng::Rng,
    workspace::SimulatedWorkspace,
};

/// Most lines of the log that are printed with a broken law.
const LOG_LINES: usize = 120;
/// Start of the wall clock in milliseconds since 1970. It leaves room for jumps of a year.
const WALL_CLOCK_START: u64 = 1_700_000_000_000;

#[derive(Debug)]
pub(crate) struct Simulation {
    /// The deliberate mistake of this run.
    pub(crate) mutant: Option<Mutant>,
    pub(crate) machine: StateMachine,
    pub(crate) rng: Rng,
    pub(crate) steps: u64,
    /// Monotonic clock, in milliseconds.
    pub(crate) clock: u64,
    /// Offset of the wall clock from the monotonic clock, in milliseconds.
    pub(crate) clock_offset: i64,
    /// Time in which a control plane was running. Crashes of the control plane lose nothing of it,
    /// unlike its own observed time.
    pub(crate) true_observed_time: Duration,
    /// Workspaces by index. The index is the number after `w` in the log and in traces.
    pub(crate) workspaces: BTreeMap<usize, SimulatedWorkspace>,
    pub(crate) store: SimulatedStore,
    pub(crate) control: Option<ControlPlane>,
    pub(crate) quotas: Quotas,
    pub(crate) created: usize,
    pub(crate) last_content: u64,
    pub(crate) last_connection: u64,
    /// Number of faults in a thousand draws.
    pub(crate) fault_rate: u64,
    /// The point at which the control plane crashes next.
    pub(crate) failpoint: Option<Failpoint>,
    pub(crate) backup_store_down: bool,
    pub(crate) coverage: Coverage,
    pub(crate) log_lines: VecDeque<String>,
    pub(crate) broken_law: Option<String>,
}

impl Simulation {
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        Self {
            mutant,
            machine: mutant.map_or(StateMachine::PRODUCT, Mutant::machine),
            rng: Rng::new(seed),
            steps: 0,
            clock: 0,
            clock_offset: 0,
            true_observed_time: Duration::ZERO,
            workspaces: BTreeMap::new(),
            store: SimulatedStore::default(),
            control: Some(ControlPlane::default()),
            quotas: Quotas {
                owner: Quota { awake: Some(2), cpu_millis: Some(3), memory_bytes: None },
                total: Quota { awake: Some(4), cpu_millis: Some(5), memory_bytes: None },
            },
            created: 0,
            last_content: 0,
            last_connection: 0,
            fault_rate: 0,
            failpoint: None,
            backup_store_down: false,
            coverage: Coverage::default(),
            log_lines: VecDeque::new(),
            broken_law: None,
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp((WALL_CLOCK_START + self.clock).saturating_add_signed(self.clock_offset))
    }

    /// Returns the control plane, unless it has crashed or is suspended.
    pub(crate) fn running_control(&mut self) -> Option<&mut ControlPlane> {
        self.control.as_mut().filter(|control| control.suspended_until <= self.clock)
    }

    pub(crate) fn log(&mut self, line: impl FnOnce() -> String) {
        if self.log_lines.len() >= LOG_LINES {
            self.log_lines.pop_front();
        }
        self.log_lines.push_back(format!(
            "{:>7} {:>10.1}s  {}",
            self.steps,
            self.clock as f64 / 1000.0,
            line()
        ));
    }

    /// Checks a law. The first broken law ends the run.
    pub(crate) fn check(&mut self, holds: bool, message: impl FnOnce() -> String) {
        if !holds && self.broken_law.is_none() {
            self.broken_law = Some(message());
        }
    }

    /// Draws whether a fault occurs, with the probability `fault_rate`.
    pub(crate) fn draw_fault(&mut self) -> bool {
        let rate = self.fault_rate;
        self.rng.per_mille(rate)
    }

    pub(crate) fn existing_workspaces(&self) -> Vec<usize> {
        self.workspaces.keys().copied().collect()
    }
}
