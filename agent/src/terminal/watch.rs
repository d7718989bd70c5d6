//! Watch: one output stream over several terminals, served in turn, each with its own credit.
//!
//! The server pulls frames, so HTTP/2 flow control provides the back-pressure and no task is
//! needed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{ClientId, Frame, TerminalError, TerminalId, ViewerStart, streams::WatchGuard, viewer::Viewer};

/// Silence after which a keep-alive frame is sent. Proxies close idle streams after 60 s.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A terminal to watch, and the point at which to start.
#[derive(Debug, Clone)]
pub struct WatchTarget {
    pub terminal: TerminalId,
    pub from: ViewerStart,
}

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
    /// Registers the watch by its id while it lives.
    guard: Option<WatchGuard>,
}

/// Options for all terminals of a watch.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Client of the watch; `None` if it never types.
    pub client: Option<ClientId>,
    /// Output bytes per terminal that may be unacknowledged; 0 means unlimited.
    pub credit: u64,
    /// The PTY is not read while the watch is about to miss output, for at most 60 s without
    /// progress. Allowed for one terminal only.
    pub lossless: bool,
}

impl TerminalWatch {
    pub(super) fn new(
        viewers: Vec<Viewer>,
        failed: VecDeque<(TerminalId, TerminalError)>,
        wake: Arc<Notify>,
        guard: Option<WatchGuard>,
    ) -> Self {
        Self { viewers, failed, wake, next_index: 0, last_frame_at: Instant::now(), guard }
    }

    /// Returns the id that names this watch in an ack. Empty if the watch has no registration.
    pub fn id(&self) -> &str {
        self.guard.as_ref().map_or("", WatchGuard::id)
    }

    /// Waits for the next event. Returns `None` after all terminals have ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.poll() {
                return Some(event);
            }
            if self.viewers.is_empty() {
                return None;
            }
            let until = self.last_frame_at + KEEPALIVE;
            if timeout_at(until, self.wake.notified()).await.is_err() {
                return Some(WatchEvent::Frame(self.keepalive()));
            }
        }
    }

    /// Returns the next event if one is ready.
    pub(super) fn poll(&mut self) -> Option<WatchEvent> {
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

    /// Returns the time at which a keep-alive frame is due.
    pub(super) fn keepalive_deadline(&self) -> Instant {
        self.last_frame_at + KEEPALIVE
    }

    /// Returns a keep-alive frame. The terminals of the watch take turns.
    pub(super) fn keepalive(&mut self) -> Frame {
        self.last_frame_at = Instant::now();
        let index = self.next_index % self.viewers.len();
        self.next_index = index + 1;
        self.viewers[index].keepalive()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.viewers.is_empty()
    }
}
