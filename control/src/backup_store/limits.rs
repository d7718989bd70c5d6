//! Limits of archives. An agent is only as trusted as its user, so excess is rejected while it
//! arrives.

use std::time::Duration;

const GIB: u64 = 1024 * 1024 * 1024;

/// Limits of one archive. An archive beyond them is incomplete, and nothing of it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Size of the zip, in bytes: what one archive may occupy in the store.
    pub archive_bytes: u64,
    /// Size of all content, in bytes: what a proof has to decode, whatever the size of the zip.
    pub content_bytes: u64,
    /// Entries in the manifest.
    pub entries: u64,
    /// Size of the encoded manifest, in bytes: what it may occupy in the scratch directory.
    pub manifest_bytes: u64,
    /// Time without data or an entry from the agent after which it counts as stalled.
    pub silence: Duration,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self {
            archive_bytes: 64 * GIB,
            content_bytes: 1024 * GIB,
            entries: 5_000_000,
            manifest_bytes: 2 * GIB,
            silence: Duration::from_secs(300),
        }
    }
}

/// Longest path in the manifest, in bytes: the longest that a zip can hold, less the "/" of a
/// directory.
pub(super) const MAX_PATH_BYTES: usize = 65_534;
/// Longest line of the manifest, in bytes: a path of which each byte is escaped as six, and the
/// other fields. A longer line is damage.
pub(super) const MAX_LINE_BYTES: u64 = 6 * MAX_PATH_BYTES as u64 + 512;
/// Longest head of a sidecar, in bytes: a label with a large specification. A larger label is
/// rejected before anything is written.
pub(super) const MAX_HEAD_BYTES: u64 = 256 * 1024;
/// Retained reasons why an archive is incomplete; further ones are only counted.
pub(super) const MAX_REASONS: usize = 20;
/// Longest reason or name from an agent, in characters; the rest is cut off.
pub(super) const MAX_REASON_CHARS: usize = 300;
/// Size of an upload's part, in bytes. Clouds take at most 10,000 parts of at least 5 MiB, so this
/// size suffices for the largest archive. A second part may be in flight. They are the writer's
/// largest memory.
pub(super) const PART_BYTES: usize = 8 * 1024 * 1024;
/// Size of one write to a local directory, in bytes.
pub(super) const BLOCK_BYTES: usize = 1024 * 1024;
/// Size of one read of a zip, in bytes; a proof holds three of them.
pub(super) const READ_BYTES: u64 = 2 * 1024 * 1024;
/// Size of one read of a central directory or of a sidecar, in bytes.
pub(super) const INDEX_READ_BYTES: u64 = 256 * 1024;
/// Largest number of objects in one listing. More is an error, so that no partial listing counts as
/// complete.
pub(super) const MAX_LISTED_OBJECTS: usize = 200_000;
/// Seconds tried for an unused key. If all are used, the write fails and may be retried.
pub(super) const MAX_KEY_ATTEMPTS: usize = 60;
/// Unknown objects remembered, so that each is logged only once; further ones are not logged.
pub(super) const MAX_REPORTED_OBJECTS: usize = 1000;
