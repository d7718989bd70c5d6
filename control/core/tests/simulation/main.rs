//! The simulation as a test: a million steps keep every law and take every arrow; and it notices every mutant.

#[path = "sim.rs"]
mod sim;

use podling_core::mutant::{ALL, Mutant};
use sim::{Coverage, run};

/// Each is a world of its own.
const SEEDS: u64 = 20;
/// Of each seed: together a million.
const STEPS: u64 = 50_000;
/// A mutant is noticed within so many steps of all seeds together.
const BUDGET: u64 = 1_000_000;

#[test]
fn a_million_steps_keep_every_law_and_take_every_arrow() {
    let mut coverage = Coverage::default();
    for seed in 0..SEEDS {
        match run(seed, STEPS, None) {
            Ok(covered) => coverage.add(&covered),
            Err(broken) => panic!("{broken}\nreplay: cargo xtask simulate --seed {seed} --steps {STEPS}"),
        }
    }
    println!("{coverage}");
    assert_eq!(coverage.missing(), [] as [String; 0], "{coverage}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let said =
        || run(7, 5000, None).map(|coverage| coverage.to_string()).map_err(|broken| broken.to_string());
    assert_eq!(said(), said());
}

#[test]
fn every_mutant_is_noticed() {
    let missed: Vec<Mutant> = ALL.into_iter().filter(|mutant| !is_noticed(*mutant)).collect();
    assert!(missed.is_empty(), "the simulation does not notice {missed:?} within {BUDGET} steps");
}

fn is_noticed(mutant: Mutant) -> bool {
    let mut steps = 0;
    for seed in 0..BUDGET / STEPS {
        match run(seed, STEPS, Some(mutant)) {
            Ok(_) => steps += STEPS,
            Err(broken) => {
                let law = broken.law.lines().next().unwrap_or_default();
                println!("{mutant:?}: noticed after {} steps: {law:.120}", steps + broken.step);
                return true;
            }
        }
    }
    false
}
