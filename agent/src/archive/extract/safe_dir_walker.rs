//! Opens directories below the destination of an extraction, part by part and never through a
//! symbolic link, whether the link is in the workspace or in the zip.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{Mode, OFlags, mkdirat, openat},
    io::Errno,
};

/// Mode of directories that the zip does not list.
const IMPLIED_MODE: u32 = 0o755;

/// Opens directories below `base`. Caches the path that was opened last, because the next one is
/// often the same.
#[derive(Debug)]
pub(super) struct SafeDirWalker<'a> {
    base: &'a OwnedFd,
    /// Parts of the cached path; `dirs` has a descriptor for each.
    parts: Vec<Vec<u8>>,
    dirs: Vec<OwnedFd>,
}

impl<'a> SafeDirWalker<'a> {
    pub(super) fn new(base: &'a OwnedFd) -> Self {
        Self { base, parts: Vec::new(), dirs: Vec::new() }
    }

    /// Opens the directory at the path `directory`, relative to the base.
    pub(super) fn open(&mut self, directory: &[u8]) -> Result<&OwnedFd, Errno> {
        self.descend(directory, false)
    }

    /// Like [`Self::open`], but creates missing directories.
    pub(super) fn create(&mut self, directory: &[u8]) -> Result<&OwnedFd, Errno> {
        self.descend(directory, true)
    }

    fn descend(&mut self, directory: &[u8], create: bool) -> Result<&OwnedFd, Errno> {
        let parts = || directory.split(|b| *b == b'/').filter(|part| !part.is_empty());
        let same = self.parts.iter().zip(parts()).take_while(|(old, new)| old == new).count();
        self.parts.truncate(same);
        self.dirs.truncate(same);
        for part in parts().skip(same) {
            let dir = self.dirs.last().unwrap_or(self.base);
            let name = OsStr::from_bytes(part);
            let next = match openat(dir, name, OPEN_DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if create => {
                    mkdirat(dir, name, Mode::from_raw_mode(IMPLIED_MODE))?;
                    openat(dir, name, OPEN_DIRECTORY, Mode::empty())?
                }
                next => next?,
            };
            self.parts.push(part.to_vec());
            self.dirs.push(next);
        }
        Ok(self.dirs.last().unwrap_or(self.base))
    }
}

const OPEN_DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
