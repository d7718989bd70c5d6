//! The simulation as a test: three million steps keep every law and take every arrow; and it notices every mutant.

mod committed;
#[path = "sim.rs"]
mod sim;

use podling_core::mutant::{ALL, Mutant};
use sim::{Coverage, run};

/// Each is a world of its own.
const SEEDS: u64 = 60;
/// Of each seed: together three millions.
const STEPS: u64 = 50_000;
/// A mutant is noticed within so many steps of all seeds together.
const BUDGET: u64 = 6_000_000;

#[test]
fn three_million_steps_keep_every_law_and_take_every_arrow() {
    let mut coverage = Coverage::default();
    for seed in 0..SEEDS {
        if let Err(broken) = run(seed, STEPS, None, &mut coverage) {
            panic!("{broken}\nreplay: cargo xtask simulate --seed {seed} --steps {STEPS}");
        }
    }
    println!("{coverage}");
    assert_eq!(coverage.missing(), [] as [String; 0], "{coverage}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let said = || {
        let mut coverage = Coverage::default();
        let ended = run(7, 20_000, Some(Mutant::SleepsOnUnknown), &mut coverage);
        (coverage.to_string(), ended.map_err(|broken| broken.to_string()))
    };
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
        match run(seed, STEPS, Some(mutant), &mut Coverage::default()) {
            Ok(()) => steps += STEPS,
            Err(broken) => {
                let law = broken.law.lines().next().unwrap_or_default();
                println!("{mutant:?}: noticed after {} steps: {law:.120}", steps + broken.step);
                return true;
            }
        }
    }
    false
}
