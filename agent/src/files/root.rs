//! Paths as clients write them, and their resolution below the workspace root. All file operations
//! of clients resolve their paths with this module.
//!
//! The kernel confines paths, so that no path leads outside the workspace root. Parsing rejects
//! only malformed paths. Whole paths are opened with openat2(RESOLVE_BENEATH |
//! RESOLVE_NO_MAGICLINKS). Where the kernel lacks openat2 (gVisor, some seccomp filters),
//! [`open_by_components`] opens each component with O_NOFOLLOW and resolves links itself. Changes
//! use an [`EntryLocation`], which is the descriptor of the directory and a plain name in it. It
//! cannot lead elsewhere, even if an entry of the path is swapped meanwhile.
//!
//! Symbolic links are followed if their target lies below the root. Absolute links are rejected,
//! even if they point below the root.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fcntl_getfl, fcntl_setfl, fstat, openat,
        openat2, readlinkat, statat,
    },
    io::Errno,
};

use super::{FileError, map_errno, temp::TempFiles};

/// The kernel's PATH_MAX without its terminating NUL, in bytes.
const MAX_BYTES: usize = 4095;

/// Attempts to open a path that other processes change meanwhile, so that openat2 returns EAGAIN or
/// the last component becomes a link. After the last attempt the error is ELOOP.
const MAX_ATTEMPTS: usize = 64;

/// The kernel's own limit for one path.
const MAX_SYMLINKS: usize = 40;

/// A path relative to the workspace root, without empty parts, "." and "..". The empty path is the
/// root.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Vec<u8>);

/// Reason why a path of a client is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    #[error("is absolute; give it relative to the workspace root")]
    Absolute,
    #[error("contains \"..\"; give it relative to the workspace root")]
    DotDot,
    #[error("contains a NUL byte")]
    Nul,
    #[error("is too long; use at most 4,095 bytes, and 255 bytes for each part")]
    TooLong,
    /// The operation needs an entry below the root.
    #[error("is the workspace root itself; give an entry below it")]
    Root,
}

impl RelPath {
    pub const ROOT: Self = Self(Vec::new());

    /// Parses a path as a client wrote it.
    pub fn parse(path: impl AsRef<[u8]>) -> Result<Self, BadPath> {
        let path = path.as_ref();
        if path.first() == Some(&b'/') {
            return Err(BadPath::Absolute);
        }
        if path.contains(&0) {
            return Err(BadPath::Nul);
        }
        let mut parts = Vec::with_capacity(path.len());
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(BadPath::DotDot),
                _ => {
                    if !parts.is_empty() {
                        parts.push(b'/');
                    }
                    parts.extend_from_slice(part);
                }
            }
        }
        if parts.len() > MAX_BYTES {
            return Err(BadPath::TooLong);
        }
        Ok(Self(parts))
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Iterates over the parts of the path, outermost first.
    pub fn parts(&self) -> impl DoubleEndedIterator<Item = &OsStr> {
        self.0.split(|b| *b == b'/').filter(|part| !part.is_empty()).map(OsStr::from_bytes)
    }

    /// Splits the path into the parent directory and the name in it. Returns `None` for the root.
    pub fn split(&self) -> Option<(Self, &OsStr)> {
        if self.is_root() {
            return None;
        }
        let at = self.0.iter().rposition(|b| *b == b'/');
        let (directory, name) = at.map_or((&[][..], &self.0[..]), |at| (&self.0[..at], &self.0[at + 1..]));
        Some((Self(directory.to_vec()), OsStr::from_bytes(name)))
    }

    /// Iterates over the directories above the path, outermost first, without the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        self.0.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| Self(self.0[..at].to_vec()))
    }

    /// Returns the path for system calls, which is "." for the root.
    fn as_os_str(&self) -> &OsStr {
        if self.is_root() { OsStr::new(".") } else { OsStr::from_bytes(&self.0) }
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_os_str().to_string_lossy())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_os_str(), f)
    }
}

/// Method by which paths are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathResolver {
    /// One openat2 call for the whole path.
    Kernel,
    /// Component by component with O_NOFOLLOW.
    Walk,
}

