//! Client operations on files below the workspace root. Independent of gRPC and HTTP.
//!
//! All work blocks. It runs on the blocking pool in pieces, such as a block of 1 MiB, a page of
//! 1,000 entries, or one step of a removal. If a caller drops an operation, the operation stops
//! after the current piece, and a write leaves nothing behind.

mod change;
mod list;
mod read;
mod root;
mod temp;
mod upload;
mod write;

use std::{
    convert::Infallible,
    ffi::OsStr,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::{
    fs::{
        AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, linkat, mkdirat, openat,
        renameat, renameat_with, statat, unlinkat,
    },
    io::Errno,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};
use tokio_util::task::TaskTracker;

use self::{change::Removal, list::Listing, upload::Uploads, write::FileWriter};
pub(crate) use self::{change::mkdir, list::smallest_names, temp::is_temp_file, write::WriteBehind};
pub use self::{
    list::{FileEntry, FileKind},
    read::{FileReader, PIECE_BYTES},
    root::{BadPath, PathResolver, RelPath, SymlinkMode, WorkspaceRoot},
    upload::{MAX_UPLOADS, UPLOAD_IDLE_TIMEOUT, UploadProgress},
    write::{StreamedWrite, WriteOptions, WrittenFile},
};
use crate::admission::{AdmissionGate, Intent, Rejection};

/// Files read at once, with 2 MiB of memory each at most. The next request fails with
/// TOO_MANY_STREAMS.
pub const MAX_READERS: usize = 128;
/// Files written by streams at once, with 4 MiB of memory each at most. The next request fails with
/// TOO_MANY_STREAMS.
pub const MAX_WRITERS: usize = 128;
/// Directories listed at once, with about 5 MiB of memory each at most. The next request fails with
/// TOO_MANY_STREAMS.
pub const MAX_LISTINGS: usize = 64;

/// Client operations on the files of the workspace. Clones share one state.
#[derive(Debug, Clone)]
pub struct Files {
    shared: Arc<FilesShared>,
}

#[derive(Debug)]
struct FilesShared {
    root: Arc<WorkspaceRoot>,
    gate: Arc<AdmissionGate>,
    uploads: Uploads,
    readers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
    listings: Arc<Semaphore>,
    /// Each piece of work that changes something holds a token.
    changes: TaskTracker,
}

impl Files {
    /// Serves the files below `root`. [`Files::expire_uploads`] must run beside it.
    pub fn new(root: impl Into<Arc<WorkspaceRoot>>, gate: Arc<AdmissionGate>) -> Self {
        Self::with_upload_idle_timeout(root, gate, UPLOAD_IDLE_TIMEOUT)
    }

    /// Like [`Files::new`], with another idle timeout for uploads than [`UPLOAD_IDLE_TIMEOUT`].
    pub fn with_upload_idle_timeout(
        root: impl Into<Arc<WorkspaceRoot>>,
        gate: Arc<AdmissionGate>,
        upload_idle_timeout: Duration,
    ) -> Self {
        Self {
            shared: Arc::new(FilesShared {
                root: root.into(),
                gate,
                uploads: Uploads::new(upload_idle_timeout),
                readers: Arc::new(Semaphore::new(MAX_READERS)),
                writers: Arc::new(Semaphore::new(MAX_WRITERS)),
                listings: Arc::new(Semaphore::new(MAX_LISTINGS)),
                changes: TaskTracker::new(),
            }),
        }
    }

    /// Removes expired uploads in an endless loop. Exactly one task runs this.
    pub async fn expire_uploads(&self) -> Infallible {
        loop {
            tokio::time::sleep_until(self.shared.uploads.remove_expired().into()).await;
        }
    }

    /// Returns the metadata of an entry.
    pub async fn stat(&self, path: RelPath, links: SymlinkMode) -> Result<FileEntry, FileError> {
        self.run_blocking(move |shared| {
            let fd = shared.root.open_path(&path, links)?;
            let name = path.split().map(|(_, name)| name.to_owned()).unwrap_or_default();
            FileEntry::from_fd(&name, &fd).map_err(map_errno("read the metadata of", &path))
        })
        .await
    }

    /// Lists a directory in pages, sorted by name. An empty directory has no page.
    pub async fn list(
        &self,
        path: RelPath,
    ) -> Result<impl Stream<Item = Result<Vec<FileEntry>, FileError>> + Send + use<>, FileError> {
        let permit = acquire_permit(&self.shared.listings, MAX_LISTINGS)?;
        let listing = self.run_blocking(move |shared| Listing::open(&shared.root, path)).await?;
        let start = (self.clone(), listing, permit);
        Ok(stream::try_unfold(start, |(files, mut listing, permit)| async move {
            let work = move |shared: &FilesShared| Ok((listing.page(&shared.root)?, listing));
            let (page, listing) = files.run_blocking(work).await?;
            Ok((!page.is_empty()).then_some((page, (files, listing, permit))))
        }))
    }

    pub async fn read(&self, path: RelPath) -> Result<FileReader, FileError> {
        let permit = acquire_permit(&self.shared.readers, MAX_READERS)?;
        self.run_blocking(move |shared| FileReader::open(&shared.root, path, permit)).await
    }

    /// Starts to write a file from a stream.
    pub async fn write(&self, path: RelPath, options: WriteOptions) -> Result<StreamedWrite, FileError> {
        let permit = acquire_permit(&self.shared.writers, MAX_WRITERS)?;
        let writer = self.run_change(move |shared| FileWriter::open(&shared.root, path, options)).await?;
        Ok(StreamedWrite::new(writer, self.shared.gate.clone(), self.shared.changes.clone(), permit))
    }

    /// Starts an upload in chunks and returns its id.
    pub async fn begin_upload(&self, path: RelPath, options: WriteOptions) -> Result<String, FileError> {
        self.run_change(move |shared| shared.uploads.begin(&shared.root, path, options)).await
    }

    /// Writes the next chunk of an upload.
    pub async fn chunk(
        &self,
        upload: String,
        offset: u64,
        data: Bytes,
        finish: bool,
    ) -> Result<UploadProgress, FileError> {
        self.shared.gate.admit(Intent::ClientWrite).await?;
        let token = self.shared.changes.token();
        self.shared.uploads.chunk(upload, offset, data, finish, token).await
    }

    /// Creates a directory. With `parents` it creates missing ones above it, and an existing
    /// directory is not an error.
    pub async fn mkdir(&self, path: RelPath, mode: Option<u32>, parents: bool) -> Result<(), FileError> {
        self.run_change(move |shared| change::mkdir(&shared.root, &path, mode, parents)).await
    }

    /// Sets the permission bits of a directory.
    pub async fn set_directory_mode(&self, path: RelPath, mode: u32) -> Result<(), FileError> {
        self.run_change(move |shared| change::set_directory_mode(&shared.root, &path, mode)).await
    }

    /// Moves an entry. Replaces an existing target only with `replace`.
    pub async fn rename(&self, from: RelPath, to: RelPath, replace: bool) -> Result<(), FileError> {
        self.run_change(move |shared| change::rename(&shared.root, &from, &to, replace)).await
    }

    /// Removes an entry and returns the number of entries removed.
    pub async fn remove(&self, path: RelPath, recursive: bool) -> Result<u64, FileError> {
        let mut removal =
            self.run_change(move |shared| Removal::begin(&shared.root, path, recursive)).await?;
        loop {
            let done;
            (done, removal) = self.run_change(move |_| Ok((removal.step()?, removal))).await?;
            if let Some(removed) = done {
                return Ok(removed);
            }
        }
    }

    /// Waits for the changes in progress, then syncs the file system of the root. Must be called
    /// after the admission gate has stopped admitting changes.
    pub async fn drain_and_sync(&self) -> io::Result<()> {
        self.shared.changes.close();
        self.shared.changes.wait().await;
        let shared = self.shared.clone();
        spawn_blocking(move || shared.root.sync()).await.map_err(io::Error::other)?
    }

    /// Runs work that changes something, once the admission gate has admitted it.
    /// [`Files::drain_and_sync`] waits for the work even if its caller is gone.
    async fn run_change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FilesShared) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        self.shared.gate.admit(Intent::ClientWrite).await?;
        let token = self.shared.changes.token();
        self.run_blocking(move |shared| {
            let _under_way = token;
            work(shared)
        })
        .await
    }

    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FilesShared) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let shared = self.shared.clone();
        let done = spawn_blocking(move || work(&shared)).await;
        done.map_err(|_| FileError::Fault { operation: "working on files" })?
    }
}

