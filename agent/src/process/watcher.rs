//! A watcher receives both outputs of a process from given offsets on, and then the exit. Missing
//! bytes are always reported as a gap.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{OutputStream, Process, ProcessError, ProcessExit, ProcessId};
use crate::{
    byte_log::{CHUNK_BYTES, LogRead},
    util::wait_until,
};

/// Silence after which a stream sends a keep-alive. Proxies close idle streams after 60 s.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Event in the stream of a watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// First event of the stream.
    Started {
        id: ProcessId,
        /// Epoch of the byte logs.
        epoch: u64,
        /// Process id in the agent's PID namespace.
        pid: u32,
        /// Offset of the next expected byte of stdin.
        stdin: u64,
    },
    Output {
        stream: OutputStream,
        epoch: u64,
        /// Offset of the first byte of `data`.
        offset: u64,
        /// At most 64 KiB.
        data: Bytes,
    },
    /// Bytes `from..to` are no longer available to this watcher.
    Gap {
        stream: OutputStream,
        /// Offset of the first missing byte.
        from: u64,
        /// Offset of the first available byte.
        to: u64,
    },
    /// Last event; follows the last byte of both outputs.
    Exit(ProcessExit),
    /// Sent after 15 s without another event.
    KeepAlive,
}

/// Reads the outputs of a process. While a watcher is connected, a running process waits for it, so
/// that no output is lost.
#[derive(Debug)]
pub struct ProcessWatcher {
    process: Arc<Process>,
    id: u64,
    at: [u64; 2],
    next_stream: OutputStream,
    phase: WatcherPhase,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatcherPhase {
    Beginning,
    Reading,
    Over,
}

impl ProcessWatcher {
    /// Joins at the offsets `at` of stdout and stderr.
    pub(super) fn join(
        process: Arc<Process>,
        at: [u64; 2],
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, ProcessError> {
        let mut state = process.state();
        for (output, (stream, at)) in state.outputs.iter().zip([("stdout", at[0]), ("stderr", at[1])]) {
            let next = output.log.next();
            if at > next {
                return Err(ProcessError::BadOffset { stream, next });
            }
        }
        let id = state.join(at);
        drop(state);
        process.task_wakeup.notify_one();
        Ok(Self {
            process,
            id,
            at,
            next_stream: OutputStream::Stdout,
            phase: WatcherPhase::Beginning,
            _permit: permit,
        })
    }

    pub(super) fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Returns the next event, or `None` after the exit. Cancel-safe: a dropped call loses no
    /// event.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>, ProcessError> {
        let process = self.process.clone();
        let next = wait_until(&process.output_ready, || self.take());
        timeout(KEEPALIVE, next).await.unwrap_or(Ok(Some(ProcessEvent::KeepAlive)))
    }

    /// Returns the result of [`Self::next`] if it is known now.
    fn take(&mut self) -> Option<Result<Option<ProcessEvent>, ProcessError>> {
        match self.phase {
            WatcherPhase::Over => return Some(Ok(None)),
            WatcherPhase::Beginning => {
                self.phase = WatcherPhase::Reading;
                let stdin = self.process.state().stdin.as_ref().map_or(0, |stdin| stdin.next());
                let info = self.process.info();
                let started = ProcessEvent::Started { id: info.id, epoch: info.epoch, pid: info.pid, stdin };
                return Some(Ok(Some(started)));
            }
            WatcherPhase::Reading => {}
        }
        for stream in [self.next_stream, self.next_stream.other()] {
            if let Some(event) = self.read(stream) {
                self.next_stream = stream.other();
                return Some(Ok(Some(event)));
            }
        }
        let state = self.process.state();
        state.finished_at?;
        let exit = state.exit.clone().ok_or(ProcessError::Fault);
        Some(exit.map(|exit| {
            self.phase = WatcherPhase::Over;
            Some(ProcessEvent::Exit(exit))
        }))
    }

    fn read(&mut self, stream: OutputStream) -> Option<ProcessEvent> {
        let mut state = self.process.state();
        let held = state.is_held();
        let output = state.output(stream);
        let at = &mut self.at[stream as usize];
        let event = match output.log.read(*at, CHUNK_BYTES) {
            LogRead::Data { offset, bytes } => {
                *at = offset + bytes.len() as u64;
                ProcessEvent::Output { stream, epoch: output.log.epoch(), offset, data: bytes }
            }
            LogRead::Gap { from, to } => {
                *at = to;
                ProcessEvent::Gap { stream, from, to }
            }
            LogRead::AtEnd | LogRead::Beyond => return None,
        };
        state.record_taken(self.id, self.at);
        drop(state);
        if held {
            self.process.task_wakeup.notify_one();
        }
        Some(event)
    }
}

impl Drop for ProcessWatcher {
    fn drop(&mut self) {
        self.process.state().watchers.remove(&self.id);
        self.process.task_wakeup.notify_one();
    }
}

impl OutputStream {
    fn other(self) -> Self {
        match self {
            Self::Stdout => Self::Stderr,
            Self::Stderr => Self::Stdout,
        }
    }
}
