//! Removes a directory tree and nothing outside of it, even if a user placed symlinks or mounts in
//! the tree.
//!
//! Every name is resolved relative to an open directory, and no symlink is followed. Subdirectories
//! are first moved to the top, so that a tree of any depth needs three descriptors. Mount points
//! are not entered, not even mounts of the same file system.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, renameat, statat,
        unlinkat,
    },
    io::Errno,
};

const OPEN_DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory and makes it readable and writable for this process. Fails with `XDEV` at a
/// mount point, and with `LOOP` or `NOTDIR` if `name` is not a directory.
fn open_dir(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    // O_PATH opens a directory of any mode, and the descriptor keeps referring to this directory if
    // its name is reused.
    let named = openat2(
        parent,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    )?;
    let itself = format!("/proc/self/fd/{}", named.as_raw_fd());
    if Mode::from_raw_mode(fstat(&named)?.st_mode) & Mode::RWXU != Mode::RWXU {
        rustix::fs::chmod(&itself, Mode::RWXU)?;
    }
    openat(&named, c".", OPEN_DIR_FLAGS, Mode::empty())
}

/// Why a tree was not removed completely.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoveError {
    #[error("cannot {operation} {name:?}: {source}")]
    Io { operation: &'static str, name: CString, source: io::Error },
    #[error("{0:?} is a mount point; unmount it")]
    Mounted(CString),
}

impl RemoveError {
    fn at(operation: &'static str, name: &CStr, source: Errno) -> Self {
        match source {
            Errno::XDEV => Self::Mounted(name.to_owned()),
            _ => Self::Io { operation, name: name.to_owned(), source: source.into() },
        }
    }
}

/// Removes `name` in `parent`. A missing name is not an error. Blocks.
pub(super) fn remove_tree(parent: &Path, name: &str) -> Result<(), RemoveError> {
    let at = RemoveError::at;
    // An id contains no NUL, and a name with one cannot exist.
    let Ok(name) = CString::new(name) else { return Ok(()) };
    let parent =
        openat(CWD, parent, OPEN_DIR_FLAGS, Mode::empty()).map_err(|e| at("open", c"workspaces", e))?;
    let top = match open_dir(parent.as_fd(), &name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        // A file or a symlink. Only the name is removed, and the target of a symlink stays.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return unlinkat(&parent, &name, AtFlags::empty()).map_err(|e| at("remove", &name, e));
        }
        Err(error) => return Err(at("open", &name, error)),
    };
    let mut moved = 0_u64;
    loop {
        let dirs = remove_files(top.as_fd(), |_| Ok(()))?;
        if dirs.is_empty() {
            break;
        }
        for dir in dirs {
            let inner = open_dir(top.as_fd(), &dir).map_err(|e| at("open", &dir, e))?;
            remove_files(inner.as_fd(), |child| {
                // Moving a directory changes its `..`, so it must be writable first.
                drop(open_dir(inner.as_fd(), child)?);
                loop {
                    moved += 1;
                    let free = CString::new(format!(".removing-{moved}")).map_err(|_| Errno::INVAL)?;
                    match renameat(&inner, child, &top, &free) {
                        // An earlier attempt or the user has taken the name, so the next one is
                        // tried. An empty directory of that name is replaced.
                        Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                        other => return other,
                    }
                }
            })?;
            unlinkat(&top, &dir, AtFlags::REMOVEDIR).map_err(|e| at("remove", &dir, e))?;
        }
    }
    unlinkat(&parent, &name, AtFlags::REMOVEDIR).map_err(|e| at("remove", &name, e))
}

