//! What an export leaves out: the caller's patterns and, if asked for, those of the ignore files that are found. A pattern of the
//! caller counts more than one of a file, a deeper file more than a higher one, `.ignore` more than `.gitignore`, a later line more than
//! an earlier one.

use std::{ffi::OsStr, fs::File, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};

use super::{glob::IgnorePattern, metadata::EntryMetadata};
use crate::files::{FileError, FileKind};

/// Patterns a caller may give; more are refused.
pub const MAX_PATTERNS: usize = 1_000;
/// Bytes of one of them.
pub const MAX_PATTERN_BYTES: usize = 4_096;
/// Bytes of an ignore file that are read; a longer one is said to be skipped, and ignores nothing.
const MAX_FILE_BYTES: usize = 256 * 1024;
/// The later one counts more.
const IGNORE_FILES: [&str; 2] = [".gitignore", ".ignore"];

/// Patterns in the order in which they count.
#[derive(Debug, Clone, Default)]
pub(super) struct IgnoreRules {
    caller: Vec<IgnorePattern>,
    /// Whether ignore files are obeyed.
    ignore_files: bool,
    directories: Vec<DirectoryPatterns>,
}

/// The patterns of one folder.
#[derive(Debug, Clone)]
struct DirectoryPatterns {
    /// Bytes of the folder's path with its slash.
    prefix: usize,
    patterns: Vec<IgnorePattern>,
}

impl IgnoreRules {
    /// Refuses patterns beyond the bounds.
    pub(super) fn new(caller: &[Vec<u8>], ignore_files: bool) -> Result<Self, FileError> {
        if caller.len() > MAX_PATTERNS || caller.iter().any(|pattern| pattern.len() > MAX_PATTERN_BYTES) {
            let allowed = "1,000 patterns of 4,096 bytes at most";
            return Err(FileError::BadField { field: "ignore", allowed });
        }
        let caller = caller.iter().filter_map(|line| IgnorePattern::parse(line)).collect();
        Ok(Self { caller, ignore_files, directories: Vec::new() })
    }

    /// A folder is entered; the ignore files in it that cannot be read come back.
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

    /// The folder entered last is left.
    pub(super) fn leave_directory(&mut self) {
        self.directories.pop();
    }

    /// Whether an entry (below the folder at hand) is left out.
    pub(super) fn ignores(&self, path: &[u8], folder: bool) -> bool {
        let last = |patterns: &[IgnorePattern], path: &[u8]| {
            patterns.iter().rev().find(|pattern| pattern.matches(path, folder)).map(|p| !p.negated)
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
        return Err("its rules were not obeyed: it is longer than 256 KiB".to_owned());
    }
    Ok(Some(content))
}
