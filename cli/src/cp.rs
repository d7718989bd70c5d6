//! Copies files between this machine and a workspace.
//!
//! [`plan`] lists the files first. Then several files are copied concurrently. A file arrives
//! completely or not at all, because the receiving side writes it under a temporary name and
//! renames it at the end. A path that cannot be copied is left out with its reason ([`skipped`]),
//! and the copy continues with the others.

pub mod download;
pub mod endpoint;
pub mod plan;
pub mod skipped;
pub mod upload;

use std::time::Duration;

use serde::Serialize;

use self::{
    plan::CopyPlan,
    skipped::{CopyFailure, FailureScope, SkippedPath},
};
use crate::{backoff::RetryBackoff, failure::CommandFailure};

/// Number of files copied concurrently. Enough to hide the round trips of small files.
const CONCURRENT_FILES: usize = 8;
/// Number of attempts per file when the connection breaks.
const MAX_ATTEMPTS: u32 = 6;
/// Number of attempts for a file that changes while it is read. A file that is always being
/// written would otherwise be read again and again.
const MAX_CHANGE_ATTEMPTS: u32 = 3;
/// Permissions that the owner needs of a directory while files are copied into it.
const OWNER_ACCESS: u32 = 0o700;

/// Result of a copy so far, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
pub struct CopyTally {
    pub files: usize,
    pub directories: usize,
    pub bytes: u64,
    /// Paths that are not copied.
    pub skipped: Vec<SkippedPath>,
    /// Number of files that the copy was to contain.
    #[serde(skip)]
    pub planned_files: usize,
}

impl CopyTally {
    /// Takes over the skipped paths of a plan, and counts its files.
    pub fn begin<F, T>(&mut self, plan: &mut CopyPlan<F, T>) {
        self.planned_files = plan.files.len();
        self.skipped.append(&mut plan.skipped);
    }

    /// Adds the result of one file, which is its size in bytes or a failure. Returns a failure that
    /// ends the copy. `is_alone` says that the file is the whole source, so that every failure does.
    fn add(
        &mut self,
        from: String,
        copied: Result<u64, CopyFailure>,
        is_alone: bool,
    ) -> Result<(), CommandFailure> {
        match copied {
            Ok(bytes) => {
                self.files += 1;
                self.bytes += bytes;
                Ok(())
            }
            Err(CopyFailure { failure, scope: FailureScope::Path(reason) }) if !is_alone => {
                self.skipped.push(SkippedPath::with_failure(from, reason, &failure));
                Ok(())
            }
            Err(CopyFailure { failure, .. }) => Err(failure),
        }
    }
}

/// Counts the attempts for one file.
#[derive(Debug, Default)]
struct FileAttempts {
    failed: u32,
    changed: u32,
    backoff: RetryBackoff,
}

impl FileAttempts {
    /// Returns the delay before the next attempt. Fails with `failure` if there is none.
    fn next_delay(&mut self, failure: CopyFailure) -> Result<Duration, CopyFailure> {
        self.failed += 1;
        self.changed += u32::from(failure.is_change());
        if failure.is_worth_retry() && self.failed < MAX_ATTEMPTS && self.changed < MAX_CHANGE_ATTEMPTS {
            Ok(self.backoff.next_delay())
        } else {
            Err(failure)
        }
    }
}
