//! State of a terminal that its task, viewers and writers share. The lock on it is held only
//! briefly.

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

/// Time for which the PTY is not read while a lossless viewer makes no progress. After that the
/// viewer is no longer lossless.
pub(super) const LOSSLESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Distance, in bytes, between a lossless viewer's cursor and its eviction at which reads of the
/// PTY pause. For a small log it is half of the capacity. Larger than one burst, so that a burst
/// cannot evict the cursor.
const LOSSLESS_MARGIN_BYTES: u64 = 128 * 1024;
/// Limit on bytes that are read before viewers are woken. A flood is thus sent in large frames. For
/// a small log the limit is a quarter of its capacity, so that a lossless viewer misses no bytes.
const BURST_BYTES: usize = 64 * 1024;
/// Limit on resizes that wait for the screen model. Beyond it the oldest is dropped.
const MAX_PENDING_RESIZES: usize = 64;
/// Bytes after which the task stops writing to the PTY until its next round. A large paste thus
/// delays nothing else.
const WRITE_BYTES: usize = 64 * 1024;

/// Shared state of one terminal.
#[derive(Debug)]
pub(super) struct TerminalState {
    pub(super) log: ByteLog,
    /// `None` once the terminal has ended. Dropping the last reference closes the PTY, which hangs
    /// up the session.
    pub(super) pty: Option<Arc<Pty>>,
    pub(super) inputs: InputSequencer,
    pub(super) writers: AttachedWriters,
    pub(super) viewers: BTreeMap<u64, ViewerSlot>,
    pub(super) next_viewer: u64,
    pub(super) title: Versioned<String>,
    pub(super) cwd: Versioned<String>,
    /// The shell has reported its directory by OSC 7, so the directory is no longer polled.
    pub(super) cwd_reported: bool,
    pub(super) foreground: Versioned<String>,
    pub(super) size: Versioned<WindowSize>,
    /// Resizes that the screen model has not received yet, each with the output offset from which
    /// it applies.
    pub(super) resizes: VecDeque<(u64, WindowSize)>,
    /// Number of the newest requested snapshot. A viewer waits until `snapshots_taken` reaches the
    /// number of its own request.
    pub(super) snapshots_requested: u64,
    pub(super) snapshots_taken: u64,
    /// Last snapshot. Retained while a viewer waits for it.
    pub(super) snapshot: Option<Arc<ScreenSnapshot>>,
    /// The leader was reaped, so the kernel may reuse its process id.
    pub(super) leader_gone: bool,
    /// The terminal is being closed, so the task does not wait for lossless viewers.
    pub(super) closing: bool,
    /// The processes of the session have ended, or were sent KILL. The task reads the remaining
    /// output once more and then ends the terminal.
    pub(super) killed: bool,
    /// The task has panicked, so no snapshots will be taken.
    pub(super) task_gone: bool,
    /// The registry removed the terminal. The task ends with its last viewer.
    pub(super) removed: bool,
    pub(super) exit: Option<TerminalExit>,
    /// Time at which the agent began to end all terminals, for a sleep or a shutdown. A later exit
    /// was not caused by the program.
    pub(super) slept_at: Option<SystemTime>,
    /// The last write failed for another reason than a full PTY. The task then does not wait for
    /// the PTY to become writable.
    pub(super) write_failed: bool,
    /// Time since which the task waits for a lossless viewer.
    pub(super) paused_since: Option<Instant>,
    /// The task has scheduled a poll of the directory and the foreground job.
    pub(super) poll_scheduled: bool,
    /// The terminal changed since the last poll.
    pub(super) changed_since_poll: bool,
    /// A writer has been attached, that is, a client that can answer queries.
    pub(super) ever_attached: bool,
}

/// A value, the log offset from which it applies, and the number of its changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Versioned<T> {
    pub(super) value: T,
    pub(super) at: u64,
    /// Incremented by each change; 0 if never set.
    pub(super) version: u32,
}

/// Position, credit and mode of one viewer.
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
    /// Reads of the PTY pause before output that this viewer has not read is evicted.
    pub(super) lossless: bool,
    /// Time at which the cursor last moved.
    pub(super) last_progress: Instant,
}

impl<T: PartialEq> Versioned<T> {
    /// Creates a value that is not sent to viewers as a change.
    pub(super) fn initial(value: T) -> Self {
        Self { value, at: 0, version: 0 }
    }

    /// Sets the value, which applies from the log offset `at`. Returns true if it changed.
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

    /// Returns the limit on bytes that are read before viewers are woken.
    pub(super) fn burst_bytes(&self) -> usize {
        BURST_BYTES.min(self.log.max_bytes() / 4).max(1)
    }

    pub(super) fn mark_changed(&mut self) {
        self.changed_since_poll = true;
    }

    /// Writes queued input until the PTY is full or about 64 KiB were written. Returns true if
    /// anything was written.
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
        if self.closing {
            return None;
        }
        let slow_offset = self.slow_offset();
        let slow = self.viewers.values().filter(|slot| slot.holds_back(slow_offset));
        slow.map(|slot| slot.gives_up_at(self.paused_since)).min()
    }

    /// Ends the lossless mode of stalled viewers, but only of those for which reads pause. The
    /// other viewers could not make progress because reads paused.
    fn give_up_slow_readers(&mut self, now: Instant) {
        let (paused, slow_offset) = (self.paused_since, self.slow_offset());
        for slot in self.viewers.values_mut() {
            if slot.holds_back(slow_offset) && slot.gives_up_at(paused) <= now {
                slot.lossless = false;
            }
        }
    }

    /// Returns the offset at or before which a cursor makes its viewer slow. `None` if no viewer
    /// can be slow yet.
    fn slow_offset(&self) -> Option<u64> {
        let held = self.log.max_bytes() as u64;
        let limit = held - LOSSLESS_MARGIN_BYTES.min(held / 2);
        self.log.next().checked_sub(limit)
    }
}
