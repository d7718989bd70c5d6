//! `cargo xtask simulate`: repeats one run of the simulation. Prints its coverage, or the log up to
//! the broken law. `--record` writes a trace for the replay against a real control plane. `--bench`
//! measures how long decisions take.

mod bench;
#[path = "../../tests/simulation/sim.rs"]
mod sim;

use std::process::ExitCode;

const USAGE: &str = "simulate [--seed N] [--steps M] | simulate --record SEED | simulate --bench";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (mut seed, mut steps) = (0, 50_000);
    for pair in args.chunks(2) {
        match (pair[0].as_str(), pair.get(1).and_then(|value| value.parse().ok())) {
            ("--seed", Some(value)) => seed = value,
            ("--steps", Some(value)) => steps = value,
            ("--record", Some(seed)) => return record(seed),
            ("--bench", None) => {
                bench::run();
                return ExitCode::SUCCESS;
            }
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let mut coverage = sim::Coverage::default();
    let ended = sim::run(seed, steps, None, &mut coverage);
    println!("{coverage}");
    for missing in coverage.missing() {
        println!("not covered: {missing}");
    }
    match ended {
        Ok(()) => {
            println!("seed {seed}, {steps} steps: every law held");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            println!("{broken}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the trace of `seed` to the directory from which the replay reads it.
fn record(seed: u64) -> ExitCode {
    let recorded = sim::record(seed).and_then(|trace| {
        let path = sim::traces().join(format!("{seed}.trace"));
        std::fs::write(&path, trace).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{}", path.display());
        Ok(())
    });
    match recorded {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot record a trace of seed {seed}: {error}");
            ExitCode::FAILURE
        }
    }
}
