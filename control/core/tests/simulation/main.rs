//! Runs the simulation as a test. In three million steps no law is broken and every transition is
//! followed. With each mutant, a law is broken.

mod committed;
#[path = "sim.rs"]
mod sim;

use sim::{Coverage, Mutant, run};

/// Number of seeds. Each gives an independent simulation.
const SEEDS: u64 = 60;
/// Number of steps for each seed; three million in total.
const STEPS: u64 = 50_000;
/// Number of steps, over all seeds, within which each mutant must break a law.
const MUTANT_STEPS: u64 = 6_000_000;

#[test]
fn simulation_keeps_every_law_and_follows_every_transition() {
    let mut coverage = Coverage::default();
    for seed in 0..SEEDS {
        if let Err(broken_law) = run(seed, STEPS, None, &mut coverage) {
            panic!("{broken_law}\nreplay: cargo xtask simulate --seed {seed} --steps {STEPS}");
        }
    }
    println!("{coverage}");
    assert_eq!(coverage.missing(), [] as [String; 0], "{coverage}");
}

/// In this run a workspace that waited for more resources asked for fewer while it fell asleep. Its
/// quota was given to another workspace before it was released.
#[test]
fn reduced_request_keeps_its_quota_until_it_is_durable() {
    let result = run(77, STEPS, None, &mut Coverage::default());
    assert!(result.is_ok(), "{result:?}");
}

#[test]
fn same_seed_gives_the_same_run() {
    let run_once = || {
        let mut coverage = Coverage::default();
        let ended = run(7, 20_000, Some(Mutant::SleepsOnUnknown), &mut coverage);
        (coverage.to_string(), ended.map_err(|broken_law| broken_law.to_string()))
    };
    assert_eq!(run_once(), run_once());
}

#[test]
fn every_mutant_breaks_a_law() {
    let missed: Vec<Mutant> = Mutant::ALL.into_iter().filter(|mutant| !is_detected(*mutant)).collect();
    assert!(missed.is_empty(), "no law detects {missed:?} within {MUTANT_STEPS} steps");
}

fn is_detected(mutant: Mutant) -> bool {
    let mut steps = 0;
    for seed in 0..MUTANT_STEPS / STEPS {
        match run(seed, STEPS, Some(mutant), &mut Coverage::default()) {
            Ok(()) => steps += STEPS,
            Err(broken_law) => {
                let law = broken_law.law.lines().next().unwrap_or_default();
                println!("{mutant:?}: detected after {} steps: {law:.120}", steps + broken_law.step);
                return true;
            }
        }
    }
    false
}