fn acquire_permit(permits: &Arc<Semaphore>, limit: usize) -> Result<OwnedSemaphorePermit, FileError> {
    permits.clone().try_acquire_owned().map_err(|_| FileError::TooManyStreams { limit })
}

/// Reason why a file operation failed. Each `path` is relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The path is malformed, too long, or the root where the operation needs an entry.
    #[error("path {path} {problem}")]
    BadPath {
        /// As the client sent it.
        path: String,
        problem: BadPath,
    },
    /// Another argument is outside its range.
    #[error("{field}: must be {allowed}")]
    BadField {
        /// Name of the field in the proto.
        field: &'static str,
        /// Allowed values, in words that follow "must be".
        allowed: &'static str,
    },
    #[error("{path}: no such file or directory")]
    NotFound { path: String },
    #[error("{path}: already exists")]
    Exists { path: String },
    /// The entry has another kind than the operation needs.
    #[error("{path}: {problem}")]
    WrongKind {
        path: String,
        /// The actual kind, or the required kind that it does not have.
        problem: &'static str,
    },
    #[error("{path}: the directory is not empty")]
    NotEmpty { path: String },
    #[error(
        "{path}: a symbolic link in the path is absolute, loops, leaves the workspace or changed meanwhile"
    )]
    Escapes { path: String },
    /// The disk or a quota is full. The old content is untouched.
    #[error("{path}: the disk is full ({errno}); remove files and retry")]
    DiskFull {
        /// The file that was being written, or the extraction that lacks space.
        path: String,
        /// Either ENOSPC or EDQUOT.
        errno: Errno,
    },
    /// The agent or the machine has no file descriptor left.
    #[error("{path}: too many open files ({errno})")]
    NoDescriptors {
        /// The file that was being opened.
        path: String,
        /// Either EMFILE or ENFILE.
        errno: Errno,
    },
    /// A message exceeds its limit, or a file exceeds the limit of its file system.
    #[error("{what} is too large{}", describe_limit(.limit.as_ref()))]
    TooLarge {
        what: String,
        /// In bytes, if it is a fixed limit.
        limit: Option<usize>,
    },
    /// The content differs from the SHA-256 that the client announced. Nothing was changed.
    #[error("{path}: the content's SHA-256 is {got}, not {promised}; nothing was written")]
    DigestMismatch {
        path: String,
        /// As 64 hexadecimal digits.
        promised: String,
        /// As 64 hexadecimal digits.
        got: String,
    },
    #[error("{path}: offset {offset} lies after the end of the file at {size}")]
    BadOffset { path: String, offset: u64, size: u64 },
    #[error("{path}: the file shrank to {end} bytes while it was read; read it again")]
    Shrunk {
        path: String,
        /// Length of the file now, in bytes.
        end: u64,
    },
    #[error("a chunk at offset {offset} leaves a gap; send from offset {expected}")]
    InputGap {
        /// Offset of the rejected chunk.
        offset: u64,
        /// Offset of the next byte expected.
        expected: u64,
    },
    #[error("no such upload: it expired, failed or never existed; start again")]
    UploadNotFound { id: String },
    /// [`MAX_UPLOADS`] uploads are in progress.
    #[error("{limit} uploads are already in progress; finish one or retry later")]
    TooManyUploads { limit: usize },
    /// All stream permits of this kind are in use.
    #[error("{limit} file reads, writes or listings of this kind are already open; close one or retry later")]
    TooManyStreams { limit: usize },
    /// The admission gate rejected the operation.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// An internal fault of the agent.
    #[error("internal fault of the agent while {operation}")]
    Fault {
        /// Activity of the agent, such as `writing a file`.
        operation: &'static str,
    },
    /// Any other error of the operating system.
    #[error("cannot {operation} {path}: {errno}")]
    Io { operation: &'static str, path: String, errno: Errno },
}

