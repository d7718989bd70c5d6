//! Steps: commands that run one after the other, or beside each other, with their time, and the summary at the end.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::program;

/// Names the file into which stories write what they leave out (see `podling_tests::left_out`).
const LEFT_OUT: &str = "PODLING_LEFT_OUT";

/// A command that is still to be run.
#[derive(Debug)]
pub(crate) struct Step {
    name: String,
    shown: String,
    command: Command,
}

/// What was run so far.
#[derive(Debug)]
pub(crate) struct Steps {
    done: Vec<Done>,
    left_out: PathBuf,
}

/// What was run, how it ended, and how long it took.
type Done = (String, Outcome, Duration);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// A step it needs has failed.
    NotRun,
}

impl Step {
    /// `cargo ARGS…`.
    pub(crate) fn cargo(name: &str, args: &[&str], envs: &[(&str, &str)]) -> Self {
        Self::new(name, format!("cargo {}", args.join(" ")), program::cargo(), args, envs)
    }

    /// Another program.
    pub(crate) fn program(name: &str, path: &Path, args: &[&str], envs: &[(&str, &str)]) -> Self {
        let shown = format!("{} {}", path.display(), args.join(" "));
        Self::new(name, shown, program::program(path), args, envs)
    }

    fn new(name: &str, shown: String, mut command: Command, args: &[&str], envs: &[(&str, &str)]) -> Self {
        command.args(args).envs(envs.iter().copied());
        Self { name: name.to_owned(), shown, command }
    }

    /// Runs it; what it prints is ours.
    fn run(mut self) -> Result<Done> {
        println!("\n== {}: {}", self.name, self.shown);
        let begun = Instant::now();
        let status = self.command.status().with_context(|| format!("running {:?}", self.shown))?;
        Ok(self.done(status.success(), begun))
    }

    /// Runs it; each line that it prints says whose it is.
    fn run_aloud(mut self) -> Result<Done> {
        let (name, shown) = (self.name.clone(), self.shown.clone());
        println!("== {name}: {shown}");
        let begun = Instant::now();
        let running = || format!("running {shown:?}");
        let (reader, writer) = io::pipe().with_context(running)?;
        self.command.stdout(writer.try_clone().with_context(running)?).stderr(writer);
        let mut child = self.command.spawn().with_context(running)?;
        // It holds the pipe open as well, and would wait for itself.
        self.command = Command::new("");
        for line in BufReader::new(reader).split(b'\n') {
            println!("[{name}] {}", String::from_utf8_lossy(&line.with_context(running)?));
        }
        let status = child.wait().with_context(running)?;
        Ok(self.done(status.success(), begun))
    }

    fn done(self, passed: bool, begun: Instant) -> Done {
        let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
        let took = begun.elapsed();
        println!("== {}: {} in {:.1} s", self.name, outcome.word(), took.as_secs_f64());
        (self.name, outcome, took)
    }
}

impl Steps {
    /// Nothing yet.
    pub(crate) fn new() -> Result<Self> {
        let left_out = env::temp_dir().join(format!("podling-left-out-{}", std::process::id()));
        fs::write(&left_out, "").with_context(|| format!("writing {}", left_out.display()))?;
        Ok(Self { done: Vec::new(), left_out })
    }

    /// Runs `cargo ARGS…`.
    pub(crate) fn cargo(&mut self, name: &str, args: &[&str], envs: &[(&str, &str)]) -> Result<bool> {
        self.run(Step::cargo(name, args, envs))
    }

    /// Runs a step; a failure is remembered and the next step still runs.
    pub(crate) fn run(&mut self, step: Step) -> Result<bool> {
        let done = self.noting(step).run()?;
        let passed = done.1 == Outcome::Passed;
        self.done.push(done);
        Ok(passed)
    }

    /// Runs lanes beside each other, and of each lane one step after the other. For steps that mostly wait.
    pub(crate) fn run_beside(&mut self, lanes: Vec<Vec<Step>>) -> Result<()> {
        let lanes: Vec<Vec<_>> =
            lanes.into_iter().map(|lane| lane.into_iter().map(|step| self.noting(step)).collect()).collect();
        let done: Vec<Result<Vec<Done>>> = thread::scope(|scope| {
            let run = |lane: Vec<Step>| lane.into_iter().map(Step::run_aloud).collect();
            let running: Vec<_> = lanes.into_iter().map(|lane| scope.spawn(move || run(lane))).collect();
            running.into_iter().map(|lane| lane.join().expect("a lane does not panic")).collect()
        });
        for lane in done {
            self.done.extend(lane?);
        }
        Ok(())
    }

    /// It says what it leaves out.
    fn noting(&self, mut step: Step) -> Step {
        step.command.env(LEFT_OUT, &self.left_out);
        step
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
