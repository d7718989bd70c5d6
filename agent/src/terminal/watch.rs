//! TerminalWatch: one stream over one or several terminals, each with its credit and its turn.
//!
//! Pulled by whoever sends it on, so that HTTP/2's flow control is the back-pressure and no task is needed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{ClientId, Frame, TerminalError, TerminalId, ViewerStart, streams::WatchGuard, viewer::Viewer};

/// Quiet for so long, a stream says that it lives: proxies cut idle ones at 60 s.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Which terminal to watch, and from where.
#[derive(Debug, Clone)]
pub struct WatchTarget {
    /// Which.
    pub terminal: TerminalId,
    /// Where to begin.
    pub from: ViewerStart,
}

/// What a watch has to say.
#[derive(Debug)]
pub enum WatchEvent {
    /// Something happened in one of the terminals.
    Frame(Frame),
    /// One of the terminals cannot be watched; the others go on.
    Failed {
        /// Which.
        terminal: TerminalId,
        /// Why.
        error: TerminalError,
    },
}

/// A stream of frames. Ends when all of its terminals have ended; dropping it is leaving.
#[derive(Debug)]
pub struct TerminalWatch {
    viewers: Vec<Viewer>,
    failed: VecDeque<(TerminalId, TerminalError)>,
    wake: Arc<Notify>,
    /// Whose turn is next.
    next_index: usize,
    last_frame_at: Instant,
    /// Known by its id as long as it lives.
    guard: Option<WatchGuard>,
}

/// How all terminals of a watch are read.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Who watches; `None` for somebody who never types.
    pub client: Option<ClientId>,
    /// Bytes under way without an ack, per terminal; 0: any number.
    pub credit: u64,
    /// The PTY waits for this reader. One terminal only.
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

    /// Names this watch in an ack; empty for an attachment.
    pub fn id(&self) -> &str {
        self.guard.as_ref().map_or("", WatchGuard::id)
    }

    /// What comes next; waits for it. `None`: it is over.
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

    /// What there is now.
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

    /// When it must say that it lives.
    pub(super) fn keepalive_deadline(&self) -> Instant {
        self.last_frame_at + KEEPALIVE
    }

    /// Says that it lives, of its terminals in turn.
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
