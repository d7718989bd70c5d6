//! Archives of a workspace's storage. Each was proven when it was made (law 6).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Name of an archive in the backup store: `workspace-{id}-{YYYYMMDD-HHMMSS}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArchiveKey(pub String);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    pub key: ArchiveKey,
    /// Storage generation that the archive holds. The storage may be removed only while it has the
    /// same one. Each generation has at most one archive, so this identifies the archive within its
    /// workspace.
    pub generation: u64,
    /// Wall-clock time of the archive; only displayed.
    pub at: Timestamp,
    /// Observed time of the archive. Retention counts from here.
    pub observed_time: Duration,
    /// Number of files, directories and links.
    pub entries: u64,
    /// Size of the files in bytes, before compression.
    pub bytes: u64,
    /// Size of the zip in bytes.
    pub archive_bytes: u64,
}
