//! What is said about an archive while and after it is made.

use std::time::SystemTime;

use bytes::Bytes;

use crate::files::FileKind;

/// One line of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedEntry {
    /// Relative to the folder, as its bytes are on disk.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// Of a file, in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When its content last changed.
    pub modified: SystemTime,
    /// Of a file's content, or of where a symbolic link points.
    pub sha256: Option<[u8; 32]>,
}

/// What could not be had, or changed while it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedEntry {
    /// Relative to the folder.
    pub path: Vec<u8>,
    /// For people.
    pub reason: String,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArchiveProgress {
    /// Lines of the manifest, or entries unpacked.
    pub entries: u64,
    /// Of content.
    pub bytes: u64,
    /// What there is altogether; 0: not known yet.
    pub total_bytes: u64,
}

/// An archive that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSummary {
    /// Lines of the manifest.
    pub entries: u64,
    /// Content of the files in the manifest.
    pub bytes: u64,
    /// Of the zip.
    pub archive_bytes: u64,
    /// Of the zip.
    pub archive_sha256: [u8; 32],
    /// The first [`MAX_SKIPPED`] of them.
    pub skipped: Vec<SkippedEntry>,
    /// All of them.
    pub skipped_count: u64,
}

/// Skipped entries that are named; the others are counted only.
pub const MAX_SKIPPED: usize = 100;

/// A piece of the answer, in the order of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateEvent {
    /// Of the zip.
    Data(Bytes),
    /// Behind its bytes.
    Entry(ArchivedEntry),
    /// Now and then.
    Progress(ArchiveProgress),
    /// The last one.
    Summary(ArchiveSummary),
}
