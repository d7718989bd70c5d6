//! File system entries as clients see them, and listings of directories, sorted by name, in pages,
//! with bounded memory for any number of entries.
//!
//! The kernel returns names unsorted. Each pass over the directory keeps the [`MAX_NAMES`] smallest
//! names after the last name listed. Every entry is therefore listed in order and at most once. An
//! entry that exists all the time is always listed.

use std::{
    collections::BinaryHeap,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    time::SystemTime,
    vec,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Stat, fstat, readlinkat, statat},
    io::Errno,
};

use super::{
    FileError, map_errno,
    root::{RelPath, WorkspaceRoot},
    temp, unix_system_time,
};

/// Names held at once. They take 5 MiB if all have 255 bytes, but a usual name has 20. A larger
/// directory is read in several passes.
const MAX_NAMES: usize = 16_384;
const PAGE_ENTRIES: usize = 1_000;
/// Bytes of names and link targets in a page. A page must fit a gRPC message of 4 MiB with its
/// other fields.
const PAGE_BYTES: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    /// A socket, a pipe or a device.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Last component of the path in raw bytes; empty for the root.
    pub name: Vec<u8>,
    pub kind: FileKind,
    /// Size of the content in bytes.
    pub size: u64,
    pub mode: u32,
    pub modified: SystemTime,
    /// Target of a symbolic link as written; empty for other kinds.
    pub link_target: Vec<u8>,
    pub device: u64,
    pub ino: u64,
}

impl FileKind {
    /// Returns the kind that the file type in `mode` stands for.
    pub(crate) fn of_mode(mode: u32) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            _ => Self::Other,
        }
    }
}

impl FileEntry {
    pub(super) fn new(name: &OsStr, stat: &Stat, link_target: Vec<u8>) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
            kind: FileKind::of_mode(stat.st_mode),
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            mode: stat.st_mode & 0o7777,
            modified: unix_system_time(stat.st_mtime, stat.st_mtime_nsec),
            link_target,
            device: stat.st_dev,
            ino: stat.st_ino,
        }
    }

    /// Reads the metadata of an open descriptor, which may be a symbolic link.
    pub(super) fn from_fd(name: &OsStr, fd: &OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(fd)?;
        let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let target = if link { readlinkat(fd, "", Vec::new())?.into_bytes() } else { Vec::new() };
        Ok(Self::new(name, &stat, target))
    }
}

/// A listing in progress.
#[derive(Debug)]
pub(super) struct Listing {
    path: RelPath,
    dir: OwnedFd,
    /// Sorted names of the current pass that are not yet listed.
    names: vec::IntoIter<OsString>,
    last: Option<OsString>,
    /// Whether the last pass saw all remaining names.
    complete: bool,
    max_names: usize,
}

impl Listing {
    pub(super) fn open(root: &WorkspaceRoot, path: RelPath) -> Result<Self, FileError> {
        Self::with_names(root, path, MAX_NAMES)
    }

    fn with_names(root: &WorkspaceRoot, path: RelPath, max_names: usize) -> Result<Self, FileError> {
        let dir = root.open_directory(&path)?;
        Ok(Self { path, dir, names: Vec::new().into_iter(), last: None, complete: false, max_names })
    }

    /// Returns the next entries, or none at the end.
    pub(super) fn page(&mut self, root: &WorkspaceRoot) -> Result<Vec<FileEntry>, FileError> {
        let mut page = Vec::new();
        let mut bytes = 0;
        while page.len() < PAGE_ENTRIES && bytes < PAGE_BYTES {
            let Some(name) = self.names.next() else {
                if self.complete {
                    break;
                }
                self.read_names(root)?;
                continue;
            };
            match self.entry(&name) {
                Ok(entry) => {
                    bytes += entry.name.len() + entry.link_target.len();
                    page.push(entry);
                }
                // Removed since the pass.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(map_errno("read the metadata of an entry of", &self.path)(errno)),
            }
            self.last = Some(name);
        }
        Ok(page)
    }

    fn entry(&self, name: &OsStr) -> Result<FileEntry, Errno> {
        let stat = statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let target = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => match readlinkat(&self.dir, name, Vec::new()) {
                // Replaced by another kind since the pass; the next listing shows it.
                Err(Errno::INVAL) => return Err(Errno::NOENT),
                target => target?.into_bytes(),
            },
            _ => Vec::new(),
        };
        Ok(FileEntry::new(name, &stat, target))
    }

    fn read_names(&mut self, root: &WorkspaceRoot) -> Result<(), FileError> {
        let remove_stale = |name: &OsStr| {
            temp::is_temp_file(name).then(|| root.temp_files().remove_stale(self.dir.as_fd(), name))
        };
        let shown = |name: &OsStr| remove_stale(name).is_none();
        let (names, complete) = smallest_names(&self.dir, self.last.as_deref(), self.max_names, shown)
            .map_err(map_errno("list", &self.path))?;
        (self.names, self.complete) = (names.into_iter(), complete);
        Ok(())
    }
}

/// Returns the `max_names` smallest names after `last` that pass `filter`, sorted, and whether no
/// more follow.
pub(crate) fn smallest_names(
    dir: &OwnedFd,
    last: Option<&OsStr>,
    max_names: usize,
    filter: impl Fn(&OsStr) -> bool,
) -> Result<(Vec<OsString>, bool), Errno> {
    let mut smallest: BinaryHeap<OsString> = BinaryHeap::new();
    let mut complete = true;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let dots = matches!(name.as_bytes(), b"." | b"..");
        if dots || last.is_some_and(|last| name <= last) || !filter(name) {
            continue;
        }
        if smallest.len() == max_names {
            complete = false;
            if smallest.peek().is_some_and(|largest| name >= largest) {
                continue;
            }
            smallest.pop();
        }
        smallest.push(name.to_owned());
    }
    Ok((smallest.into_sorted_vec(), complete))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::root::PathResolver;

    #[test]
    fn listing_in_many_passes_equals_single_pass() {
        let dir = tempfile::tempdir().unwrap();
        let mut names: Vec<Vec<u8>> =
            (0..2_500).map(|n| format!("{}", n * 7919 % 100_003).into_bytes()).collect();
        names.push(b"not \xff utf-8".to_vec());
        for name in &names {
            std::fs::write(dir.path().join(OsStr::from_bytes(name)), "").unwrap();
        }
        names.sort();
        let root = WorkspaceRoot::open_with(dir.path(), PathResolver::Kernel).unwrap();
        let mut listing = Listing::with_names(&root, RelPath::ROOT, 37).unwrap();
        let mut shown = Vec::new();
        loop {
            let page = listing.page(&root).unwrap();
            if page.is_empty() {
                break;
            }
            assert!(page.len() <= PAGE_ENTRIES);
            shown.extend(page.into_iter().map(|entry| entry.name));
        }
        assert_eq!(shown, names);
    }
}
