//! Carries out a copy between this machine and a workspace, in either direction.
//!
//! Several files are copied concurrently. A file arrives completely or not at all, because the
//! receiving side writes it under a temporary name and renames it at the end. A path that cannot be
//! copied is left out with its reason, and the copy continues with the others.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::sleep;

use super::{
    plan::{CopyDirectory, CopyFile, CopyPlan},
    skipped::{CopyFailure, SkipReason, SkippedPath},
};
use crate::{backoff::RetryBackoff, failure::CommandFailure, output};

/// Number of files copied concurrently. Enough to hide the round trips of small files.
const CONCURRENT_FILES: usize = 8;
/// Number of attempts per file when the connection breaks.
pub(super) const MAX_ATTEMPTS: u32 = 6;
/// Number of attempts for a file that changes while it is read. A file that is always being
/// written would otherwise be read again and again.
const MAX_CHANGE_ATTEMPTS: u32 = 3;
/// Permissions that the owner needs of a directory while files are copied into it.
pub(super) const OWNER_ACCESS: u32 = 0o700;

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

/// Bytes of one file that an attempt has copied. They are on the progress bar, too.
#[derive(Debug)]
pub struct FileProgress<'a> {
    pub bar: &'a ProgressBar,
    pub copied: u64,
}

impl FileProgress<'_> {
    pub fn add(&mut self, bytes: usize) {
        self.copied += bytes as u64;
        self.bar.inc(bytes as u64);
    }
}

/// One direction of a copy: to a workspace or from it.
pub(super) trait CopyDirection {
    /// Creates a directory that its owner can access, and its missing parents if it is the `root` of
    /// the copy. An existing directory keeps its mode. Returns the mode that the directory gets once
    /// its files are copied, or `None` if its mode stays.
    async fn make_directory(&self, directory: &CopyDirectory, root: bool)
    -> Result<Option<u32>, CopyFailure>;

    /// Sets the final mode of a directory.
    async fn set_mode(&self, directory: &Path, mode: u32) -> Result<(), CopyFailure>;

