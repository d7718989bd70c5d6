//! Archives of a workspace's storage. An archive is recorded only after it was proven: read back
//! from the backup store and compared with its manifest.

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
    /// Storage generation whose content the archive holds. The storage may be removed only while
    /// its generation has this value. A generation has at most one archive, so the value identifies
    /// the archive within its workspace.
    pub generation: u64,
    /// Wall-clock time when the archive was made; only displayed.
    pub at: Timestamp,
    /// Observed time when the archive was made. Retention is counted from here.
    pub observed_time: Duration,
    /// Number of files, directories, links and FIFOs in the zip.
    pub entries: u64,
    /// Number of sockets and devices, which a zip cannot hold. Only the manifest lists them.
    #[serde(default)]
    pub left_out: u64,
    /// Size of the files in bytes, before compression.
    pub bytes: u64,
    /// Size of the zip in bytes.
    pub archive_bytes: u64,
}
