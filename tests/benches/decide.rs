//! How long decisions take, and a sweep over as many workspaces as a control plane may have: measured by the simulation's own program,
//! which xtask has built.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 5;

pub(crate) fn run(simulate: Option<&Path>, report: &mut Report) -> Result<()> {
    let Some(simulate) = simulate else {
        report.left_out("decisions", "no simulation was given");
        return Ok(());
    };
    let (mut each, mut sweeps) = (Samples::new(), Samples::new());
    for _ in 0..ROUNDS {
        let output = Command::new(simulate).arg("--bench").output()?;
        ensure!(output.status.success(), "{} --bench: {}", simulate.display(), output.status);
        let said = String::from_utf8(output.stdout)?;
        let (decision, sweep) = said.split_once(';').with_context(|| format!("it says {said:?}"))?;
        each.push(number(decision)? / 1e3);
        sweeps.push(number(sweep)? / 1e3);
    }
    report.row(Row::new("one decision".into(), "µs", &each).absolute(Goal::AtMost(10.0)));
    let name = "decisions for 10,000 workspaces, slowest of 50 rounds";
    report.row(Row::new(name.into(), "ms", &sweeps).absolute(Goal::AtMost(100.0)));
    Ok(())
}

/// The first word, which is a number.
fn number(text: &str) -> Result<f64> {
    let word = text.split_whitespace().next().context("nothing is said")?;
    word.parse().with_context(|| format!("{word:?} is no number"))
}
