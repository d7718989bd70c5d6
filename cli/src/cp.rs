//! Copies files between this machine and a workspace.
//!
//! [`plan`] lists the files first. Then several files are copied concurrently. A file arrives
//! completely or not at all, because the receiving side writes it under a temporary name and
//! renames it at the end.

pub mod download;
pub mod endpoint;
pub mod plan;
pub mod upload;

/// Number of files copied concurrently. Enough to hide the round trips of small files.
const CONCURRENT_FILES: usize = 8;
/// Number of attempts per file when the connection breaks.
const MAX_ATTEMPTS: u32 = 6;
