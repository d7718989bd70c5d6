//! Attachment: one terminal, both ways on one stream.
//!
//! Reading and writing are apart: [`Attachment`] gives frames and acknowledgements, [`AttachmentWriter`] takes requests and never waits. So a
//! program that does not read its input holds up neither its own output nor the acks that a reader sends after its input.

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

/// Refusals that wait to be sent. Beyond it the oldest is dropped: the newest says what is expected.
const MAX_PENDING_REJECTIONS: usize = 32;

/// How somebody attaches.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// To which.
    pub terminal: TerminalId,
    /// Where to begin.
    pub from: ViewerStart,
    /// Names its stream of input; `None` only for somebody who only watches.
    pub client: Option<ClientId>,
    /// Its window; without it it owns no size.
    pub size: Option<WindowSize>,
    /// Bytes under way without an ack; 0: any number.
    pub credit: u64,
    /// The PTY waits for this reader.
    pub lossless: bool,
    /// Input is refused.
    pub read_only: bool,
}

/// What an attachment has to say.
#[derive(Debug)]
pub enum AttachmentEvent {
    /// Something happened.
    Frame(Frame),
    /// All input before it is in the PTY.
    Ack {
        /// Of the input.
        epoch: u64,
        /// What is expected next.
        next: u64,
    },
    /// Input was not taken; the stream goes on.
    Rejected(InputRejection),
}

/// Input that was not taken.
#[derive(Debug)]
pub struct InputRejection {
    /// Why.
    pub error: TerminalError,
    /// The current one.
    pub epoch: u64,
    /// What is expected next of this client.
    pub expected: u64,
}

/// The reading side. Dropping it is leaving.
#[derive(Debug)]
pub struct Attachment {
    watch: TerminalWatch,
    writer: AttachmentWriter,
    /// Up to which input was acknowledged.
    acked: u64,
}

/// The writing side.
#[derive(Debug, Clone)]
pub struct AttachmentWriter {
    terminal: Arc<Terminal>,
    client: Option<ClientId>,
    viewer: u64,
    read_only: bool,
    responses: Arc<Mutex<PendingResponses>>,
    wake: Arc<Notify>,
}

/// What the reading side has to say for the writing side.
#[derive(Debug, Default)]
struct PendingResponses {
    rejections: VecDeque<InputRejection>,
    /// A repeat came, whose acknowledgement was lost.
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
        // What was written before is told by `started`.
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

    /// The other side.
    pub fn writer(&self) -> AttachmentWriter {
        self.writer.clone()
    }

    /// What comes next; waits for it. `None`: the terminal has ended and everything was said.
    pub async fn next(&mut self) -> Option<AttachmentEvent> {
        loop {
            // Acknowledgements first: they are few, and a flood of output must not hold them up.
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
    /// Asks at the door for so many bytes.
    pub(super) fn try_admit(&self, bytes: usize) -> Result<(), AdmitError> {
        self.terminal.gate.try_admit(Intent::Keystroke, bytes)
    }

    pub(super) fn try_input(&self, input: TerminalInput<'_>) -> Result<u64, Attempt<TerminalError>> {
        match &self.client {
            Some(client) if !self.read_only => self.terminal.write(client, input),
            _ => Err(TerminalError::ReadOnly.into()),
        }
    }

    /// This client's input before `end` was taken. It is acknowledged when it is written, a repeat at once.
    pub(super) fn accepted(&self, end: u64) {
        let Some(client) = &self.client else { return };
        let written = self.terminal.state().inputs.written(client);
        if end <= written {
            self.responses().repeated = true;
        }
        self.wake.notify_one();
    }

    /// Input was not taken.
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

    /// Its window has this size; `take` makes it the owner.
    pub fn resize(&self, size: WindowSize, take: bool) -> Result<(), TerminalError> {
        match &self.client {
            Some(client) if !self.read_only => self.terminal.resize(client, size, take).map(drop),
            _ => Err(TerminalError::ReadOnly),
        }
    }

    /// Output before this offset has been processed.
    pub fn ack(&self, offset: u64) {
        let epoch = self.terminal.state().log.epoch();
        viewer::ack(&self.terminal, self.viewer, epoch, offset);
    }

    /// Sends a signal.
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
