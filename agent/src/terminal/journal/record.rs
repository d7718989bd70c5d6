//! File format of a terminal's journal. Pure. Decoding never panics.
//!
//! ```text
//!   "podling terminal 1\n" | length of metadata (u32) | metadata (JSON)
//!     | length of history (u64) | history | SHA-256 of everything before
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

/// First bytes of every file; the version of the layout follows.
const MAGIC: &[u8] = b"podling terminal ";
/// Version of the layout that this agent writes; it reads no other.
const VERSION: &[u8] = b"1\n";
/// Upper bound of the metadata, in bytes. Arguments and environment have at most 1 MiB, and JSON
/// escapes one byte with at most six.
pub(in crate::terminal) const MAX_METADATA_BYTES: usize = 8 * 1024 * 1024;
/// Limit on the output in a journal, in bytes. Older output does not survive a sleep.
pub(in crate::terminal) const MAX_HISTORY_BYTES: usize = 1024 * 1024;

/// Everything about a terminal except its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::terminal) struct JournalMetadata {
    pub(in crate::terminal) id: String,
    pub(in crate::terminal) name: String,
    pub(in crate::terminal) request_id: String,
    /// For display, truncated to 4 KiB.
    pub(in crate::terminal) argv: Vec<String>,
    /// Command and environment that restart the program. Only present for an interactive shell.
    #[serde(rename = "again")]
    pub(in crate::terminal) restart: Option<RestartSpec>,
    pub(in crate::terminal) cwd: String,
    pub(in crate::terminal) title: String,
    pub(in crate::terminal) rows: u16,
    pub(in crate::terminal) cols: u16,
    /// Epoch of the saved log. The history holds the newest bytes before `next`.
    pub(in crate::terminal) epoch: u64,
    pub(in crate::terminal) next: u64,
    /// Nanoseconds since 1970, like the other times in this file.
    pub(in crate::terminal) created: u64,
    pub(in crate::terminal) saved: u64,
    /// Time at which the agent ended the terminal, for a sleep or a shutdown.
    pub(in crate::terminal) slept: Option<u64>,
    pub(in crate::terminal) exit: Option<SavedExit>,
}

/// Command and environment of an interactive shell, as the client sent them. An empty `argv` means
/// the shell of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::terminal) struct RestartSpec {
    pub(in crate::terminal) argv: Vec<String>,
    pub(in crate::terminal) env: HashMap<String, String>,
}

/// Exit of the program without its final offset, because offsets start again in the next epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::terminal) struct SavedExit {
    code: Option<i32>,
    signal: Option<i32>,
    at: u64,
    held_by_background: bool,
}

/// Content of one journal file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::terminal) struct JournalRecord {
    pub(in crate::terminal) metadata: JournalMetadata,
    /// Newest output, in consecutive slices.
    pub(in crate::terminal) history: Vec<Bytes>,
}

/// Reason why a file could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::terminal) enum JournalRecordError {
    #[error("file is not a terminal journal")]
    NotAJournal,
    #[error("unsupported version of the journal format")]
    UnsupportedVersion,
    /// The checksum does not match, or the file is truncated.
    #[error("file is damaged")]
    Damaged,
    /// The metadata is not valid JSON of this format.
    #[error("cannot decode the journal's metadata: {0}")]
    InvalidMetadata(String),
}

impl JournalRecord {
    /// Returns true if the restored terminal gets a new shell.
    pub(in crate::terminal) fn restarts_shell(&self) -> bool {
        self.metadata.restart.is_some() && (self.metadata.exit.is_none() || self.metadata.slept.is_some())
    }

    /// Returns the content of the file.
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

    /// Parses what [`JournalRecord::encode`] wrote.
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

    /// Converts the exit for a restored log that ends at `final_offset`.
    pub(in crate::terminal) fn exit(self, final_offset: u64) -> TerminalExit {
        let status = self.signal.map_or(ExitStatus::Code(self.code.unwrap_or(255)), ExitStatus::Signal);
        let Self { at, held_by_background, .. } = self;
        TerminalExit { status, final_offset, ended_at: from_unix_nanos(at), held_by_background }
    }
}

/// Returns nanoseconds since 1970; 0 for earlier times.
pub(in crate::terminal) fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Returns the time this many nanoseconds after 1970; 1970 itself if it cannot be represented.
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
    fn foreign_newer_and_damaged_files_are_distinguished() {
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
                let checksum = checksum(&file);
                file.extend_from_slice(&checksum);
            }
            let _whatever = JournalRecord::decode(file.into());
        }
    }
}
