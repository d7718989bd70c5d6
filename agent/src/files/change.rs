//! Making folders, and moving. Everything here blocks.

use std::{ffi::OsStr, os::fd::OwnedFd};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, fchmod, linkat, mkdirat, openat, renameat,
        renameat_with, unlinkat,
    },
    io::Errno,
};

use super::{
    error::{FileError, failed},
    path::RelPath,
    root::{Place, SymlinkMode, WorkspaceRoot},
};

/// Of new folders.
const FOLDER_MODE: u32 = 0o755;

/// Makes a folder; with `parents` also those above it, and it may be there already.
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
    let place = root.place(path)?;
    match mkdirat(&place.dir, &place.name, Mode::from_raw_mode(FOLDER_MODE)) {
        Ok(()) => {}
        Err(Errno::EXIST) if parents => return root.folder(path).map(drop),
        Err(errno) => return Err(failed("make", path)(errno)),
    }
    if let Some(mode) = mode {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&place.dir, &place.name, flags, Mode::empty());
        made.and_then(|dir| fchmod(dir, Mode::from_raw_mode(mode)))
            .map_err(failed("set the mode of", path))?;
    }
    place.sync_folder().map_err(failed("make", path))
}

/// Makes the folders above `path` that are missing.
pub(super) fn make_parents(root: &WorkspaceRoot, path: &RelPath) -> Result<(), FileError> {
    for folder in path.above() {
        match root.look(&folder, SymlinkMode::Follow) {
            Ok(_) => continue,
            Err(FileError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let place = root.place(&folder)?;
        match mkdirat(&place.dir, &place.name, Mode::from_raw_mode(FOLDER_MODE)) {
            Ok(()) => place.sync_folder().map_err(failed("make", &folder))?,
            // Somebody else made it meanwhile.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make", &folder)(errno)),
        }
    }
    Ok(())
}

/// Moves an entry (a symbolic link itself).
pub(super) fn rename(
    root: &WorkspaceRoot,
    from: &RelPath,
    to: &RelPath,
    replace: bool,
) -> Result<(), FileError> {
    let source = root.place(from)?;
    let target = root.place(to)?;
    // Errors of a rename are about its target, except that the source is what may be missing.
    if source.stat()?.is_none() {
        return Err(FileError::NotFound { path: from.to_string() });
    }
    let moved = if replace {
        renameat(&source.dir, &source.name, &target.dir, &target.name)
    } else {
        match renameat_with(&source.dir, &source.name, &target.dir, &target.name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => without_flag(&source, &target),
            moved => moved,
        }
    };
    moved.map_err(|errno| match errno {
        Errno::INVAL => {
            FileError::WrongKind { path: to.to_string(), problem: "lies inside the folder that is moved" }
        }
        // What some file systems say for a folder that is not empty.
        Errno::EXIST if replace => FileError::NotEmpty { path: to.to_string() },
        errno => failed("move to", to)(errno),
    })?;
    target.sync_folder().and_then(|()| source.sync_folder()).map_err(failed("move to", to))
}

/// Moves without replacing where the file system lacks RENAME_NOREPLACE: a link never replaces, and a folder may only replace
/// the empty one just made.
fn without_flag(source: &Place, target: &Place) -> Result<(), Errno> {
    let folder = source
        .stat()
        .ok()
        .flatten()
        .is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
    if !folder {
        linkat(&source.dir, &source.name, &target.dir, &target.name, AtFlags::empty())?;
        return unlinkat(&source.dir, &source.name, AtFlags::empty());
    }
    mkdirat(&target.dir, &target.name, Mode::from_raw_mode(FOLDER_MODE))?;
    renameat(&source.dir, &source.name, &target.dir, &target.name)
        .inspect_err(|_| remove_made(&target.dir, &target.name))
}

fn remove_made(dir: &OwnedFd, name: &OsStr) {
    if let Err(errno) = unlinkat(dir, name, AtFlags::REMOVEDIR) {
        tracing::warn!(%errno, "an empty folder made for a move stays behind");
    }
}
