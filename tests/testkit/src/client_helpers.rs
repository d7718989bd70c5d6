//! Shortens common calls to an agent: commands, terminals and uploads.

use std::{collections::HashMap, time::Duration};

use podling_proto::{
    agent::v1::{
        Command, CreateTerminalRequest, Exit, ProcessExit, RunRequest, RunResponse, Terminal,
        WriteFileRequest, WriteOpen, exit::How, process_exit::How as ProcessHow,
    },
    error::{self, Reason},
};
use tonic::Status;

use crate::{
    client::Client,
    wait::{wait_for, within},
};

/// Converts a program and its arguments into owned strings.
pub fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Returns the command line of a shell that runs this script.
pub fn script(text: &str) -> Vec<String> {
    argv(&["sh", "-c", text])
}

/// Creates a command with default environment, directory and timeout.
pub fn command(argv: Vec<String>) -> Command {
    Command { argv, env: HashMap::new(), cwd: String::new(), timeout: None }
}

impl Client {
    /// Opens a terminal with this program. Retries while the agent prepares to sleep, and therefore
    /// rejects new terminals.
    pub async fn open(&self, argv: Vec<String>) -> Terminal {
        let request = CreateTerminalRequest { argv, ..Default::default() };
        let opened = wait_for("the terminal opens", async || {
            match within("Terminals.Create", self.terminals().create(request.clone())).await {
                Err(status) if reason(&status) == Reason::Preparing => None,
                opened => Some(opened),
            }
        });
        opened.await.expect("the terminal opens").into_inner().terminal.expect("response has the terminal")
    }

    /// Runs a command and waits until it has ended.
    pub async fn run(&self, argv: Vec<String>) -> RunResponse {
        let request = RunRequest { command: Some(command(argv)), ..Default::default() };
        let ran = within("Processes.Run", self.processes().run(request)).await;
        ran.expect("the command runs").into_inner()
    }

    /// Runs a shell script and returns its stdout. Panics if the script fails.
    pub async fn sh(&self, text: &str) -> String {
        let ran = self.run(script(text)).await;
        let exit = ran.exit.expect("an exit");
        let errors = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(process_exit_code(&exit), Some(0), "{text}: {exit:?} {errors}");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    /// Uploads a file of this many MiB.
    ///
    /// # Errors
    ///
    /// Returns the reason for which the agent rejected the file.
    pub async fn upload(&self, name: &str, megabytes: usize) -> Result<(), Reason> {
        let open = WriteOpen { path: Some(path(name)), ..Default::default() };
        let first = WriteFileRequest { open: Some(open), data: "".into() };
        let piece = WriteFileRequest { open: None, data: vec![7; 1024 * 1024].into() };
        let pieces = std::iter::once(first).chain(std::iter::repeat_n(piece, megabytes));
        let answer = within("Files.Write", self.files().write(tokio_stream::iter(pieces))).await;
        answer.map(drop).map_err(|status| reason(&status))
    }
}

/// Returns the exit code of a terminal's program; `None` if a signal ended it.
pub fn terminal_exit_code(exit: &Exit) -> Option<i32> {
    match exit.how.as_ref().expect("an exit says how") {
        How::Code(code) => Some(*code),
        How::Signal(_) => None,
    }
}

/// Returns the exit code of a process; `None` if a signal ended it.
pub fn process_exit_code(exit: &ProcessExit) -> Option<i32> {
    match exit.how.as_ref().expect("an exit says how") {
        ProcessHow::Code(code) => Some(*code),
        ProcessHow::Signal(_) => None,
    }
}

/// Returns the reason for which a call was rejected. Panics if the call succeeded or failed without
/// a reason.
#[track_caller]
pub fn refused<T>(answer: Result<T, Status>) -> Reason {
    match answer {
        Ok(_) => panic!("the call succeeded"),
        Err(status) => reason(&status),
    }
}

/// Returns the reason of a status. Panics if it has none.
#[track_caller]
pub fn reason(status: &Status) -> Reason {
    match error::reason(status) {
        Some(reason) => reason,
        None => panic!("error without a reason: {status:?}"),
    }
}

/// Converts a duration into its protobuf message.
#[must_use]
pub fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    Some(duration.try_into().expect("duration is in the range of protobuf"))
}

/// Creates the path message for a UTF-8 path.
pub fn path(text: &str) -> podling_proto::agent::v1::Path {
    use podling_proto::agent::v1::path::Path as Kind;
    podling_proto::agent::v1::Path { path: Some(Kind::Text(text.to_owned())) }
}

/// Asserts that two byte sequences are equal. The message shows the first difference.
#[track_caller]
pub fn assert_same_bytes(what: &str, actual: &[u8], expected: &[u8]) {
    if actual == expected {
        return;
    }
    let at = actual.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let show = |log: &[u8]| {
        String::from_utf8_lossy(&log[at.saturating_sub(40).min(log.len())..(at + 80).min(log.len())])
            .into_owned()
    };
    panic!(
        "{what}: {} bytes instead of {}, which differ at {at}: {:?} instead of {:?}",
        actual.len(),
        expected.len(),
        show(actual),
        show(expected)
    );
}
