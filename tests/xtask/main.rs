//! `cargo xtask` checks, tests and measures this repository, for developers and for CI. Each
//! subcommand has a file. Independent of the product's crates.

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

/// Check, test and measure the Podling repository
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct XtaskArgs {
    #[command(subcommand)]
    command: XtaskCommand,
}

#[derive(Debug, Subcommand)]
enum XtaskCommand {
    /// Run the gate: format, words, lints, docs, unit, property, end-to-end and cluster tests
    Test(test::TestArgs),
    /// Check format, words, lints and docs only
    Check,
    /// Build the binaries and run only the end-to-end stories, with workspaces as processes
    Stories(stories::StoryArgs),
    /// Repeat one run of the simulation, by the seed that a failing simulation test prints
    Simulate(simulate::SimulateArgs),
    /// Run tests and benchmarks that need a Kubernetes cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Measure Podling and its peers in one run, and rewrite BENCHMARKS.md
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
