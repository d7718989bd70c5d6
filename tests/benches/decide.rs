//! Measures the time of one decision, and of decisions for as many workspaces as a control plane
//! may have. The simulation's program measures both.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 5;

pub(crate) fn run(simulate: Option<&Path>, report: &mut Report) -> Result<()> {
    let Some(simulate) = simulate else {
        report.skip("decisions", "PODLING_BENCH_SIMULATE is not set");
        return Ok(());
    };
    let (mut each, mut sweeps) = (Samples::new(), Samples::new());
    for _ in 0..ROUNDS {
        let output = Command::new(simulate).arg("--bench").output()?;
        ensure!(output.status.success(), "{} --bench: {}", simulate.display(), output.status);
        let stdout = String::from_utf8(output.stdout)?;
        let (decision, sweep) =
            stdout.split_once(';').with_context(|| format!("unexpected output of --bench: {stdout:?}"))?;
        each.push(first_number(decision)? / 1e3);
        sweeps.push(first_number(sweep)? / 1e3);
    }
    report.row(Row::new("one decision".into(), "µs", &each).absolute(Goal::AtMost(10.0)));
    let name = "decisions for 10,000 workspaces, slowest of 50 rounds";
    report.row(Row::new(name.into(), "ms", &sweeps).absolute(Goal::AtMost(100.0)));
    Ok(())
}

/// Parses the first word of `text` as a number.
fn first_number(text: &str) -> Result<f64> {
    let word = text.split_whitespace().next().context("an empty text instead of a number")?;
    word.parse().with_context(|| format!("{word:?} is not a number"))
}
