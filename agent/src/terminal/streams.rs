//! Streams of clients: a watch of several terminals, and an attachment to one.
//!
//! [`TerminalWatch`] serves its terminals in turn, each with its own credit. The server pulls
//! frames, so HTTP/2 flow control provides the back-pressure and no task is needed. Each watch and
//! attachment is registered in [`OpenStreams`] while it lives.
//!
//! [`Attachment`] yields frames and acknowledgements; [`AttachmentWriter`] accepts requests without
//! waiting. A program that does not read its input therefore blocks neither its own output nor the
//! acks of its reader.
//!
//! [`InputQueue`] writes through an attachment. It keeps input that arrives while the workspace
//! prepares to sleep in order, until the sleep commits or is cancelled. The admission gate holds
//! each message, and bounds the number and bytes of the held messages. Acks, resizes and signals of
//! the client are not queued.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    input::InputPosition,
    session::{Terminal, viewer::Viewer},
    types::{
        ClientId, Frame, InputKind, SignalTarget, TerminalError, TerminalId, TerminalInput, ViewerOptions,
        WindowSize,
    },
};
use crate::{
    admission::{AdmitError, Attempt, HeldRequest},
    util::{lock, random_id},
};

/// Silence after which a keep-alive frame is sent. Proxies close idle streams after 60 s.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Limit on watches and attachments of the workspace. Another one is rejected.
const MAX_STREAMS: usize = 1024;
/// Limit on terminals in one watch.
const MAX_WATCHED_TERMINALS: usize = 64;

#[derive(Debug)]
pub enum WatchEvent {
    Frame(Frame),
    /// One of the terminals cannot be watched; the others continue.
    Failed {
        terminal: TerminalId,
        error: TerminalError,
    },
}

/// Stream of frames that ends when all of its terminals have ended. Dropping it detaches its
/// viewers.
#[derive(Debug)]
pub struct TerminalWatch {
    viewers: Vec<Viewer>,
    failed: VecDeque<(TerminalId, TerminalError)>,
    wake: Arc<Notify>,
    /// Index of the viewer that is polled first next time.
    next_index: usize,
    last_frame_at: Instant,
    registration: StreamRegistration,
}

/// Watches and attachments of the workspace, by id. Clones share the same streams.
#[derive(Debug, Clone)]
pub(crate) struct OpenStreams {
    streams: Arc<Mutex<HashMap<String, AckTargets>>>,
    /// Ends all terminals when the registry and the last stream were dropped.
    _end: Arc<DropGuard>,
}

/// Viewers that an ack can name. Empty for an attachment, which receives acks on its own stream.
type AckTargets = HashMap<TerminalId, (Arc<Terminal>, u64)>;

/// Registration of a watch or an attachment. Dropping it removes the registration.
#[derive(Debug)]
struct StreamRegistration {
    id: String,
    streams: OpenStreams,
}

impl TerminalWatch {
    /// Opens a watch of the terminals that `find` returns. An event reports each terminal that
    /// cannot be watched; the others continue.
    pub(crate) fn open(
        targets: &[ViewerOptions],
        streams: &OpenStreams,
        find: impl Fn(&TerminalId) -> Result<Arc<Terminal>, TerminalError>,
    ) -> Result<Self, TerminalError> {
        let bad = |field, allowed| Err(TerminalError::BadField { field, allowed });
        if !(1..=MAX_WATCHED_TERMINALS).contains(&targets.len()) {
            return bad("terminals", "a list of 1 to 64 terminals");
        }
        if targets.len() > 1 && targets.iter().any(|target| target.lossless) {
            return bad("lossless", "false if more than one terminal is watched");
        }
        let mut watch = Self::new(streams)?;
        let mut acks = AckTargets::new();
        for target in targets {
            let id = target.terminal.clone();
            match find(&id).and_then(|terminal| Ok((watch.join(&terminal, target)?, terminal))) {
                Ok((viewer, terminal)) => drop(acks.insert(id, (terminal, viewer))),
                Err(error) => watch.failed.push_back((id, error)),
            }
        }
        streams.lock().insert(watch.id().to_owned(), acks);
        Ok(watch)
    }

    fn new(streams: &OpenStreams) -> Result<Self, TerminalError> {
        Ok(Self {
            viewers: Vec::new(),
            failed: VecDeque::new(),
            wake: Arc::default(),
            next_index: 0,
            last_frame_at: Instant::now(),
            registration: streams.register()?,
        })
    }

    /// Adds a viewer of one terminal, and returns its id.
    fn join(&mut self, terminal: &Arc<Terminal>, options: &ViewerOptions) -> Result<u64, TerminalError> {
        let viewer = Viewer::join(terminal, options, &self.wake)?;
        let id = viewer.id();
        self.viewers.push(viewer);
        Ok(id)
    }

