//! Steps: commands that run one after the other with their time, and the summary at the end.

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Names the file into which stories write what they leave out (see `podling_tests::left_out`).
const LEFT_OUT: &str = "PODLING_LEFT_OUT";

/// What was run so far.
#[derive(Debug)]
pub(crate) struct Steps {
    done: Vec<(String, Outcome, Duration)>,
    left_out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// A step it needs has failed.
    NotRun,
}

impl Steps {
    /// Nothing yet.
    pub(crate) fn new() -> Result<Self> {
        let left_out = env::temp_dir().join(format!("podling-left-out-{}", std::process::id()));
        fs::write(&left_out, "").with_context(|| format!("writing {}", left_out.display()))?;
        Ok(Self { done: Vec::new(), left_out })
    }

    /// Runs `cargo ARGS…`; a failure is remembered and the next step still runs.
    pub(crate) fn cargo(&mut self, name: &str, args: &[&str], envs: &[(&str, &str)]) -> Result<bool> {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args).envs(envs.iter().copied());
        self.step(name, &format!("cargo {}", args.join(" ")), command)
    }

    /// The same with another program.
    pub(crate) fn run(
        &mut self,
        name: &str,
        program: &Path,
        args: &[&str],
        envs: &[(&str, &str)],
    ) -> Result<bool> {
        let mut command = Command::new(program);
        command.args(args).envs(envs.iter().copied());
        self.step(name, &format!("{} {}", program.display(), args.join(" ")), command)
    }

    fn step(&mut self, name: &str, shown: &str, mut command: Command) -> Result<bool> {
        println!("\n== {name}: {shown}");
        let begun = Instant::now();
        let status = command.env(LEFT_OUT, &self.left_out).status();
        let passed = status.with_context(|| format!("running {shown:?}"))?.success();
        let took = begun.elapsed();
        let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
        println!("== {name}: {} in {:.1} s", outcome.word(), took.as_secs_f64());
        self.done.push((name.to_owned(), outcome, took));
        Ok(passed)
    }

    /// Says that a step cannot run because an earlier one failed.
    pub(crate) fn not_run(&mut self, name: &str) {
        self.done.push((name.to_owned(), Outcome::NotRun, Duration::ZERO));
    }

    /// Says that something cannot run here, and why.
    pub(crate) fn left_out(&mut self, what: &str, why: &str) -> Result<()> {
        let mut file = OpenOptions::new().append(true).open(&self.left_out)?;
        writeln!(file, "{what}: {why}").context("writing what was left out")
    }

    /// Prints the summary; whether all is well. Leaving something out is well everywhere but in CI.
    pub(crate) fn finish(self) -> Result<bool> {
        let left_out = fs::read_to_string(&self.left_out).context("reading what was left out")?;
        let _ = fs::remove_file(&self.left_out);
        println!("\n== summary");
        for (name, outcome, took) in &self.done {
            println!("{:>8.1} s  {:<8} {name}", took.as_secs_f64(), outcome.word());
        }
        for line in left_out.lines() {
            println!("left out: {line}");
        }
        let passed = self.done.iter().all(|(_, outcome, _)| *outcome == Outcome::Passed);
        let whole = left_out.is_empty() || !in_ci();
        if !whole {
            println!("with CI=true nothing may be left out");
        }
        println!("{}", if passed && whole { "all passed" } else { "FAILED" });
        Ok(passed && whole)
    }
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotRun => "not run",
        }
    }
}

fn in_ci() -> bool {
    env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1")
}
