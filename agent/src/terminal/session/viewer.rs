//! Viewer: one reader of a terminal, with its own cursor.
//!
//! Viewers are level-triggered: each compares the shared state with what it has sent. A slow viewer
//! therefore costs no memory. It misses intermediate titles, and receives a gap and a snapshot
//! instead of bytes that were evicted. For a lossless viewer, reads of the PTY pause instead.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Lifecycle, SnapshotRequests, Terminal, TerminalState, Versioned, ViewerSlot};
use crate::{
    byte_log::{ByteLog, CHUNK_BYTES, LogRead},
    terminal::{
        input::MAX_CLIENTS,
        types::{ClientId, Frame, FrameKind, ScreenSnapshot, TerminalError, ViewerOptions, ViewerStart},
    },
};

#[cfg(test)]
mod tests;

/// Time for which the PTY is not read while a lossless viewer makes no progress. After that the
/// viewer is no longer lossless.
const LOSSLESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Distance, in bytes, between a lossless viewer's cursor and its eviction at which reads of the
/// PTY pause. For a small log it is half of the capacity. Larger than one burst, so that a burst
/// cannot evict the cursor.
const LOSSLESS_MARGIN_BYTES: usize = 128 * 1024;
/// Limit on viewers of one terminal; another one is rejected. Bounds the cost of waking them.
pub(crate) const MAX_VIEWERS: usize = 64;
/// Age up to which a terminal's first writer also answers queries that were printed before it
/// attached, such as those of a starting shell. In an older terminal the querying program no longer
/// waits, and another program would read the reply as its input.
const NEW_TERMINAL_AGE: Duration = Duration::from_secs(5);

/// One reader of a terminal. Dropping it detaches the client.
#[derive(Debug)]
pub(crate) struct Viewer {
    terminal: Arc<Terminal>,
    id: u64,
    client: Option<ClientId>,
    writes: bool,
    started: bool,
    live_from: u64,
    /// The requested position had already been evicted.
    start_evicted: bool,
    /// Number of the snapshot that the viewer waits for.
    awaited_snapshot: Option<u64>,
    /// Offset of the first byte that was evicted before the viewer read it. `None` if the viewer
    /// waits for a snapshot for another reason.
    lagged_from: Option<u64>,
    sent: SentMetadata,
    finished: bool,
}