    /// Returns the id that names this watch in an ack.
    pub fn id(&self) -> &str {
        &self.registration.id
    }

    /// Waits for the next event. Returns `None` after all terminals have ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.poll() {
                return Some(event);
            }
            if self.is_finished() {
                return None;
            }
            if let Some(keepalive) = self.wait().await {
                return Some(WatchEvent::Frame(keepalive));
            }
        }
    }

    /// Returns the next event if one is ready.
    fn poll(&mut self) -> Option<WatchEvent> {
        if let Some((terminal, error)) = self.failed.pop_front() {
            return Some(WatchEvent::Failed { terminal, error });
        }
        let count = self.viewers.len();
        for step in 0..count {
            let index = (self.next_index + step) % count;
            if let Some(frame) = self.viewers[index].poll() {
                self.next_index = index + 1;
                self.last_frame_at = Instant::now();
                if self.viewers[index].is_finished() {
                    self.viewers.remove(index);
                    self.next_index = index;
                }
                return Some(WatchEvent::Frame(frame));
            }
        }
        None
    }

    /// Waits until an event may be ready. After 15 s of silence returns a keep-alive frame, for
    /// which the terminals of the watch take turns. Cancel-safe. The watch must not be finished.
    async fn wait(&mut self) -> Option<Frame> {
        timeout_at(self.last_frame_at + KEEPALIVE, self.wake.notified()).await.err()?;
        self.last_frame_at = Instant::now();
        let index = self.next_index % self.viewers.len();
        self.next_index = index + 1;
        Some(self.viewers[index].keepalive())
    }

    fn is_finished(&self) -> bool {
        self.viewers.is_empty()
    }
}

impl OpenStreams {
    /// Creates an empty set. When it and all streams were dropped, `end` is cancelled.
    pub(crate) fn new(end: CancellationToken) -> Self {
        Self { streams: Arc::default(), _end: Arc::new(end.drop_guard()) }
    }

    /// Grants credit to one terminal of a watch. The client has processed all output before
    /// `offset`.
    pub(crate) fn ack(
        &self,
        watch: &str,
        id: &TerminalId,
        epoch: u64,
        offset: u64,
    ) -> Result<(), TerminalError> {
        let (terminal, viewer) = {
            let streams = self.lock();
            let acks = streams.get(watch).ok_or_else(|| TerminalError::WatchNotFound(watch.to_owned()))?;
            acks.get(id).cloned().ok_or_else(|| TerminalError::NotFound(id.clone()))?
        };
        terminal.ack(viewer, Some(epoch), offset);
        Ok(())
    }