/// Whether a symbolic link in the last component is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymlinkMode {
    /// Resolves to the target of the link.
    Follow,
    /// Resolves to the link itself.
    NoFollow,
}

/// The workspace root directory. All access below it goes through this type.
#[derive(Debug)]
pub struct WorkspaceRoot {
    dir: OwnedFd,
    resolver: PathResolver,
    temp_files: TempFiles,
}

/// A name in a directory that is held open.
#[derive(Debug)]
pub(super) struct EntryLocation {
    pub(super) dir: OwnedFd,
    pub(super) name: OsString,
}

impl WorkspaceRoot {
    /// Opens the root with openat2 if the kernel has it, else with the component walk.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let root = Self::open_with(path, PathResolver::Kernel)?;
        Ok(match root.resolve(&RelPath::ROOT, OFlags::PATH) {
            Ok(_) => root,
            Err(errno) => {
                tracing::info!(%errno, "openat2 unavailable, resolving paths component by component");
                Self { resolver: PathResolver::Walk, ..root }
            }
        })
    }

    /// Opens the root with the given resolver.
    pub fn open_with(path: &Path, resolver: PathResolver) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { dir, resolver, temp_files: TempFiles::new() })
    }

    /// Syncs the file system of the root to disk.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        Ok(rustix::fs::syncfs(&self.dir)?)
    }

    pub(crate) fn temp_files(&self) -> &TempFiles {
        &self.temp_files
    }

    /// Opens an entry with O_PATH, for its metadata only.
    pub(super) fn open_path(&self, path: &RelPath, links: SymlinkMode) -> Result<OwnedFd, FileError> {
        let flags = match links {
            SymlinkMode::Follow => OFlags::PATH,
            SymlinkMode::NoFollow => OFlags::PATH | OFlags::NOFOLLOW,
        };
        self.resolve(path, flags).map_err(map_errno("read the metadata of", path))
    }

    /// Opens a directory for reading its entries.
    pub(crate) fn open_directory(&self, path: &RelPath) -> Result<OwnedFd, FileError> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(map_errno("open", path))
    }

    /// Opens a regular file for reading. Other kinds are never opened, because opening a pipe wakes
    /// its writer, and opening a device may have side effects.
    pub(super) fn open_file(&self, path: &RelPath) -> Result<(OwnedFd, Stat), FileError> {
        let regular = |fd: &OwnedFd| {
            let stat = fstat(fd).map_err(map_errno("read the metadata of", path))?;
            let problem = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => return Ok(stat),
                FileType::Directory => "is a directory",
                FileType::Symlink => "is a symbolic link",
                _ => "is a pipe, a socket or a device",
            };
            Err(FileError::WrongKind { path: path.to_string(), problem })
        };
        regular(&self.open_path(path, SymlinkMode::Follow)?)?;
        // The file may have been swapped meanwhile. O_NONBLOCK avoids blocking on a pipe, and the
        // opened file is checked once more.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.resolve(path, flags).map_err(map_errno("open", path))?;
        let stat = regular(&file)?;
        let plain = fcntl_getfl(&file).and_then(|f| fcntl_setfl(&file, f - OFlags::NONBLOCK));
        plain.map_err(map_errno("open", path))?;
        Ok((file, stat))
    }

    /// Locates an entry for creating, moving or removing it. A link in the last component is not
    /// followed.
    pub(super) fn locate(&self, path: &RelPath) -> Result<EntryLocation, FileError> {
        let (directory, name) = path
            .split()
            .ok_or_else(|| FileError::BadPath { path: path.to_string(), problem: BadPath::Root })?;
        let dir = self
            .resolve(&directory, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(map_errno("open", &directory))?;
        Ok(EntryLocation { dir, name: name.to_owned() })
    }

    /// Locates the file that a write to `path` replaces. A symbolic link is followed to its target,
    /// which may be missing.
    pub(super) fn destination(&self, path: &RelPath) -> Result<EntryLocation, FileError> {
        let location = self.locate(path)?;
        if !location.stat()?.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Symlink) {
            return Ok(location);
        }
        let end = resolve_end(&self.dir, path, SymlinkMode::Follow).map_err(map_errno("open", path))?;
        match end.name {
            Some(name) => Ok(EntryLocation { dir: end.dir, name }),
            None => Err(map_errno("open", path)(Errno::ISDIR)),
        }
    }

    /// Resolves a path below the root. Every access uses this function.
    fn resolve(&self, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        match self.resolver {
            PathResolver::Kernel => open_beneath(&self.dir, path.as_os_str(), flags),
            PathResolver::Walk => open_by_components(&self.dir, path, flags),
        }
    }
}

