//! Following a path part by part, for kernels without openat2.
//!
//! Every part is opened with O_NOFOLLOW; a symbolic link is read and its parts are walked in turn, 40 links at most. ".." (only
//! links can hold it) is never opened: the way from the root is walked again without its last part, so that no folder moved
//! meanwhile can lead out.

use std::{
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, readlinkat, statat},
    io::Errno,
};

use super::{path::RelPath, root::SymlinkMode};

/// As the kernel's own limit.
const MAX_SYMLINKS: usize = 40;
/// How often the last part may turn into a link between looking and opening before the path counts as swapped.
const TRIES: usize = 64;

/// Where a path ends: a name in a folder, or (`None`) the folder itself.
pub(super) struct PathEnd {
    pub(super) dir: OwnedFd,
    pub(super) name: Option<OsString>,
}

/// Opens what `path` leads to. ELOOP stands for every way in which links forbid it.
pub(super) fn open(root: &OwnedFd, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let links = if flags.contains(OFlags::NOFOLLOW) { SymlinkMode::NoFollow } else { SymlinkMode::Follow };
    for _ in 0..TRIES {
        let end = resolve_end(root, path, links)?;
        let name = end.name.as_deref().unwrap_or(OsStr::new("."));
        let opened = openat(&end.dir, name, flags | OFlags::NOFOLLOW, Mode::empty());
        // Followed to its end, yet a link: it was swapped since.
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

/// Walks to the last part of `path`, which need not exist.
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

/// The way from the root once more; a part that is no folder now was swapped.
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
