//! TerminalState: what a terminal's task, viewers and writers share, under one short lock.

use std::{
    collections::{BTreeMap, VecDeque},
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::Notify;

use super::{
    TerminalExit, WindowSize, input_sequencer::InputSequencer, pty::Pty, screen::ScreenSnapshot,
    writers::AttachedWriters,
};
use crate::byte_log::ByteLog;

#[cfg(test)]
mod tests;

/// How long a PTY waits for a lossless reader that makes no progress; then the reader is left behind as any other.
pub(super) const LOSSLESS_TIMEOUT: Duration = Duration::from_secs(60);
/// A lossless reader is waited for when no more than this (or half of a small log) still fits: more than one burst of reading.
const LOSSLESS_MARGIN_BYTES: u64 = 128 * 1024;
/// Read before readers are told, so that a flood travels in large frames; a small log is read in quarters, so that a lossless reader is
/// not run over.
const BURST_BYTES: usize = 64 * 1024;
/// Sizes kept for a screen model that is behind.
const MAX_PENDING_RESIZES: usize = 64;
/// Written to the PTY in one go; more waits for the next turn, so that a paste holds nobody up.
const WRITE_BYTES: usize = 64 * 1024;

/// Everything shared.
#[derive(Debug)]
pub(super) struct TerminalState {
    pub(super) log: ByteLog,
    /// `None` once it has ended: the last reference hangs up.
    pub(super) pty: Option<Arc<Pty>>,
    pub(super) inputs: InputSequencer,
    pub(super) writers: AttachedWriters,
    pub(super) viewers: BTreeMap<u64, ViewerSlot>,
    pub(super) next_viewer: u64,
    pub(super) title: Versioned<String>,
    pub(super) cwd: Versioned<String>,
    /// The shell reports its folder itself (OSC 7).
    pub(super) cwd_reported: bool,
    pub(super) foreground: Versioned<String>,
    pub(super) size: Versioned<WindowSize>,
    /// Sizes that the screen model has not been told of.
    pub(super) resizes: VecDeque<(u64, WindowSize)>,
    /// ScreenFeeder that were asked for and made; the last one is kept as long as somebody waits for it.
    pub(super) snapshots_requested: u64,
    pub(super) snapshots_taken: u64,
    pub(super) snapshot: Option<Arc<ScreenSnapshot>>,
    /// The leader was reaped: its number may be another's.
    pub(super) leader_gone: bool,
    /// Somebody ends it: nobody is waited for any more.
    pub(super) closing: bool,
    /// …and its session got all signals there are: what is there is read once more, and that is its end.
    pub(super) killed: bool,
    /// The task is no more: nobody makes pictures.
    pub(super) task_gone: bool,
    /// It left the registry; the task ends with its last viewer.
    pub(super) removed: bool,
    pub(super) exit: Option<TerminalExit>,
    /// The workspace falls asleep, or the agent ends, since then: whatever ends it now is no end of its own.
    pub(super) slept_at: Option<SystemTime>,
    /// Writing failed for another reason than that the PTY is full: that it can be written says nothing then.
    pub(super) write_failed: bool,
    /// The task waits for a lossless reader since then.
    pub(super) paused_since: Option<Instant>,
    /// The task has a time for the next look at polled facts.
    pub(super) poll_scheduled: bool,
    /// Something happened since that look.
    pub(super) changed_since_poll: bool,
    /// Somebody who can answer queries has watched it.
    pub(super) ever_attached: bool,
}

/// Something that is true from an offset on.
#[derive(Debug, Clone, Default)]
pub(super) struct Versioned<T> {
    pub(super) value: T,
    pub(super) at: u64,
    /// Ticks with every change; 0: never set.
    pub(super) version: u32,
}

/// A viewer, as the terminal knows it.
#[derive(Debug)]
pub(super) struct ViewerSlot {
    /// Shared by all viewers of one stream.
    pub(super) wake: Arc<Notify>,
    /// Offset of the next byte; `None` while it waits for a picture.
    pub(super) cursor: Option<u64>,
    /// The client has processed everything before it.
    pub(super) acked: u64,
    /// Bytes that may be under way without an ack; 0: any number.
    pub(super) credit: u64,
    /// The PTY waits for it.
    pub(super) lossless: bool,
    /// When its cursor last moved.
    pub(super) last_progress: Instant,
}

impl<T: PartialEq> Versioned<T> {
    /// A first value, which needs no telling.
    pub(super) fn initial(value: T) -> Self {
        Self { value, at: 0, version: 0 }
    }

    /// `true` if it changed.
    pub(super) fn set(&mut self, value: T, at: u64) -> bool {
        let changed = self.value != value;
        if changed {
            *self = Self { value, at, version: self.version + 1 };
        }
        changed
    }
}

impl ViewerSlot {
    fn holds_back(&self, slow_offset: Option<u64>) -> bool {
        self.lossless && self.cursor.is_some_and(|at| slow_offset.is_some_and(|before| at <= before))
    }

    fn gives_up_at(&self, paused: Option<Instant>) -> Instant {
        self.last_progress.max(paused.unwrap_or(self.last_progress)) + LOSSLESS_TIMEOUT
    }
}

impl TerminalState {
    /// Without its PTY.
    pub(super) fn new(log: ByteLog, size: WindowSize) -> Self {
        Self {
            inputs: InputSequencer::new(log.epoch()),
            log,
            pty: None,
            writers: AttachedWriters::default(),
            viewers: BTreeMap::new(),
            next_viewer: 0,
            title: Versioned::default(),
            cwd: Versioned::default(),
            cwd_reported: false,
            foreground: Versioned::default(),
            size: Versioned::initial(size),
            resizes: VecDeque::new(),
            snapshots_requested: 0,
            snapshots_taken: 0,
            snapshot: None,
            leader_gone: false,
            closing: false,
            killed: false,
            task_gone: false,
            removed: false,
            exit: None,
            slept_at: None,
            write_failed: false,
            paused_since: None,
            poll_scheduled: false,
            changed_since_poll: false,
            ever_attached: false,
        }
    }

    pub(super) fn wake_viewers(&self) {
        self.viewers.values().for_each(|slot| slot.wake.notify_one());
    }

    pub(super) fn set_size(&mut self, size: WindowSize) {
        let at = self.log.next();
        self.size.set(size, at);
        // The task takes them with its next turn.
        self.resizes.push_back((at, size));
        if self.resizes.len() > MAX_PENDING_RESIZES {
            self.resizes.pop_front();
        }
    }

    /// How much is read in one go.
    pub(super) fn burst_bytes(&self) -> usize {
        BURST_BYTES.min(self.log.max_bytes() / 4).max(1)
    }

    pub(super) fn mark_changed(&mut self) {
        self.changed_since_poll = true;
    }

    /// Writes what the PTY takes now; `true` if anything went.
    pub(super) fn flush_input(&mut self) -> bool {
        let Some(pty) = &self.pty else { return false };
        let mut wrote = 0;
        self.write_failed = false;
        while wrote < WRITE_BYTES {
            let front = self.inputs.front();
            if front.is_empty() {
                break;
            }
            match pty.write(front) {
                Ok(n) if n > 0 => {
                    self.inputs.mark_written(n);
                    wrote += n;
                }
                // Full: it is written when somebody reads.
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Nobody has the other side open: it is tried again with whatever happens next.
                Ok(_) | Err(_) => {
                    self.write_failed = true;
                    break;
                }
            }
        }
        if wrote > 0 {
            self.wake_viewers();
        }
        wrote > 0
    }

    /// Waits for lossless readers that are slow, and no longer for those that were waited for in vain; says until when.
    pub(super) fn pause_for_readers(&mut self, now: Instant) -> Option<Instant> {
        let until = self.lossless_deadline()?;
        if self.paused_since.is_none() {
            // Their patience begins now, however long they had nothing to read before.
            self.paused_since = Some(now);
        } else if until <= now {
            self.give_up_slow_readers(now);
        }
        self.lossless_deadline()
    }

    /// When the reader that the PTY has to wait for is given up; `None` if there is none to wait for.
    pub(super) fn lossless_deadline(&self) -> Option<Instant> {
        if self.closing {
            return None;
        }
        let slow_offset = self.slow_offset();
        let slow = self.viewers.values().filter(|slot| slot.holds_back(slow_offset));
        slow.map(|slot| slot.gives_up_at(self.paused_since)).min()
    }

    /// Only who holds the PTY back: others could not go on, because it was held back.
    fn give_up_slow_readers(&mut self, now: Instant) {
        let (paused, slow_offset) = (self.paused_since, self.slow_offset());
        for slot in self.viewers.values_mut() {
            if slot.holds_back(slow_offset) && slot.gives_up_at(paused) <= now {
                slot.lossless = false;
            }
        }
    }

    /// A reader that is not behind this offset is no slow one; `None`: nobody is slow yet.
    fn slow_offset(&self) -> Option<u64> {
        let held = self.log.max_bytes() as u64;
        let limit = held - LOSSLESS_MARGIN_BYTES.min(held / 2);
        self.log.next().checked_sub(limit)
    }
}
