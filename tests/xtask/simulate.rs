//! `cargo xtask simulate` runs the simulation of the lifecycle (`control/core/tests/simulation`).

use anyhow::Result;

use crate::gate::{Gate, GateStep};

#[derive(Debug, clap::Args)]
pub(crate) struct SimulateArgs {
    /// Seed of the run. The same seed repeats the same run
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of simulated steps
    #[arg(long, default_value_t = 50_000)]
    steps: u64,
    /// Record the trace of this seed in tests/stories/traces instead, for the story `replay`
    #[arg(long, value_name = "SEED")]
    record: Option<u64>,
    /// Measure the time of decisions instead, with a release build
    #[arg(long)]
    bench: bool,
}

/// Runs one simulation, which prints its coverage, or the trace up to the broken law.
pub(crate) fn run(args: &SimulateArgs) -> Result<bool> {
    let (seed, steps) = (args.seed.to_string(), args.steps.to_string());
    let mut cargo = vec!["run", "--quiet", "--package", "podling-core", "--example", "simulate"];
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

/// Returns the gate's step that runs the simulation as a test. Millions of simulated steps must
/// keep every law, and every mutant must break one.
pub(crate) fn step() -> GateStep {
    let cargo = ["test", "--package", "podling-core", "--quiet", "--test", "simulation"];
    GateStep::cargo("simulation and its mutants", &cargo, &[])
}
