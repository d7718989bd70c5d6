//! State of a terminal that its task, viewers and writers share under one short lock.

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

/// Time for which a PTY waits for a lossless viewer without progress; then the viewer is no longer
/// lossless.
pub(super) const LOSSLESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Distance to the end of the log's capacity at which the PTY waits for a lossless viewer (half of
/// the capacity for a small log). Larger than one burst.
const LOSSLESS_MARGIN_BYTES: u64 = 128 * 1024;
/// Bytes read before viewers are woken, so that a flood travels in large frames. A small log is
/// read in quarters, so that a lossless viewer does not lose bytes.
const BURST_BYTES: usize = 64 * 1024;
/// Limit on resizes that wait for the screen model.
const MAX_PENDING_RESIZES: usize = 64;
/// Bytes written to the PTY at a time. The rest of a paste waits for the next turn, so that it
/// delays nothing else.
const WRITE_BYTES: usize = 64 * 1024;

/// Shared state of one terminal.
#[derive(Debug)]
pub(super) struct TerminalState {
    pub(super) log: ByteLog,
    /// `None` once the terminal has ended: dropping the last reference hangs up.
    pub(super) pty: Option<Arc<Pty>>,
    pub(super) inputs: InputSequencer,
    pub(super) writers: AttachedWriters,
    pub(super) viewers: BTreeMap<u64, ViewerSlot>,
    pub(super) next_viewer: u64,
    pub(super) title: Versioned<String>,
    pub(super) cwd: Versioned<String>,
    /// The shell reports its directory by OSC 7.
    pub(super) cwd_reported: bool,
    pub(super) foreground: Versioned<String>,
    pub(super) size: Versioned<WindowSize>,
    /// Resizes that the screen model has not taken over yet.
    pub(super) resizes: VecDeque<(u64, WindowSize)>,
    /// Counters of snapshots; a viewer waits until `snapshots_taken` reaches its number. The last
    /// snapshot is retained while a viewer waits for it.
    pub(super) snapshots_requested: u64,
    pub(super) snapshots_taken: u64,
    pub(super) snapshot: Option<Arc<ScreenSnapshot>>,
    /// The leader was reaped, so its number may be reused.
    pub(super) leader_gone: bool,
    /// The terminal is being closed, so lossless viewers are not waited for.
    pub(super) closing: bool,
    /// The session was killed; the task reads the remaining output once more, and ends the
    /// terminal.
    pub(super) killed: bool,
    /// The task has panicked, so no snapshots will be taken.
    pub(super) task_gone: bool,
    /// The registry removed the terminal; the task ends with its last viewer.
    pub(super) removed: bool,
    pub(super) exit: Option<TerminalExit>,
    /// Time at which the workspace fell asleep or the agent shut down. An exit after it is not the
    /// program's own.
    pub(super) slept_at: Option<SystemTime>,
    /// The last write failed for another reason than a full PTY, so readiness to write means
    /// nothing.
    pub(super) write_failed: bool,
    /// Time since which the task waits for a lossless viewer.
    pub(super) paused_since: Option<Instant>,
    /// The task has scheduled a poll of the directory and the foreground job.
    pub(super) poll_scheduled: bool,
    /// The terminal changed since the last poll.
    pub(super) changed_since_poll: bool,
    /// A client that can answer queries has been attached.
    pub(super) ever_attached: bool,
}

/// A value with the log offset from which it holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Versioned<T> {
    pub(super) value: T,
    pub(super) at: u64,
    /// Incremented by each change; 0 if never set.
    pub(super) version: u32,
}

/// What the terminal knows about a viewer.
#[derive(Debug)]
pub(super) struct ViewerSlot {
    /// Shared by all viewers of one stream.
    pub(super) wake: Arc<Notify>,
    /// Offset of the next byte to send; `None` while the viewer waits for a snapshot.
    pub(super) cursor: Option<u64>,
    /// The client has processed all output before this offset.
    pub(super) acked: u64,
    /// Output bytes that may be unacknowledged; 0 means unlimited.
    pub(super) credit: u64,
    /// The PTY waits for this viewer.
    pub(super) lossless: bool,
    /// Time at which the cursor last moved.
    pub(super) last_progress: Instant,
}

impl<T: PartialEq> Versioned<T> {
    /// Creates a value that viewers already know.
    pub(super) fn initial(value: T) -> Self {
        Self { value, at: 0, version: 0 }
    }

    /// Returns true if the value changed.
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
    /// Creates the state of a terminal without a PTY.
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
        // The task hands the resize to the screen model.
        self.resizes.push_back((at, size));
        if self.resizes.len() > MAX_PENDING_RESIZES {
            self.resizes.pop_front();
        }
    }

    /// Limit on bytes read before viewers are woken.
    pub(super) fn burst_bytes(&self) -> usize {
        BURST_BYTES.min(self.log.max_bytes() / 4).max(1)
    }

    pub(super) fn mark_changed(&mut self) {
        self.changed_since_poll = true;
    }

    /// Writes queued input until the PTY is full. Returns true if anything was written.
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
                // The PTY is full; writing continues when the program reads.
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // No process has the slave open; the next event retries.
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

    /// Waits for slow lossless viewers, and gives up those that made no progress in time. Returns
    /// the time at which the wait ends; `None` if there is nothing to wait for.
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

    /// Time at which the next slow lossless viewer is given up; `None` if the PTY need not wait.
    pub(super) fn lossless_deadline(&self) -> Option<Instant> {
        if self.closing {
            return None;
        }
        let slow_offset = self.slow_offset();
        let slow = self.viewers.values().filter(|slot| slot.holds_back(slow_offset));
        slow.map(|slot| slot.gives_up_at(self.paused_since)).min()
    }

    /// Gives up only viewers that hold the PTY back; the others could not make progress because of
    /// them.
    fn give_up_slow_readers(&mut self, now: Instant) {
        let (paused, slow_offset) = (self.paused_since, self.slow_offset());
        for slot in self.viewers.values_mut() {
            if slot.holds_back(slow_offset) && slot.gives_up_at(paused) <= now {
                slot.lossless = false;
            }
        }
    }

    /// A viewer is slow if its cursor is at or before this offset; `None` if no viewer can be slow
    /// yet.
    fn slow_offset(&self) -> Option<u64> {
        let held = self.log.max_bytes() as u64;
        let limit = held - LOSSLESS_MARGIN_BYTES.min(held / 2);
        self.log.next().checked_sub(limit)
    }
}
