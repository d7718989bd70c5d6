//! Ignore rules of an export: the caller's patterns and, on request, the ignore files found in the
//! tree.
//!
//! Precedence: a caller's pattern over one of a file, a deeper file over a higher one, `.ignore`
//! over `.gitignore`, a later line over an earlier one.

use std::{ffi::OsStr, fs::File, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};

use super::{glob::IgnorePattern, metadata::EntryMetadata};
use crate::files::{FileError, FileKind};

/// Maximum patterns of a request; more are rejected.
pub const MAX_PATTERNS: usize = 1_000;
/// Maximum bytes of one pattern of a request.
pub const MAX_PATTERN_BYTES: usize = 4_096;
/// Maximum bytes of an ignore file. A longer file is listed as skipped and its rules do not apply.
const MAX_FILE_BYTES: usize = 256 * 1024;
/// Names of ignore files. A later name has precedence over an earlier one.
const IGNORE_FILES: [&str; 2] = [".gitignore", ".ignore"];

/// All patterns that apply at the current point of the walk.
#[derive(Debug, Clone, Default)]
pub(super) struct IgnoreRules {
    caller: Vec<IgnorePattern>,
    /// Whether ignore files in the tree apply.
    ignore_files: bool,
    directories: Vec<DirectoryPatterns>,
}

/// Patterns of the ignore files of one directory.
#[derive(Debug, Clone)]
struct DirectoryPatterns {
    /// Length of the directory's path including its trailing slash.
    prefix: usize,
    patterns: Vec<IgnorePattern>,
}

impl IgnoreRules {
    /// Rejects patterns beyond the limits.
    pub(super) fn new(caller: &[Vec<u8>], ignore_files: bool) -> Result<Self, FileError> {
        if caller.len() > MAX_PATTERNS || caller.iter().any(|pattern| pattern.len() > MAX_PATTERN_BYTES) {
            let allowed = "at most 1,000 patterns of 4,096 bytes each";
            return Err(FileError::BadField { field: "ignore", allowed });
        }
        let caller = caller.iter().filter_map(|line| IgnorePattern::parse(line)).collect();
        Ok(Self { caller, ignore_files, directories: Vec::new() })
    }

    /// Reads the ignore files of a directory that the walk enters. Returns those that could not be
    /// read, with the reason.
    pub(super) fn enter_directory(&mut self, dir: &OwnedFd, path: &[u8]) -> Vec<(&'static str, String)> {
        let mut patterns = Vec::new();
        let mut unread = Vec::new();
        for name in IGNORE_FILES.into_iter().filter(|_| self.ignore_files) {
            match read_ignore_file(dir, name) {
                Ok(Some(text)) => {
                    patterns.extend(text.split(|b| *b == b'\n').filter_map(IgnorePattern::parse))
                }
                Ok(None) => {}
                Err(reason) => unread.push((name, reason)),
            }
        }
        let prefix = if path.is_empty() { 0 } else { path.len() + 1 };
        self.directories.push(DirectoryPatterns { prefix, patterns });
        unread
    }

    /// Drops the rules of the directory that was entered last.
    pub(super) fn leave_directory(&mut self) {
        self.directories.pop();
    }

    /// Returns whether the rules exclude `path`, which is below the current directory.
    pub(super) fn ignores(&self, path: &[u8], is_directory: bool) -> bool {
        let last = |patterns: &[IgnorePattern], path: &[u8]| {
            patterns.iter().rev().find(|pattern| pattern.matches(path, is_directory)).map(|p| !p.negated)
        };
        let from_files = || {
            self.directories
                .iter()
                .rev()
                .find_map(|directories| last(&directories.patterns, &path[directories.prefix..]))
        };
        last(&self.caller, path).or_else(from_files).unwrap_or(false)
    }
}

fn read_ignore_file(dir: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, String> {
    match EntryMetadata::at(dir, OsStr::new(name)) {
        Ok(metadata) if metadata.kind == FileKind::File => {}
        _ => return Ok(None),
    }
    let text = |errno: Errno| super::walk::skip_reason(errno);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).map_err(text)?;
    let mut content = Vec::new();
    super::source::read_up_to(&File::from(file), &mut content, MAX_FILE_BYTES + 1).map_err(text)?;
    if content.len() > MAX_FILE_BYTES {
        return Err("it is longer than 256 KiB, so its rules do not apply".to_owned());
    }
    Ok(Some(content))
}
