//! Creates directories and moves entries. All functions block.

use std::{ffi::OsStr, os::fd::OwnedFd};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, fchmod, linkat, mkdirat, openat, renameat,
        renameat_with, unlinkat,
    },
    io::Errno,
};

use super::{
    error::{FileError, map_errno},
    path::RelPath,
    root::{EntryLocation, SymlinkMode, WorkspaceRoot},
};

const DIRECTORY_MODE: u32 = 0o755;

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
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&location.dir, &location.name, flags, Mode::empty());
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
        match renameat_with(&source.dir, &source.name, &target.dir, &target.name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => rename_without_flag(&source, &target),
            moved => moved,
        }
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

/// Moves an entry without replacing another one on file systems without RENAME_NOREPLACE. Creating
/// a hard link never replaces an entry. A directory replaces only the empty directory that was just
/// created for it.
fn rename_without_flag(source: &EntryLocation, target: &EntryLocation) -> Result<(), Errno> {
    let is_directory = source
        .stat()
        .ok()
        .flatten()
        .is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
    if !is_directory {
        linkat(&source.dir, &source.name, &target.dir, &target.name, AtFlags::empty())?;
        return unlinkat(&source.dir, &source.name, AtFlags::empty());
    }
    mkdirat(&target.dir, &target.name, Mode::from_raw_mode(DIRECTORY_MODE))?;
    renameat(&source.dir, &source.name, &target.dir, &target.name)
        .inspect_err(|_| remove_created(&target.dir, &target.name))
}

fn remove_created(dir: &OwnedFd, name: &OsStr) {
    if let Err(errno) = unlinkat(dir, name, AtFlags::REMOVEDIR) {
        tracing::warn!(%errno, "failed to remove empty directory created for a move");
    }
}
