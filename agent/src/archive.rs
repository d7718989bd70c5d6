//! Archives a workspace directory as a standard zip, and extracts zips. Independent of gRPC and
//! HTTP.
//!
//! Separate threads create the zip in bounded memory and stream it in pieces. Dropping the stream
//! stops them. A zip to extract is first received as a whole into an unnamed file and inspected.
//! Only then does extraction write to the workspace.
//!
//! `create` and `extract` do the work. The crate `podling-archive` has the byte format.

mod create;
mod extract;

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use podling_archive::UnixTime;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat, StatxFlags, statat, statx, unlink},
    io::Errno,
};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, Receiver},
    },
    task::{JoinHandle, spawn_blocking},
};

use self::create::Creation;
pub use self::{
    create::{MAX_PATTERN_BYTES, MAX_PATTERNS},
    extract::ArchiveReceiver,
};
use crate::{
    admission::{AdmissionGate, AdmitError, Intent, Rejection},
    files::{FileError, FileKind, RelPath, WorkspaceRoot, errno, unix_system_time},
};

/// Archives created or extracted at once. The next request fails with TOO_MANY_STREAMS. Creating an
/// archive takes about 50 MiB of memory and a few threads. Extracting one takes memory for each
/// entry (see [`MAX_ENTRIES`]).
pub const MAX_ARCHIVES: usize = 2;
/// Maximum entries of an archive that is created or extracted. A larger archive fails with
/// TOO_LARGE. Inspecting a zip takes about 50 bytes of memory for each entry, so 100 MiB at most.
pub const MAX_ENTRIES: u64 = 2_000_000;
/// Maximum bytes of a path with a trailing slash, as in the kernel.
const MAX_PATH: usize = 4_095;
/// Maximum threads that deflate or write; fewer on a machine with fewer cores.
const MAX_WORKERS: usize = 4;
/// Interval between two progress messages.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// Messages queued between the threads and the stream, each 256 KiB at most. When the queue is
/// full, the threads wait.
const EVENT_QUEUE: usize = 8;

/// Maximum skipped entries that a summary lists. Further ones are only counted.
pub const MAX_SKIPPED: usize = 100;

#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Whether the archive must contain everything, so that ignore rules are an error.
    pub preservation: bool,
    /// Patterns in `.gitignore` syntax, relative to the archived directory.
    pub ignore: Vec<Vec<u8>>,
    /// Whether ignore files found in the tree apply too.
    pub ignore_files: bool,
}

#[derive(Debug, Clone, Default)]
pub struct ExtractOptions {
    /// Whether existing files are replaced. If not, they make the extraction fail before it writes.
    pub replace: bool,
    /// Whether setuid and setgid bits are restored.
    pub preservation: bool,
    /// Expected SHA-256 of the whole zip.
    pub sha256: Option<[u8; 32]>,
}

/// A message of the extraction stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtractEvent {
    /// Sent at most once in 250 ms.
    Progress(ArchiveProgress),
    /// Sent once, as the last message.
    Done {
        /// Entries of the zip.
        entries: u64,
        /// Bytes of uncompressed content.
        bytes: u64,
    },
}

/// Creates and extracts archives of the workspace, at most [`MAX_ARCHIVES`] at once. Clones share
/// this limit.
#[derive(Debug, Clone)]
pub struct Archives {
    root: Arc<WorkspaceRoot>,
    gate: Arc<AdmissionGate>,
    /// Directory for unnamed spool files, outside the user's view.
    scratch: Arc<Path>,
    permits: Arc<Semaphore>,
}

impl Archives {
    /// Serves the tree below `root`. Spool files go to the directory `scratch`.
    pub fn new(
        root: impl Into<Arc<WorkspaceRoot>>,
        gate: Arc<AdmissionGate>,
        scratch: impl Into<PathBuf>,
    ) -> Self {
        let scratch = Arc::from(scratch.into());
        Self { root: root.into(), gate, scratch, permits: Arc::new(Semaphore::new(MAX_ARCHIVES)) }
    }

    /// Starts to archive a directory and returns the stream of its zip and manifest.
    pub async fn create(
        &self,
        path: RelPath,
        options: CreateOptions,
    ) -> Result<impl Stream<Item = Result<CreateEvent, ArchiveError>> + Send + use<>, ArchiveError> {
        let creation = Creation::new(&options)?;
        let permit = self.acquire_permit()?;
        let root = self.root.clone();
        let opened = spawn_blocking(move || root.open_directory(&path)).await;
        let dir = opened.map_err(|_| ArchiveError::fault("opening a directory"))??;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let scratch = self.scratch.clone();
        let work = spawn_blocking(move || {
            // Released only when the threads have ended, even if the stream is dropped first.
            let _permit = permit;
            creation.run(dir, events, &scratch)
        });
        Ok(event_stream(receiver, work))
    }

