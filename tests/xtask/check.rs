//! `cargo xtask check` checks format, words, lints and docs. The gate uses the same steps.

use anyhow::Result;

use crate::{
    gate::{Gate, GateStep},
    words,
};

pub(crate) fn run() -> Result<bool> {
    let mut gate = Gate::new()?;
    gate.run(format())?;
    words::check(&mut gate)?;
    for step in lints().into_iter().chain([docs()]) {
        gate.run(step)?;
    }
    gate.finish()
}

pub(crate) fn format() -> GateStep {
    GateStep::cargo("format", &["fmt", "--all", "--check"], &[])
}

/// Returns the steps that lint the workspace, and the simulation, which is not one of its default
/// targets.
pub(crate) fn lints() -> [GateStep; 2] {
    let workspace = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    let simulation = [
        &["clippy", "--package", "podling-core", "--test", "simulation"][..],
        &["--quiet", "--", "-D", "warnings"],
    ];
    [
        GateStep::cargo("lints", &workspace, &[]),
        GateStep::cargo("lints of the simulation", &simulation.concat(), &[]),
    ]
}

pub(crate) fn docs() -> GateStep {
    let deny = [("RUSTDOCFLAGS", "-D warnings")];
    GateStep::cargo("docs", &["doc", "--workspace", "--no-deps", "--quiet"], &deny)
}
