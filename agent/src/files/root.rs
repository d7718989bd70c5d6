//! The workspace root and the only ways to something below it.
//!
//! Law 10: the kernel confines. Whole paths are opened with openat2(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS); where the kernel
//! lacks it (gVisor, some seccomp filters) `walk` opens part by part, never through a link. What changes something gets a
//! [`EntryLocation`]: the descriptor of the folder and one plain name in it, which cannot lead anywhere else whatever is swapped
//! meanwhile.
//!
//! Symbolic links are followed as long as they stay inside; absolute links count as leaving, even if they point inside.

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

/// openat2 answers EAGAIN when something was renamed while it looked; how often it is asked again before the path counts as
/// swapped.
const TRIES: usize = 64;

/// Who follows a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathResolver {
    /// openat2.
    Kernel,
    /// Part by part with O_NOFOLLOW.
    Walk,
}

/// Whether the last part of a path is followed if it is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymlinkMode {
    /// Look at what it points to.
    Follow,
    /// Look at the link itself.
    NoFollow,
}

/// The workspace root.
#[derive(Debug)]
pub struct WorkspaceRoot {
    dir: OwnedFd,
    resolver: PathResolver,
    temp_files: TempFiles,
}

/// A name in a folder that is held open.
#[derive(Debug)]
pub(super) struct EntryLocation {
    pub(super) dir: OwnedFd,
    pub(super) name: OsString,
}

impl WorkspaceRoot {
    /// Opens the root, with the best resolver the kernel has.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let root = Self::open_with(path, PathResolver::Kernel)?;
        Ok(match root.resolve(&RelPath::ROOT, OFlags::PATH) {
            Ok(_) => root,
            Err(errno) => {
                tracing::info!(%errno, "no openat2 here: paths are walked part by part");
                Self { resolver: PathResolver::Walk, ..root }
            }
        })
    }

    /// Opens the root with a resolver of one's choice.
    pub fn open_with(path: &Path, resolver: PathResolver) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { dir, resolver, temp_files: TempFiles::new() })
    }

    /// Brings the file system of the root to disk.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        Ok(rustix::fs::syncfs(&self.dir)?)
    }

    pub(crate) fn temp_files(&self) -> &TempFiles {
        &self.temp_files
    }

    /// A descriptor for looking only (O_PATH).
    pub(super) fn open_path(&self, path: &RelPath, links: SymlinkMode) -> Result<OwnedFd, FileError> {
        let flags = match links {
            SymlinkMode::Follow => OFlags::PATH,
            SymlinkMode::NoFollow => OFlags::PATH | OFlags::NOFOLLOW,
        };
        self.resolve(path, flags).map_err(map_errno("look at", path))
    }

    /// A folder, for reading its entries.
    pub(crate) fn open_directory(&self, path: &RelPath) -> Result<OwnedFd, FileError> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(map_errno("open", path))
    }

    /// A regular file, for reading. Nothing else is ever opened: a pipe would wake its writer, a device might do anything.
    pub(super) fn open_file(&self, path: &RelPath) -> Result<(OwnedFd, Stat), FileError> {
        let regular = |fd: &OwnedFd| {
            let stat = fstat(fd).map_err(map_errno("look at", path))?;
            let problem = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => return Ok(stat),
                FileType::Directory => "is a folder",
                FileType::Symlink => "is a symbolic link",
                _ => "is a pipe, a socket or a device",
            };
            Err(FileError::WrongKind { path: path.to_string(), problem })
        };
        regular(&self.open_path(path, SymlinkMode::Follow)?)?;
        // It may have been swapped meanwhile: O_NONBLOCK, and a second look at what was really opened.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.resolve(path, flags).map_err(map_errno("open", path))?;
        let stat = regular(&file)?;
        let plain = fcntl_getfl(&file).and_then(|f| fcntl_setfl(&file, f - OFlags::NONBLOCK));
        plain.map_err(map_errno("open", path))?;
        Ok((file, stat))
    }

    /// Where the entry itself is, for making, moving and removing it. A link at the last part is not followed.
    pub(super) fn locate(&self, path: &RelPath) -> Result<EntryLocation, FileError> {
        let (folder, name) = path
            .split()
            .ok_or_else(|| FileError::BadPath { path: path.to_string(), problem: BadPath::Root })?;
        let dir =
            self.resolve(&folder, OFlags::PATH | OFlags::DIRECTORY).map_err(map_errno("open", &folder))?;
        Ok(EntryLocation { dir, name: name.to_owned() })
    }

    /// Where content written to `path` goes: through a symbolic link to the file it points to, which may be missing.
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

    /// The one way below the root.
    fn resolve(&self, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        match self.resolver {
            PathResolver::Kernel => open_beneath(&self.dir, path.as_os_str(), flags),
            PathResolver::Walk => component_walk::open(&self.dir, path, flags),
        }
    }
}

/// ELOOP stands for every way in which links on the path forbid it.
fn open_beneath(dir: &OwnedFd, path: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(dir, path, flags, Mode::empty(), beneath) {
            Err(Errno::AGAIN) => {}
            Err(Errno::XDEV) => return Err(Errno::LOOP),
            done => return done,
        }
    }
    Err(Errno::LOOP)
}

impl EntryLocation {
    /// What is there now, itself; `None` if nothing.
    pub(super) fn stat(&self) -> Result<Option<Stat>, FileError> {
        match statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("look at")(errno)),
        }
    }

    /// Makes the folder's entries durable.
    pub(super) fn sync_directory(&self) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(self.dir.as_fd(), ".", flags, Mode::empty()) {
            Ok(dir) => rustix::fs::fsync(&dir),
            // A folder one may write to but not read cannot be opened for this; the rename stands all the same.
            Err(Errno::ACCESS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> FileError + use<> {
        let name = RelPath::parse(self.name.as_encoded_bytes()).unwrap_or(RelPath::ROOT);
        move |errno| map_errno(operation, &name)(errno)
    }
}
