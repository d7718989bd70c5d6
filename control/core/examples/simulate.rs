//! `cargo xtask simulate`: one run of the simulation, again and with all that it says; or how fast decisions are.

#[path = "../tests/simulation/sim.rs"]
mod sim;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut seed = 0;
    let mut steps = 50_000;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let number = args.next().and_then(|value| value.parse().ok());
        match (arg.as_str(), number) {
            ("--seed", Some(value)) => seed = value,
            ("--steps", Some(value)) => steps = value,
            _ => {
                eprintln!("simulate [--seed N] [--steps M]");
                return ExitCode::from(2);
            }
        }
    }
    match sim::run(seed, steps, None) {
        Ok(coverage) => {
            println!("seed {seed}, {steps} steps: every law held\n{coverage}");
            for missing in coverage.missing() {
                println!("not covered: {missing}");
            }
            ExitCode::SUCCESS
        }
        Err(broken) => {
            println!("{broken}");
            ExitCode::FAILURE
        }
    }
}
