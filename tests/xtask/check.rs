//! `cargo xtask check`: format, lints and docs.

use anyhow::Result;

use crate::step::Steps;

/// Runs it alone.
pub(crate) fn run() -> Result<bool> {
    let mut steps = Steps::new()?;
    add(&mut steps)?;
    steps.finish()
}

/// Adds its steps.
pub(crate) fn add(steps: &mut Steps) -> Result<()> {
    steps.cargo("format", &["fmt", "--all", "--check"], &[])?;
    steps.cargo(
        "lints",
        &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        &[],
    )?;
    steps.cargo(
        "lints of the simulation",
        &[
            "clippy",
            "--package",
            "podling-core",
            "--all-targets",
            "--features",
            "mutants",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    )?;
    steps.cargo(
        "docs",
        &["doc", "--workspace", "--no-deps", "--quiet"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    )?;
    Ok(())
}
