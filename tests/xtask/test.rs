//! `cargo xtask test`: everything that must hold. The README's test command, and all that `.ci/run` calls.

use anyhow::Result;

use crate::{check, cluster, simulate, step::Steps, stories, targets};

/// Runs it.
pub(crate) fn run() -> Result<bool> {
    let mut steps = Steps::new()?;
    check::add(&mut steps)?;
    let others = targets::integration_tests()?;
    let mut args = vec!["test", "--workspace", "--no-fail-fast", "--quiet", "--lib", "--bins"];
    args.extend(others.iter().flat_map(|name| ["--test", name]));
    // Many of them wait for clocks or processes.
    args.extend(["--", "--test-threads=4"]);
    steps.cargo("unit and property tests", &args, &[])?;
    simulate::add(&mut steps)?;
    steps.cargo("examples in docs", &["test", "--workspace", "--quiet", "--doc"], &[])?;
    // Beside each other run one that has two processors' worth of work and one that mostly waits.
    let stories = stories::step(&mut steps, &["--", "--format=pretty", "--test-threads=4"])?;
    let [suite, on_pods, faults] = cluster::steps(&mut steps)?;
    let lanes = [[suite, stories], [faults, on_pods]];
    steps.run_beside(lanes.map(|lane| lane.into_iter().flatten().collect()).into())?;
    steps.finish()
}
