//! Messages of the stream that creates an archive, and the progress message of both directions.

use std::time::SystemTime;

use bytes::Bytes;

use crate::files::FileKind;

/// An entry of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedEntry {
    /// Relative to the archived directory, in the raw bytes of the file system.
    pub path: Vec<u8>,
    pub kind: FileKind,
    /// In bytes; 0 for other kinds than files.
    pub size: u64,
    pub mode: u32,
    pub modified: SystemTime,
    /// Of a file's content or a symbolic link's target; `None` for other kinds.
    pub sha256: Option<[u8; 32]>,
    /// Whether the entry is a further name of an earlier file. Its kind is [`FileKind::Symlink`].
    pub hard_link: bool,
    /// Whether the entry is a FIFO. Its kind is [`FileKind::Other`].
    pub fifo: bool,
}

/// An entry that could not be read, or that changed while it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnarchivedEntry {
    /// Relative to the archived directory.
    pub path: Vec<u8>,
    /// English text for people.
    pub reason: String,
}

/// Progress of creating or extracting an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArchiveProgress {
    /// Manifest entries, or entries extracted.
    pub entries: u64,
    /// Bytes of uncompressed content.
    pub bytes: u64,
    /// Expected total of `bytes`; 0 while it is not yet known.
    pub total_bytes: u64,
}

/// Summary of a complete archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSummary {
    /// Entries of the manifest.
    pub entries: u64,
    /// Bytes of uncompressed content in the manifest.
    pub bytes: u64,
    /// Size of the zip in bytes.
    pub archive_bytes: u64,
    pub archive_sha256: [u8; 32],
    /// The first [`MAX_SKIPPED`] skipped entries.
    pub skipped: Vec<UnarchivedEntry>,
    /// Number of all skipped entries.
    pub skipped_count: u64,
}

/// Maximum skipped entries that a summary lists. Further ones are only counted.
pub const MAX_SKIPPED: usize = 100;

/// A message of the stream that creates an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateEvent {
    /// The next bytes of the zip.
    Data(Bytes),
    /// Sent after the bytes of the entry.
    Entry(ArchivedEntry),
    /// Sent at most once in 250 ms.
    Progress(ArchiveProgress),
    /// Sent once, as the last message.
    Summary(ArchiveSummary),
}
