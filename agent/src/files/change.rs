//! Creates directories, moves entries, and removes an entry or a directory with everything in it.
//! All functions block.
//!
//! A removal walks the tree by descriptors and never through a link. Only the current directory is
//! open. The walk goes back up through ".." and checks that this is the directory from which it
//! came. The depth is therefore unlimited, and a swapped directory is detected. A step removes all
//! files of one directory without a pause.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, fchmod, fstat, mkdirat, renameat, unlinkat},
    io::Errno,
};

use super::{
    FileError,
    list::FileKind,
    map_errno, open_directory_at, rename_without_replacing,
    root::{EntryLocation, RelPath, SymlinkMode, WorkspaceRoot},
};

const DIRECTORY_MODE: u32 = 0o755;

/// Number of removed entries after which a step ends, so that the admission gate can be checked
/// again.
const STEP_ENTRIES: u64 = 1_000;
/// Maximum subdirectories whose names are held for each level of the tree. Further ones are found
/// by reading the directory again.
const DIRECTORIES_PER_LEVEL: usize = 256;
/// Maximum times that a directory is read again because other processes change it.
const MAX_REREADS: usize = 1_024;

/// Creates a directory. With `parents` it creates missing ones above it, and an existing directory
/// is not an error.
pub(crate) fn mkdir(
    root: &WorkspaceRoot,
    path: &RelPath,
    mode: Option<u32>,
    parents: bool,
) -> Result<(), FileError> {
    if parents {
        if path.is_root() {
            return Ok(());
        }
        make_parents(root, path)?;
    }
    let location = root.locate(path)?;
    match mkdirat(&location.dir, &location.name, Mode::from_raw_mode(DIRECTORY_MODE)) {
        Ok(()) => {}
        Err(Errno::EXIST) if parents => return root.open_directory(path).map(drop),
        Err(errno) => return Err(map_errno("create", path)(errno)),
    }
    if let Some(mode) = mode {
        let made = open_directory_at(&location.dir, &location.name);
        made.and_then(|dir| fchmod(dir, Mode::from_raw_mode(mode)))
            .map_err(map_errno("set the mode of", path))?;
    }
    location.sync_directory().map_err(map_errno("create", path))
}

/// Sets the permission bits of a directory. Fails if the agent's user may not read it.
pub(super) fn set_directory_mode(root: &WorkspaceRoot, path: &RelPath, mode: u32) -> Result<(), FileError> {
    let directory = root.open_directory(path)?;
    fchmod(directory, Mode::from_raw_mode(mode)).map_err(map_errno("set the mode of", path))
}

