//! JournalDir: the folder with one file per terminal. Blocks, so it is asked off the runtime's thread, or before there is anything to do.
//! Must not know what a record says.

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

/// Largest file that is read; a larger one is none of ours and is set aside.
const MAX_FILE_BYTES: u64 = (MAX_METADATA_BYTES + MAX_HISTORY_BYTES + 1024) as u64;
/// Read at a start in all, those that were saved last first; what is beyond it stays on the shelf and does not come back. It is more
/// than the 64 terminals that are usually allowed can have.
const MAX_LOAD_BYTES: u64 = 80 * 1024 * 1024;
/// Files that are looked at.
const MAX_FILES: usize = 8192;
/// A terminal's id, and so its file's name.
const ID_LEN: usize = 12;
/// What a file is called that could not be read.
const QUARANTINE_EXTENSION: &str = "bad";

/// The folder.
#[derive(Debug)]
pub(in crate::terminal) struct JournalDir {
    dir: PathBuf,
}

/// What lay on it.
#[derive(Debug, Default)]
pub(in crate::terminal) struct LoadedJournals {
    pub(in crate::terminal) records: Vec<JournalRecord>,
    /// Files to set aside, and why.
    pub(in crate::terminal) unreadable: Vec<(String, String)>,
}

impl JournalDir {
    pub(in crate::terminal) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Reads what is there and changes nothing.
    pub(in crate::terminal) fn load(&self) -> LoadedJournals {
        let mut found = LoadedJournals::default();
        let mut files = match self.files() {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
            Err(error) => {
                tracing::error!(%error, dir = %self.dir.display(), "the journals of terminals cannot be read");
                return found;
            }
        };
        files.sort_by_key(|(_, saved, _)| Reverse(*saved));
        let mut left = MAX_LOAD_BYTES;
        for (id, _, bytes) in files {
            if bytes > MAX_FILE_BYTES {
                found.unreadable.push((id, "it is too large".into()));
                continue;
            }
            if bytes > left {
                tracing::error!(
                    terminal = id,
                    "there are more journals than are read: it does not come back"
                );
                continue;
            }
            left -= bytes;
            match self.read(&id) {
                Ok(Ok(record)) if record.metadata.id == id => found.records.push(record),
                Ok(Ok(_)) => found.unreadable.push((id, "it is another terminal's".into())),
                Ok(Err(error)) => found.unreadable.push((id, error.to_string())),
                Err(error) => found.unreadable.push((id, error.to_string())),
            }
        }
        found
    }

    /// Puts a file out of the way, for people to look at.
    pub(in crate::terminal) fn quarantine(&self, id: &str, why: &str) {
        let path = self.dir.join(id);
        let moved = fs::rename(&path, path.with_extension(QUARANTINE_EXTENSION));
        tracing::error!(terminal = id, why, ?moved, "a terminal's journal is set aside");
    }

    /// Writes a file whole or not at all, for the owner alone, onto the disk.
    pub(in crate::terminal) fn write(&self, id: &str, content: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        write_whole(&self.dir.join(id), content)
    }

    /// Removes a file; one that is not there is gone.
    pub(in crate::terminal) fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Brings the names to the disk.
    pub(in crate::terminal) fn sync(&self) -> io::Result<()> {
        match File::open(&self.dir) {
            Ok(dir) => dir.sync_all(),
            // Nothing was ever put there.
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
        // It may have grown since it was looked at.
        File::open(self.dir.join(id))?.take(MAX_FILE_BYTES).read_to_end(&mut content)?;
        Ok(JournalRecord::decode(content.into()))
    }
}

/// Files with other names (one that was being written when the agent was killed, one set aside) are not looked at.
fn is_id(name: &str) -> bool {
    name.len() == ID_LEN && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}
