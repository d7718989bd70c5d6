//! Deterministic simulation of the lifecycle, with many workspaces of several owners.
//!
//! The real parts are `decide`, the folding of events into observations, and the admission queue.
//! Driver, store, agents, backend, backup store, connections, clocks and users are models. Events
//! and faults come in random order. `laws` checks invariants, which hold at every step. Once faults
//! stop, every workspace must reach its desired state.
//!
//! The same seed and number of steps give the same run on every machine.

mod agent;
mod control_plane;
mod coverage;
mod driver;
mod executor;
mod laws;
mod messages;
mod mutant;
mod persistence;
mod quiescence;
mod record;
mod rng;
mod simulation;
mod specs;
mod step;
mod trace_operation;
mod users;
mod workspace;

pub(crate) use coverage::Coverage;
pub(crate) use mutant::Mutant;
pub(crate) use record::{record, traces};

/// Number of steps with faults before the simulation has to converge without them.
const EPISODE: u64 = 6000;
/// Faults in a thousand draws, in successive episodes.
const FAULT_RATES: [u64; 5] = [30, 150, 0, 80, 400];

/// A broken law, with the last lines of the log.
#[derive(Debug)]
pub(crate) struct BrokenLaw {
    pub(crate) seed: u64,
    pub(crate) step: u64,
    pub(crate) law: String,
    pub(crate) log_lines: Vec<String>,
}

impl std::fmt::Display for BrokenLaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.log_lines {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {}, step {}: {}", self.seed, self.step, self.law)
    }
}

/// Runs this many steps and adds their coverage to `coverage`. Fails at the first broken law.
pub(crate) fn run(
    seed: u64,
    steps: u64,
    mutant: Option<Mutant>,
    coverage: &mut Coverage,
) -> Result<(), Box<BrokenLaw>> {
    let mut sim = simulation::Simulation::new(seed, mutant);
    let mut episode = seed;
    while sim.steps < steps && sim.broken_law.is_none() {
        sim.fault_rate = FAULT_RATES[(episode % FAULT_RATES.len() as u64) as usize];
        let until = (sim.steps + EPISODE).min(steps);
        while sim.steps < until && sim.broken_law.is_none() {
            sim.step();
        }
        if sim.broken_law.is_none() {
            sim.converge();
        }
        episode += 1;
    }
    coverage.add(&sim.coverage);
    match sim.broken_law {
        None => Ok(()),
        Some(law) => Err(Box::new(BrokenLaw { seed, step: sim.steps, law, log_lines: sim.log_lines.into() })),
    }
}