    /// Starts to receive a zip for extraction into `path`.
    pub async fn receive(
        &self,
        path: RelPath,
        options: ExtractOptions,
    ) -> Result<ArchiveReceiver, ArchiveError> {
        let permit = self.acquire_permit()?;
        self.admit().await?;
        let scratch = self.scratch.clone();
        let spool = spawn_blocking(move || create_spool(&scratch)).await;
        let spool = spool.map_err(|_| ArchiveError::fault("creating a spool file"))?.map_err(spool_error)?;
        Ok(ArchiveReceiver::new(self.clone(), path, options, spool, permit))
    }

    /// Waits until the admission gate admits a restore. Extraction counts as client intent while it
    /// lasts.
    async fn admit(&self) -> Result<(), Rejection> {
        self.gate.admit(Intent::Restore).await
    }

    /// Checks the admission gate again without waiting. A held extraction continues, because it
    /// began before the hold. The next progress report checks again.
    fn recheck_admission(&self) -> Result<(), Rejection> {
        match self.gate.try_admit(Intent::Restore, 0) {
            Ok(()) | Err(AdmitError::Held(_)) => Ok(()),
            Err(AdmitError::Rejected(refused)) => Err(refused),
        }
    }

    /// Extracts the received zip into `path`.
    fn extract(
        self,
        path: RelPath,
        options: ExtractOptions,
        spool: File,
        permit: OwnedSemaphorePermit,
    ) -> impl Stream<Item = Result<ExtractEvent, ArchiveError>> + Send + use<> {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let work = spawn_blocking(move || {
            let _permit = permit;
            extract::extract(spool, &self.root, &path, &options, &events, &|| self.recheck_admission())
        });
        event_stream(receiver, work)
    }

    fn acquire_permit(&self) -> Result<OwnedSemaphorePermit, ArchiveError> {
        let permit = self.permits.clone().try_acquire_owned();
        permit.map_err(|_| ArchiveError::TooManyArchives { limit: MAX_ARCHIVES })
    }
}

fn worker_count() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS))
}

/// Yields the messages of the threads, then the error they ended with, if any.
fn event_stream<T: Send + 'static>(
    receiver: Receiver<T>,
    work: JoinHandle<Result<(), ArchiveError>>,
) -> impl Stream<Item = Result<T, ArchiveError>> + Send + 'static {
    let messages =
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let failure = stream::once(async move {
        work.await.unwrap_or_else(|_| Err(ArchiveError::fault("working on an archive"))).err()
    });
    messages.map(Ok).chain(failure.filter_map(|error| async move { error.map(Err) }))
}

/// Reason why an archive could not be created or extracted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// An error that other file operations have too.
    #[error(transparent)]
    File(#[from] FileError),
    /// The received file is not a zip, or it must not be extracted.
    #[error("{}: {cause}; nothing was written", entry_or_zip(.entry))]
    Unsafe {
        /// Name of the entry; empty if the zip as a whole is at fault.
        entry: String,
        /// English text for people.
        cause: &'static str,
    },
    #[error("the archive has more than {limit} entries; split it into several archives")]
    TooManyEntries { limit: u64 },
    /// [`MAX_ARCHIVES`] archives are in progress.
    #[error("{limit} archives are already being created or extracted; retry later")]
    TooManyArchives { limit: usize },
}

fn entry_or_zip(entry: &str) -> &str {
    if entry.is_empty() { "the zip" } else { entry }
}

impl ArchiveError {
    fn bad_entry(name: &[u8], cause: &'static str) -> Self {
        Self::Unsafe { entry: String::from_utf8_lossy(name).into_owned(), cause }
    }

    fn bad_zip(cause: &'static str) -> Self {
        Self::Unsafe { entry: String::new(), cause }
    }

    fn fault(operation: &'static str) -> Self {
        Self::File(FileError::Fault { operation })
    }
}

impl From<Rejection> for ArchiveError {
    fn from(refused: Rejection) -> Self {
        Self::File(refused.into())
    }
}

/// Reason why the threads of an archive stopped before its end.
#[derive(Debug)]
enum ArchiveStop {
    /// The client dropped the stream.
    ReceiverDropped,
    Failed(ArchiveError),
}

impl<E: Into<ArchiveError>> From<E> for ArchiveStop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Maps an error of the spool file to the error a client sees.
fn spool_error(error: io::Error) -> FileError {
    let path = "the agent's own directory".to_owned();
    let errno = errno(&error);
    match errno {
        Errno::NOSPC | Errno::DQUOT => FileError::DiskFull { path, errno },
        Errno::MFILE | Errno::NFILE => FileError::NoDescriptors { path, errno },
        errno => FileError::Io { operation: "write to", path, errno },
    }
}

