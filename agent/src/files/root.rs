//! Opens the workspace root and the entries below it. All file operations of clients resolve their
//! paths with this module.
//!
//! The kernel confines paths, so that no path leads outside the workspace root. Whole paths are
//! opened with openat2(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS). Where the kernel lacks openat2
//! (gVisor, some seccomp filters), `component_walk` opens each component with O_NOFOLLOW and
//! resolves links itself. Changes use an [`EntryLocation`], which is the descriptor of the
//! directory and a plain name in it. It cannot lead elsewhere, even if an entry of the path is
//! swapped meanwhile.
//!
//! Symbolic links are followed if their target lies below the root. Absolute links are rejected,
//! even if they point below the root.

use std::{
    ffi::{OsStr, OsString},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fcntl_getfl, fcntl_setfl, fstat, openat,
        openat2, statat,
    },
    io::Errno,
};

use super::{
    component_walk,
    error::{FileError, map_errno},
    path::{BadPath, RelPath},
    temp::TempFiles,
};

/// Attempts of openat2, which returns EAGAIN when a rename raced with it. After the last attempt
/// the error is ELOOP.
const MAX_ATTEMPTS: usize = 64;

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
        let end = component_walk::resolve_end(&self.dir, path, SymlinkMode::Follow)
            .map_err(map_errno("open", path))?;
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
            PathResolver::Walk => component_walk::open(&self.dir, path, flags),
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

    pub(super) fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> FileError + use<> {
        let name = RelPath::parse(self.name.as_encoded_bytes()).unwrap_or(RelPath::ROOT);
        move |errno| map_errno(operation, &name)(errno)
    }
}
