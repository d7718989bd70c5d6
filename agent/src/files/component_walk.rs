//! Resolves a path component by component, for kernels without openat2.
//!
//! Every component is opened with O_NOFOLLOW. The components of a symbolic link are walked in turn,
//! with at most 40 links per path. ".." occurs only in links and is never opened. Instead, the path
//! is walked again from the root without its last component, so that a directory that was moved
//! meanwhile cannot lead outside.

use std::{
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, readlinkat, statat},
    io::Errno,
};

use super::{path::RelPath, root::SymlinkMode};

/// The kernel's own limit for one path.
const MAX_SYMLINKS: usize = 40;
/// Attempts to open a path whose last component becomes a link between resolving and opening. After
/// the last attempt the error is ELOOP.
const MAX_ATTEMPTS: usize = 64;

/// End of a resolved path. It is a name in a directory, or the directory itself if `name` is
/// `None`.
pub(super) struct PathEnd {
    pub(super) dir: OwnedFd,
    pub(super) name: Option<OsString>,
}

/// Opens the entry at `path`. Returns ELOOP if a symbolic link leads outside, forms a loop or
/// changes meanwhile.
pub(super) fn open(root: &OwnedFd, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let links = if flags.contains(OFlags::NOFOLLOW) { SymlinkMode::NoFollow } else { SymlinkMode::Follow };
    for _ in 0..MAX_ATTEMPTS {
        let end = resolve_end(root, path, links)?;
        let name = end.name.as_deref().unwrap_or(OsStr::new("."));
        let opened = openat(&end.dir, name, flags | OFlags::NOFOLLOW, Mode::empty());
        // The path was resolved to its end, but is a link: it was swapped meanwhile.
        let swapped = links == SymlinkMode::Follow
            && match &opened {
                Ok(fd) => is_link(fstat(fd)?.st_mode),
                Err(Errno::LOOP) => true,
                Err(Errno::NOTDIR) => {
                    statat(&end.dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|s| is_link(s.st_mode))
                }
                Err(_) => false,
            };
        if !swapped {
            return opened;
        }
    }
    Err(Errno::LOOP)
}

/// Resolves `path` up to its last component, which need not exist.
pub(super) fn resolve_end(root: &OwnedFd, path: &RelPath, links: SymlinkMode) -> Result<PathEnd, Errno> {
    let mut remaining: Vec<OsString> = path.parts().rev().map(OsStr::to_owned).collect();
    let mut walked: Vec<OsString> = Vec::new();
    let mut dir = open_component(root, OsStr::new("."))?;
    let mut followed = 0;
    while let Some(part) = remaining.pop() {
        if part == ".." {
            walked.pop().ok_or(Errno::LOOP)?;
            dir = reopen(root, &walked)?;
            continue;
        }
        let last = remaining.is_empty();
        if last && links == SymlinkMode::NoFollow {
            return Ok(PathEnd { dir, name: Some(part) });
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = match openat(&dir, &part, flags, Mode::empty()) {
            Err(Errno::NOENT) if last => return Ok(PathEnd { dir, name: Some(part) }),
            opened => opened?,
        };
        match FileType::from_raw_mode(fstat(&next)?.st_mode) {
            FileType::Symlink => {
                followed += 1;
                let target = readlinkat(&next, "", Vec::new())?.into_bytes();
                if followed > MAX_SYMLINKS || target.first() == Some(&b'/') {
                    return Err(Errno::LOOP);
                }
                let parts = target.split(|b| *b == b'/').rev();
                remaining.extend(
                    parts.filter(|p| !matches!(*p, b"" | b".")).map(|p| OsStr::from_bytes(p).to_owned()),
                );
            }
            _ if last => return Ok(PathEnd { dir, name: Some(part) }),
            FileType::Directory => {
                dir = next;
                walked.push(part);
            }
            _ => return Err(Errno::NOTDIR),
        }
    }
    Ok(PathEnd { dir, name: None })
}

/// Walks the components again from the root. A component that is no longer a directory was swapped.
fn reopen(root: &OwnedFd, parts: &[OsString]) -> Result<OwnedFd, Errno> {
    let start = open_component(root, OsStr::new("."))?;
    parts.iter().try_fold(start, |dir, part| match open_component(&dir, part) {
        Err(Errno::NOTDIR) => Err(Errno::LOOP),
        opened => opened,
    })
}

fn open_component(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn is_link(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::Symlink
}
