//! Writes a file as a whole. The content goes into a temporary file beside it and is hashed
//! meanwhile. The temporary file is synced, then renamed over the old file.
//!
//! All functions block. The mode of the replaced file is preserved, and its owner where permitted.
//! Its extended attributes and hard links are not.

use std::{mem, os::fd::OwnedFd, sync::Arc, time::SystemTime};

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use rustix::{
    fs::{FileType, Gid, Mode, Stat, Uid, fchmod, fchown, fstat, fsync, futimens},
    io::Errno,
};
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit, task::JoinHandle};
use tokio_util::task::TaskTracker;

use super::{
    FileError, change, duplicate,
    list::FileEntry,
    map_errno, modification_time,
    root::{EntryLocation, RelPath, WorkspaceRoot},
    temp::TempFile,
    timespec,
};
use crate::{
    admission::{AdmissionGate, Intent},
    util::{finish_sha256, hex},
};

const DEFAULT_MODE: u32 = 0o644;

#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Permission bits; `None` for those of the replaced file, or 0644 for a new one.
    pub mode: Option<u32>,
    /// Expected SHA-256 of the content.
    pub sha256: Option<[u8; 32]>,
    /// Whether an existing entry is an error.
    pub create_only: bool,
    /// Whether missing parent directories are created.
    pub make_parents: bool,
    /// Modification time; `None` for the time of the write.
    pub modified: Option<SystemTime>,
}

/// Result of a completed write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Metadata of the file after the write.
    pub entry: FileEntry,
    pub sha256: [u8; 32],
    /// Whether the file did not exist before.
    pub created: bool,
}

/// A file being written. Dropped before [`Self::finish`], it leaves nothing behind.
pub(super) struct FileWriter {
    path: RelPath,
    location: EntryLocation,
    options: WriteOptions,
    temp: TempFile,
    file: OwnedFd,
    digest: Context,
    length: u64,
}

impl FileWriter {
    pub(super) fn open(
        root: &WorkspaceRoot,
        path: RelPath,
        options: WriteOptions,
    ) -> Result<Self, FileError> {
        if options.make_parents {
            change::make_parents(root, &path)?;
        }
        // With create_only a symbolic link counts as an existing entry.
        let location = if options.create_only { root.locate(&path)? } else { root.destination(&path)? };
        check_replaceable(&path, &options, location.stat()?.as_ref())?;
        let dir = duplicate(&location.dir).map_err(map_errno("open", &path))?;
        let (temp, file) = root.temp_files().create(dir).map_err(map_errno("write", &path))?;
        Ok(Self { path, location, options, temp, file, digest: Context::new(&SHA256), length: 0 })
    }

    /// Returns the number of bytes written so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> Result<(), FileError> {
        self.digest.update(data);
        self.length += data.len() as u64;
        while !data.is_empty() {
            match rustix::io::write(&self.file, data) {
                Ok(written) => data = &data[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(map_errno("write", &self.path)(errno)),
            }
        }
        Ok(())
    }

    /// Checks the hash, applies the attributes, syncs and renames.
    pub(super) fn finish(mut self) -> Result<WrittenFile, FileError> {
        let sha256 = self.check_digest()?;
        let old = self.location.stat()?;
        check_replaceable(&self.path, &self.options, old.as_ref())?;
        let failed = map_errno("write", &self.path);
        self.apply_attributes(old.as_ref()).map_err(&failed)?;
        fsync(&self.file).map_err(&failed)?;
        let entry = FileEntry::new(&self.location.name, &fstat(&self.file).map_err(&failed)?, Vec::new());
        self.temp
            .rename(&self.location.dir, &self.location.name, !self.options.create_only)
            .map_err(&failed)?;
        self.location.sync_directory().map_err(&failed)?;
        Ok(WrittenFile { entry, sha256, created: old.is_none() })
    }

    fn check_digest(&mut self) -> Result<[u8; 32], FileError> {
        let got = finish_sha256(mem::replace(&mut self.digest, Context::new(&SHA256)));
        match self.options.sha256 {
            Some(promised) if promised != got => Err(FileError::DigestMismatch {
                path: self.path.to_string(),
                promised: hex(&promised),
                got: hex(&got),
            }),
            _ => Ok(got),
        }
    }

