//! Tests of terminals that are restored from a journal.

use super::{
    super::{
        journal::{JournalMetadata, JournalRecord, RestartSpec},
        restore::restore,
    },
    *,
};
use crate::byte_log::LogRead;

fn interactive_shell() -> JournalMetadata {
    JournalMetadata {
        id: "abcd".into(),
        name: "main".into(),
        request_id: String::new(),
        argv: vec!["sh".into()],
        restart: Some(RestartSpec { argv: Vec::new(), env: Default::default() }),
        cwd: String::new(),
        title: String::new(),
        rows: 24,
        cols: 80,
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
    let opened = restore(record, &launcher, &Children::new(OrphanPolicy::Leave), &gate, &claim);
    assert!(opened.pty.is_none(), "no program runs");
    let LogRead::Data { bytes, .. } = opened.terminal.state().log.read(0, usize::MAX) else {
        panic!("a note")
    };
    let log = String::from_utf8_lossy(&bytes);
    assert!(log.contains("cannot restart the shell: cannot enter the working directory"), "{log}");
    assert!(log.contains("No such file or directory"), "{log}");
}
