//! Watch: one output stream over several terminals, served in turn, each with its own credit.
//!
//! The server pulls frames, so HTTP/2 flow control provides the back-pressure and no task is
//! needed. Each watch and attachment is registered in [`OpenStreams`] while it lives.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    session::{Terminal, viewer::Viewer},
    types::{Frame, TerminalError, TerminalId, ViewerOptions},
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
        if !(1..=MAX_WATCHED_TERMINALS).contains(&targets.len()) {
            return Err(TerminalError::BadField {
                field: "terminals",
                allowed: "a list of 1 to 64 terminals",
            });
        }
        if targets.len() > 1 && targets.iter().any(|target| target.lossless) {
            return Err(TerminalError::BadField {
                field: "lossless",
                allowed: "false if more than one terminal is watched",
            });
        }
        let mut watch = Self::new(streams)?;
        let mut acks = AckTargets::new();
        for target in targets {
            match find(&target.terminal).and_then(|terminal| watch.join(&terminal, target)) {
                Ok((terminal, viewer)) => drop(acks.insert(target.terminal.clone(), (terminal, viewer))),
                Err(error) => watch.failed.push_back((target.terminal.clone(), error)),
            }
        }
        streams.lock().insert(watch.id().to_owned(), acks);
        Ok(watch)
    }

    /// Opens a watch of one terminal for an attachment. Returns the id of its viewer.
    pub(crate) fn attach(
        terminal: &Arc<Terminal>,
        attach: &ViewerOptions,
        streams: &OpenStreams,
    ) -> Result<(Self, u64), TerminalError> {
        let mut watch = Self::new(streams)?;
        let (_, viewer) = watch.join(terminal, attach)?;
        Ok((watch, viewer))
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

    fn join(
        &mut self,
        terminal: &Arc<Terminal>,
        attach: &ViewerOptions,
    ) -> Result<(Arc<Terminal>, u64), TerminalError> {
        let viewer = Viewer::join(terminal, attach, &self.wake)?;
        let id = viewer.id();
        self.viewers.push(viewer);
        Ok((Arc::clone(terminal), id))
    }

    /// Returns the id that names this watch in an ack.
    pub fn id(&self) -> &str {
        &self.registration.id
    }

    /// Returns the signal that an event may be ready.
    pub(crate) fn wake(&self) -> &Arc<Notify> {
        &self.wake
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
    pub(crate) fn poll(&mut self) -> Option<WatchEvent> {
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
    pub(crate) async fn wait(&mut self) -> Option<Frame> {
        timeout_at(self.last_frame_at + KEEPALIVE, self.wake.notified()).await.err()?;
        self.last_frame_at = Instant::now();
        let index = self.next_index % self.viewers.len();
        self.next_index = index + 1;
        Some(self.viewers[index].keepalive())
    }

    pub(crate) fn is_finished(&self) -> bool {
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
        let id = TerminalId::random().to_string();
        streams.insert(id.clone(), AckTargets::new());
        Ok(StreamRegistration { id, streams: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, AckTargets>> {
        self.streams.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for StreamRegistration {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.id);
    }
}
