//! Walks a tree for an archive by descriptors, never through a symbolic link and never into another
//! file system. Names are sorted by their bytes, and a directory comes before its content.
//! Unreadable entries, and directories that changed meanwhile, are reported as skipped.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
    vec,
};

use rustix::io::Errno;

use super::{Cancelled, EntryRejection, MemoryBudget, WalkEntry, WalkStep, ignore::IgnoreRules, skip_reason};
use crate::{
    archive::{EntryMetadata, MAX_PATH, UnarchivedEntry},
    files::{FileKind, is_temp_file, open_directory_at, smallest_names},
};

/// Names held at once for a directory, usually 20 bytes each. A larger directory is read in several
/// passes.
const MAX_NAMES: usize = 16_384;
/// Maximum nesting of directories, each of which holds a descriptor. Deeper entries are reported as
/// skipped.
const MAX_DEPTH: usize = 256;

/// A walk in progress, depth first.
#[derive(Debug)]
pub(super) struct TreeWalk<'a> {
    levels: Vec<WalkLevel>,
    rules: IgnoreRules,
    budget: &'a MemoryBudget,
    /// Reported before the walk continues.
    pending: Vec<UnarchivedEntry>,
}

#[derive(Debug)]
struct WalkLevel {
    path: Vec<u8>,
    dir: Arc<OwnedFd>,
    metadata: EntryMetadata,
    names: vec::IntoIter<OsString>,
    last: Option<OsString>,
    complete: bool,
}

impl<'a> TreeWalk<'a> {
    /// Starts a walk at the directory `dir`.
    pub(super) fn new(dir: OwnedFd, rules: IgnoreRules, budget: &'a MemoryBudget) -> Result<Self, Errno> {
        let mut walk = Self { levels: Vec::new(), rules, budget, pending: Vec::new() };
        // If the archive is already cancelled, the walk is empty.
        if let Ok(metadata) = walk.stable_metadata(&dir)? {
            walk.push_level(Vec::new(), dir, metadata);
        }
        Ok(walk)
    }

    /// Returns the next step, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<WalkStep>, Cancelled> {
        loop {
            if let Some(skipped) = self.pending.pop() {
                return Ok(Some(WalkStep::Skipped(skipped)));
            }
            self.budget.check_cancelled()?;
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(name) = level.names.next() else {
                self.read_more_or_leave();
                continue;
            };
            let path = join(&level.path, &name);
            match self.visit(path.clone(), name) {
                Ok(Some(found)) => return Ok(Some(WalkStep::Found(found))),
                Ok(None) => {}
                Err(EntryRejection::Cancelled) => return Err(Cancelled),
                Err(EntryRejection::Skipped(reason)) => {
                    return Ok(Some(WalkStep::Skipped(UnarchivedEntry { path, reason })));
                }
            }
        }
    }

    fn visit(&mut self, path: Vec<u8>, name: OsString) -> Result<Option<WalkEntry>, EntryRejection> {
        let Some(level) = self.levels.last() else { return Ok(None) };
        let dir = level.dir.clone();
        let metadata = EntryMetadata::at(&dir, &name)?;
        if self.rules.ignores(&path, metadata.kind == FileKind::Directory) {
            return Ok(None);
        }
        if level.metadata.mounted(&metadata) {
            return Err("it is a mount point of another file system".into());
        }
        // A directory needs room for its trailing slash. Longer paths are reported as skipped.
        if path.len() >= MAX_PATH {
            return Err("its path is longer than 4,094 bytes".into());
        }
        if metadata.kind != FileKind::Directory {
            return Ok(Some(WalkEntry { path, dir, name, metadata }));
        }
        if self.levels.len() >= MAX_DEPTH {
            return Err("it lies more than 256 directories deep".into());
        }
        let inner = open_directory_at(&dir, &name)?;
        let metadata = self.stable_metadata(&inner)??;
        self.push_level(path.clone(), inner, metadata.clone());
        Ok(Some(WalkEntry { path, dir, name, metadata }))
    }

    fn push_level(&mut self, path: Vec<u8>, dir: OwnedFd, metadata: EntryMetadata) {
        for (name, reason) in self.rules.enter_directory(&dir, &path) {
            self.pending.push(UnarchivedEntry { path: join(&path, OsStr::new(name)), reason });
        }
        let (dir, names) = (Arc::new(dir), Vec::new().into_iter());
        self.levels.push(WalkLevel { path, dir, metadata, names, last: None, complete: false });
    }

    /// Reads more names of the current directory, or leaves it.
    fn read_more_or_leave(&mut self) {
        let Some(level) = self.levels.last_mut() else { return };
        let problem = if level.complete {
            let same = EntryMetadata::of(level.dir.as_fd()).is_ok_and(|now| now == level.metadata);
            (!same).then(|| "its entries changed while it was read".to_owned())
        } else {
            let read =
                smallest_names(&level.dir, level.last.as_deref(), MAX_NAMES, |name| !is_temp_file(name));
            match read {
                Ok((names, complete)) => {
                    level.last = names.last().cloned();
                    (level.names, level.complete) = (names.into_iter(), complete);
                    return;
                }
                Err(errno) => Some(skip_reason(errno)),
            }
        };
        if let Some(reason) = problem {
            self.pending.push(UnarchivedEntry { path: level.path.clone(), reason });
        }
        self.levels.pop();
        self.rules.leave_directory();
    }

    /// Reads the metadata of `dir`. Waits until any later change would show in it.
    fn stable_metadata(&self, dir: &OwnedFd) -> Result<Result<EntryMetadata, Cancelled>, Errno> {
        let metadata = EntryMetadata::of(dir)?;
        Ok(match self.budget.wait_mtime_granularity(metadata.changed) {
            Ok(false) => Ok(metadata),
            Ok(true) => Ok(EntryMetadata::of(dir)?),
            Err(ended) => Err(ended),
        })
    }
}

fn join(directory: &[u8], name: &OsStr) -> Vec<u8> {
    if directory.is_empty() {
        return name.as_bytes().to_vec();
    }
    [directory, b"/", name.as_bytes()].concat()
}