/// Removes all entries except directories. Calls `with_dir` for each directory, and returns the
/// names of the directories.
fn remove_files(
    dir: BorrowedFd<'_>,
    mut with_dir: impl FnMut(&CStr) -> Result<(), Errno>,
) -> Result<Vec<CString>, RemoveError> {
    let failed = |operation, name: &CStr| {
        let name = name.to_owned();
        move |source: Errno| RemoveError::at(operation, &name, source)
    };
    let mut dirs = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed("read", c"the directory"))? {
        let entry = entry.map_err(failed("read", c"the directory"))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let file_type = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("inspect", name))?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        if file_type == FileType::Directory {
            with_dir(name).map_err(failed("move", name))?;
            dirs.push(name.to_owned());
        } else {
            unlinkat(dir, name, AtFlags::empty()).map_err(failed("remove", name))?;
        }
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn tree_is_removed_and_symlink_targets_stay() {
        let base = tempfile::tempdir().unwrap();
        let (outside, workspaces) = (base.path().join("outside"), base.path().join("workspaces"));
        fs::create_dir_all(outside.join("deep")).unwrap();
        fs::write(outside.join("deep/precious"), "x").unwrap();
        let home = workspaces.join("id/home");
        fs::create_dir_all(home.join("a/b")).unwrap();
        fs::create_dir_all(home.join(".removing-1/full")).unwrap();
        fs::write(home.join("a/b/file"), "x").unwrap();
        symlink(&outside, home.join("link")).unwrap();
        symlink(&outside, home.join("a/b/link")).unwrap();
        symlink("/", workspaces.join("id/state")).unwrap();
        fs::set_permissions(home.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&workspaces, "id").unwrap();
        assert!(!workspaces.join("id").exists());
        assert!(outside.join("deep/precious").exists());
        remove_tree(&workspaces, "id").unwrap();
    }

    /// Runs itself again in a separate mount namespace with bind mounts of the same file system.
    #[test]
    fn mounted_file_systems_are_not_removed() {
        if let Some(base) = std::env::var_os("REMOVE_MOUNTED_IN") {
            for id in ["near", "deep"] {
                let refused = remove_tree(&Path::new(&base).join("workspaces"), id).unwrap_err();
                assert!(matches!(refused, RemoveError::Mounted(_)), "{refused}");
            }
            return;
        }
        let base = tempfile::tempdir().unwrap();
        for dir in ["outside", "workspaces/near/home", "workspaces/deep/home/a/b"] {
            fs::create_dir_all(base.path().join(dir)).unwrap();
        }
        fs::write(base.path().join("outside/precious"), "x").unwrap();
        let mount =
            "mount --bind outside workspaces/near/home && mount --bind outside workspaces/deep/home/a/b";
        let run = "exec \"$0\" --exact backend::local::remove::tests::mounted_file_systems_are_not_removed";
        let ended = std::process::Command::new("unshare")
            .args(["-rm", "sh", "-c", &format!("{mount} || exit 77; {run}")])
            .arg(std::env::current_exe().unwrap())
            .env("REMOVE_MOUNTED_IN", base.path())
            .current_dir(base.path())
            .output();
        match ended {
            Ok(ended) if ended.status.success() => {
                assert!(base.path().join("outside/precious").exists());
            }
            Ok(ended) if ended.status.code() == Some(101) => {
                panic!("{}", String::from_utf8_lossy(&ended.stdout))
            }
            other => eprintln!("skipped: mounting is not permitted here: {other:?}"),
        }
    }

    #[test]
    fn symlinked_workspace_loses_only_its_link() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("outside")).unwrap();
        fs::write(base.path().join("outside/precious"), "x").unwrap();
        symlink("outside", base.path().join("id")).unwrap();
        remove_tree(base.path(), "id").unwrap();
        assert!(base.path().join("outside/precious").exists());
        assert!(fs::symlink_metadata(base.path().join("id")).is_err());
    }

    #[test]
    fn tree_deeper_than_the_descriptor_limit_is_removed() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("id")).unwrap();
        let mut at = openat(CWD, base.path().join("id"), OPEN_DIR_FLAGS, Mode::empty()).unwrap();
        for _ in 0..1100 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OPEN_DIR_FLAGS, Mode::empty()).unwrap();
        }
        remove_tree(base.path(), "id").unwrap();
        assert!(!base.path().join("id").exists());
    }
}