    /// Sets owner, mode and modification time.
    fn apply_attributes(&self, old: Option<&Stat>) -> Result<(), Errno> {
        if let Some(old) = old {
            let ours = fstat(&self.file)?;
            if (old.st_uid, old.st_gid) != (ours.st_uid, ours.st_gid) {
                let owner = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
                // Only root may change the owner. Otherwise the agent's user owns the new file, as
                // with most editors.
                let _kept = fchown(&self.file, Some(owner.0), Some(owner.1));
            }
        }
        let old_mode = old.map_or(DEFAULT_MODE, |old| old.st_mode & 0o7777);
        fchmod(&self.file, Mode::from_raw_mode(self.options.mode.unwrap_or(old_mode)))?;
        match self.options.modified {
            Some(at) => futimens(&self.file, &modification_time(timespec(at))),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter")
            .field("path", &self.path)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

fn check_replaceable(path: &RelPath, options: &WriteOptions, old: Option<&Stat>) -> Result<(), FileError> {
    let Some(old) = old else { return Ok(()) };
    if options.create_only {
        return Err(FileError::Exists { path: path.to_string() });
    }
    let problem = match FileType::from_raw_mode(old.st_mode) {
        FileType::RegularFile | FileType::Symlink => return Ok(()),
        FileType::Directory => "is a directory",
        _ => "is a pipe, a socket or a device",
    };
    Err(FileError::WrongKind { path: path.to_string(), problem })
}

/// A file that is written piece by piece. Dropped before [`Self::finish`], it leaves nothing
/// behind.
#[derive(Debug)]
pub struct StreamedWrite {
    gate: Arc<AdmissionGate>,
    content: WriteBehind<FileWriter>,
    _permit: OwnedSemaphorePermit,
}

impl StreamedWrite {
    pub(super) fn new(
        writer: FileWriter,
        gate: Arc<AdmissionGate>,
        changes: TaskTracker,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let content = WriteBehind::new(writer, FileWriter::write, changes, "writing a file");
        Self { gate, content, _permit: permit }
    }

    /// Takes the next piece. Waits while `GATHER_BYTES` are gathered and the
    /// previous write is in progress.
    pub async fn push(&mut self, data: Bytes) -> Result<(), FileError> {
        if data.is_empty() || !self.content.gather(data) && self.content.is_writing() {
            return Ok(());
        }
        // Each block counts as client intent, so that an upload keeps the workspace awake while it
        // progresses.
        self.gate.admit(Intent::ClientWrite).await?;
        self.content.flush().await
    }

    /// Completes the file. Returns when it is on disk under its final name.
    pub async fn finish(self) -> Result<WrittenFile, FileError> {
        self.gate.admit(Intent::ClientWrite).await?;
        self.content.finish(FileWriter::finish).await
    }
}

/// Writes content from a stream on the blocking pool. The disk writes one block while the next one
/// arrives.
pub(crate) struct WriteBehind<W: Send + 'static> {
    state: WriterState<W>,
    write: fn(&mut W, &[u8]) -> Result<(), FileError>,
    /// Tracks the writes, which continue if their caller is gone.
    tracker: TaskTracker,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    /// Names the work in the error after a panic.
    operation: &'static str,
}

enum WriterState<W> {
    Idle(Box<W>),
    Busy(JoinHandle<Result<Box<W>, FileError>>),
    Failed,
}

impl<W: Send + 'static> WriteBehind<W> {
    /// Bytes at which the stream waits for the write before them.
    const GATHER_BYTES: usize = 1024 * 1024;

    pub(crate) fn new(
        writer: W,
        write: fn(&mut W, &[u8]) -> Result<(), FileError>,
        tracker: TaskTracker,
        operation: &'static str,
    ) -> Self {
        let state = WriterState::Idle(Box::new(writer));
        Self { state, write, tracker, gathered: Vec::new(), gathered_bytes: 0, operation }
    }

    /// Adds a piece. Returns whether [`Self::GATHER_BYTES`] are gathered, so that they must be
    /// flushed.
    pub(crate) fn gather(&mut self, data: Bytes) -> bool {
        self.gathered_bytes += data.len();
        self.gathered.push(data);
        self.gathered_bytes >= Self::GATHER_BYTES
    }

    fn is_writing(&self) -> bool {
        matches!(&self.state, WriterState::Busy(job) if !job.is_finished())
    }

    /// Waits for the write in progress, then begins to write the gathered pieces.
    pub(crate) async fn flush(&mut self) -> Result<(), FileError> {
        let writer = self.wait_idle().await?;
        self.state = WriterState::Busy(self.write_gathered(writer, Ok));
        Ok(())
    }

    /// Writes the rest, then passes the writer to `last` on the blocking pool.
    pub(crate) async fn finish<T: Send + 'static>(
        mut self,
        last: impl FnOnce(W) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let writer = self.wait_idle().await?;
        let fault = self.fault();
        self.write_gathered(writer, |writer| last(*writer)).await.map_err(|_| fault)?
    }

    fn write_gathered<T: Send + 'static>(
        &mut self,
        mut writer: Box<W>,
        then: impl FnOnce(Box<W>) -> Result<T, FileError> + Send + 'static,
    ) -> JoinHandle<Result<T, FileError>> {
        self.gathered_bytes = 0;
        let (gathered, write) = (mem::take(&mut self.gathered), self.write);
        self.tracker.spawn_blocking(move || {
            gathered.iter().try_for_each(|data| write(&mut writer, data))?;
            then(writer)
        })
    }

    async fn wait_idle(&mut self) -> Result<Box<W>, FileError> {
        if let WriterState::Busy(job) = &mut self.state {
            // Awaited in place, so that the state keeps the job's handle if this future is dropped.
            // If `self` is dropped too, the job drops the writer.
            let done = job.await;
            self.state = WriterState::Failed;
            return done.map_err(|_| self.fault())?;
        }
        match mem::replace(&mut self.state, WriterState::Failed) {
            WriterState::Idle(writer) => Ok(writer),
            WriterState::Busy(_) | WriterState::Failed => Err(self.fault()),
        }
    }

    fn fault(&self) -> FileError {
        FileError::Fault { operation: self.operation }
    }
}

impl<W: Send + 'static> Drop for WriteBehind<W> {
    fn drop(&mut self) {
        // Deleting a large temporary file takes time, so it moves to the blocking pool. Outside a
        // runtime it happens in place.
        if let WriterState::Idle(writer) = mem::replace(&mut self.state, WriterState::Failed)
            && let Ok(runtime) = Handle::try_current()
        {
            drop(runtime.spawn_blocking(move || drop(writer)));
        }
    }
}

impl<W: Send + 'static> std::fmt::Debug for WriteBehind<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteBehind").field("operation", &self.operation).finish_non_exhaustive()
    }
}
