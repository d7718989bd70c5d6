//! Writes a file from a stream. The disk writes one block while the next one arrives.

use std::{mem, sync::Arc};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::task::TaskTracker;

use super::{
    error::FileError,
    write::{FileWriter, WrittenFile},
};
use crate::admission::{AdmissionGate, Intent};

/// Limit of bytes that are gathered during a write. At the limit the stream waits for that write.
const GATHER_BYTES: usize = 1024 * 1024;
const FAULT: FileError = FileError::Fault { operation: "writing a file" };

/// A file that is written piece by piece. Dropped before [`Self::finish`], it leaves nothing
/// behind.
#[derive(Debug)]
pub struct StreamedWrite {
    gate: Arc<AdmissionGate>,
    changes: TaskTracker,
    writer_state: WriterState,
    gathered: Vec<Bytes>,
    bytes: usize,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum WriterState {
    Idle(Box<FileWriter>),
    Busy(JoinHandle<Result<Box<FileWriter>, FileError>>),
    Failed,
}

impl StreamedWrite {
    pub(super) fn new(
        writer: FileWriter,
        gate: Arc<AdmissionGate>,
        changes: TaskTracker,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            gate,
            changes,
            writer_state: WriterState::Idle(Box::new(writer)),
            gathered: Vec::new(),
            bytes: 0,
            _permit: permit,
        }
    }

    /// Takes the next piece. Waits while `GATHER_BYTES` are gathered and the previous write is in
    /// progress.
    pub async fn push(&mut self, data: Bytes) -> Result<(), FileError> {
        if data.is_empty() {
            return Ok(());
        }
        self.bytes += data.len();
        self.gathered.push(data);
        if self.bytes < GATHER_BYTES
            && matches!(&self.writer_state, WriterState::Busy(job) if !job.is_finished())
        {
            return Ok(());
        }
        // Each block counts as client intent, so that an upload keeps the workspace awake while it
        // progresses.
        self.gate.admit(Intent::ClientWrite).await?;
        let writer = self.wait_idle().await?;
        self.write(writer);
        Ok(())
    }

    /// Completes the file. Returns when it is on disk under its final name.
    pub async fn finish(mut self) -> Result<WrittenFile, FileError> {
        self.gate.admit(Intent::ClientWrite).await?;
        let mut writer = self.wait_idle().await?;
        let gathered = mem::take(&mut self.gathered);
        let token = self.changes.token();
        let finish = move || {
            let _under_way = token;
            gathered.iter().try_for_each(|data| writer.write(data))?;
            writer.finish()
        };
        spawn_blocking(finish).await.map_err(|_| FAULT)?
    }

    fn write(&mut self, mut writer: Box<FileWriter>) {
        self.bytes = 0;
        let gathered = mem::take(&mut self.gathered);
        let token = self.changes.token();
        self.writer_state = WriterState::Busy(spawn_blocking(move || {
            let _under_way = token;
            gathered.iter().try_for_each(|data| writer.write(data))?;
            Ok(writer)
        }));
    }

    async fn wait_idle(&mut self) -> Result<Box<FileWriter>, FileError> {
        if let WriterState::Busy(job) = &mut self.writer_state {
            // Awaited in place, so that the state keeps the job's handle if this future is dropped.
            // If `self` is dropped too, the job drops the writer.
            let done = job.await.map_err(|_| FAULT);
            self.writer_state = WriterState::Failed;
            return done?;
        }
        match mem::replace(&mut self.writer_state, WriterState::Failed) {
            WriterState::Idle(writer) => Ok(writer),
            WriterState::Busy(_) | WriterState::Failed => Err(FAULT),
        }
    }
}

impl Drop for StreamedWrite {
    fn drop(&mut self) {
        // Deleting a large temporary file takes time, so it moves to the blocking pool. Outside a
        // runtime it happens in place.
        if let WriterState::Idle(writer) = mem::replace(&mut self.writer_state, WriterState::Failed)
            && let Ok(runtime) = Handle::try_current()
        {
            drop(runtime.spawn_blocking(move || drop(writer)));
        }
    }
}
