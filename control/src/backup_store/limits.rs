//! How much one archive may be. An agent is only as trusted as its user: what goes beyond is refused while it arrives.

use std::time::Duration;

const GIB: u64 = 1024 * 1024 * 1024;

/// Bounds of one archive, each with a default. What goes beyond makes the archive incomplete, and nothing of it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Of the zip, in bytes: what one archive can take of the store's disk.
    pub archive_bytes: u64,
    /// Of all content together, in bytes: what a proof has to decode, whatever the zip's size.
    pub content_bytes: u64,
    /// Lines of the manifest.
    pub entries: u64,
    /// Of the manifest as it is stored, in bytes: what it can take of the scratch folder's disk.
    pub manifest_bytes: u64,
    /// Without a byte or an entry from the agent: then it has stalled.
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

/// Of a path in the manifest: what a zip can hold, less the "/" behind a folder's name.
pub(super) const MAX_PATH_BYTES: usize = 65_534;
/// Of a line of the manifest, in bytes: a path of which every byte is escaped (six for one), and the rest. A longer line is damage.
pub(super) const MAX_LINE_BYTES: u64 = 6 * MAX_PATH_BYTES as u64 + 512;
/// Of a sidecar's head, in bytes: a label with a large specification. A larger label is refused before anything is written.
pub(super) const MAX_HEAD_BYTES: u64 = 256 * 1024;
/// IncompleteReasons why an archive is incomplete that are kept; further ones are counted.
pub(super) const MAX_REASONS: usize = 20;
/// Characters of a reason or a name that comes from an agent; the rest is cut off.
pub(super) const MAX_REASON_CHARS: usize = 300;
/// Of what an upload holds back until it is a part, in bytes: clouds take parts of 5 MiB and more, 10,000 of them, so this is also
/// what lets an archive of the default size through. Another such part may be on its way: the writer's largest memory.
pub(super) const PART_BYTES: usize = 8 * 1024 * 1024;
/// The same for a folder, which takes any size.
pub(super) const BLOCK_BYTES: usize = 1024 * 1024;
/// Of one ranged read of an archive, in bytes; a proof holds three of them.
pub(super) const READ_BYTES: u64 = 2 * 1024 * 1024;
/// Of one ranged read of a central directory or a sidecar, in bytes.
pub(super) const INDEX_READ_BYTES: u64 = 256 * 1024;
/// Objects looked at by one listing; beyond it is an error, so that nobody takes a part for the whole.
pub(super) const MAX_LISTED_OBJECTS: usize = 200_000;
/// Seconds that are tried when the wanted one is taken; all taken: the write fails and may be tried again.
pub(super) const MAX_KEY_ATTEMPTS: usize = 60;
/// Names of reported_objects' objects remembered so as to speak of each once; further ones are not spoken of.
pub(super) const MAX_REPORTED_OBJECTS: usize = 1000;
