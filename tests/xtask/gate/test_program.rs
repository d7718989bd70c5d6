//! A test program of this workspace. The gate starts test programs directly, because `cargo test`
//! would wait for the lock that a build in the background holds.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use crate::program;

/// Argument with which libtest prints one line for each test, and the output of failed tests at the
/// end.
const FORMAT: &str = "--format=pretty";

/// A test program, its arguments and its environment.
#[derive(Debug, Clone)]
pub(crate) struct TestProgram {
    path: PathBuf,
    /// Script that runs the program beside a Kubernetes node.
    sandbox: Option<PathBuf>,
    envs: Vec<(String, OsString)>,
    args: Vec<String>,
}

impl TestProgram {
    pub(crate) fn new(path: &Path, args: &[&str]) -> Self {
        let args = args.iter().chain([&FORMAT]).map(|arg| (*arg).to_owned()).collect();
        Self { path: path.to_owned(), sandbox: None, envs: Vec::new(), args }
    }

    pub(crate) fn in_sandbox(mut self, sandbox: PathBuf) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Returns the program with the arguments that run one test and print its output even if it
    /// passes.
    pub(crate) fn only(&self, test: &str) -> Self {
        let args = [test, "--exact", "--include-ignored", "--show-output", FORMAT];
        Self { args: args.map(str::to_owned).to_vec(), ..self.clone() }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = match &self.sandbox {
            Some(sandbox) => {
                let mut command = program::program(sandbox);
                command.arg(&self.path);
                command
            }
            None => program::program(&self.path),
        };
        command.args(&self.args).envs(self.envs.iter().cloned());
        // `cargo test` starts the program in the directory of its package, too.
        command.current_dir(program::root().join("tests"));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_test_runs_alone_in_the_same_sandbox() {
        let program = TestProgram::new(Path::new("/program"), &["a::", "--test-threads=3"]);
        let program = program.in_sandbox("/sandbox".into());
        assert_eq!(
            program::shown(&program.command()),
            "/sandbox /program a:: --test-threads=3 --format=pretty"
        );
        assert_eq!(
            program::shown(&program.only("a::b").command()),
            "/sandbox /program a::b --exact --include-ignored --show-output --format=pretty"
        );
    }
}
