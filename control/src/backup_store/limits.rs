//! Limits of archives. An agent is trusted no more than its user, so an archive beyond the limits
//! is rejected while it arrives.

use std::time::Duration;

const GIB: u64 = 1024 * 1024 * 1024;

/// Limits of one archive. An archive that exceeds one of them fails as incomplete, and nothing of
/// it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Size of the zip, in bytes. Bounds the space that one archive occupies in the store.
    pub archive_bytes: u64,
    /// Size of all content, in bytes. Bounds the data that a proof has to decode, because a small
    /// zip may expand to much content.
    pub content_bytes: u64,
    /// Number of entries in the manifest.
    pub entries: u64,
    /// Size of the encoded manifest, in bytes. Bounds the space in the scratch directory.
    pub manifest_bytes: u64,
    /// Time without data or an entry from the agent after which the write fails.
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

/// Longest path in the manifest, in bytes. A zip allows 65,535 bytes, including the final "/" of a
/// directory.
pub(super) const MAX_PATH_BYTES: usize = 65_534;
/// Longest line of the manifest, in bytes. JSON escapes a byte of the path as up to six bytes; the
/// other fields take at most 512 bytes. A longer line is treated as damage.
pub(super) const MAX_LINE_BYTES: u64 = 6 * MAX_PATH_BYTES as u64 + 512;
/// Longest head of a sidecar, in bytes. A label that does not fit is rejected before anything is
/// written.
pub(super) const MAX_HEAD_BYTES: u64 = 256 * 1024;
/// Number of retained reasons why an archive is incomplete. Further ones are only counted.
pub(super) const MAX_REASONS: usize = 20;
/// Longest reason or name from an agent, in characters; the rest is cut off.
pub(super) const MAX_REASON_CHARS: usize = 300;
/// Size of an upload's part, in bytes. Clouds accept at most 10,000 parts of at least 5 MiB, so
/// this size suffices for the largest archive. A writer holds at most two parts in memory: the one
/// that it fills and the one that it sends.
pub(super) const PART_BYTES: usize = 8 * 1024 * 1024;
/// Size of one write to a local directory, in bytes.
pub(super) const BLOCK_BYTES: usize = 1024 * 1024;
/// Size of one read of a zip during a proof, in bytes. The proof holds three such blocks in memory.
pub(super) const READ_BYTES: u64 = 2 * 1024 * 1024;
/// Size of one read of a central directory or of a sidecar, in bytes.
pub(super) const INDEX_READ_BYTES: u64 = 256 * 1024;
/// Largest number of objects in one listing. A longer listing fails, so that callers never take a
/// partial listing for a complete one.
pub(super) const MAX_LISTED_OBJECTS: usize = 200_000;
/// Number of seconds that are tried for an unused key. If all are used, the write fails and may be
/// retried.
pub(super) const MAX_KEY_ATTEMPTS: usize = 60;
/// Number of unknown objects that are logged, each once. Further ones are not logged.
pub(super) const MAX_REPORTED_OBJECTS: usize = 1000;
