//! Runs the command `podling` as a user or a script does.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{program, within};

/// The environment of a user's shell: the home directory and additional variables.
#[derive(Debug, Clone)]
pub struct Cli {
    home: PathBuf,
    envs: Vec<(String, String)>,
}

/// Exit code and output of a finished command.
#[derive(Debug)]
pub struct CommandOutput {
    /// Exit code; `None` if a signal ended the command.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    command: String,
}

impl Cli {
    /// Creates a shell in `home` with only the variables that every login sets.
    pub fn new(home: &Path) -> Self {
        Self { home: home.to_owned(), envs: Vec::new() }
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.envs.push((key.to_owned(), value.into()));
        self
    }

    pub fn envs(&self) -> Vec<(String, String)> {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into());
        let mut envs = vec![
            ("PATH".to_owned(), path),
            ("HOME".to_owned(), self.home.display().to_string()),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("TERM".to_owned(), "xterm-256color".to_owned()),
        ];
        envs.extend(self.envs.iter().cloned());
        envs
    }

    /// Returns the command `podling ARGS…` without starting it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("podling"));
        command.args(args).env_clear().envs(self.envs()).current_dir(&self.home).kill_on_drop(true);
        command
    }

    /// Runs `podling ARGS…` without input.
    pub async fn run(&self, args: &[&str]) -> CommandOutput {
        self.run_with_input(args, b"").await
    }

    /// Runs `podling ARGS…` with `input` on stdin.
    pub async fn run_with_input(&self, args: &[&str], input: &[u8]) -> CommandOutput {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("podling starts");
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let feed = async move {
            // A command may close stdin without reading it; that write error is expected.
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        let text = format!("podling {}", args.join(" "));
        let (output, ()) = within(&text, async { tokio::join!(child.wait_with_output(), feed) }).await;
        CommandOutput::new(text.clone(), output.expect("the output can be read"))
    }
}

impl CommandOutput {
    fn new(command: String, output: Output) -> Self {
        Self { code: output.status.code(), stdout: output.stdout, stderr: output.stderr, command }
    }

    /// Returns the output if the exit code is 0. Otherwise panics with the output.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Returns the output if the exit code is `code`. Otherwise panics with the output.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(
            self.code == Some(code),
            "`{}` ended with {:?} instead of {code}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.out(),
            self.err()
        );
        self
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Parses stdout as JSON. Panics if it is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("`{}` printed invalid JSON ({error}): {}", self.command, self.out()),
        }
    }
}
