//! Journals: one file per terminal, from which the terminal is restored after a sleep. After a
//! crash the last seconds of output are missing.
//!
//! A terminal's newest output and metadata are saved 3 s after a change, and once more at shutdown.
//! Unchanged terminals are not written. The journal knows records and files, but no terminal. Its
//! functions block on disk: the agent loads journals when it starts, and writes them on blocking
//! threads. Decoding never panics.
//!
//! ```text
//!   "podling terminal 1\n" | length of metadata (u32) | metadata (JSON)
//!     | length of history (u64) | history | SHA-256 of everything before
//! ```

use std::{
    cmp::Reverse,
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use ring::digest::SHA256_OUTPUT_LEN;
use serde::{Deserialize, Serialize};

use super::types::{TerminalExit, TerminalId, TerminalSpec, WindowSize};
use crate::{
    byte_log::{ByteLog, CHUNK_BYTES, LogRead},
    child::ExitStatus,
    state_file::write_whole,
    util::{is_random_id, lock, sha256},
};

#[cfg(test)]
mod tests;

/// Delay between a change and the save. A crash usually loses at most this much output, and more if
/// a save is slow or fails.
pub(crate) const SAVE_AFTER: Duration = Duration::from_secs(3);
/// Name of the directory within the agent's state directory.
const DIRECTORY: &str = "terminals";
/// First bytes of every file; the version of the layout follows.
const MAGIC: &[u8] = b"podling terminal ";
/// Version of the layout that this agent writes; it reads no other.
const VERSION: &[u8] = b"1\n";
/// Upper bound of the metadata, in bytes. Arguments and environment have at most 1 MiB, and JSON
/// escapes one byte with at most six.
const MAX_METADATA_BYTES: usize = 8 * 1024 * 1024;
/// Limit on the output in a journal, in bytes. Older output does not survive a sleep.
const MAX_HISTORY_BYTES: usize = 1024 * 1024;
/// Largest size of a journal. A larger file is quarantined.
const MAX_FILE_BYTES: u64 = (MAX_METADATA_BYTES + MAX_HISTORY_BYTES + 1024) as u64;
/// Limit on bytes read at start, newest files first. Files beyond it stay on disk and are not
/// restored. The limit exceeds 64 full histories, one for each terminal that the default policy
/// allows.
const MAX_LOAD_BYTES: u64 = 80 * 1024 * 1024;
/// Limit on directory entries that are read at start. Entries beyond it are ignored.
const MAX_FILES: usize = 8192;
/// Extension that a quarantined file gets.
const QUARANTINE_EXTENSION: &str = "bad";

/// Journals of all terminals. The first write creates the directory.
#[derive(Debug)]
pub(crate) struct TerminalJournal {
    dir: PathBuf,
    /// Fingerprint of each file's content; `None` if the file must be written or removed. The lock
    /// is held while files are written, on blocking threads. Only [`TerminalJournal::adopt`] takes
    /// it on another thread, before the first save.
    saved: Mutex<HashMap<TerminalId, Option<JournalFingerprint>>>,
}

/// Values whose change requires a save: end of the log, title, directory, size, whether the
/// terminal has ended, and the time of a sleep.
pub(crate) type JournalFingerprint = (u64, String, String, WindowSize, bool, Option<SystemTime>);

/// Journals that were read from the directory.
#[derive(Debug, Default)]
pub(crate) struct LoadedJournals {
    pub(crate) records: Vec<JournalRecord>,
    /// Ids of files to quarantine, each with the reason.
    pub(crate) unreadable: Vec<(String, String)>,
}

/// Everything about a terminal except its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalMetadata {
    pub(crate) id: String,
    #[serde(flatten)]
    pub(crate) spec: TerminalSpec,
    pub(crate) cwd: String,
    pub(crate) title: String,
    /// Epoch of the saved log. The history holds the newest bytes before `next`.
    pub(crate) epoch: u64,
    pub(crate) next: u64,
    /// Nanoseconds since 1970, like the other times in this file.
    pub(crate) created: u64,
    pub(crate) saved: u64,
    /// Time at which the agent ended the terminal, for a sleep or a shutdown.
    pub(crate) slept: Option<u64>,
    pub(crate) exit: Option<SavedExit>,
}

