//! JournalRecord: one terminal as it is kept on disk. Pure: bytes in, bytes out, and whatever the bytes are, never a panic.
//!
//! ```text
//!   "podling terminal 1\n" | length of facts (u32) | facts (JSON) | length of history (u64) | history | SHA-256 of all before
//! ```

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Serialize};

use crate::{
    child::ExitStatus,
    terminal::{TerminalExit, WindowSize},
};

/// Begins every file; what follows is the version of the layout.
const MAGIC: &[u8] = b"podling terminal ";
/// The layout this agent writes, and the only one it reads.
const VERSION: &[u8] = b"1\n";
/// Largest facts, in bytes: arguments and environment of a program may have 1 MiB, and JSON writes some bytes sixfold.
pub(in crate::terminal) const MAX_METADATA_BYTES: usize = 8 * 1024 * 1024;
/// Newest output that is kept, in bytes; what is older is not in the history after a sleep.
pub(in crate::terminal) const MAX_HISTORY_BYTES: usize = 1024 * 1024;

/// What is known of a terminal beside its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::terminal) struct JournalMetadata {
    pub(in crate::terminal) id: String,
    pub(in crate::terminal) name: String,
    pub(in crate::terminal) request_id: String,
    /// As it is shown.
    pub(in crate::terminal) argv: Vec<String>,
    /// What starts it again; only of an interactive shell.
    #[serde(rename = "again")]
    pub(in crate::terminal) restart: Option<RestartSpec>,
    pub(in crate::terminal) cwd: String,
    pub(in crate::terminal) title: String,
    pub(in crate::terminal) rows: u16,
    pub(in crate::terminal) cols: u16,
    /// Of the log that was saved: the history are the newest bytes before `next`.
    pub(in crate::terminal) epoch: u64,
    pub(in crate::terminal) next: u64,
    /// Nanoseconds since 1970, as all times here.
    pub(in crate::terminal) created: u64,
    pub(in crate::terminal) saved: u64,
    /// When the workspace fell asleep; its program was ended for that and not by itself.
    pub(in crate::terminal) slept: Option<u64>,
    pub(in crate::terminal) exit: Option<SavedExit>,
}

/// Program and environment, as the client gave them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::terminal) struct RestartSpec {
    pub(in crate::terminal) argv: Vec<String>,
    pub(in crate::terminal) env: HashMap<String, String>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::terminal) struct SavedExit {
    code: Option<i32>,
    signal: Option<i32>,
    at: u64,
    held_by_background: bool,
}

/// A terminal as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::terminal) struct JournalRecord {
    pub(in crate::terminal) metadata: JournalMetadata,
    /// In order and without holes.
    pub(in crate::terminal) history: Vec<Bytes>,
}

/// What was read is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::terminal) enum JournalRecordError {
    /// Something else.
    #[error("this is no journal of a terminal")]
    NotAJournal,
    /// Written by another agent.
    #[error("it has another layout than this agent reads")]
    UnsupportedVersion,
    /// Its sum is wrong, or it is shorter than it says.
    #[error("it is damaged")]
    Damaged,
    /// The facts cannot be.
    #[error("its facts cannot be read: {0}")]
    InvalidMetadata(String),
}

impl JournalRecord {
    /// Whether a program is to run in it again.
    pub(in crate::terminal) fn restarts_shell(&self) -> bool {
        self.metadata.restart.is_some() && (self.metadata.exit.is_none() || self.metadata.slept.is_some())
    }

    /// The file's content.
    pub(in crate::terminal) fn encode(&self) -> Result<Vec<u8>, JournalRecordError> {
        let metadata = serde_json::to_vec(&self.metadata)
            .map_err(|e| JournalRecordError::InvalidMetadata(e.to_string()))?;
        let history: usize = self.history.iter().map(Bytes::len).sum();
        let mut out = Vec::with_capacity(MAGIC.len() + metadata.len() + history + 64);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(VERSION);
        out.extend_from_slice(&(metadata.len() as u32).to_le_bytes());
        out.extend_from_slice(&metadata);
        out.extend_from_slice(&(history as u64).to_le_bytes());
        self.history.iter().for_each(|piece| out.extend_from_slice(piece));
        let checksum = checksum(&out);
        out.extend_from_slice(&checksum);
        Ok(out)
    }

