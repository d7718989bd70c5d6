//! `cargo xtask`: what people and CI run on this repository. One file per subcommand; must not know the product's insides.

mod bench;
mod check;
mod cluster;
mod program;
mod simulate;
mod step;
mod stories;
mod targets;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Work on the Podling repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything that must hold: format, lints, docs, unit, property and end-to-end tests.
    Test,
    /// The quick part of `test`: format, lints, docs.
    Check,
    /// Builds the binaries and runs the end-to-end stories alone.
    Stories(stories::Args),
    /// The simulated lifecycle again, with all that it says: what a failing test names.
    Simulate(simulate::Args),
    /// What wants a Kubernetes cluster.
    #[command(subcommand)]
    Cluster(cluster::Args),
    /// Podling beside its peers in one run; rewrites BENCHMARKS.md.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Test => test::run(),
        Command::Check => check::run(),
        Command::Stories(args) => stories::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