/// Opens `path` with openat2. Returns ELOOP if a symbolic link leads outside, forms a loop or
/// changes meanwhile.
fn open_beneath(dir: &OwnedFd, path: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_ATTEMPTS {
        match openat2(dir, path, flags, Mode::empty(), beneath) {
            Err(Errno::AGAIN) => {}
            Err(Errno::XDEV) => return Err(Errno::LOOP),
            done => return done,
        }
    }
    Err(Errno::LOOP)
}

impl EntryLocation {
    /// Returns the metadata of the entry itself, or `None` if it does not exist.
    pub(super) fn stat(&self) -> Result<Option<Stat>, FileError> {
        match statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("read the metadata of")(errno)),
        }
    }

    /// Syncs the directory, which makes its entries durable.
    pub(super) fn sync_directory(&self) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(self.dir.as_fd(), ".", flags, Mode::empty()) {
            Ok(dir) => rustix::fs::fsync(&dir),
            // A directory with write but no read permission cannot be opened for the sync. The
            // rename is valid all the same.
            Err(Errno::ACCESS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> FileError + use<> {
        let name = RelPath::parse(self.name.as_encoded_bytes()).unwrap_or(RelPath::ROOT);
        move |errno| map_errno(operation, &name)(errno)
    }
}

/// End of a resolved path. It is a name in a directory, or the directory itself if `name` is
/// `None`.
struct PathEnd {
    dir: OwnedFd,
    name: Option<OsString>,
}

/// Opens the entry at `path` component by component, for kernels without openat2. Returns ELOOP if
/// a symbolic link leads outside, forms a loop or changes meanwhile.
///
/// Every component is opened with O_NOFOLLOW. The components of a symbolic link are walked in turn,
/// with at most 40 links per path. ".." occurs only in links and is never opened. Instead, the path
/// is walked again from the root without its last component, so that a directory that was moved
/// meanwhile cannot lead outside.
fn open_by_components(root: &OwnedFd, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
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
fn resolve_end(root: &OwnedFd, path: &RelPath, links: SymlinkMode) -> Result<PathEnd, Errno> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn path_parsing_normalises_and_rejects() {
        let parse = |p: &str| RelPath::parse(p).map(|p| p.to_string());
        assert_eq!(parse("a//b/./c/"), Ok("a/b/c".into()));
        assert_eq!(parse(""), Ok(".".into()));
        assert_eq!(parse("./."), Ok(".".into()));
        assert_eq!(parse("..a/b.."), Ok("..a/b..".into()), "two dots are harmless inside a name");
        assert_eq!(parse("/etc/passwd"), Err(BadPath::Absolute));
        assert_eq!(parse("a/../b"), Err(BadPath::DotDot));
        assert_eq!(parse("a\0b"), Err(BadPath::Nul));
        assert_eq!(parse(&"x/".repeat(3000)), Err(BadPath::TooLong));
    }

    proptest! {
        #[test]
        fn parsed_path_has_plain_parts_and_reparses(
            bytes in prop::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..64),
        ) {
            if let Ok(path) = RelPath::parse(&bytes) {
                for part in path.parts() {
                    prop_assert!(!matches!(part.as_bytes(), b"" | b"." | b".."));
                    prop_assert!(!part.as_bytes().iter().any(|b| matches!(b, b'/' | 0)));
                }
                prop_assert_eq!(RelPath::parse(path.as_os_str().as_bytes()), Ok(path.clone()));
                if let Some((directory, name)) = path.split() {
                    let joined = [directory.as_os_str().as_bytes(), b"/", name.as_bytes()].concat();
                    prop_assert_eq!(RelPath::parse(joined), Ok(path.clone()));
                    prop_assert_eq!(path.ancestors().last().unwrap_or(RelPath::ROOT), directory);
                }
            }
        }
    }
}