    /// Reads what [`JournalRecord::encode`] wrote.
    pub(in crate::terminal) fn decode(file: Bytes) -> Result<Self, JournalRecordError> {
        let rest = file.strip_prefix(MAGIC).ok_or(JournalRecordError::NotAJournal)?;
        if !rest.starts_with(VERSION) {
            return Err(JournalRecordError::UnsupportedVersion);
        }
        let content = file.len().checked_sub(SHA256_OUTPUT_LEN).ok_or(JournalRecordError::Damaged)?;
        if checksum(&file[..content]) != file[content..] {
            return Err(JournalRecordError::Damaged);
        }
        let mut left = file.slice(..content);
        split_front(&mut left, MAGIC.len() + VERSION.len())?;
        let length = split_front(&mut left, 4)?[..].try_into().map_or(0, u32::from_le_bytes) as usize;
        let metadata = split_front(&mut left, length)?;
        let length = split_front(&mut left, 8)?[..].try_into().map_or(0, u64::from_le_bytes);
        if length != left.len() as u64 || left.len() > MAX_HISTORY_BYTES {
            return Err(JournalRecordError::Damaged);
        }
        let metadata: JournalMetadata = serde_json::from_slice(&metadata)
            .map_err(|e| JournalRecordError::InvalidMetadata(e.to_string()))?;
        Ok(Self { metadata, history: vec![left] })
    }
}

impl JournalMetadata {
    pub(in crate::terminal) fn size(&self) -> WindowSize {
        WindowSize::new(self.rows.into(), self.cols.into()).unwrap_or_default()
    }
}

impl SavedExit {
    pub(in crate::terminal) fn of(exit: &TerminalExit) -> Self {
        let (code, signal) = match exit.status {
            ExitStatus::Code(code) => (Some(code), None),
            ExitStatus::Signal(signal) => (None, Some(signal)),
        };
        Self { code, signal, at: unix_nanos(exit.ended_at), held_by_background: exit.held_by_background }
    }

    /// In a log that now ends at `final_offset`.
    pub(in crate::terminal) fn exit(self, final_offset: u64) -> TerminalExit {
        let status = self.signal.map_or(ExitStatus::Code(self.code.unwrap_or(255)), ExitStatus::Signal);
        let Self { at, held_by_background, .. } = self;
        TerminalExit { status, final_offset, ended_at: from_unix_nanos(at), held_by_background }
    }
}

/// Milliseconds since 1970.
pub(in crate::terminal) fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The time so many nanoseconds after 1970; one that cannot be is 1970.
pub(in crate::terminal) fn from_unix_nanos(nanos: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)).unwrap_or(UNIX_EPOCH)
}

fn split_front(left: &mut Bytes, bytes: usize) -> Result<Bytes, JournalRecordError> {
    if bytes > left.len() {
        return Err(JournalRecordError::Damaged);
    }
    Ok(left.split_to(bytes))
}

fn checksum(content: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut context = Context::new(&SHA256);
    context.update(content);
    let mut checksum = [0; SHA256_OUTPUT_LEN];
    checksum.copy_from_slice(context.finish().as_ref());
    checksum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(history: Vec<u8>) -> JournalRecord {
        let metadata = JournalMetadata {
            id: "abcdefghijkl".into(),
            name: "main".into(),
            request_id: String::new(),
            argv: vec!["bash".into(), "-l".into()],
            restart: Some(RestartSpec { argv: Vec::new(), env: [("A".into(), "ä\n\"".into())].into() }),
            cwd: "/home".into(),
            title: "title".into(),
            rows: 24,
            cols: 80,
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
    fn what_is_foreign_or_newer_is_told_from_what_is_damaged() {
        let decode =
            |bytes: &[u8]| JournalRecord::decode(Bytes::copy_from_slice(bytes)).expect_err("no record");
        let file = record(b"history".to_vec()).encode().expect("encoded");
        assert_eq!(decode(b"#!/bin/sh"), JournalRecordError::NotAJournal);
        assert_eq!(decode(b"podling terminal 2\nwhatever"), JournalRecordError::UnsupportedVersion);
        assert_eq!(decode(&file[..file.len() - 1]), JournalRecordError::Damaged);
        assert_eq!(decode(b"podling terminal 1\n"), JournalRecordError::Damaged);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_no_change_of_a_byte_passes(
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
        fn no_rubbish_makes_it_panic(rubbish in prop::collection::vec(any::<u8>(), 0..300), like in any::<bool>()) {
            let mut file = if like { [MAGIC, VERSION].concat() } else { Vec::new() };
            file.extend_from_slice(&rubbish);
            if like {
                let checksum = checksum(&file);
                file.extend_from_slice(&checksum);
            }
            let _whatever = JournalRecord::decode(file.into());
        }
    }
}