/// Creates the missing directories above `path`.
pub(super) fn make_parents(root: &WorkspaceRoot, path: &RelPath) -> Result<(), FileError> {
    for directory in path.ancestors() {
        match root.open_path(&directory, SymlinkMode::Follow) {
            Ok(_) => continue,
            Err(FileError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let location = root.locate(&directory)?;
        match mkdirat(&location.dir, &location.name, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) => location.sync_directory().map_err(map_errno("create", &directory))?,
            // Another process created it meanwhile.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(map_errno("create", &directory)(errno)),
        }
    }
    Ok(())
}

/// Moves an entry. Does not follow a symbolic link.
pub(super) fn rename(
    root: &WorkspaceRoot,
    from: &RelPath,
    to: &RelPath,
    replace: bool,
) -> Result<(), FileError> {
    let source = root.locate(from)?;
    let target = root.locate(to)?;
    // Errors of a rename are reported for the target, so a missing source is checked first.
    if source.stat()?.is_none() {
        return Err(FileError::NotFound { path: from.to_string() });
    }
    let moved = if replace {
        renameat(&source.dir, &source.name, &target.dir, &target.name)
    } else {
        rename_without_replacing(&source.dir, &source.name, &target.dir, &target.name)
    };
    moved.map_err(|errno| match errno {
        Errno::INVAL => {
            FileError::WrongKind { path: to.to_string(), problem: "lies inside the directory to be moved" }
        }
        // Some file systems report a non-empty directory this way.
        Errno::EXIST if replace => FileError::NotEmpty { path: to.to_string() },
        errno => map_errno("move to", to)(errno),
    })?;
    target.sync_directory().and_then(|()| source.sync_directory()).map_err(map_errno("move to", to))
}

/// A removal in progress.
#[derive(Debug)]
pub(super) struct Removal {
    path: RelPath,
    location: EntryLocation,
    removed: u64,
    tree: Option<RemovalTree>,
}

/// The current directory, and the levels above it up to the directory to be removed.
#[derive(Debug)]
struct RemovalTree {
    here: OwnedFd,
    levels: Vec<RemovalLevel>,
}

#[derive(Debug)]
struct RemovalLevel {
    file_id: (u64, u64),
    name: OsString,
    directories: Vec<OsString>,
    rereads: usize,
}

impl Removal {
    /// Removes the entry, unless it is a directory and `recursive` is set. [`Removal::step`] then
    /// removes the directory with its content.
    pub(super) fn begin(root: &WorkspaceRoot, path: RelPath, recursive: bool) -> Result<Self, FileError> {
        let location = root.locate(&path)?;
        let failed = map_errno("remove", &path);
        let stat = location.stat()?.ok_or_else(|| FileError::NotFound { path: path.to_string() })?;
        let mut removed = 1;
        let mut tree = None;
        if FileKind::of_mode(stat.st_mode) != FileKind::Directory {
            unlinkat(&location.dir, &location.name, AtFlags::empty()).map_err(failed)?;
        } else if recursive {
            let (here, level) = open_level(location.dir.as_fd(), &location.name).map_err(failed)?;
            tree = Some(RemovalTree { here, levels: vec![level] });
            removed = 0;
        } else {
            match unlinkat(&location.dir, &location.name, AtFlags::REMOVEDIR) {
                // Temporary files of a killed agent are invisible to the client and must not block
                // it.
                Err(Errno::NOTEMPTY | Errno::EXIST) if remove_stale_temp_files(root, &location) => {
                    unlinkat(&location.dir, &location.name, AtFlags::REMOVEDIR)
                }
                done => done,
            }
            .map_err(failed)?;
        }
        Ok(Self { path, location, removed, tree })
    }

    /// Removes entries until at least [`STEP_ENTRIES`] are gone. The files of one directory are
    /// removed without a pause, so a step may remove more. Returns the total when nothing is left.
    pub(super) fn step(&mut self) -> Result<Option<u64>, FileError> {
        let until = self.removed + STEP_ENTRIES;
        while self.removed < until {
            let Some(tree) = &mut self.tree else { break };
            let emptied =
                tree.remove_next(&mut self.removed).map_err(map_errno("remove from", &self.path))?;
            if emptied {
                unlinkat(&self.location.dir, &self.location.name, AtFlags::REMOVEDIR)
                    .map_err(map_errno("remove", &self.path))?;
                self.removed += 1;
                self.tree = None;
            }
        }
        if self.tree.is_some() {
            return Ok(None);
        }
        self.location.sync_directory().map_err(map_errno("remove", &self.path))?;
        Ok(Some(self.removed))
    }
}

impl RemovalTree {
    /// Removes the files of the current directory, or moves one level down or up. Returns `true`
    /// when the outermost directory is empty.
    fn remove_next(&mut self, removed: &mut u64) -> Result<bool, Errno> {
        let Some(level) = self.levels.last_mut() else { return Ok(true) };
        if let Some(name) = level.directories.pop() {
            match open_level(self.here.as_fd(), &name) {
                Ok((here, level)) => {
                    self.here = here;
                    self.levels.push(level);
                }
                // The directory was removed or replaced meanwhile. The next pass finds the new
                // state.
                Err(errno @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => level.count_retry(errno)?,
                Err(errno) => return Err(errno),
            }
            return Ok(false);
        }
        level.directories = remove_files(&self.here, removed)?;
        if !level.directories.is_empty() {
            return Ok(false);
        }
        if self.levels.len() == 1 {
            return Ok(true);
        }
        self.leave_directory(removed)?;
        Ok(false)
    }

    /// Removes the current directory, which is empty, and returns to the one above.
    fn leave_directory(&mut self, removed: &mut u64) -> Result<(), Errno> {
        let Some(done) = self.levels.pop() else { return Ok(()) };
        let above = open_directory_at(&self.here, OsStr::new(".."))?;
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        if file_id(&above)? != level.file_id {
            // The directory was moved away meanwhile, so ".." is not part of the tree to remove.
            return Err(Errno::LOOP);
        }
        self.here = above;
        match unlinkat(&self.here, &done.name, AtFlags::REMOVEDIR) {
            Ok(()) => *removed += 1,
            Err(Errno::NOENT) => {}
            // Another process filled or swapped the directory, so it is read again.
            Err(errno @ (Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR)) => level.count_retry(errno)?,
            Err(errno) => return Err(errno),
        }
        Ok(())
    }
}

impl RemovalLevel {
    /// Counts a retry caused by other processes. Fails with `errno` after [`MAX_REREADS`].
    fn count_retry(&mut self, errno: Errno) -> Result<(), Errno> {
        self.rereads += 1;
        if self.rereads > MAX_REREADS { Err(errno) } else { Ok(()) }
    }
}

fn open_level(dir: impl AsFd, name: &OsStr) -> Result<(OwnedFd, RemovalLevel), Errno> {
    let here = open_directory_at(dir, name)?;
    let level =
        RemovalLevel { file_id: file_id(&here)?, name: name.to_owned(), directories: Vec::new(), rereads: 0 };
    Ok((here, level))
}

fn file_id(dir: &OwnedFd) -> Result<(u64, u64), Errno> {
    fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Removes the entries that are not directories, and returns the directories found. Stops at
/// [`DIRECTORIES_PER_LEVEL`] directories.
fn remove_files(here: &OwnedFd, removed: &mut u64) -> Result<Vec<OsString>, Errno> {
    let mut directories = Vec::new();
    for entry in Dir::read_from(here)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if matches!(name.as_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match unlinkat(here, name, AtFlags::empty()) {
                Ok(()) => {
                    *removed += 1;
                    continue;
                }
                Err(Errno::NOENT) => continue,
                // The entry is a directory. The file system does not report kinds, or the entry was
                // swapped.
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
        directories.push(name.to_owned());
        if directories.len() == DIRECTORIES_PER_LEVEL {
            break;
        }
    }
    Ok(directories)
}

/// Removes the temporary files of a killed agent from a directory. Returns whether any file was
/// removed.
fn remove_stale_temp_files(root: &WorkspaceRoot, location: &EntryLocation) -> bool {
    let Ok((dir, _)) = open_level(location.dir.as_fd(), &location.name) else { return false };
    let Ok(entries) = Dir::read_from(&dir) else { return false };
    let swept = |entry: rustix::fs::DirEntry| {
        root.temp_files().remove_stale(dir.as_fd(), OsStr::from_bytes(entry.file_name().to_bytes()))
    };
    entries.flatten().map(swept).fold(false, |any, one| any | one)
}
