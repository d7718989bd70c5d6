//! TerminalJournal: the terminals on disk, so that they come back after a sleep, and after a crash but for its last seconds.
//!
//! Every terminal's newest output and facts are saved a few seconds after they changed, and once more when everything has ended. What
//! has not changed is not written, and while nothing changes nobody wakes. Knows terminals, not the registry.

mod dir;
mod record;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use self::{dir::JournalDir, record::MAX_HISTORY_BYTES};
pub(super) use self::{
    dir::LoadedJournals,
    record::{JournalMetadata, JournalRecord, RestartSpec, SavedExit, from_unix_nanos, unix_nanos},
};
use super::{Terminal, TerminalId, WindowSize};
use crate::byte_log::{ByteLog, CHUNK_BYTES, LogRead};

/// How long after a change it is saved: the output that a crash may cost.
pub(super) const SAVE_AFTER: Duration = Duration::from_secs(3);
/// Name of the folder in the state folder.
const DIRECTORY: &str = "terminals";

/// The terminals on disk.
#[derive(Debug)]
pub(super) struct TerminalJournal {
    dir: JournalDir,
    /// What each file says. Held while files are written, never on the runtime's thread.
    saved: Mutex<HashMap<TerminalId, JournalFingerprint>>,
}

/// What changes a terminal's file when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct JournalFingerprint {
    next: u64,
    title: String,
    cwd: String,
    size: WindowSize,
    ended: bool,
    slept: Option<SystemTime>,
}

impl TerminalJournal {
    /// Kept in the agent's state folder.
    pub(super) fn new(state: &std::path::Path) -> Self {
        let path: PathBuf = state.join(DIRECTORY);
        Self { dir: JournalDir::new(path), saved: Mutex::default() }
    }

    /// Reads what was kept; changes nothing. Blocks.
    pub(super) fn load(&self) -> LoadedJournals {
        self.dir.load()
    }

    /// What was found is served from here on: what cannot be read makes way. Blocks for some renames.
    pub(super) fn adopt(&self, found: &LoadedJournals) {
        for (id, why) in &found.unreadable {
            self.dir.quarantine(id, why);
        }
        let mut saved = self.saved.lock().unwrap_or_else(|e| e.into_inner());
        for record in &found.records {
            // Not as it is now, so that it is saved anew, and known, so that it goes if it did not come back.
            let unlike = JournalFingerprint {
                next: u64::MAX,
                title: String::new(),
                cwd: String::new(),
                size: record.metadata.size(),
                ended: false,
                slept: None,
            };
            saved.insert(TerminalId::new(&record.metadata.id), unlike);
        }
    }

    /// Removes one's file. Blocks.
    pub(super) fn remove(&self, id: &TerminalId) -> io::Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(|e| e.into_inner());
        self.dir.remove(id.as_str())?;
        saved.remove(id);
        Ok(())
    }

    /// Saves what has changed, and removes what is no more. Blocks for as long as the disk takes.
    pub(super) fn save(&self, terminals: &[Arc<Terminal>]) -> io::Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(|e| e.into_inner());
        let gone: Vec<_> =
            saved.keys().filter(|id| terminals.iter().all(|terminal| terminal.id != **id)).cloned().collect();
        for id in gone {
            self.dir.remove(id.as_str())?;
            saved.remove(&id);
        }
        for terminal in terminals {
            let fingerprint = fingerprint(terminal);
            // One that was closed since they were listed is forgotten, now or in a moment.
            if saved.get(&terminal.id) == Some(&fingerprint) || terminal.state().removed {
                continue;
            }
            let content = journal_record(terminal).encode().map_err(io::Error::other)?;
            self.dir.write(terminal.id.as_str(), &content)?;
            saved.insert(terminal.id.clone(), fingerprint);
        }
        self.dir.sync()
    }
}

fn fingerprint(terminal: &Terminal) -> JournalFingerprint {
    let state = terminal.state();
    JournalFingerprint {
        next: state.log.next(),
        title: state.title.value.clone(),
        cwd: terminal.polled_cwd(&state).unwrap_or_else(|| state.cwd.value.clone()),
        size: state.size.value,
        ended: state.exit.is_some(),
        slept: state.slept_at,
    }
}

fn journal_record(terminal: &Terminal) -> JournalRecord {
    let mut state = terminal.state();
    let cwd = terminal.polled_cwd(&state).unwrap_or_else(|| state.cwd.value.clone());
    let metadata = JournalMetadata {
        id: terminal.id.to_string(),
        name: terminal.name.clone(),
        request_id: terminal.request_id.clone(),
        argv: terminal.argv.clone(),
        restart: terminal.restart.clone(),
        cwd,
        title: state.title.value.clone(),
        rows: state.size.value.rows,
        cols: state.size.value.cols,
        epoch: state.log.epoch(),
        next: state.log.next(),
        created: unix_nanos(terminal.created),
        saved: unix_nanos(SystemTime::now()),
        slept: state.slept_at.map(unix_nanos),
        exit: state.exit.as_ref().map(SavedExit::of),
    };
    JournalRecord { metadata, history: newest_output(&mut state.log) }
}

/// The newest bytes, shared with the log as far as it can.
fn newest_output(log: &mut ByteLog) -> Vec<Bytes> {
    let mut at = log.oldest().max(log.next().saturating_sub(MAX_HISTORY_BYTES as u64));
    let mut pieces = Vec::new();
    while let LogRead::Data { bytes, .. } = log.read(at, CHUNK_BYTES) {
        at += bytes.len() as u64;
        pieces.push(bytes);
    }
    pieces
}
