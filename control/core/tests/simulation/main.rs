//! The simulation as a test: three million steps keep every law and take every arrow; it notices every mutant; and the traces that
//! are replayed against the real thing are still what it gives.

#[path = "sim.rs"]
mod sim;

use std::{collections::BTreeMap, fs};

use podling_core::mutant::{ALL, Mutant};
use sim::{Coverage, record, run, traces};

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

/// What the committed traces have between them: what the replay is for.
const REPLAYED: [&str; 33] = [
    "> up --quota-awake",
    "> up --capacity-awake",
    "queued place=1",
    "> write",
    "> sleep",
    "> wake",
    "> delete",
    "> restore",
    "> discard",
    "idle-timeout 1s",
    "archive-after 1s",
    "keep-archives 1s",
    "> kill-agent",
    "> fails",
    "gone",
    "> dies start:before",
    "> dies start:after",
    "> dies prepare:before",
    "> dies prepare:after",
    "> dies commit:before",
    "> dies commit:after",
    "> dies stop:before",
    "> dies stop:after",
    "> dies archive:before",
    "> dies archive:after",
    "> dies restore:before",
    "> dies restore:after",
    "> dies remove:before",
    "> dies remove:after",
    "> dies expire:before",
    "> dies expire:after",
    "> dies forget:before",
    "> dies forget:after",
];

#[test]
fn the_traces_that_are_replayed_are_what_it_gives_and_have_everything() {
    let traces: BTreeMap<u64, String> = fs::read_dir(traces())
        .expect("the traces are there")
        .flatten()
        .map(|entry| {
            let path = entry.path();
            let seed = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            (seed.expect("a trace is named for its seed"), fs::read_to_string(&path).expect("it can be read"))
        })
        .collect();
    for (seed, trace) in &traces {
        let now = record(*seed).unwrap_or_else(|why| panic!("{why}"));
        assert!(
            now == *trace,
            "seed {seed} gives another trace now: cargo xtask simulate --record {seed}\n{now}"
        );
    }
    let missing: Vec<_> =
        REPLAYED.into_iter().filter(|what| traces.values().all(|trace| !trace.contains(what))).collect();
    assert!(missing.is_empty(), "no trace has {missing:?}");
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