fn describe_limit(limit: Option<&usize>) -> String {
    limit.map_or_else(
        || " for its file system; write less data".to_owned(),
        |limit| format!("; send at most {limit} bytes at once"),
    )
}

/// Maps an errno of an operation on `path` to the error that clients see.
pub(crate) fn map_errno<'a>(operation: &'static str, path: &'a RelPath) -> impl Fn(Errno) -> FileError + 'a {
    move |errno| {
        let path = path.to_string();
        match errno {
            Errno::NOENT => FileError::NotFound { path },
            Errno::EXIST => FileError::Exists { path },
            Errno::NOTEMPTY => FileError::NotEmpty { path },
            Errno::NOTDIR => {
                FileError::WrongKind { path, problem: "is not a directory, or lies below a file" }
            }
            Errno::ISDIR => FileError::WrongKind { path, problem: "is a directory" },
            Errno::LOOP => FileError::Escapes { path },
            Errno::NAMETOOLONG => FileError::BadPath { path, problem: BadPath::TooLong },
            Errno::NOSPC | Errno::DQUOT => FileError::DiskFull { path, errno },
            Errno::MFILE | Errno::NFILE => FileError::NoDescriptors { path, errno },
            Errno::FBIG => FileError::TooLarge { what: path, limit: None },
            _ => FileError::Io { operation, path, errno },
        }
    }
}

