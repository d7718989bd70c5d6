//! The gate runs steps one after the other or beside each other, runs failed stories and cluster
//! tests once more, and prints the summary.

mod libtest;
mod step;
mod test_program;
mod unstable;

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use self::unstable::FailedTest;
pub(crate) use self::{
    step::{GateStep, StepOutcome, StepReport},
    test_program::TestProgram,
};
use crate::program;

/// Environment variable with the path of the file in which tests list what they skip
/// (`podling_tests::report_skipped`).
const SKIPPED_LIST: &str = "PODLING_SKIPPED_TESTS";

/// Lanes run beside each other, and the steps of one lane run one after the other.
pub(crate) type Lanes = Vec<Vec<GateStep>>;

/// Reports of the steps so far, and the files that steps write.
#[derive(Debug)]
pub(crate) struct Gate {
    began: Instant,
    reports: Vec<StepReport>,
    /// File with a line for each test that this machine cannot run.
    skipped: PathBuf,
    /// Directory for the outputs of steps, and of tests that were run again.
    logs: PathBuf,
}

impl Gate {
    pub(crate) fn new() -> Result<Self> {
        let skipped = env::temp_dir().join(format!("podling-skipped-{}", std::process::id()));
        fs::write(&skipped, "").with_context(|| format!("cannot write {}", skipped.display()))?;
        let logs = program::target_dir().join("gate");
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self { began: Instant::now(), reports: Vec::new(), skipped, logs })
    }

    /// Runs cargo as a step. Returns whether it passed.
    pub(crate) fn cargo(&mut self, name: &str, args: &[&str], envs: &[(&str, &str)]) -> Result<bool> {
        self.run(GateStep::cargo(name, args, envs))
    }

    /// Runs a step. Returns whether it passed; an error means that it could not be run.
    pub(crate) fn run(&mut self, step: GateStep) -> Result<bool> {
        let report = self.noting_what_is_skipped(step).run()?;
        Ok(self.add(report))
    }

    /// Runs a step and returns its standard output; `None` if it failed.
    pub(crate) fn run_for_output(&mut self, step: GateStep) -> Result<Option<String>> {
        let mut report = step.run_for_output()?;
        let output = std::mem::take(&mut report.output);
        Ok(self.add(report).then_some(output))
    }

    /// Runs the lanes until all of them have ended. A failed step does not stop its lane. Returns
    /// for each lane whether all of its steps passed.
    pub(crate) fn run_lanes(&mut self, lanes: Lanes) -> Result<Vec<bool>> {
        let noting = |lane: Vec<GateStep>| lane.into_iter().map(|step| self.noting_what_is_skipped(step));
        let lanes: Lanes = lanes.into_iter().map(|lane| noting(lane).collect()).collect();
        let reports: Vec<Result<Vec<StepReport>>> = thread::scope(|scope| {
            let run = |lane: Vec<GateStep>| lane.into_iter().map(GateStep::run_in_lane).collect();
            let running: Vec<_> = lanes.into_iter().map(|lane| scope.spawn(move || run(lane))).collect();
            running.into_iter().map(|lane| lane.join().expect("lane does not panic")).collect()
        });
        let mut passed = Vec::new();
        for lane in reports {
            let outcomes: Vec<bool> = lane?.into_iter().map(|report| self.add(report)).collect();
            passed.push(!outcomes.contains(&false));
        }
        Ok(passed)
    }

    /// Records the result of a check that xtask ran itself, without a command.
    pub(crate) fn record(&mut self, name: &str, passed: bool, wall: Duration) {
        let outcome = if passed { StepOutcome::Passed } else { StepOutcome::Failed };
        self.add(StepReport::of_xtask(name, outcome, wall));
    }

    /// Records that a step did not run because an earlier step failed.
    pub(crate) fn not_run(&mut self, name: &str) {
        self.add(StepReport::of_xtask(name, StepOutcome::NotRun, Duration::ZERO));
    }

    /// Records that the tests `what` are skipped, and why this machine cannot run them.
    pub(crate) fn skip(&mut self, what: &str, why: &str) -> Result<()> {
        let mut file = OpenOptions::new().append(true).open(&self.skipped)?;
        writeln!(file, "{what}: {why}").context("cannot write the list of skipped tests")
    }

    /// Returns whether everything compiled, that is, whether only test programs have failed.
    pub(crate) fn has_built(&self) -> bool {
        let is_built = |report: &StepReport| report.outcome == StepOutcome::Passed || report.tests.is_some();
        self.reports.iter().all(is_built)
    }

    /// Runs failed tests once more and prints the summary. Returns whether the gate passed. In CI
    /// it fails if tests were skipped.
    pub(crate) fn finish(mut self) -> Result<bool> {
        let failed = unstable::run_again(&mut self.reports, &self.logs)?;
        let skipped = fs::read_to_string(&self.skipped).context("cannot read the list of skipped tests")?;
        let _ = fs::remove_file(&self.skipped);
        println!("\n== summary");
        println!("{:>10} {:>12}", "seconds", "processors");
        for report in &self.reports {
            let (wall, cpu) = (report.wall.as_secs_f64(), report.cpu.as_secs_f64());
            println!("{wall:>10.1} {cpu:>12.1}  {:<8}  {}", report.outcome.word(), report.name);
        }
        let cpu: Duration = self.reports.iter().map(|report| report.cpu).sum();
        println!("{:>10.1} {:>12.1}  in all", self.began.elapsed().as_secs_f64(), cpu.as_secs_f64());
        for line in skipped.lines() {
            println!("skipped: {line}");
        }
        let is_whole = skipped.is_empty() || !in_ci();
        if !is_whole {
            println!("CI is set, so skipped tests are a failure; install what is missing, or unset CI");
        }
        let unstable = failed.iter().filter(|test| test.is_unstable()).count();
        let ended_well =
            |report: &StepReport| matches!(report.outcome, StepOutcome::Passed | StepOutcome::Unstable);
        let passed =
            self.reports.iter().all(ended_well) && is_whole && unstable <= unstable::MOST_UNSTABLE_TESTS;
        println!("{}", if passed { "all passed" } else { "FAILED" });
        failed.iter().for_each(FailedTest::print);
        if unstable > unstable::MOST_UNSTABLE_TESTS {
            println!("more than {} unstable tests are a failure; fix them", unstable::MOST_UNSTABLE_TESTS);
        }
        Ok(passed)
    }

    fn add(&mut self, report: StepReport) -> bool {
        let passed = report.outcome == StepOutcome::Passed;
        if !report.output.is_empty() {
            let log = self.logs.join(format!("{}.log", unstable::file_name(&report.name)));
            let _ = fs::write(log, &report.output);
        }
        self.reports.push(report);
        passed
    }

    fn noting_what_is_skipped(&self, mut step: GateStep) -> GateStep {
        step.env(SKIPPED_LIST, &self.skipped);
        step
    }
}

fn in_ci() -> bool {
    env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1")
}