/// An entry of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedEntry {
    /// Relative to the archived directory, in the raw bytes of the file system.
    pub path: Vec<u8>,
    pub kind: FileKind,
    /// In bytes; 0 for other kinds than files.
    pub size: u64,
    pub mode: u32,
    pub modified: SystemTime,
    /// Of a file's content or a symbolic link's target; `None` for other kinds.
    pub sha256: Option<[u8; 32]>,
    /// Whether the entry is a further name of an earlier file. Its kind is [`FileKind::Symlink`].
    pub hard_link: bool,
    /// Whether the entry is a FIFO. Its kind is [`FileKind::Other`].
    pub fifo: bool,
}

/// An entry that could not be read, or that changed while it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnarchivedEntry {
    /// Relative to the archived directory.
    pub path: Vec<u8>,
    /// English text for people.
    pub reason: String,
}

/// Progress of creating or extracting an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArchiveProgress {
    /// Manifest entries, or entries extracted.
    pub entries: u64,
    /// Bytes of uncompressed content.
    pub bytes: u64,
    /// Expected total of `bytes`; 0 while it is not yet known.
    pub total_bytes: u64,
}

/// Summary of a complete archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveSummary {
    /// Entries of the manifest.
    pub entries: u64,
    /// Bytes of uncompressed content in the manifest.
    pub bytes: u64,
    /// Size of the zip in bytes.
    pub archive_bytes: u64,
    pub archive_sha256: [u8; 32],
    /// The first [`MAX_SKIPPED`] skipped entries.
    pub skipped: Vec<UnarchivedEntry>,
    /// Number of all skipped entries.
    pub skipped_count: u64,
}

/// A message of the stream that creates an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateEvent {
    /// The next bytes of the zip.
    Data(Bytes),
    /// Sent after the bytes of the entry.
    Entry(ArchivedEntry),
    /// Sent at most once in 250 ms.
    Progress(ArchiveProgress),
    /// Sent once, as the last message.
    Summary(ArchiveSummary),
}

/// Creates an unnamed temporary file in `directory`, outside the user's view. It disappears with
/// its descriptor, even if the agent is killed.
fn create_spool(directory: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(file.into()),
        // The file system does not support O_TMPFILE.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let path = directory.join(format!("spool-{:016x}", fastrand::u64(..)));
            let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
            unlink(&path)?;
            Ok(file.into())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Device and inode of a file.
type FileIdentity = (u64, u64);

/// Metadata of an entry at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EntryMetadata {
    kind: FileKind,
    mode: u32,
    size: u64,
    modified: UnixTime,
    /// Time of the last change of content or attributes (ctime), which no program can set.
    changed: UnixTime,
    /// Whether the entry is a FIFO. Its kind is [`FileKind::Other`].
    is_fifo: bool,
    /// Number of names of the file.
    links: u64,
    device: u64,
    inode: u64,
    /// Mount id; `None` where statx does not report it (before Linux 5.8, gVisor).
    mount: Option<u64>,
}

impl EntryMetadata {
    /// Reads the metadata of `name` in `dir`. Does not follow a symbolic link.
    fn at(dir: impl AsFd, name: &OsStr) -> Result<Self, Errno> {
        Self::read(dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn of(fd: impl AsFd) -> Result<Self, Errno> {
        Self::read(fd, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    fn read(dir: impl AsFd, name: &OsStr, flags: AtFlags) -> Result<Self, Errno> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let stat = match statx(dir.as_fd(), name, flags, mask) {
            Err(Errno::NOSYS | Errno::PERM) => {
                return statat(dir, name, flags).map(|stat| Self::plain(&stat));
            }
            stat => stat?,
        };
        let has_mount_id = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        Ok(Self {
            kind: FileKind::of_mode(stat.stx_mode.into()),
            mode: u32::from(stat.stx_mode) & 0o7777,
            size: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            is_fifo: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Fifo,
            links: stat.stx_nlink.into(),
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            inode: stat.stx_ino,
            mount: has_mount_id.then_some(stat.stx_mnt_id),
        })
    }

    fn plain(stat: &Stat) -> Self {
        let nanos = |nanos: u64| u32::try_from(nanos).unwrap_or(0);
        Self {
            kind: FileKind::of_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, nanos(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanos(stat.st_ctime_nsec)),
            is_fifo: FileType::from_raw_mode(stat.st_mode) == FileType::Fifo,
            links: stat.st_nlink,
            device: stat.st_dev,
            inode: stat.st_ino,
            mount: None,
        }
    }

    /// Returns whether `entry`, which is in this directory, is a mount point or in another file
    /// system.
    fn mounted(&self, entry: &Self) -> bool {
        match (self.mount, entry.mount) {
            (Some(here), Some(there)) => here != there,
            // Layered file systems report several devices for files, but one for directories.
            _ => entry.kind == FileKind::Directory && self.device != entry.device,
        }
    }

    /// Returns what all names of one file have in common.
    fn identity(&self) -> FileIdentity {
        (self.device, self.inode)
    }

    fn modified_at(&self) -> SystemTime {
        unix_system_time(self.modified.0, self.modified.1.into())
    }
}