impl Viewer {
    /// Attaches a viewer to a terminal. `wake` is notified whenever a frame may be ready.
    pub(crate) fn join(
        terminal: &Arc<Terminal>,
        options: &ViewerOptions,
        wake: &Arc<Notify>,
    ) -> Result<Self, TerminalError> {
        let mut guard = terminal.state();
        let state = &mut *guard;
        if state.viewers.len() >= MAX_VIEWERS {
            return Err(TerminalError::TooManyStreams {
                what: "viewers of this terminal",
                limit: MAX_VIEWERS,
            });
        }
        let (oldest, next) = (state.log.oldest(), state.log.next());
        let cursor = match options.from {
            ViewerStart::Position { epoch, offset } if epoch == state.log.epoch() => {
                if offset > next {
                    return Err(TerminalError::BadOffset { next });
                }
                offset
            }
            ViewerStart::Position { .. } | ViewerStart::Oldest => oldest,
            ViewerStart::Screen | ViewerStart::Now => next,
        };
        if let Some(client) = &options.client
            && !state.inputs.attach(client, Instant::now())
        {
            return Err(TerminalError::TooManyStreams { what: "clients", limit: MAX_CLIENTS });
        }
        let is_new = terminal.created.elapsed().is_ok_and(|age| age < NEW_TERMINAL_AGE);
        let live_from = if !state.ever_attached && is_new { cursor.min(oldest) } else { next };
        let screen = options.from == ViewerStart::Screen;
        let id = state.next_viewer;
        state.next_viewer += 1;
        state.viewers.insert(
            id,
            ViewerSlot {
                wake: Arc::clone(wake),
                cursor: (!screen).then_some(cursor),
                acked: cursor,
                credit: options.credit,
                lossless: options.lossless,
                last_progress: Instant::now(),
            },
        );
        // From now on, dropping the viewer undoes the registration.
        let mut viewer = Self {
            terminal: Arc::clone(terminal),
            id,
            client: options.client.clone(),
            writes: !options.read_only && options.client.is_some(),
            started: false,
            live_from,
            start_evicted: cursor < oldest,
            awaited_snapshot: None,
            lagged_from: None,
            sent: SentMetadata::default(),
            finished: false,
        };
        if screen {
            viewer.awaited_snapshot = Some(state.snapshots.request());
        }
        if viewer.writes
            && let Some(client) = &viewer.client
        {
            state.ever_attached = true;
            let size = state.writers.attach(client, options.size, live_from);
            // A size that the kernel rejects does not prevent viewing.
            let _ = terminal.apply_size(state, size);
        }
        viewer.sent.size = state.size.version;
        state.changed_since_poll = true;
        drop(guard);
        terminal.wake.notify_one();
        Ok(viewer)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Returns true after the last frame was returned.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Returns the next frame if one is ready.
    pub(crate) fn poll(&mut self) -> Option<Frame> {
        if self.finished {
            return None;
        }
        let terminal = Arc::clone(&self.terminal);
        let mut guard = terminal.state();
        let state = &mut *guard;
        if !self.started {
            self.started = true;
            return Some(self.start(state));
        }
        if let Some(number) = self.awaited_snapshot {
            return self.snapshot_frame(state, number);
        }
        let slot = state.viewers.get(&self.id)?;
        let (cursor, acked, credit) = (slot.cursor?, slot.acked, slot.credit);
        if cursor < state.log.oldest() {
            if let Some(gap) = self.resume_at_oldest(state, cursor) {
                return Some(gap);
            }
            self.lagged_from = Some(cursor);
            self.awaited_snapshot = Some(state.snapshots.request());
            if let Some(slot) = state.viewers.get_mut(&self.id) {
                slot.cursor = None;
            }
            drop(guard);
            terminal.wake.notify_one();
            return None;
        }
        if let Some(kind) = self.sent.take_due(state, cursor) {
            return Some(self.frame(state, cursor, kind));
        }
        let allowed = if credit == 0 { u64::MAX } else { (acked + credit).saturating_sub(cursor) };
        let until = self.sent.next_offset(state, cursor).unwrap_or(u64::MAX) - cursor;
        let max = allowed.min(until).min(CHUNK_BYTES as u64) as usize;
        if max == 0 {
            return None;
        }
        match state.log.read(cursor, max) {
            LogRead::Data { offset, bytes } => {
                self.advance(state, offset + bytes.len() as u64);
                let frame = self.frame(state, offset, FrameKind::Data(bytes));
                let resumes = state.paused_since.is_some();
                drop(guard);
                if resumes {
                    terminal.wake.notify_one();
                }
                Some(frame)
            }
            LogRead::AtEnd => {
                let exit = state.lifecycle.exited()?;
                self.finished = true;
                Some(self.frame(state, cursor, FrameKind::Exit(exit)))
            }
            LogRead::Gap { .. } | LogRead::Beyond => None,
        }
    }

    /// Returns a frame that only shows that the stream is alive.
    pub(crate) fn keepalive(&self) -> Frame {
        let state = self.terminal.state();
        let at = state.viewers.get(&self.id).and_then(|slot| slot.cursor).unwrap_or(state.log.next());
        self.frame(&state, at, FrameKind::KeepAlive)
    }

    fn start(&self, state: &TerminalState) -> Frame {
        let at = state.viewers.get(&self.id).and_then(|slot| slot.cursor).unwrap_or(state.log.next());
        let kind = FrameKind::Started {
            oldest: state.log.oldest(),
            next: state.log.next(),
            size: state.size.value,
            input_offset: self.client.as_ref().map_or(0, |client| state.inputs.position(client).expected),
            live_from: self.live_from,
        };
        self.frame(state, at, kind)
    }

    /// Returns a gap and continues at the oldest byte, if the client resumed at an evicted
    /// position. Such a client asked for output and receives all that is left. Returns `None` if
    /// the position was evicted while the viewer was reading. Such a viewer is too slow, and
    /// receives a snapshot instead.
    fn resume_at_oldest(&mut self, state: &mut TerminalState, cursor: u64) -> Option<Frame> {
        if !std::mem::take(&mut self.start_evicted) {
            return None;
        }
        let oldest = state.log.oldest();
        self.advance(state, oldest);
        if let Some(slot) = state.viewers.get_mut(&self.id) {
            slot.acked = oldest;
        }
        Some(self.frame(state, cursor, FrameKind::Gap { from: cursor, to: oldest }))
    }

    fn snapshot_frame(&mut self, state: &mut TerminalState, number: u64) -> Option<Frame> {
        if state.snapshots.answered < number {
            return None;
        }
        let Some(snapshot) = state.snapshots.latest.clone() else {
            // No snapshot will be taken, so the viewer continues with the oldest byte.
            self.awaited_snapshot = None;
            let to = state.log.oldest();
            self.advance(state, to);
            return self.lagged_from.take().map(|from| self.frame(state, from, FrameKind::Gap { from, to }));
        };
        if let Some(from) = self.lagged_from.take() {
            // The gap is sent first, the snapshot with the next call.
            return Some(self.frame(state, from, FrameKind::Gap { from, to: snapshot.offset.max(from) }));
        }
        self.awaited_snapshot = None;
        self.advance(state, snapshot.offset);
        if let Some(slot) = state.viewers.get_mut(&self.id) {
            slot.acked = snapshot.offset;
        }
        state.release_snapshot();
        Some(self.frame(state, snapshot.offset, FrameKind::Screen(snapshot)))
    }

    fn advance(&self, state: &mut TerminalState, to: u64) {
        if let Some(slot) = state.viewers.get_mut(&self.id) {
            slot.cursor = Some(to);
            slot.last_progress = Instant::now();
        }
    }

    fn frame(&self, state: &TerminalState, offset: u64, kind: FrameKind) -> Frame {
        Frame { terminal: self.terminal.id.clone(), epoch: state.log.epoch(), offset, kind }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let mut state = self.terminal.state();
        state.viewers.remove(&self.id);
        state.release_snapshot();
        if let Some(client) = &self.client {
            state.inputs.detach(client, Instant::now());
            if self.writes {
                let size = state.writers.detach(client);
                let _ = self.terminal.apply_size(&mut state, size);
            }
        }
        drop(state);
        // The task may wait for this viewer; the task of a removed terminal ends with its last
        // viewer.
        self.terminal.wake.notify_one();
    }
}

impl Terminal {
    /// Grants credit. The viewer's client has processed all output before `offset`. An ack for
    /// another epoch, or with a lower offset than before, is ignored. An offset beyond the sent
    /// output counts as the end of the sent output. Without an epoch the ack is for the current
    /// one.
    pub(crate) fn ack(&self, viewer: u64, epoch: Option<u64>, offset: u64) {
        let mut state = self.state();
        if epoch.is_some_and(|epoch| epoch != state.log.epoch()) {
            return;
        }
        if let Some(slot) = state.viewers.get_mut(&viewer)
            && let Some(cursor) = slot.cursor
            && offset > slot.acked
        {
            slot.acked = offset.min(cursor);
            slot.wake.notify_one();
        }
    }
}

impl SnapshotRequests {
    /// Returns the number of a new request. Viewers share an open request, because its snapshot
    /// will contain all output up to the time at which it is taken.
    fn request(&mut self) -> u64 {
        if self.requested == self.answered {
            self.requested += 1;
        }
        self.requested
    }

