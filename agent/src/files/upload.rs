//! Uploads in chunks, for clients that cannot stream. A repeated chunk is acknowledged and dropped.
//! A chunk that leaves a gap is rejected.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::task::spawn_blocking;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{
    FileError,
    root::{RelPath, WorkspaceRoot},
    write::{FileWriter, WriteOptions, WrittenFile},
};
use crate::util::{lock, random_id};

/// Maximum uploads in the table, including finished ones. If the table is full, a new upload evicts
/// the oldest finished one. If none is finished, the new upload fails with TOO_MANY_UPLOADS.
pub const MAX_UPLOADS: usize = 32;
/// An upload without a chunk for this long is removed with its temporary file.
pub const UPLOAD_IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// State of an upload after a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadProgress {
    pub id: String,
    /// Offset of the next byte expected.
    pub next: u64,
    /// Set once the file is complete.
    pub finished: Option<WrittenFile>,
}

#[derive(Debug)]
pub(super) struct Uploads {
    table: Mutex<HashMap<String, PendingUpload>>,
    idle_timeout: Duration,
}

#[derive(Debug)]
struct PendingUpload {
    touched: Instant,
    /// Locked only on the blocking pool, while a chunk is written.
    state: Arc<Mutex<UploadState>>,
}

#[derive(Debug)]
enum UploadState {
    Open(Box<FileWriter>),
    /// Length and result, retained for a client that missed the answer.
    Finished(u64, Box<WrittenFile>),
    Failed,
}

impl Uploads {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self { table: Mutex::default(), idle_timeout }
    }

    /// Opens a new upload if the limit permits one more, and returns its id.
    pub(super) fn begin(
        &self,
        root: &WorkspaceRoot,
        path: RelPath,
        options: WriteOptions,
    ) -> Result<String, FileError> {
        self.remove_expired();
        self.ensure_capacity(&mut self.lock())?;
        let writer = FileWriter::open(root, path, options)?;
        let id = random_id();
        let state = Arc::new(Mutex::new(UploadState::Open(Box::new(writer))));
        let mut table = self.lock();
        self.ensure_capacity(&mut table)?;
        table.insert(id.clone(), PendingUpload { touched: Instant::now(), state });
        Ok(id)
    }

    /// Writes a chunk of the upload `id`, and completes the file if `finish` is set.
    pub(super) async fn chunk(
        &self,
        id: String,
        offset: u64,
        data: bytes::Bytes,
        finish: bool,
        token: TaskTrackerToken,
    ) -> Result<UploadProgress, FileError> {
        let state = {
            let mut table = self.lock();
            let upload = table.get_mut(&id).filter(|upload| upload.touched.elapsed() < self.idle_timeout);
            let upload = upload.ok_or_else(|| FileError::UploadNotFound { id: id.clone() })?;
            upload.touched = Instant::now();
            upload.state.clone()
        };
        let work = move || {
            let _under_way = token;
            lock(&state).write_chunk(offset, &data, finish)
        };
        let outcome =
            spawn_blocking(work).await.map_err(|_| FileError::Fault { operation: "writing a chunk" })?;
        match outcome {
            Ok((next, finished)) => Ok(UploadProgress { id, next, finished }),
            Err(error) => {
                // A gap leaves the upload as it is. After any other failure it cannot continue.
                if !matches!(error, FileError::InputGap { .. }) {
                    self.lock().remove(&id);
                }
                Err(error)
            }
        }
    }

    /// Removes expired uploads. Returns the earliest time at which another upload may expire.
    pub(super) fn remove_expired(&self) -> Instant {
        let mut table = self.lock();
        let expired: Vec<_> =
            table.extract_if(|_, upload| upload.touched.elapsed() >= self.idle_timeout).collect();
        let next = table.values().map(|upload| upload.touched + self.idle_timeout).min();
        drop(table);
        // Deletes the temporary files, outside the lock.
        drop(expired);
        next.unwrap_or_else(|| Instant::now() + self.idle_timeout)
    }

    /// Makes sure that the table can hold one more upload. Evicts the oldest finished one if the
    /// table is full.
    fn ensure_capacity(&self, table: &mut HashMap<String, PendingUpload>) -> Result<(), FileError> {
        if table.len() < MAX_UPLOADS {
            return Ok(());
        }
        let finished = |upload: &PendingUpload| {
            matches!(upload.state.try_lock().as_deref(), Ok(UploadState::Finished(..)))
        };
        let oldest =
            table.iter().filter(|(_, upload)| finished(upload)).min_by_key(|(_, upload)| upload.touched);
        let oldest =
            oldest.map(|(id, _)| id.clone()).ok_or(FileError::TooManyUploads { limit: MAX_UPLOADS })?;
        table.remove(&oldest);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, PendingUpload>> {
        lock(&self.table)
    }
}

impl UploadState {
    fn write_chunk(
        &mut self,
        offset: u64,
        data: &[u8],
        finish: bool,
    ) -> Result<(u64, Option<WrittenFile>), FileError> {
        let next = match self {
            Self::Open(writer) => writer.length(),
            Self::Finished(length, _) => *length,
            Self::Failed => return Err(FileError::Fault { operation: "continuing a failed upload" }),
        };
        if offset > next {
            return Err(FileError::InputGap { offset, expected: next });
        }
        let new = usize::try_from(next - offset).ok().and_then(|known| data.get(known..)).unwrap_or_default();
        match std::mem::replace(self, Self::Failed) {
            Self::Open(mut writer) => {
                writer.write(new)?;
                let length = writer.length();
                if !finish {
                    *self = Self::Open(writer);
                    return Ok((length, None));
                }
                let written = writer.finish()?;
                *self = Self::Finished(length, Box::new(written.clone()));
                Ok((length, Some(written)))
            }
            Self::Finished(length, written) => {
                let answer = finish.then(|| (*written).clone());
                *self = Self::Finished(length, written);
                Ok((length, answer))
            }
            Self::Failed => Err(FileError::Fault { operation: "continuing a failed upload" }),
        }
    }
}
