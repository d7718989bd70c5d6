//! Archives of a workspace's storage, as the machine knows them: each was proven when it was made (law 6).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Names an archive in the backup store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArchiveKey(pub String);

/// A proven archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// Where it is.
    pub key: ArchiveKey,
    /// The storage generation it holds: the storage may go only while it has no other. One archive is made of each generation,
    /// so this names it within its workspace.
    pub generation: u64,
    /// When it was made, for people.
    pub at: Timestamp,
    /// What had been witnessed then: its retention counts from there.
    pub witnessed: Duration,
    /// Files, folders and links in it.
    pub entries: u64,
    /// Bytes of the files in it.
    pub bytes: u64,
    /// Bytes it takes in the store.
    pub archive_bytes: u64,
}
