//! Tests of the format of journals.

use proptest::prelude::*;

use super::*;
use crate::terminal::types::RestartSpec;

fn record(history: Vec<u8>) -> JournalRecord {
    let metadata = JournalMetadata {
        id: "abcdefghijkl".into(),
        spec: TerminalSpec {
            name: "main".into(),
            request_id: String::new(),
            argv: vec!["bash".into(), "-l".into()],
            restart: Some(RestartSpec { argv: Vec::new(), env: [("A".into(), "ä\n\"".into())].into() }),
            size: WindowSize { rows: 24, cols: 80 },
        },
        cwd: "/home".into(),
        title: "title".into(),
        epoch: 3,
        next: history.len() as u64,
        created: 1,
        saved: 2,
        slept: Some(3),
        exit: Some(SavedExit { code: None, signal: Some(1), at: 3, held_by_background: false }),
    };
    JournalRecord { metadata, history: vec![history.into()] }
}

#[test]
fn foreign_newer_and_damaged_files_are_distinguished() {
    let decode = |bytes: &[u8]| JournalRecord::decode(Bytes::copy_from_slice(bytes)).expect_err("no record");
    let file = record(b"history".to_vec()).encode().expect("encoded");
    assert_eq!(decode(b"#!/bin/sh"), JournalRecordError::NotAJournal);
    assert_eq!(decode(b"podling terminal 2\nwhatever"), JournalRecordError::UnsupportedVersion);
    assert_eq!(decode(&file[..file.len() - 1]), JournalRecordError::Damaged);
    assert_eq!(decode(b"podling terminal 1\n"), JournalRecordError::Damaged);
}

proptest! {
    #[test]
    fn record_round_trips_and_any_flipped_byte_is_detected(
        history in prop::collection::vec(any::<u8>(), 0..2000),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let record = record(history);
        let mut file = record.encode().expect("encoded");
        prop_assert_eq!(&JournalRecord::decode(file.clone().into()).expect("decoded"), &record);
        let at = at.index(file.len());
        file[at] ^= flip;
        prop_assert!(JournalRecord::decode(file.into()).is_err());
    }

    #[test]
    fn decode_never_panics(rubbish in prop::collection::vec(any::<u8>(), 0..300), like in any::<bool>()) {
        let mut file = if like { [MAGIC, VERSION].concat() } else { Vec::new() };
        file.extend_from_slice(&rubbish);
        if like {
            let checksum = sha256(&file);
            file.extend_from_slice(&checksum);
        }
        let _whatever = JournalRecord::decode(file.into());
    }
}

/// The names of fields are part of the format.
#[test]
fn metadata_of_older_agent_is_read() {
    let json = r#"{"id":"abcdefghijkl","name":"main","request_id":"r","argv":["bash"],
        "again":{"argv":[],"env":{"A":"b"}},"cwd":"/home","title":"t","rows":50,"cols":132,"epoch":3,
        "next":7,"created":1,"saved":2,"slept":null,
        "exit":{"code":null,"signal":9,"at":3,"held_by_background":true}}"#;
    let metadata: JournalMetadata = serde_json::from_str(json).expect("metadata");
    assert_eq!(metadata.spec.size, WindowSize { rows: 50, cols: 132 });
    assert_eq!(metadata.spec.restart.as_ref().map(|restart| restart.env.len()), Some(1));
    let written: serde_json::Value = serde_json::to_value(&metadata).expect("JSON");
    assert_eq!(written, serde_json::from_str::<serde_json::Value>(json).expect("JSON"));
}