    /// Copies a whole file. Adds each copied byte to the progress, also before a failure.
    async fn attempt(&self, file: &CopyFile, progress: &mut FileProgress<'_>) -> Result<(), CopyFailure>;
}

/// Creates the directories of a plan and copies its files. A path that cannot be copied is added to
/// the skipped paths of `tally`. Returns a failure that concerns the whole copy.
pub(super) async fn copy_all(
    direction: &impl CopyDirection,
    plan: CopyPlan,
    tally: &mut CopyTally,
) -> Result<(), CommandFailure> {
    let bar = &output::bytes_bar(Some(plan.bytes()));
    let is_alone = plan.is_single_file;
    tally.planned_files = plan.files.len();
    tally.skipped.extend(plan.skipped);
    let created = create_directories(direction, plan.directories, tally).await?;
    let (files, orphans): (Vec<_>, Vec<_>) =
        plan.files.into_iter().partition(|file| !created.is_below_failed(&file.to));
    let orphans = orphans.iter().map(|file| SkippedPath::new(&file.from, SkipReason::ParentMissing));
    tally.skipped.extend(orphans);
    let mut copies = stream::iter(files)
        .map(async |file| {
            let copied = copy_file(bar, async |progress| direction.attempt(&file, progress).await).await;
            (file.from, copied)
        })
        .buffer_unordered(CONCURRENT_FILES);
    let copying = async {
        while let Some((from, copied)) = copies.next().await {
            match copied {
                Ok(bytes) => (tally.files, tally.bytes) = (tally.files + 1, tally.bytes + bytes),
                Err(CopyFailure { failure, .. }) if is_alone => return Err(failure),
                Err(error) => tally.skipped.push(error.into_skipped(from)?),
            }
        }
        Ok(())
    };
    let outcome = copying.await;
    drop(copies);
    // Also after a failure, because a repeated copy keeps the modes of directories that exist.
    outcome.and(set_modes(direction, created.unfinished, tally).await)
}

/// Outcome of creating the directories of a plan.
#[derive(Default)]
struct CreatedDirectories {
    /// Directories that could not be created.
    failed: BTreeSet<PathBuf>,
    /// New directories with their final modes, which they get after their files are copied.
    unfinished: Vec<(CopyDirectory, u32)>,
}

impl CreatedDirectories {
    fn is_below_failed(&self, path: &Path) -> bool {
        !self.failed.is_empty() && path.ancestors().skip(1).any(|outer| self.failed.contains(outer))
    }
}

async fn create_directories(
    direction: &impl CopyDirection,
    directories: Vec<CopyDirectory>,
    tally: &mut CopyTally,
) -> Result<CreatedDirectories, CommandFailure> {
    let mut created = CreatedDirectories::default();
    for (index, directory) in directories.into_iter().enumerate() {
        if created.is_below_failed(&directory.to) {
            tally.skipped.push(SkippedPath::new(directory.from, SkipReason::ParentMissing));
            created.failed.insert(directory.to);
            continue;
        }
        match direction.make_directory(&directory, index == 0).await {
            Ok(final_mode) => {
                tally.directories += 1;
                created.unfinished.extend(final_mode.map(|mode| (directory, mode)));
            }
            Err(error) if index > 0 => {
                tally.skipped.push(error.into_skipped(directory.from)?);
                created.failed.insert(directory.to);
            }
            Err(CopyFailure { failure, .. }) => return Err(failure),
        }
    }
    Ok(created)
}

/// Sets the final modes of directories, innermost first.
async fn set_modes(
    direction: &impl CopyDirection,
    directories: Vec<(CopyDirectory, u32)>,
    tally: &mut CopyTally,
) -> Result<(), CommandFailure> {
    for (directory, mode) in directories.into_iter().rev() {
        if let Err(error) = direction.set_mode(&directory.to, mode).await {
            tally.skipped.push(error.into_skipped(directory.from)?);
        }
    }
    Ok(())
}

/// Copies a file, with several attempts if the connection breaks or the file changes. Each attempt
/// copies the whole file. Returns the file's size in bytes.
async fn copy_file(
    bar: &ProgressBar,
    mut attempt: impl AsyncFnMut(&mut FileProgress<'_>) -> Result<(), CopyFailure>,
) -> Result<u64, CopyFailure> {
    let mut attempts = FileAttempts::default();
    loop {
        let mut progress = FileProgress { bar, copied: 0 };
        match attempt(&mut progress).await {
            Ok(()) => return Ok(progress.copied),
            Err(failure) => {
                bar.set_position(bar.position().saturating_sub(progress.copied));
                sleep(attempts.next_delay(failure)?).await;
            }
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

#[cfg(test)]
mod tests {
    use podling_proto::error::{Reason, WireError};

    use super::*;
    use crate::command::cp::skipped::RemoteRole;

    #[test]
    fn attempts_are_bounded_by_the_kind_of_failure() {
        let remote = |reason| CopyFailure::remote(WireError::new(reason, "no").into(), RemoteRole::Source);
        let count = |failure: &dyn Fn() -> CopyFailure| {
            let mut attempts = FileAttempts::default();
            (1..).find(|_| attempts.next_delay(failure()).is_err()).expect("a last attempt")
        };
        assert_eq!(count(&|| remote(Reason::AgentUnreachable)), MAX_ATTEMPTS);
        assert_eq!(count(&|| CopyFailure::changed("a".as_ref())), MAX_CHANGE_ATTEMPTS);
        assert_eq!(count(&|| remote(Reason::PathNotFound)), 1);
    }

    #[tokio::test]
    async fn failed_attempt_is_repeated_and_leaves_the_bar() {
        let (bar, mut attempts) = (ProgressBar::hidden(), 0);
        let copied = copy_file(&bar, async |progress| {
            attempts += 1;
            progress.add(2);
            if attempts == 1 { Err(CopyFailure::changed("a".as_ref())) } else { Ok(()) }
        });
        assert_eq!((copied.await.expect("copied"), bar.position(), attempts), (2, 2, 2));
    }
}
