//! `cargo xtask simulate`: the lifecycle in a simulated world (`control/core/tests/simulation`), which is built with the mutants.

use anyhow::Result;

use crate::gate::{Gate, GateStep};

#[derive(Debug, clap::Args)]
pub(crate) struct SimulateArgs {
    /// The run's seed: the same seed is the same run.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of simulated steps.
    #[arg(long, default_value_t = 50_000)]
    steps: u64,
    /// Records the trace of this seed for the replay (tests/stories/traces) instead.
    #[arg(long, value_name = "SEED")]
    record: Option<u64>,
    /// Measures how fast decisions are instead (a release build).
    #[arg(long)]
    bench: bool,
}

/// One run, with its coverage; or its trace up to the law that was broken.
pub(crate) fn run(args: &SimulateArgs) -> Result<bool> {
    let (seed, steps) = (args.seed.to_string(), args.steps.to_string());
    let mut cargo = vec!["run", "--quiet", "--package", "podling-core"];
    cargo.extend(["--features", "mutants", "--example", "simulate"]);
    let record = args.record.map(|seed| seed.to_string());
    if let Some(seed) = &record {
        cargo.extend(["--", "--record", seed]);
    } else if args.bench {
        cargo.extend(["--release", "--", "--bench"]);
    } else {
        cargo.extend(["--", "--seed", &seed, "--steps", &steps]);
    }
    let mut gate = Gate::new()?;
    gate.cargo("simulation", &cargo, &[])?;
    gate.finish()
}

/// Its part of the gate: millions of simulated steps keep every law, and every mutant is noticed.
pub(crate) fn step() -> GateStep {
    let cargo =
        ["test", "--package", "podling-core", "--quiet", "--features", "mutants", "--test", "simulation"];
    GateStep::cargo("simulation and its mutants", &cargo, &[])
}
