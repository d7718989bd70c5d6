//! Runs the program with a JSON log, and checks that it writes no other line.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn control(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podling-control"));
    command
        .args(words)
        .env("PODLING_LOG_FORMAT", "json")
        .env_remove("PODLING_DATA")
        .env_remove("PODLING_LOG");
    command
}

/// Parses each line, and returns the messages.
fn messages(text: &str) -> Vec<String> {
    let message = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        assert!(line["level"].is_string() && line["target"].is_string(), "{line}");
        line["fields"]["message"].as_str().expect("a message").to_owned()
    };
    text.lines().map(message).collect()
}

#[test]
fn start_errors_are_lines_of_json_log() {
    let data = tempfile::tempdir().expect("a directory");
    let data = data.path().to_str().expect("a path");
    for (words, code, expected) in [
        (&["--bogus"][..], 2, "--bogus"),
        (&["--data", data, "--listen", "nowhere"], 1, "nowhere"),
        (&["--data", data, "--listen", "127.0.0.1:0", "--default-template", "absent"], 1, "absent"),
    ] {
        let ended = control(words).output().expect("podling-control runs");
        assert_eq!(ended.status.code(), Some(code), "{words:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stdout), "", "{words:?}");
        let messages = messages(&String::from_utf8_lossy(&ended.stderr));
        assert!(messages.last().is_some_and(|last| last.contains(expected)), "{words:?}: {messages:?}");
    }
    let help = control(&["--help"]).output().expect("podling-control runs");
    assert!(help.status.success() && help.stderr.is_empty(), "help is text on stdout");
}

#[test]
fn running_control_plane_writes_only_json_lines() {
    let data = tempfile::tempdir().expect("a directory");
    let mut command = control(&["--listen", "127.0.0.1:0", "--data", data.path().to_str().expect("a path")]);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("podling-control starts");
    let mut log = BufReader::new(child.stderr.take().expect("stderr"));
    let mut lines = String::new();
    while !messages(&lines).iter().any(|message| message == "listening") {
        assert_ne!(log.read_line(&mut lines).expect("a line"), 0, "it ended: {lines}");
    }
    kill_process(Pid::from_child(&child), Signal::TERM).expect("a signal");
    log.read_to_string(&mut lines).expect("the rest");
    messages(&lines);
    assert!(child.wait().expect("an exit").success(), "{lines}");
    let mut stdout = String::new();
    child.stdout.take().expect("stdout").read_to_string(&mut stdout).expect("text");
    assert_eq!(stdout, "");
}
