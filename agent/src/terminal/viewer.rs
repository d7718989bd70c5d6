//! Viewer: one reader of a terminal, with its own cursor.
//!
//! Viewers are level-triggered: each compares the shared state with what it has sent. A slow viewer
//! therefore costs no memory. It misses intermediate titles, and receives a gap and a snapshot
//! instead of bytes that were evicted.

use std::{sync::Arc, time::Instant};

use tokio::sync::Notify;

use super::{
    ClientId, Frame, FrameKind, Terminal, TerminalError, ViewerStart, WindowSize,
    sent_metadata::SentMetadata,
    state::{TerminalState, ViewerSlot},
};
use crate::byte_log::{CHUNK_BYTES, LogRead};

/// Limit on viewers of one terminal; another one is rejected. Bounds the cost of waking them.
pub(super) const MAX_VIEWERS: usize = 64;
/// Age up to which a terminal's first writer also answers queries that were printed before it
/// attached, such as those of a starting shell. In an older terminal the querying program no longer
/// waits, and another program would read the reply as its input.
const NEW_TERMINAL_AGE: std::time::Duration = std::time::Duration::from_secs(5);

/// How a viewer reads a terminal.
#[derive(Debug, Clone)]
pub(super) struct ViewerOptions {
    pub(super) from: ViewerStart,
    /// Client of the viewer; `None` if it never types.
    pub(super) client: Option<ClientId>,
    pub(super) writes: bool,
    pub(super) size: Option<WindowSize>,
    /// Output bytes that may be unacknowledged; 0 means unlimited.
    pub(super) credit: u64,
    pub(super) lossless: bool,
}

/// One reader of a terminal. Dropping it detaches the client.
#[derive(Debug)]
pub(super) struct Viewer {
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
    pub(super) fn join(
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
            return Err(TerminalError::TooManyStreams {
                what: "clients",
                limit: super::input_sequencer::MAX_CLIENTS,
            });
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
            writes: options.writes && options.client.is_some(),
            started: false,
            live_from,
            start_evicted: cursor < oldest,
            awaited_snapshot: None,
            lagged_from: None,
            sent: SentMetadata::default(),
            finished: false,
        };
        if screen {
            viewer.awaited_snapshot = Some(request_snapshot(state));
        }
        if viewer.writes
            && let Some(client) = &viewer.client
        {
            state.ever_attached = true;
            let change = state.writers.attach(client, options.size, live_from);
            // A size that the kernel rejects does not prevent viewing.
            let _ = terminal.apply_size(state, change);
        }
        viewer.sent.size = state.size.version;
        state.mark_changed();
        drop(guard);
        terminal.wake.notify_one();
        Ok(viewer)
    }

    pub(super) fn terminal(&self) -> &Arc<Terminal> {
        &self.terminal
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Returns true after the last frame was returned.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Returns the next frame if one is ready.
    pub(super) fn poll(&mut self) -> Option<Frame> {
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
            self.awaited_snapshot = Some(request_snapshot(state));
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
                let exit = state.exit?;
                self.finished = true;
                Some(self.frame(state, cursor, FrameKind::Exit(exit)))
            }
            LogRead::Gap { .. } | LogRead::Beyond => None,
        }
    }

    /// Returns a frame that only shows that the stream is alive.
    pub(super) fn keepalive(&self) -> Frame {
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
            input_offset: self.client.as_ref().map_or(0, |client| state.inputs.expected(client)),
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
        if state.task_gone {
            // No snapshot will be taken, so the viewer continues with the oldest byte.
            self.awaited_snapshot = None;
            let oldest = state.log.oldest();
            self.advance(state, oldest);
            return self
                .lagged_from
                .take()
                .map(|from| self.frame(state, from, FrameKind::Gap { from, to: oldest }));
        }
        if state.snapshots_taken < number {
            return None;
        }
        let snapshot = state.snapshot.clone()?;
        if let Some(from) = self.lagged_from.take() {
            // The gap is sent first, the snapshot with the next call.
            return Some(self.frame(state, from, FrameKind::Gap { from, to: snapshot.offset.max(from) }));
        }
        self.awaited_snapshot = None;
        self.advance(state, snapshot.offset);
        if let Some(slot) = state.viewers.get_mut(&self.id) {
            slot.acked = snapshot.offset;
        }
        if state.viewers.values().all(|slot| slot.cursor.is_some()) {
            state.snapshot = None;
        }
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
        if state.viewers.values().all(|slot| slot.cursor.is_some()) {
            state.snapshot = None;
        }
        if let Some(client) = &self.client {
            state.inputs.detach(client, Instant::now());
            if self.writes {
                let change = state.writers.detach(client);
                let _ = self.terminal.apply_size(&mut state, change);
            }
        }
        drop(state);
        // The task may wait for this viewer; the task of a removed terminal ends with its last
        // viewer.
        self.terminal.wake.notify_one();
    }
}

fn request_snapshot(state: &mut TerminalState) -> u64 {
    // Viewers share a pending request, because its snapshot will contain all output up to the time
    // at which it is taken.
    if state.snapshots_requested == state.snapshots_taken {
        state.snapshots_requested += 1;
    }
    state.snapshots_requested
}

/// Grants credit. The viewer's client has processed all output before `offset`. An ack for another
/// epoch, or with a lower offset than before, is ignored. An offset beyond the sent output counts
/// as the end of the sent output.
pub(super) fn ack(terminal: &Terminal, viewer: u64, epoch: u64, offset: u64) {
    let mut state = terminal.state();
    if epoch != state.log.epoch() {
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