/// Exit of the program without its final offset, because offsets start again in the next epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedExit {
    code: Option<i32>,
    signal: Option<i32>,
    at: u64,
    held_by_background: bool,
}

/// Content of one journal file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JournalRecord {
    pub(crate) metadata: JournalMetadata,
    /// Newest output, in consecutive slices.
    pub(crate) history: Vec<Bytes>,
}

/// Reason why a file could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum JournalRecordError {
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

impl TerminalJournal {
    /// Creates a journal in the directory `terminals` below `state`, the agent's state directory.
    pub(crate) fn new(state: &Path) -> Self {
        Self { dir: state.join(DIRECTORY), saved: Mutex::default() }
    }

    /// Reads all journals without changing any.
    pub(crate) fn load(&self) -> LoadedJournals {
        let mut found = LoadedJournals::default();
        let mut files = match self.files() {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
            Err(error) => {
                tracing::error!(%error, dir = %self.dir.display(), "failed to read terminal journals");
                return found;
            }
        };
        files.sort_by_key(|(_, saved, _)| Reverse(*saved));
        let mut left = MAX_LOAD_BYTES;
        for (id, _, bytes) in files {
            if bytes > MAX_FILE_BYTES {
                found.unreadable.push((id, "file is larger than a journal can be".into()));
                continue;
            }
            if bytes > left {
                tracing::error!(
                    terminal = id,
                    "terminal not restored; the journals exceed the limit on bytes read at start"
                );
                continue;
            }
            left -= bytes;
            match self.read(&id) {
                Ok(Ok(record)) if record.metadata.id == id => found.records.push(record),
                Ok(Ok(_)) => found.unreadable.push((id, "journal has another id than its file".into())),
                Ok(Err(error)) => found.unreadable.push((id, error.to_string())),
                Err(error) => found.unreadable.push((id, error.to_string())),
            }
        }
        found
    }

    /// Registers the loaded journals, so that the next save writes or removes each of them.
    /// Quarantines the unreadable ones, so that they are not read again and an operator can inspect
    /// them. Blocks for one rename each.
    pub(crate) fn adopt(&self, found: &LoadedJournals) {
        for (id, why) in &found.unreadable {
            let path = self.dir.join(id);
            let moved = fs::rename(&path, path.with_extension(QUARANTINE_EXTENSION));
            tracing::error!(terminal = id, why, ?moved, "terminal journal quarantined");
        }
        let ids = found.records.iter().map(|record| (TerminalId::new(&record.metadata.id), None));
        self.saved().extend(ids);
    }

    /// Removes the journal of one terminal.
    pub(crate) fn remove(&self, id: &TerminalId) -> io::Result<()> {
        let mut saved = self.saved();
        remove_file(&self.dir, id)?;
        saved.remove(id);
        Ok(())
    }

    /// Saves all terminals: removes the journals of terminals that no longer exist, and writes those
    /// that have changed, atomically. Only the user of the agent can read the files. Syncs the
    /// directory, so that new and removed files survive a power loss. Waits for a save on another
    /// thread.
    ///
    /// The function of a terminal returns its record, or `None` if the terminal was closed
    /// meanwhile. Its journal must not be written again; `remove` or the next save removes it.
    pub(crate) fn save(
        &self,
        terminals: &[(&TerminalId, JournalFingerprint, impl Fn() -> Option<JournalRecord>)],
    ) -> io::Result<()> {
        let mut saved = self.saved();
        let exists = |id: &TerminalId| terminals.iter().any(|(other, ..)| *other == id);
        let gone: Vec<_> = saved.keys().filter(|id| !exists(id)).cloned().collect();
        for id in gone {
            remove_file(&self.dir, &id)?;
            saved.remove(&id);
        }
        for (id, fingerprint, record) in terminals {
            if saved.get(id).is_some_and(|saved| saved.as_ref() == Some(fingerprint)) {
                continue;
            }
            let Some(record) = record() else { continue };
            let content = record.encode().map_err(io::Error::other)?;
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            write_whole(&self.dir.join(id.as_str()), &content)?;
            saved.insert((*id).clone(), Some(fingerprint.clone()));
        }
        match File::open(&self.dir) {
            Ok(dir) => dir.sync_all(),
            // Nothing was ever written, so the directory does not exist.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn saved(&self) -> MutexGuard<'_, HashMap<TerminalId, Option<JournalFingerprint>>> {
        lock(&self.saved)
    }

    fn files(&self) -> io::Result<Vec<(String, SystemTime, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)?.take(MAX_FILES) {
            let entry = entry?;
            // Other files are skipped: temporary files of a killed agent, and quarantined files.
            let name = entry.file_name().into_string().unwrap_or_default();
            if !is_random_id(&name) {
                continue;
            }
            let Ok(facts) = entry.metadata() else { continue };
            if facts.is_file() {
                files.push((name, facts.modified().unwrap_or(SystemTime::UNIX_EPOCH), facts.len()));
            }
        }
        Ok(files)
    }

