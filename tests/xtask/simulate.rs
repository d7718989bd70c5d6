//! `cargo xtask simulate`: the lifecycle in a simulated world (`control/core/tests/simulation`), which is built with the mutants.

use anyhow::Result;

use crate::step::Steps;

/// Which run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's seed: the same seed is the same run.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many steps.
    #[arg(long, default_value_t = 50_000)]
    steps: u64,
    /// Records the trace of this seed for the replay (tests/stories/traces) instead.
    #[arg(long, value_name = "SEED")]
    record: Option<u64>,
    /// How fast decisions are instead (a release build).
    #[arg(long)]
    bench: bool,
}

/// One run, with its coverage; or its trace up to the law that was broken.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let (seed, steps_to_go) = (args.seed.to_string(), args.steps.to_string());
    let mut cargo = vec!["run", "--quiet", "--package", "podling-core"];
    cargo.extend(["--features", "mutants", "--example", "simulate"]);
    let record = args.record.map(|seed| seed.to_string());
    if let Some(seed) = &record {
        cargo.extend(["--", "--record", seed]);
    } else if args.bench {
        cargo.extend(["--release", "--", "--bench"]);
    } else {
        cargo.extend(["--", "--seed", &seed, "--steps", &steps_to_go]);
    }
    let mut steps = Steps::new()?;
    steps.cargo("simulation", &cargo, &[])?;
    steps.finish()
}

/// Adds its step to the tests: millions of steps keep every law, and every mutant is noticed.
pub(crate) fn add(steps: &mut Steps) -> Result<()> {
    let cargo =
        ["test", "--package", "podling-core", "--quiet", "--features", "mutants", "--test", "simulation"];
    steps.cargo("simulation and its mutants", &cargo, &[])?;
    Ok(())
}
