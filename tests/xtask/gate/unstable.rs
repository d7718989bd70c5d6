//! Finds unstable tests. A story or cluster test that fails in the gate is run once more by itself.
//! If it then passes, it is unstable. The gate passes with a few unstable tests and names them.
//!
//! An unstable test is a bug of the product or of the test. The bug must be found before an issue
//! is resolved.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{
    libtest,
    step::{GateStep, StepOutcome, StepReport},
};

/// Largest number of unstable tests with which the gate passes.
pub(crate) const MOST_UNSTABLE_TESTS: usize = 2;
/// Largest number of failed tests that are run again. If more failed, they probably have a common
/// cause, and none is run again.
const MOST_RUN_AGAIN: usize = 8;

/// A failed test, and the result of its second run by itself.
#[derive(Debug)]
pub(crate) struct FailedTest {
    name: String,
    step: String,
    again: Again,
    /// Files with the outputs of the first run and, if there was one, of the second.
    logs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Passed,
    Failed,
    NotRun,
}

/// Runs each failed test of a test program once more. If all failed tests of a step pass then, the
/// step's outcome becomes unstable.
pub(crate) fn run_again(reports: &mut [StepReport], logs: &Path) -> Result<Vec<FailedTest>> {
    let failed: Vec<Vec<String>> = reports.iter().map(failed_tests).collect();
    let are_too_many = failed.iter().map(Vec::len).sum::<usize>() > MOST_RUN_AGAIN;
    let mut tests = Vec::new();
    for (report, failed) in reports.iter_mut().zip(failed) {
        let first = tests.len();
        for name in failed {
            tests.push(FailedTest::run_again(report, &name, logs, are_too_many)?);
        }
        let of_step = &tests[first..];
        if !of_step.is_empty() && of_step.iter().all(FailedTest::is_unstable) {
            report.outcome = StepOutcome::Unstable;
        }
    }
    Ok(tests)
}

/// Returns the failed tests of a step. Returns none if the step failed for another reason, such as
/// a node that did not boot.
fn failed_tests(report: &StepReport) -> Vec<String> {
    if report.tests.is_none() || report.outcome != StepOutcome::Failed {
        return Vec::new();
    }
    libtest::failed_tests(&report.output).unwrap_or_default()
}

impl FailedTest {
    fn run_again(report: &StepReport, name: &str, logs: &Path, are_too_many: bool) -> Result<Self> {
        let log = |which: &str| logs.join(format!("{}.{which}.log", file_name(name)));
        let output = libtest::output_of(&report.output, name).unwrap_or(&report.output);
        let mut this = Self {
            name: name.to_owned(),
            step: report.name.clone(),
            again: Again::NotRun,
            logs: vec![log("first")],
        };
        fs::write(&this.logs[0], output)?;
        if let Some(tests) = report.tests.as_ref().filter(|_| !are_too_many) {
            let again = GateStep::tests(&format!("{name}, again"), tests.only(name)).run()?;
            this.again = if again.outcome == StepOutcome::Passed { Again::Passed } else { Again::Failed };
            this.logs.push(log("second"));
            fs::write(&this.logs[1], &again.output)?;
        }
        Ok(this)
    }

    pub(crate) fn is_unstable(&self) -> bool {
        self.again == Again::Passed
    }

    pub(crate) fn print(&self) {
        let Self { name, step, .. } = self;
        match self.again {
            Again::Passed => println!("UNSTABLE: {name} ({step}) failed, and passed when run again alone"),
            Again::Failed => println!("FAILED: {name} ({step}) failed twice, the second time alone"),
            Again::NotRun => println!("FAILED: {name} ({step})"),
        }
        for log in &self.logs {
            println!("  log: {}", log.display());
        }
    }
}

/// Returns the name of a step or test without characters that are awkward in file names.
pub(crate) fn file_name(name: &str) -> String {
    name.replace("::", ".").replace([' ', '/', '\''], "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::TestProgram;

    /// Creates a failed step. When its test program runs one test again, the test passes if its
    /// name contains `unstable`.
    fn step(directory: &Path, result: &str) -> StepReport {
        let script = directory.join("program");
        fs::write(&script, "case $1 in *unstable*) echo passed; exit 0;; *::*) echo failed; exit 1;; esac\n")
            .expect("a script");
        let tests = TestProgram::new(&script, &[]).in_sandbox("sh".into());
        let output = format!("running 3 tests\nfailures:\n{result}");
        let mut report = StepReport::of_xtask("stories", StepOutcome::Failed, std::time::Duration::ZERO);
        (report.output, report.tests) = (output, Some(tests));
        report
    }

    fn run(result: &str) -> (Vec<FailedTest>, StepOutcome) {
        let directory = tempfile::tempdir().expect("a directory");
        let mut reports = [step(directory.path(), result)];
        let failed = run_again(&mut reports, directory.path()).expect("it runs");
        for log in failed.iter().flat_map(|test| &test.logs) {
            assert!(log.exists(), "{}", log.display());
        }
        (failed, reports[0].outcome)
    }

    #[test]
    fn step_whose_failed_tests_pass_alone_is_unstable() {
        let (failed, outcome) =
            run("    a::unstable\n\ntest result: FAILED. 2 passed; 1 failed; finished in 1s\n");
        assert_eq!(outcome, StepOutcome::Unstable);
        assert_eq!(failed.len(), 1);
        assert!(failed[0].is_unstable());
        assert_eq!(failed[0].logs.len(), 2);
    }

    #[test]
    fn step_with_a_test_that_fails_twice_stays_failed() {
        let result =
            "    a::broken\n    a::unstable\n\ntest result: FAILED. 1 passed; 2 failed; finished in 1s\n";
        let (failed, outcome) = run(result);
        assert_eq!(outcome, StepOutcome::Failed);
        assert_eq!(failed.iter().filter(|test| test.is_unstable()).count(), 1);
    }

    #[test]
    fn step_that_did_not_end_stays_failed() {
        let (failed, outcome) = run("    a::unstable\n");
        assert_eq!((failed.len(), outcome), (0, StepOutcome::Failed));
    }

    #[test]
    fn many_failed_tests_are_not_run_again() {
        let names: String = (0..=MOST_RUN_AGAIN).map(|n| format!("    a::unstable_{n}\n")).collect();
        let result = format!("{names}\ntest result: FAILED. 0 passed; {} failed; x\n", MOST_RUN_AGAIN + 1);
        let (failed, outcome) = run(&result);
        assert_eq!((failed.len(), outcome), (MOST_RUN_AGAIN + 1, StepOutcome::Failed));
        assert!(failed.iter().all(|test| test.again == Again::NotRun));
    }
}
