//! Saves terminals to disk, each in a journal file, so that they survive a sleep. After a crash the
//! last seconds of output are missing.
//!
//! A terminal's newest output and metadata are saved 3 s after a change, and once more at shutdown.
//! Unchanged terminals are not written, and an idle agent is not woken. The journal does not use
//! the registry of terminals.

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

/// Delay between a change and the save. A crash usually loses at most this much output, and more if
/// a save is slow or fails.
pub(super) const SAVE_AFTER: Duration = Duration::from_secs(3);
/// Name of the directory within the agent's state directory.
const DIRECTORY: &str = "terminals";

/// Journals of all terminals.
#[derive(Debug)]
pub(super) struct TerminalJournal {
    dir: JournalDir,
    /// Fingerprint of each file's content. The lock is held while files are written, on blocking
    /// threads. Only [`TerminalJournal::adopt`] takes it on another thread, before the first save.
    saved: Mutex<HashMap<TerminalId, JournalFingerprint>>,
}

/// The fields of a terminal whose change requires a save.
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
    /// Creates a journal in the directory `terminals` below `state`, the agent's state directory.
    pub(super) fn new(state: &std::path::Path) -> Self {
        let path: PathBuf = state.join(DIRECTORY);
        Self { dir: JournalDir::new(path), saved: Mutex::default() }
    }

    /// Reads all journals without changing any. Blocks on disk.
    pub(super) fn load(&self) -> LoadedJournals {
        self.dir.load()
    }

    /// Registers the loaded journals, so that the next save writes or removes each of them.
    /// Quarantines the unreadable ones, which blocks for one rename each.
    pub(super) fn adopt(&self, found: &LoadedJournals) {
        for (id, why) in &found.unreadable {
            self.dir.quarantine(id, why);
        }
        let mut saved = self.saved.lock().unwrap_or_else(|e| e.into_inner());
        for record in &found.records {
            // This fingerprint matches no terminal. The next save writes a restored terminal again,
            // and removes the journal of a terminal that was not restored.
            let never_equal = JournalFingerprint {
                next: u64::MAX,
                title: String::new(),
                cwd: String::new(),
                size: record.metadata.size(),
                ended: false,
                slept: None,
            };
            saved.insert(TerminalId::new(&record.metadata.id), never_equal);
        }
    }

    /// Removes the journal of one terminal. Blocks on disk.
    pub(super) fn remove(&self, id: &TerminalId) -> io::Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(|e| e.into_inner());
        self.dir.remove(id.as_str())?;
        saved.remove(id);
        Ok(())
    }

    /// Saves changed terminals and removes the journals of terminals that no longer exist. Blocks
    /// on disk.
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
            // The terminal may have been closed after the list was made. Its journal must not be
            // written again; `remove` or the next save removes it.
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

/// Returns the newest output, up to the limit of a journal. Shares the chunks of the log where
/// possible.
fn newest_output(log: &mut ByteLog) -> Vec<Bytes> {
    let mut at = log.oldest().max(log.next().saturating_sub(MAX_HISTORY_BYTES as u64));
    let mut pieces = Vec::new();
    while let LogRead::Data { bytes, .. } = log.read(at, CHUNK_BYTES) {
        at += bytes.len() as u64;
        pieces.push(bytes);
    }
    pieces
}