    pub(super) fn is_open(&self) -> bool {
        self.requested > self.answered
    }

    /// Answers the open request.
    pub(super) fn answer(&mut self, snapshot: ScreenSnapshot) {
        self.answered = self.requested;
        self.latest = Some(Arc::new(snapshot));
    }

    /// Answers the open request and all later ones without a snapshot, because the task has panicked
    /// and takes no snapshot again.
    pub(super) fn give_up(&mut self) {
        self.answered = u64::MAX;
        self.latest = None;
    }
}

// === lossless viewers ===

impl ViewerSlot {
    /// Returns whether reads pause for this viewer, because its next byte is about to be evicted.
    fn holds_back(&self, log: &ByteLog) -> bool {
        let margin = LOSSLESS_MARGIN_BYTES.min(log.max_bytes() / 2);
        self.lossless && self.cursor.is_some_and(|at| log.capacity_from(at) <= margin)
    }

    fn gives_up_at(&self, paused: Option<Instant>) -> Instant {
        self.last_progress.max(paused.unwrap_or(self.last_progress)) + LOSSLESS_TIMEOUT
    }
}

impl TerminalState {
    /// Pauses reads of the PTY for slow lossless viewers. Viewers that made no progress in time
    /// stop being lossless. Returns the time at which the next viewer would stop, or `None` if
    /// reads need not pause.
    pub(super) fn pause_for_readers(&mut self, now: Instant) -> Option<Instant> {
        let until = self.lossless_deadline()?;
        if self.paused_since.is_none() {
            // The timeout starts now, even if the viewers had nothing to read for long before.
            self.paused_since = Some(now);
        } else if until <= now {
            self.give_up_slow_readers(now);
        }
        self.lossless_deadline()
    }

