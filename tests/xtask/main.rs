//! `cargo xtask`: what developers and CI run on this repository. One file per subcommand; must not
//! know the product's insides.

mod bench;
mod check;
mod cluster;
mod dependency_cache;
mod gate;
mod program;
mod reach;
mod simulate;
mod stories;
mod test;
mod test_programs;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Work on the Podling repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct XtaskArgs {
    #[command(subcommand)]
    command: XtaskCommand,
}

#[derive(Debug, Subcommand)]
enum XtaskCommand {
    /// Runs the gate: format, words, lints, docs, unit, property and end-to-end tests.
    Test(test::TestArgs),
    /// Runs format, words, lints and docs alone.
    Check,
    /// Builds the binaries and runs the end-to-end stories alone.
    Stories(stories::StoryArgs),
    /// Runs the simulated lifecycle with a seed and all its output: a failing test names the seed.
    Simulate(simulate::SimulateArgs),
    /// Runs tests and benchmarks that need a Kubernetes cluster.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Measures Podling beside its peers in one run; rewrites BENCHMARKS.md.
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let passed = match XtaskArgs::parse().command {
        XtaskCommand::Test(args) => test::run(&args),
        XtaskCommand::Check => check::run(),
        XtaskCommand::Stories(args) => stories::run(&args),
        XtaskCommand::Simulate(args) => simulate::run(&args),
        XtaskCommand::Cluster(args) => cluster::run(&args),
        XtaskCommand::Bench(args) => bench::run(&args),
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
