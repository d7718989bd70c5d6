//! One step of the gate: its command, and afterwards its result and the time that it took.

use std::{
    ffi::OsStr,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::test_program::TestProgram;
use crate::program;

/// Niceness of background steps. Compilers have no deadlines; the tests that run beside them do.
const BACKGROUND_NICENESS: &str = "15";
/// Niceness of stories beside unit tests.
const STORIES_NICENESS: &str = "5";
/// Fields `utime`, `stime`, `cutime` and `cstime` of `/proc/PID/stat`, counted from the field after
/// the command's name.
const CPU_FIELDS: std::ops::Range<usize> = 11..15;

/// A step that has not run yet.
#[derive(Debug)]
pub(crate) struct GateStep {
    name: String,
    shown: String,
    command: Command,
    /// Present if the command is a test program, whose failed tests are run again.
    tests: Option<TestProgram>,
}

/// The result of a step.
#[derive(Debug)]
pub(crate) struct StepReport {
    pub(crate) name: String,
    pub(crate) outcome: StepOutcome,
    pub(crate) wall: Duration,
    /// Processor time of the command and of all processes that it waited for; zero where the system
    /// does not report it.
    pub(crate) cpu: Duration,
    /// Output of a step that ran in a lane, ran a test program, or was run for its output. Empty
    /// for other steps.
    pub(crate) output: String,
    pub(crate) tests: Option<TestProgram>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepOutcome {
    Passed,
    /// Tests failed, and passed when they were run again by themselves.
    Unstable,
    Failed,
    /// The step did not run because a step that it needs failed.
    NotRun,
}

impl GateStep {
    /// Creates a step that runs cargo with these arguments.
    pub(crate) fn cargo(name: &str, args: &[&str], envs: &[(&str, &str)]) -> Self {
        let shown = format!("cargo {}", args.join(" "));
        let mut command = program::cargo();
        command.args(args).envs(envs.iter().copied());
        Self { name: name.to_owned(), shown, command, tests: None }
    }

    /// Creates a step that runs cargo for [`program::STATIC_TARGET`].
    pub(crate) fn cargo_static(name: &str, args: &[&str]) -> Self {
        let target = program::STATIC_TARGET.map(|target| ["--target", target]);
        Self::cargo(name, &[args, target.as_ref().map_or(&[], |args| &args[..])].concat(), &[])
    }

    /// Creates a step that runs a script of this repository.
    pub(crate) fn script(name: &str, path: &Path, args: &[&OsStr]) -> Self {
        let mut command = program::program(path);
        command.args(args);
        Self { name: name.to_owned(), shown: program::shown(&command), command, tests: None }
    }

    /// Creates a step that runs a shell script with paths as its arguments.
    pub(crate) fn shell(name: &str, script: &str, args: &[&PathBuf]) -> Self {
        let mut command = program::program("sh");
        command.args(["-c", script, "sh"]).args(args);
        let programs = args.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy());
        let shown = programs.collect::<Vec<_>>().join(" ");
        Self { name: name.to_owned(), shown, command, tests: None }
    }

    /// Creates a step that runs a test program.
    pub(crate) fn tests(name: &str, tests: TestProgram) -> Self {
        let command = tests.command();
        Self { name: name.to_owned(), shown: program::shown(&command), command, tests: Some(tests) }
    }

    /// Lowers the priority of the command, so that steps beside it get the processors first.
    pub(crate) fn in_background(mut self) -> Self {
        self.command = program::nice(&self.command, BACKGROUND_NICENESS);
        self
    }

    /// Lowers the priority of stories that run beside unit tests. Stories have deadlines of a minute;
    /// some unit tests expect an answer within milliseconds.
    pub(crate) fn behind_unit_tests(mut self) -> Self {
        self.command = program::nice(&self.command, STORIES_NICENESS);
        self
    }

    pub(crate) fn env(&mut self, name: &str, value: &Path) {
        self.command.env(name, value);
    }

    /// Runs the step and prints its output.
    pub(crate) fn run(self) -> Result<StepReport> {
        println!();
        self.run_with(|line| println!("{line}"), false)
    }

    /// Runs the step beside others, so each printed line of its output begins with the step's name.
    pub(crate) fn run_in_lane(self) -> Result<StepReport> {
        let name = self.name.clone();
        self.run_with(|line| println!("[{name}] {line}"), true)
    }

    /// Runs the step and collects its standard output in the report instead of printing it.
    pub(crate) fn run_for_output(mut self) -> Result<StepReport> {
        println!("\n== {}: {}", self.name, self.shown);
        let began = Instant::now();
        let mut child = self
            .command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {:?}", self.shown))?;
        let output = io::read_to_string(child.stdout.take().expect("stdout is a pipe"))?;
        let (status, cpu) = wait(&mut child)?;
        Ok(self.report(status, began, cpu, output))
    }

    fn run_with(mut self, print: impl Fn(&str), in_lane: bool) -> Result<StepReport> {
        println!("== {}: {}", self.name, self.shown);
        let began = Instant::now();
        let running = || format!("cannot run {:?}", self.shown);
        if !in_lane && self.tests.is_none() {
            let mut child = self.command.spawn().with_context(running)?;
            let (status, cpu) = wait(&mut child)?;
            return Ok(self.report(status, began, cpu, String::new()));
        }
        let mut output = String::new();
        let (status, cpu) = run_through_pipe(&mut self.command, &print, &mut output).with_context(running)?;
        Ok(self.report(status, began, cpu, output))
    }

    fn report(self, status: ExitStatus, began: Instant, cpu: Duration, output: String) -> StepReport {
        let outcome = if status.success() { StepOutcome::Passed } else { StepOutcome::Failed };
        let wall = began.elapsed();
        let (took, used) = (wall.as_secs_f64(), cpu.as_secs_f64());
        println!("== {}: {} in {took:.1} s ({used:.1} s of processors)", self.name, outcome.word());
        StepReport { name: self.name, outcome, wall, cpu, output, tests: self.tests }
    }
}

impl StepReport {
    /// Creates the report of a check that xtask ran itself, or of a step that did not run.
    pub(crate) fn of_xtask(name: &str, outcome: StepOutcome, wall: Duration) -> Self {
        let name = name.to_owned();
        Self { name, outcome, wall, cpu: Duration::ZERO, output: String::new(), tests: None }
    }
}

impl StepOutcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Unstable => "unstable",
            Self::Failed => "FAILED",
            Self::NotRun => "not run",
        }
    }
}

/// Runs the command. Passes each line of its output to `print`, and appends it to `output`.
fn run_through_pipe(
    command: &mut Command,
    print: &impl Fn(&str),
    output: &mut String,
) -> Result<(ExitStatus, Duration)> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // `command` still holds the pipe's write end. Unless it is dropped here, the loop never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        print(&line);
        output.push_str(&line);
        output.push('\n');
    }
    wait(&mut child)
}

/// Waits for the process. Returns its status and processor time, which can be read only after the
/// exit and before the process is reaped.
fn wait(child: &mut Child) -> Result<(ExitStatus, Duration)> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
    let cpu = cpu_time(child.id()).unwrap_or_default();
    Ok((child.wait().context("cannot wait for a process")?, cpu))
}

/// Returns the processor time of a process and of the children that it waited for. Linux only.
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and can contain spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(CPU_FIELDS)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_of_children_is_counted() {
        let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let mut child =
            Command::new("sh").args(["-c", &format!("sh -c '{spin}'; true")]).spawn().expect("sh");
        let (status, cpu) = wait(&mut child).expect("process ends");
        assert!(status.success());
        if cfg!(target_os = "linux") {
            assert!(cpu > Duration::ZERO, "{cpu:?}");
        }
    }
}
