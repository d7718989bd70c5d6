//! Test programs of this workspace. The gate starts them directly: `cargo test` would wait for the
//! lock that a build in the background holds.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use crate::program;

/// The harness prints one line for each test, and the output of each failed test at the end.
const FORMAT: &str = "--format=pretty";

/// A test program, the arguments of its runs, and its environment.
#[derive(Debug, Clone)]
pub(crate) struct TestProgram {
    path: PathBuf,
    /// Script that runs the program beside a Kubernetes node.
    sandbox: Option<PathBuf>,
    envs: Vec<(String, OsString)>,
    /// Arguments of each run. Each run starts only if the run before it passed.
    runs: Vec<Vec<String>>,
}

impl TestProgram {
    pub(crate) fn new(path: &Path, args: &[&str]) -> Self {
        let this = Self { path: path.to_owned(), sandbox: None, envs: Vec::new(), runs: Vec::new() };
        this.then(args)
    }

    /// Adds a run with other arguments in the same sandbox.
    pub(crate) fn then(mut self, args: &[&str]) -> Self {
        self.runs.push(args.iter().map(|arg| (*arg).to_owned()).chain([FORMAT.to_owned()]).collect());
        self
    }

    pub(crate) fn in_sandbox(mut self, sandbox: PathBuf) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Returns the program with a single run of one test, which also prints its output if it
    /// passes.
    pub(crate) fn only(&self, test: &str) -> Self {
        let args = [test, "--exact", "--include-ignored", "--show-output", FORMAT];
        Self { runs: vec![args.map(str::to_owned).to_vec()], ..self.clone() }
    }

    /// Returns the program with the runs behind the first `ended` ones; `None` if there are no
    /// more.
    pub(crate) fn after(&self, ended: usize) -> Option<Self> {
        let left = self.runs.get(ended..).filter(|left| !left.is_empty())?;
        Some(Self { runs: left.to_vec(), ..self.clone() })
    }

    pub(crate) fn command(&self) -> Command {
        let mut words: Vec<OsString> = self.sandbox.iter().map(|sandbox| sandbox.clone().into()).collect();
        if let [args] = &self.runs[..] {
            words.push(self.path.clone().into());
            words.extend(args.iter().map(OsString::from));
        } else {
            let runs = self.runs.iter().map(|args| format!("\"$0\" {}", args.join(" ")));
            words.extend(["sh".into(), "-c".into(), runs.collect::<Vec<_>>().join(" && ").into()]);
            words.push(self.path.clone().into());
        }
        let mut command = program::program(&words[0]);
        command.args(&words[1..]).envs(self.envs.iter().cloned());
        // `cargo test` starts it there, too.
        command.current_dir(program::root().join("tests"));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_run_starts_only_after_the_first_passed() {
        let both = TestProgram::new(Path::new("/program"), &["--test-threads=3"])
            .then(&["faults::", "--ignored"])
            .in_sandbox("/sandbox".into());
        assert_eq!(
            program::shown(&both.command()),
            "/sandbox sh -c \"$0\" --test-threads=3 --format=pretty && \
             \"$0\" faults:: --ignored --format=pretty /program"
        );
        let left = both.after(1).expect("one run is left");
        assert_eq!(program::shown(&left.command()), "/sandbox /program faults:: --ignored --format=pretty");
        assert!(both.after(2).is_none());
    }

    #[test]
    fn one_test_runs_alone() {
        let program = TestProgram::new(Path::new("/program"), &["a::", "--test-threads=3"]);
        assert_eq!(
            program::shown(&program.only("a::b").command()),
            "/program a::b --exact --include-ignored --show-output --format=pretty"
        );
    }
}
