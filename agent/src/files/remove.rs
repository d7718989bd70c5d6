//! Removing, a folder with all that is in it.
//!
//! The tree is walked by descriptors and never through a link. Only the folder at hand is open: the way back up is "..", checked
//! to be the folder it was entered from, so that neither depth nor swapping can lead astray. Everything here blocks, in steps.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, unlinkat},
    io::Errno,
};

use super::{
    error::{FileError, failed},
    path::RelPath,
    root::{Place, WorkspaceRoot},
};

/// Entries removed before somebody may say that it is no longer wanted.
const STEP: u64 = 1_000;
/// Folders remembered in each open level of the tree; more are found by reading the folder again.
const FOLDERS: usize = 256;
/// How often a folder that somebody keeps changing is read again.
const ROUNDS: usize = 1_024;

/// A removal under way.
#[derive(Debug)]
pub(super) struct Removal {
    path: RelPath,
    place: Place,
    removed: u64,
    tree: Option<Tree>,
}

/// The folder at hand and those above it, up to the one that is to be removed.
#[derive(Debug)]
struct Tree {
    here: OwnedFd,
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    id: (u64, u64),
    name: OsString,
    folders: Vec<OsString>,
    rounds: usize,
}

impl Removal {
    /// Removes the entry if it can be done at once; otherwise [`Removal::step`] goes on.
    pub(super) fn begin(root: &WorkspaceRoot, path: RelPath, recursive: bool) -> Result<Self, FileError> {
        let place = root.place(&path)?;
        let failed = failed("remove", &path);
        let stat = place.stat()?.ok_or_else(|| FileError::NotFound { path: path.to_string() })?;
        let mut removed = 1;
        let mut tree = None;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            unlinkat(&place.dir, &place.name, AtFlags::empty()).map_err(failed)?;
        } else if recursive {
            let (here, level) = enter(place.dir.as_fd(), &place.name).map_err(failed)?;
            tree = Some(Tree { here, levels: vec![level] });
            removed = 0;
        } else {
            match unlinkat(&place.dir, &place.name, AtFlags::REMOVEDIR) {
                // What a killed agent left is nothing the client could see.
                Err(Errno::NOTEMPTY | Errno::EXIST) if sweep(root, &place) => {
                    unlinkat(&place.dir, &place.name, AtFlags::REMOVEDIR)
                }
                done => done,
            }
            .map_err(failed)?;
        }
        Ok(Self { path, place, removed, tree })
    }

    /// Removes some more; `Some` when all is gone: how many entries went.
    pub(super) fn step(&mut self) -> Result<Option<u64>, FileError> {
        let until = self.removed + STEP;
        while self.removed < until {
            let Some(tree) = &mut self.tree else { break };
            let emptied = tree.empty(&mut self.removed).map_err(failed("remove from", &self.path))?;
            if emptied {
                unlinkat(&self.place.dir, &self.place.name, AtFlags::REMOVEDIR)
                    .map_err(failed("remove", &self.path))?;
                self.removed += 1;
                self.tree = None;
            }
        }
        if self.tree.is_some() {
            return Ok(None);
        }
        self.place.sync_folder().map_err(failed("remove", &self.path))?;
        Ok(Some(self.removed))
    }
}

impl Tree {
    /// One folder's files, then down or up; `true` when the outermost folder is empty.
    fn empty(&mut self, removed: &mut u64) -> Result<bool, Errno> {
        let Some(level) = self.levels.last_mut() else { return Ok(true) };
        if let Some(name) = level.folders.pop() {
            match enter(self.here.as_fd(), &name) {
                Ok((here, level)) => {
                    self.here = here;
                    self.levels.push(level);
                }
                // Gone, or something else by now: the next reading of the folder sees it.
                Err(errno @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => level.again(errno)?,
                Err(errno) => return Err(errno),
            }
            return Ok(false);
        }
        level.folders = remove_files(&self.here, removed)?;
        if !level.folders.is_empty() {
            return Ok(false);
        }
        if self.levels.len() == 1 {
            return Ok(true);
        }
        self.up(removed)?;
        Ok(false)
    }

    /// Removes the folder at hand, which is empty, and goes back to the one above.
    fn up(&mut self, removed: &mut u64) -> Result<(), Errno> {
        let Some(done) = self.levels.pop() else { return Ok(()) };
        let above = openat(&self.here, "..", FLAGS, Mode::empty())?;
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        if id(&above)? != level.id {
            // Somebody moved it away meanwhile: this is no longer the tree that was to go.
            return Err(Errno::LOOP);
        }
        self.here = above;
        match unlinkat(&self.here, &done.name, AtFlags::REMOVEDIR) {
            Ok(()) => *removed += 1,
            Err(Errno::NOENT) => {}
            // Filled again, or swapped: the folder is read once more.
            Err(errno @ (Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR)) => level.again(errno)?,
            Err(errno) => return Err(errno),
        }
        Ok(())
    }
}

impl Level {
    /// Somebody else is at work here: tried again, but not for ever.
    fn again(&mut self, errno: Errno) -> Result<(), Errno> {
        self.rounds += 1;
        if self.rounds > ROUNDS { Err(errno) } else { Ok(()) }
    }
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn enter(dir: impl AsFd, name: &OsStr) -> Result<(OwnedFd, Level), Errno> {
    let here = openat(dir, name, FLAGS, Mode::empty())?;
    let level = Level { id: id(&here)?, name: name.to_owned(), folders: Vec::new(), rounds: 0 };
    Ok((here, level))
}

fn id(dir: &OwnedFd) -> Result<(u64, u64), Errno> {
    fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Removes all that is no folder; the first folders come back.
fn remove_files(here: &OwnedFd, removed: &mut u64) -> Result<Vec<OsString>, Errno> {
    let mut folders = Vec::new();
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
                // A folder after all: the file system tells no kinds, or it was swapped.
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
        folders.push(name.to_owned());
        if folders.len() == FOLDERS {
            break;
        }
    }
    Ok(folders)
}

/// Removes what a killed agent left in a folder; whether there was anything.
fn sweep(root: &WorkspaceRoot, place: &Place) -> bool {
    let Ok((dir, _)) = enter(place.dir.as_fd(), &place.name) else { return false };
    let Ok(entries) = Dir::read_from(&dir) else { return false };
    let swept = |entry: rustix::fs::DirEntry| {
        root.temps().sweep(dir.as_fd(), OsStr::from_bytes(entry.file_name().to_bytes()))
    };
    entries.flatten().map(swept).fold(false, |any, one| any | one)
}