/// Opens the directory `name` in `dir` for reading. Does not follow a symbolic link.
pub(crate) fn open_directory_at(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the file `name` in `dir` for reading. Does not follow a symbolic link, and does not block
/// on a pipe that replaced the file.
pub(crate) fn open_file_at(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// Moves an entry without replacing another one.
fn rename_without_replacing(
    from_dir: impl AsFd,
    from: &OsStr,
    to_dir: impl AsFd,
    to: &OsStr,
) -> Result<(), Errno> {
    let (from_dir, to_dir) = (from_dir.as_fd(), to_dir.as_fd());
    match renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
        // The file system lacks the flag.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        renamed => return renamed,
    }
    let stat = statat(from_dir, from, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileKind::of_mode(stat.st_mode) != FileKind::Directory {
        // A hard link never replaces an entry.
        linkat(from_dir, from, to_dir, to, AtFlags::empty())?;
        return unlinkat(from_dir, from, AtFlags::empty());
    }
    // A directory replaces only an empty directory: the one that is created here.
    mkdirat(to_dir, to, Mode::RWXU)?;
    renameat(from_dir, from, to_dir, to).inspect_err(|_| {
        if let Err(errno) = unlinkat(to_dir, to, AtFlags::REMOVEDIR) {
            tracing::warn!(%errno, "failed to remove empty directory created for a move");
        }
    })
}

pub(crate) fn duplicate(dir: &OwnedFd) -> Result<OwnedFd, Errno> {
    dir.try_clone().map_err(|error| errno(&error))
}

/// Returns the errno of an error of the operating system, or EIO for any other error.
pub(crate) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Returns timestamps that set the modification time only.
pub(crate) fn modification_time(at: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: at }
}

/// Converts a time of the file system, in seconds and nanoseconds since 1970.
pub(crate) fn unix_system_time(seconds: i64, nanos: u64) -> SystemTime {
    let nanos = Duration::from_nanos(nanos);
    // Negating i64::MIN would overflow in the conversion to the wire format, so the time is clamped
    // to the next second.
    let distance = Duration::from_secs(seconds.max(-i64::MAX).unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    whole.and_then(|at| at.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

fn timespec(at: SystemTime) -> Timespec {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        },
        Err(before) => {
            let before = before.duration();
            let partial = i64::from(before.subsec_nanos() > 0);
            let nanos = if partial == 1 { 1_000_000_000 - before.subsec_nanos() } else { 0 };
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec: -seconds - partial, tv_nsec: nanos.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    };

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn drain_waits_for_change_of_gone_caller() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let files = Files::new(WorkspaceRoot::open(dir.path()).expect("workspace root"), Arc::default());
        let (go, wait) = mpsc::channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let change = {
            let done = done.clone();
            files.run_change(move |_| {
                let _told = wait.recv();
                done.store(true, Ordering::SeqCst);
                Ok(())
            })
        };
        assert!(change.now_or_never().is_none(), "the change runs without a caller");
        let mut settled = Box::pin(files.drain_and_sync());
        assert!(settled.as_mut().now_or_never().is_none());
        drop(go);
        settled.await.expect("synced");
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn time_before_1970_converts_to_timespec() {
        let at = UNIX_EPOCH - Duration::from_millis(1_250);
        assert_eq!(timespec(at), Timespec { tv_sec: -2, tv_nsec: 750_000_000 });
        let at = UNIX_EPOCH + Duration::from_millis(1_250);
        assert_eq!(timespec(at), Timespec { tv_sec: 1, tv_nsec: 250_000_000 });
    }

    #[test]
    fn extreme_times_convert_to_wire() {
        for seconds in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            for nanos in [0, 999_999_999] {
                let timestamp = prost_types::Timestamp::from(unix_system_time(seconds, nanos));
                assert_eq!(timestamp.seconds, seconds.max(-i64::MAX), "{seconds} s and {nanos} ns");
            }
        }
    }
}
