//! Copying between this machine and a workspace.
//!
//! [`plan`] lists the files first; then several files are copied concurrently. A file arrives
//! completely or not at all: either side writes it under a temporary name, checks it and renames
//! it.

pub mod download;
pub mod endpoint;
pub mod plan;
pub mod upload;

/// Number of files copied concurrently. Enough to hide the round trips of small files.
const CONCURRENT_FILES: usize = 8;
/// Number of attempts per file when the connection breaks.
const MAX_ATTEMPTS: u32 = 6;