    /// Returns the time at which the next slow lossless viewer stops being lossless. `None` if
    /// reads of the PTY need not pause.
    pub(super) fn lossless_deadline(&self) -> Option<Instant> {
        // The viewers of a terminal that is being ended are not waited for.
        if matches!(self.lifecycle, Lifecycle::Closing(_) | Lifecycle::Draining(_)) {
            return None;
        }
        let slow = self.viewers.values().filter(|slot| slot.holds_back(&self.log));
        slow.map(|slot| slot.gives_up_at(self.paused_since)).min()
    }

    /// Ends the lossless mode of stalled viewers, but only of those for which reads pause. The
    /// other viewers could not make progress because reads paused.
    fn give_up_slow_readers(&mut self, now: Instant) {
        for slot in self.viewers.values_mut() {
            if slot.holds_back(&self.log) && slot.gives_up_at(self.paused_since) <= now {
                slot.lossless = false;
            }
        }
    }

    /// Drops the last snapshot unless a viewer waits for it.
    fn release_snapshot(&mut self) {
        if self.viewers.values().all(|slot| slot.cursor.is_some()) {
            self.snapshots.latest = None;
        }
    }
}

// === metadata ===

/// Versions of the metadata that a viewer has received.
#[derive(Debug, Default)]
struct SentMetadata {
    title: u32,
    cwd: u32,
    foreground: u32,
    size: u32,
}

impl SentMetadata {
    /// Returns the next change that applies at the cursor, and marks it as sent.
    fn take_due(&mut self, state: &TerminalState, cursor: u64) -> Option<FrameKind> {
        let size = state.size.take_due(&mut self.size, cursor).map(FrameKind::Resized);
        size.or_else(|| state.title.take_due(&mut self.title, cursor).map(FrameKind::Title))
            .or_else(|| state.cwd.take_due(&mut self.cwd, cursor).map(FrameKind::Cwd))
            .or_else(|| state.foreground.take_due(&mut self.foreground, cursor).map(FrameKind::Foreground))
    }

    /// Returns the offset of the next change after the cursor. Data frames end there, so that
    /// frames are sent in order.
    fn next_offset(&self, state: &TerminalState, cursor: u64) -> Option<u64> {
        let size = state.size.next_offset(self.size, cursor);
        let title = state.title.next_offset(self.title, cursor);
        let cwd = state.cwd.next_offset(self.cwd, cursor);
        let foreground = state.foreground.next_offset(self.foreground, cursor);
        [size, title, cwd, foreground].into_iter().flatten().min()
    }
}

impl<T: Clone> Versioned<T> {
    fn take_due(&self, sent: &mut u32, cursor: u64) -> Option<T> {
        (self.version != *sent && self.at <= cursor).then(|| {
            *sent = self.version;
            self.value.clone()
        })
    }

    fn next_offset(&self, sent: u32, cursor: u64) -> Option<u64> {
        (self.version != sent && self.at > cursor).then_some(self.at)
    }
}