    fn read(&self, id: &str) -> io::Result<Result<JournalRecord, JournalRecordError>> {
        let mut content = Vec::new();
        // The file may have grown since its size was read.
        File::open(self.dir.join(id))?.take(MAX_FILE_BYTES).read_to_end(&mut content)?;
        Ok(JournalRecord::decode(content.into()))
    }
}

/// Removes a file. A missing file is not an error.
fn remove_file(dir: &Path, id: &TerminalId) -> io::Result<()> {
    match fs::remove_file(dir.join(id.as_str())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

// === record ===

impl JournalRecord {
    /// Creates a record with the newest output in the log. Shares the chunks of the log where
    /// possible.
    pub(crate) fn new(metadata: JournalMetadata, log: &mut ByteLog) -> Self {
        let mut at = log.oldest().max(log.next().saturating_sub(MAX_HISTORY_BYTES as u64));
        let mut history = Vec::new();
        while let LogRead::Data { bytes, .. } = log.read(at, CHUNK_BYTES) {
            at += bytes.len() as u64;
            history.push(bytes);
        }
        Self { metadata, history }
    }

    /// Returns true if the restored terminal gets a new shell.
    pub(crate) fn restarts_shell(&self) -> bool {
        self.metadata.spec.restart.is_some()
            && (self.metadata.exit.is_none() || self.metadata.slept.is_some())
    }

    /// Returns the content of the file.
    fn encode(&self) -> Result<Vec<u8>, JournalRecordError> {
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
        let checksum = sha256(&out);
        out.extend_from_slice(&checksum);
        Ok(out)
    }

    /// Parses what [`JournalRecord::encode`] wrote.
    fn decode(file: Bytes) -> Result<Self, JournalRecordError> {
        let rest = file.strip_prefix(MAGIC).ok_or(JournalRecordError::NotAJournal)?;
        if !rest.starts_with(VERSION) {
            return Err(JournalRecordError::UnsupportedVersion);
        }
        let content = file.len().checked_sub(SHA256_OUTPUT_LEN).ok_or(JournalRecordError::Damaged)?;
        if sha256(&file[..content]) != file[content..] {
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

impl SavedExit {
    pub(crate) fn of(exit: &TerminalExit) -> Self {
        let (code, signal) = match exit.status {
            ExitStatus::Code(code) => (Some(code), None),
            ExitStatus::Signal(signal) => (None, Some(signal)),
        };
        Self { code, signal, at: unix_nanos(exit.ended_at), held_by_background: exit.held_by_background }
    }

    /// Returns the exit. Its final offset is 0, because the epoch of the restored log is new.
    pub(crate) fn exit(self) -> TerminalExit {
        let status = self.signal.map_or(ExitStatus::Code(self.code.unwrap_or(255)), ExitStatus::Signal);
        let Self { at, held_by_background, .. } = self;
        TerminalExit { status, final_offset: 0, ended_at: from_unix_nanos(at), held_by_background }
    }
}

/// Returns nanoseconds since 1970; 0 for earlier times.
pub(crate) fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Returns the time this many nanoseconds after 1970; 1970 itself if it cannot be represented.
pub(crate) fn from_unix_nanos(nanos: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)).unwrap_or(UNIX_EPOCH)
}

fn split_front(left: &mut Bytes, bytes: usize) -> Result<Bytes, JournalRecordError> {
    if bytes > left.len() {
        return Err(JournalRecordError::Damaged);
    }
    Ok(left.split_to(bytes))
}