    fn register(&self) -> Result<StreamRegistration, TerminalError> {
        let mut streams = self.lock();
        if streams.len() >= MAX_STREAMS {
            return Err(TerminalError::TooManyStreams { what: "terminal streams", limit: MAX_STREAMS });
        }
        let id = random_id();
        streams.insert(id.clone(), AckTargets::new());
        Ok(StreamRegistration { id, streams: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, AckTargets>> {
        lock(&self.streams)
    }
}

impl Drop for StreamRegistration {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.id);
    }
}

// === impl Attachment ===

/// Limit on rejections that wait to be sent. On overflow the oldest is dropped, because the newest
/// has the current expected offset.
const MAX_PENDING_REJECTIONS: usize = 32;

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
    /// Attaches to a terminal.
    pub(crate) fn open(
        terminal: Arc<Terminal>,
        attach: &ViewerOptions,
        streams: &OpenStreams,
    ) -> Result<Self, TerminalError> {
        let mut watch = TerminalWatch::new(streams)?;
        let viewer = watch.join(&terminal, attach)?;
        let client = attach.client.clone();
        // Input that was written earlier is reported by the `Started` frame.
        let acked = client.as_ref().map_or(0, |client| terminal.input_position(client).written);
        let writer = AttachmentWriter {
            terminal,
            client,
            viewer,
            read_only: attach.read_only,
            responses: Arc::default(),
            wake: Arc::clone(&watch.wake),
        };
        Ok(Self { watch, writer, acked })
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
            if let Some(keepalive) = self.watch.wait().await {
                return Some(AttachmentEvent::Frame(keepalive));
            }
        }
    }

    fn pending_response(&mut self) -> Option<AttachmentEvent> {
        let client = self.writer.client.as_ref()?;
        let InputPosition { epoch, written: next, .. } = self.writer.terminal.input_position(client);
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
    /// Writes the input, and schedules its acknowledgement or rejection. If the admission gate
    /// holds the input, writes nothing and returns the hold.
    pub(crate) fn input(&self, input: TerminalInput<'_>) -> Option<HeldRequest> {
        let written = self.writing_client().map_err(Attempt::from);
        match written.and_then(|client| self.terminal.write(client, input)) {
            Ok(end) => self.accepted(end),
            Err(Attempt::Failed(error)) => self.reject(error),
            Err(Attempt::Held(hold)) => return Some(hold),
        }
        None
    }

    /// Schedules the acknowledgement of input before `end`: now for a repeat, otherwise once it is
    /// written.
    fn accepted(&self, end: u64) {
        let Some(client) = &self.client else { return };
        if end <= self.terminal.input_position(client).written {
            self.responses().repeated = true;
        }
        self.wake.notify_one();
    }

    /// Queues a rejection for the reading side.
    fn reject(&self, error: TerminalError) {
        let Some(client) = &self.client else { return };
        let InputPosition { epoch, expected, .. } = self.terminal.input_position(client);
        let mut responses = self.responses();
        if responses.rejections.len() == MAX_PENDING_REJECTIONS {
            responses.rejections.pop_front();
        }
        responses.rejections.push_back(InputRejection { error, epoch, expected });
        drop(responses);
        self.wake.notify_one();
    }

    /// Sets the client's window size. `take_ownership` also makes the client the owner of the
    /// terminal's size.
    pub fn resize(&self, size: WindowSize, take_ownership: bool) -> Result<(), TerminalError> {
        self.terminal.resize(self.writing_client()?, size, take_ownership).map(drop)
    }

    /// Grants credit. The client has processed all output before `offset`.
    pub fn ack(&self, offset: u64) {
        self.terminal.ack(self.viewer, None, offset);
    }

    /// Sends a signal by name, such as `INT`.
    pub fn signal(&self, signal: &str, target: SignalTarget) -> Result<(), TerminalError> {
        if self.read_only {
            return Err(TerminalError::ReadOnly);
        }
        self.terminal.signal(signal, target)
    }

    fn writing_client(&self) -> Result<&ClientId, TerminalError> {
        self.client.as_ref().filter(|_| !self.read_only).ok_or(TerminalError::ReadOnly)
    }

    fn responses(&self) -> MutexGuard<'_, PendingResponses> {
        lock(&self.responses)
    }
}

// === impl InputQueue ===

/// Writes the input of one attachment, and queues the messages that the admission gate holds.
/// Dropping the queue discards them.
#[derive(Debug)]
pub struct InputQueue {
    writer: AttachmentWriter,
    held: VecDeque<HeldInput>,
}

#[derive(Debug)]
struct HeldInput {
    epoch: u64,
    offset: u64,
    data: Bytes,
    kind: InputKind,
    hold: HeldRequest,
}

impl InputQueue {
    pub fn new(writer: AttachmentWriter) -> Self {
        Self { writer, held: VecDeque::new() }
    }

    /// Writes the input, or queues it behind held input. The reading side of the attachment reports
    /// the result to the client.
    pub fn input(&mut self, input: TerminalInput<'_>) {
        let held = if self.held.is_empty() {
            self.writer.input(input)
        } else {
            match self.writer.terminal.try_admit(input.data.len()) {
                Ok(()) => {
                    // The gate has just resumed, and `drain` has not yet written the queued input.
                    self.replay();
                    self.writer.input(input)
                }
                Err(AdmitError::Held(hold)) => Some(hold),
                Err(AdmitError::Rejected(refused)) => {
                    self.writer.reject(refused.into());
                    None
                }
            }
        };
        if let Some(hold) = held {
            let TerminalInput { epoch, offset, data, kind } = input;
            let data = Bytes::copy_from_slice(data);
            self.held.push_back(HeldInput { epoch, offset, data, kind, hold });
        }
    }

    /// Returns true if any input is held.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Waits until all held input was written or rejected. Cancel-safe: the next call continues.
    pub async fn drain(&mut self) {
        while let Some(first) = self.held.front_mut() {
            match first.hold.decision().await {
                Ok(()) => self.replay(),
                Err(refused) => {
                    for _ in self.held.drain(..) {
                        self.writer.reject(TerminalError::Rejected(refused));
                    }
                }
            }
        }
    }

    /// Writes the held input in order. If the gate holds requests again, the rest is queued again.
    fn replay(&mut self) {
        for held_input in std::mem::take(&mut self.held) {
            let HeldInput { epoch, offset, data, kind, hold } = held_input;
            drop(hold);
            self.input(TerminalInput { epoch, offset, data: &data, kind });
        }
    }
}
