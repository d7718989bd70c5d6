//! Attachment: output and input of one terminal on one stream.
//!
//! [`Attachment`] yields frames and acknowledgements; [`AttachmentWriter`] accepts requests without
//! waiting. A program that does not read its input therefore blocks neither its own output nor the
//! acks of its reader.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{sync::Notify, time::timeout_at};

use super::{
    ClientId, Frame, SignalTarget, Terminal, TerminalError, TerminalId, TerminalInput, TerminalWatch,
    ViewerStart, WatchEvent, WindowSize, viewer,
};
use crate::admission::{AdmitError, Attempt, Intent};

/// Limit on rejections that wait to be sent. On overflow the oldest is dropped, because the newest
/// has the current expected offset.
const MAX_PENDING_REJECTIONS: usize = 32;

/// Parameters of an attachment.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    pub terminal: TerminalId,
    /// Point in the output at which the attachment starts.
    pub from: ViewerStart,
    /// Identifies the client's input stream; `None` is allowed only for a read-only attachment.
    pub client: Option<ClientId>,
    /// Client's window size; a client without one never owns the terminal's size.
    pub size: Option<WindowSize>,
    /// Output bytes that may be unacknowledged; 0 means unlimited.
    pub credit: u64,
    /// The PTY is not read while this viewer is about to miss output, for at most 60 s without
    /// progress.
    pub lossless: bool,
    /// All input, resizes and signals of this attachment are rejected.
    pub read_only: bool,
}

/// Event that an attachment sends to its client.
#[derive(Debug)]
pub enum AttachmentEvent {
    Frame(Frame),
    /// The agent has written all of the client's input before `next` to the PTY.
    Ack {
        /// Epoch of the input.
        epoch: u64,
        /// Offset of the next input byte that the agent has not written yet.
        next: u64,
    },
    /// Input was rejected; the stream continues.
    Rejected(InputRejection),
}

/// Input that was rejected, and where the client continues.
#[derive(Debug)]
pub struct InputRejection {
    pub error: TerminalError,
    /// Current epoch of the terminal.
    pub epoch: u64,
    /// Offset that the agent expects next from this client.
    pub expected: u64,
}

/// Reading side of an attachment. Dropping it detaches the viewer.
#[derive(Debug)]
pub struct Attachment {
    watch: TerminalWatch,
    writer: AttachmentWriter,
    /// Offset up to which input was last acknowledged.
    acked: u64,
}

/// Writing side of an attachment.
#[derive(Debug, Clone)]
pub struct AttachmentWriter {
    terminal: Arc<Terminal>,
    client: Option<ClientId>,
    viewer: u64,
    read_only: bool,
    responses: Arc<Mutex<PendingResponses>>,
    wake: Arc<Notify>,
}

/// Responses that the writing side leaves for the reading side to send.
#[derive(Debug, Default)]
struct PendingResponses {
    rejections: VecDeque<InputRejection>,
    /// The client repeated input that was already written, so the acknowledgement is sent again.
    repeated: bool,
}

impl Attachment {
    pub(super) fn new(
        watch: TerminalWatch,
        terminal: Arc<Terminal>,
        viewer: u64,
        wake: Arc<Notify>,
        attach: &AttachOptions,
    ) -> Self {
        let client = attach.client.clone();
        // Input that was written earlier is reported by the `Started` frame.
        let acked = client.as_ref().map_or(0, |client| terminal.state().inputs.written(client));
        let writer = AttachmentWriter {
            terminal,
            client,
            viewer,
            read_only: attach.read_only,
            responses: Arc::default(),
            wake,
        };
        Self { watch, writer, acked }
    }

    /// Returns a handle to the writing side.
    pub fn writer(&self) -> AttachmentWriter {
        self.writer.clone()
    }

    /// Waits for the next event. Returns `None` after the exit of the terminal was sent.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<AttachmentEvent> {
        loop {
            // Acknowledgements go first: they are few, and a flood of output must not delay them.
            if let Some(event) = self.pending_response() {
                return Some(event);
            }
            if let Some(WatchEvent::Frame(frame)) = self.watch.poll() {
                return Some(AttachmentEvent::Frame(frame));
            }
            if self.watch.is_finished() {
                return None;
            }
            if timeout_at(self.watch.keepalive_deadline(), self.writer.wake.notified()).await.is_err() {
                return Some(AttachmentEvent::Frame(self.watch.keepalive()));
            }
        }
    }

    fn pending_response(&mut self) -> Option<AttachmentEvent> {
        let client = self.writer.client.as_ref()?;
        let (epoch, next) = {
            let state = self.writer.terminal.state();
            (state.log.epoch(), state.inputs.written(client))
        };
        let mut responses = self.writer.responses();
        let repeated = std::mem::take(&mut responses.repeated);
        if next > self.acked || repeated {
            self.acked = next;
            return Some(AttachmentEvent::Ack { epoch, next });
        }
        responses.rejections.pop_front().map(AttachmentEvent::Rejected)
    }
}

impl AttachmentWriter {
    /// Asks the admission gate to admit this many bytes of keystrokes.
    pub(super) fn try_admit(&self, bytes: usize) -> Result<(), AdmitError> {
        self.terminal.gate.try_admit(Intent::Keystroke, bytes)
    }

    pub(super) fn try_input(&self, input: TerminalInput<'_>) -> Result<u64, Attempt<TerminalError>> {
        match &self.client {
            Some(client) if !self.read_only => self.terminal.write(client, input),
            _ => Err(TerminalError::ReadOnly.into()),
        }
    }

    /// Schedules the acknowledgement of input before `end`: now for a repeat, otherwise once it is
    /// written.
    pub(super) fn accepted(&self, end: u64) {
        let Some(client) = &self.client else { return };
        let written = self.terminal.state().inputs.written(client);
        if end <= written {
            self.responses().repeated = true;
        }
        self.wake.notify_one();
    }

    /// Queues a rejection for the reading side.
    pub(super) fn reject(&self, error: TerminalError) {
        let Some(client) = &self.client else { return };
        let (expected, epoch) = {
            let state = self.terminal.state();
            (state.inputs.expected(client), state.log.epoch())
        };
        let mut responses = self.responses();
        if responses.rejections.len() == MAX_PENDING_REJECTIONS {
            responses.rejections.pop_front();
        }
        responses.rejections.push_back(InputRejection { error, epoch, expected });
        drop(responses);
        self.wake.notify_one();
    }

    /// Sets the client's window size. `take` also makes the client the owner of the terminal's
    /// size.
    pub fn resize(&self, size: WindowSize, take_ownership: bool) -> Result<(), TerminalError> {
        match &self.client {
            Some(client) if !self.read_only => self.terminal.resize(client, size, take_ownership).map(drop),
            _ => Err(TerminalError::ReadOnly),
        }
    }

    /// Grants credit. The client has processed all output before `offset`.
    pub fn ack(&self, offset: u64) {
        let epoch = self.terminal.state().log.epoch();
        viewer::ack(&self.terminal, self.viewer, epoch, offset);
    }

    /// Sends a signal by name, such as `INT`.
    pub fn signal(&self, signal: &str, target: SignalTarget) -> Result<(), TerminalError> {
        if self.read_only {
            return Err(TerminalError::ReadOnly);
        }
        self.terminal.signal(signal, target)
    }

    fn responses(&self) -> MutexGuard<'_, PendingResponses> {
        self.responses.lock().unwrap_or_else(|e| e.into_inner())
    }
}
