//! The lifecycle in a simulated world: many workspaces of several owners, the real `decide`, the real folding of what is seen, the
//! real line for room; and around them models of driver, store, agents, backend, backup store, links, clocks and people. Whatever
//! happens in whatever order, the laws hold; and whenever faults stop, everything arrives where it is wanted.
//!
//! A run is its seed: the same seed and steps give the same run, on every machine.

mod agent;
mod control;
mod coverage;
mod drive;
mod durable;
mod laws;
mod messages;
mod people;
mod perform;
mod real;
mod record;
mod rest;
mod rng;
mod step;
mod turn;
mod world;

use podling_core::mutant::{self, Mutant};

pub(crate) use coverage::Coverage;
pub(crate) use record::{record, traces};

/// Steps between two times of quiet.
const EPISODE: u64 = 6000;
/// How many of a thousand things go wrong, one episode after the other.
const TROUBLE: [u64; 5] = [30, 150, 0, 80, 400];

/// A law that was broken.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) seed: u64,
    pub(crate) step: u64,
    pub(crate) law: String,
    pub(crate) trace: Vec<String>,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {}, step {}: {}", self.seed, self.step, self.law)
    }
}

/// Runs so many steps, and adds what they covered.
pub(crate) fn run(
    seed: u64,
    steps: u64,
    mutant: Option<Mutant>,
    coverage: &mut Coverage,
) -> Result<(), Box<Broken>> {
    mutant::choose(mutant);
    let mut world = world::World::new(seed);
    let mut episode = seed;
    while world.steps < steps && world.broken.is_none() {
        world.fault_rate = TROUBLE[(episode % TROUBLE.len() as u64) as usize];
        let until = (world.steps + EPISODE).min(steps);
        while world.steps < until && world.broken.is_none() {
            world.step();
        }
        if world.broken.is_none() {
            world.settle();
        }
        episode += 1;
    }
    mutant::choose(None);
    coverage.add(&world.coverage);
    match world.broken {
        None => Ok(()),
        Some(law) => Err(Box::new(Broken { seed, step: world.steps, law, trace: world.trace.into() })),
    }
}
