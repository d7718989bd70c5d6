//! Directory with one journal file per terminal. Its functions block on disk. The agent loads
//! journals when it starts, and writes them on blocking threads.

use std::{
    cmp::Reverse,
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    time::SystemTime,
};

use super::record::{JournalRecord, JournalRecordError, MAX_HISTORY_BYTES, MAX_METADATA_BYTES};
use crate::server::info::write_whole;

/// Largest size of a journal. A larger file is quarantined.
const MAX_FILE_BYTES: u64 = (MAX_METADATA_BYTES + MAX_HISTORY_BYTES + 1024) as u64;
/// Limit on bytes read at start, newest files first. Files beyond it stay on disk and are not
/// restored. The limit exceeds 64 full histories, one for each terminal that the default policy
/// allows.
const MAX_LOAD_BYTES: u64 = 80 * 1024 * 1024;
/// Limit on directory entries that are read at start. Entries beyond it are ignored.
const MAX_FILES: usize = 8192;
/// Length of a terminal's id, in bytes. The id is also the name of the file.
const ID_LEN: usize = 12;
/// Extension that a quarantined file gets.
const QUARANTINE_EXTENSION: &str = "bad";

/// Directory of the journals. The first write creates it.
#[derive(Debug)]
pub(in crate::terminal) struct JournalDir {
    dir: PathBuf,
}

/// Journals that were read from the directory.
#[derive(Debug, Default)]
pub(in crate::terminal) struct LoadedJournals {
    pub(in crate::terminal) records: Vec<JournalRecord>,
    /// Ids of files to quarantine, each with the reason.
    pub(in crate::terminal) unreadable: Vec<(String, String)>,
}

impl JournalDir {
    pub(in crate::terminal) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Reads all journals without changing any.
    pub(in crate::terminal) fn load(&self) -> LoadedJournals {
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

    /// Renames a file so that it is not read again and an operator can inspect it.
    pub(in crate::terminal) fn quarantine(&self, id: &str, why: &str) {
        let path = self.dir.join(id);
        let moved = fs::rename(&path, path.with_extension(QUARANTINE_EXTENSION));
        tracing::error!(terminal = id, why, ?moved, "terminal journal quarantined");
    }

    /// Writes a file atomically and syncs it. Only the user of the agent can read the file.
    pub(in crate::terminal) fn write(&self, id: &str, content: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        write_whole(&self.dir.join(id), content)
    }

    /// Removes a file. A missing file is not an error.
    pub(in crate::terminal) fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Syncs the directory, so that new and removed files survive a power loss.
    pub(in crate::terminal) fn sync(&self) -> io::Result<()> {
        match File::open(&self.dir) {
            Ok(dir) => dir.sync_all(),
            // Nothing was ever written, so the directory does not exist.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn files(&self) -> io::Result<Vec<(String, SystemTime, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)?.take(MAX_FILES) {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().filter(|name| is_id(name)).map(str::to_owned) else {
                continue;
            };
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

/// Returns whether a name is the id of a terminal. Other files are skipped: temporary files of a
/// killed agent, and quarantined files.
fn is_id(name: &str) -> bool {
    name.len() == ID_LEN && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}
