//! Tests of terminals that are restored from a journal.

use super::*;
use crate::terminal::{
    journal::JournalMetadata,
    types::{RestartSpec, TerminalSpec},
};

fn interactive_shell() -> JournalMetadata {
    JournalMetadata {
        id: "abcd".into(),
        spec: TerminalSpec {
            name: "main".into(),
            request_id: String::new(),
            argv: vec!["sh".into()],
            restart: Some(RestartSpec { argv: Vec::new(), env: Default::default() }),
            size: WindowSize { rows: 24, cols: 80 },
        },
        cwd: String::new(),
        title: String::new(),
        epoch: 6,
        next: 0,
        created: 1,
        saved: 2,
        slept: Some(2),
        exit: None,
    }
}

#[test]
fn failed_restart_of_a_shell_names_the_cause() {
    let root = tempfile::tempdir().expect("a directory");
    let claim = claim(AgentPolicy::default());
    let (_tx, claims) = watch::channel(Some(Arc::new(claim.clone())));
    let launcher = Launcher::new(root.path().join("gone"), claims);
    let record = JournalRecord { metadata: interactive_shell(), history: Vec::new() };
    let gate = Arc::new(AdmissionGate::new());
    let terminal = restore(record, &launcher, &Children::new(OrphanPolicy::Leave), &gate, &claim);
    assert!(terminal.exit().is_some(), "no program runs");
    let log = terminal.journal_record().expect("not removed").history.concat();
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("cannot restart the shell: cannot enter the working directory"), "{log}");
    assert!(log.contains("No such file or directory"), "{log}");
}
