//! A terminal: one PTY session, and the only owner of its state.
//!
//! [`Terminal`] is shared by its task, viewers, writers and the registry. Its fields are private to
//! this file and the children of this module. One lock guards the state; it is held briefly and
//! never across an await. The task is woken through a `Notify` when there is work for it.
//!
//! # Lifecycle
//!
//! ```text
//!            start            close            drain            exit            remove
//!  Starting ──────▶ Running ──────▶ Closing ────────▶ Draining ──────▶ Exited ────────▶ Closed
//!     │                └──────────────┴──────────────────────────────────▲
//!     └────────────── restored without a program ────────────────────────┘
//! ```
//!
//! A terminal only moves forward, and each arrow is a function of [`Lifecycle`]. The exit of the
//! session's leader is not a stage: it can precede or follow a request to close, and background
//! jobs may hold the PTY open after it. [`Leader`] knows it.

pub(super) mod requests;
mod screen_feeder;
pub(super) mod task;
pub(super) mod viewer;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::{Instant, SystemTime},
};

use rustix::process::Pid;
use tokio::sync::{Notify, watch};

use super::{
    input::{AttachedWriters, InputSequencer},
    journal::{JournalFingerprint, JournalMetadata, JournalRecord, SavedExit, unix_nanos},
    pty::Pty,
    types::{ScreenSnapshot, TerminalExit, TerminalId, TerminalInfo, TerminalSpec, WindowSize},
};
use crate::{
    admission::AdmissionGate,
    byte_log::ByteLog,
    child::{Child, ExitStatus},
    claim::Claim,
    util::{lock, wait_until},
};

/// One terminal. It is unshared until its program has started or it was restored as ended.
pub(crate) struct Terminal {
    id: TerminalId,
    spec: TerminalSpec,
    created: SystemTime,
    /// `None` if the program ended before this agent started.
    leader: Option<Leader>,
    gate: Arc<AdmissionGate>,
    state: Mutex<TerminalState>,
    /// Wakes the task when it has work to do.
    wake: Notify,
    /// Notified when queued input was written, and when the terminal has exited.
    progress: Notify,
}

/// Leader of the session, which the agent started.
#[derive(Debug)]
struct Leader {
    pid: Pid,
    /// `Some` once the leader was reaped. The kernel may then reuse its process id.
    ended: watch::Receiver<Option<ExitStatus>>,
}

/// Stage of a terminal's life.
#[derive(Debug)]
enum Lifecycle {
    /// The log may contain restored history. Nothing else refers to the terminal.
    Starting,
    /// Input is accepted and output is read. Dropping the last reference to the PTY hangs up the
    /// session.
    Running(Arc<Pty>),
    /// The session is being ended, so the task does not wait for lossless viewers.
    Closing(Arc<Pty>),
    /// The processes of the session have ended, or were sent KILL. The task reads the remaining
    /// output once more and then ends the terminal.
    Draining(Arc<Pty>),
    /// The PTY is closed. The terminal is retained for its exit and its last output.
    Exited(TerminalExit),
    /// The registry removed the terminal. The task ends with its last viewer.
    Closed(TerminalExit),
}

/// State of one terminal, guarded by its lock.
#[derive(Debug)]
struct TerminalState {
    lifecycle: Lifecycle,
    log: ByteLog,
    inputs: InputSequencer,
    writers: AttachedWriters,
    viewers: BTreeMap<u64, ViewerSlot>,
    next_viewer: u64,
    title: Versioned<String>,
    cwd: Versioned<String>,
    /// The shell has reported its directory by OSC 7, so the directory is no longer polled.
    cwd_reported: bool,
    foreground: Versioned<String>,
    size: Versioned<WindowSize>,
    /// Resizes that the screen model has not received yet, each with the output offset from which
    /// it applies.
    resizes: VecDeque<(u64, WindowSize)>,
    snapshots: SnapshotRequests,
    /// Time at which the agent began to end all terminals, for a sleep or a shutdown. A later exit
    /// was not caused by the program.
    slept_at: Option<SystemTime>,
    /// The last write failed for another reason than a full PTY. The task then does not wait for
    /// the PTY to become writable.
    write_failed: bool,
    /// Time since which the task waits for a lossless viewer.
    paused_since: Option<Instant>,
    /// Time of the next poll of the directory and the foreground job; `None` if none is scheduled.
    poll_at: Option<Instant>,
    /// The terminal changed since the last poll.
    changed_since_poll: bool,
    /// A writer has been attached, that is, a client that can answer queries.
    ever_attached: bool,
}

/// A value, the log offset from which it applies, and the number of its changes.
#[derive(Debug, Default)]
struct Versioned<T> {
    value: T,
    at: u64,
    /// Incremented by each change; 0 if never set.
    version: u32,
}

/// Position, credit and mode of one viewer.
#[derive(Debug)]
struct ViewerSlot {
    /// Shared by all viewers of one stream.
    wake: Arc<Notify>,
    /// Offset of the next byte to send; `None` while the viewer waits for a snapshot.
    cursor: Option<u64>,
    /// The client has processed all output before this offset.
    acked: u64,
    /// Output bytes that may be unacknowledged; 0 means unlimited.
    credit: u64,
    /// Reads of the PTY pause before output that this viewer has not read is evicted.
    lossless: bool,
    /// Time at which the cursor last moved.
    last_progress: Instant,
}

/// Snapshots of the screen that viewers requested. Requests are numbered from 1.
#[derive(Debug, Default)]
struct SnapshotRequests {
    requested: u64,
    /// Number of the newest answered request. A viewer waits until it reaches its own request.
    answered: u64,
    /// Last snapshot, retained while a viewer waits for it. `None` for a request that was answered
    /// without a snapshot.
    latest: Option<Arc<ScreenSnapshot>>,
}

// === impl Lifecycle ===

impl Lifecycle {
    /// Records that the program runs on the PTY. The terminal must be starting.
    fn start(&mut self, pty: Pty) {
        debug_assert!(matches!(self, Self::Starting), "a terminal starts once: {self:?}");
        if let Self::Starting = self {
            *self = Self::Running(Arc::new(pty));
        }
    }

    /// Begins to end the session.
    fn close(&mut self) {
        if let Self::Running(pty) = self {
            *self = Self::Closing(Arc::clone(pty));
        }
    }

    /// Stops waiting for the session's processes.
    fn drain(&mut self) {
        if let Self::Running(pty) | Self::Closing(pty) = self {
            *self = Self::Draining(Arc::clone(pty));
        }
    }

    /// Closes the PTY and records the exit. The first exit counts.
    fn exit(&mut self, exit: TerminalExit) {
        if self.exited().is_none() {
            *self = Self::Exited(exit);
        }
    }

    /// Records that the registry removed the terminal, which must have exited.
    fn remove(&mut self) {
        debug_assert!(self.exited().is_some(), "only a terminal that has exited is removed: {self:?}");
        if let Self::Exited(exit) = self {
            *self = Self::Closed(*exit);
        }
    }

    fn pty(&self) -> Option<&Arc<Pty>> {
        match self {
            Self::Running(pty) | Self::Closing(pty) | Self::Draining(pty) => Some(pty),
            Self::Starting | Self::Exited(_) | Self::Closed(_) => None,
        }
    }

    fn exited(&self) -> Option<TerminalExit> {
        match self {
            Self::Exited(exit) | Self::Closed(exit) => Some(*exit),
            Self::Starting | Self::Running(_) | Self::Closing(_) | Self::Draining(_) => None,
        }
    }

    fn is_draining(&self) -> bool {
        matches!(self, Self::Draining(_))
    }

    fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

// === impl Terminal ===

impl Terminal {
    /// Creates a terminal without a program, with an empty log that starts at offset 0.
    pub(crate) fn new(id: TerminalId, created: SystemTime, claim: &Claim, gate: &Arc<AdmissionGate>) -> Self {
        let log = ByteLog::new(claim.epoch, claim.policy.byte_log_bytes);
        Self {
            id,
            spec: TerminalSpec::default(),
            created,
            leader: None,
            gate: Arc::clone(gate),
            state: Mutex::new(TerminalState::new(log, WindowSize::default())),
            wake: Notify::new(),
            progress: Notify::new(),
        }
    }

    /// Appends bytes to the log of a terminal that has not started. They precede all output of the
    /// program.
    pub(crate) fn push_history(&mut self, bytes: &[u8]) {
        self.unshared_state().log.push(bytes);
    }

    /// Sets the title and directory that an earlier agent saved.
    pub(crate) fn set_saved_metadata(&mut self, title: String, cwd: String) {
        let state = self.unshared_state();
        state.title.set(title, 0);
        state.cwd.set(cwd, 0);
    }

    /// Records the program that was started on the PTY.
    pub(crate) fn start(&mut self, spec: TerminalSpec, pty: Pty, child: Child) {
        let state = self.unshared_state();
        state.lifecycle.start(pty);
        state.size = Versioned::initial(spec.size);
        let program = spec.argv.first().map_or("", String::as_str);
        tracing::info!(terminal = %self.id, pid = %child.pid, program, "terminal opened");
        self.leader = Some(Leader { pid: child.pid, ended: child.ended });
        self.spec = spec;
    }

    /// Records the exit of a restored terminal whose program is not started again. Its final offset
    /// is the end of the log.
    pub(crate) fn restore_exit(&mut self, spec: TerminalSpec, exit: TerminalExit) {
        let state = self.unshared_state();
        let final_offset = state.log.next();
        state.lifecycle.exit(TerminalExit { final_offset, ..exit });
        state.size = Versioned::initial(spec.size);
        self.spec = spec;
    }

    fn unshared_state(&mut self) -> &mut TerminalState {
        self.state.get_mut().unwrap_or_else(|e| e.into_inner())
    }

    fn state(&self) -> MutexGuard<'_, TerminalState> {
        lock(&self.state)
    }

    pub(crate) fn id(&self) -> &TerminalId {
        &self.id
    }

    pub(crate) fn spec(&self) -> &TerminalSpec {
        &self.spec
    }

    /// Returns the exit; `None` while the PTY is open.
    pub(crate) fn exit(&self) -> Option<TerminalExit> {
        self.state().lifecycle.exited()
    }

    /// Returns the session leader; `None` if it ended before this agent started.
    fn pid(&self) -> Option<Pid> {
        self.leader.as_ref().map(|leader| leader.pid)
    }

    /// Returns whether the leader was reaped, so that its process id may belong to another process.
    pub(crate) fn leader_gone(&self) -> bool {
        self.leader.as_ref().is_none_or(|leader| leader.ended.borrow().is_some())
    }

    pub(crate) fn info(&self) -> TerminalInfo {
        let state = self.state();
        TerminalInfo {
            id: self.id.clone(),
            name: self.spec.name.clone(),
            argv: self.spec.argv.clone(),
            size: state.size.value,
            epoch: state.log.epoch(),
            oldest: state.log.oldest(),
            next: state.log.next(),
            title: state.title.value.clone(),
            cwd: self.current_cwd(&state),
            foreground: self.foreground_command(&state).unwrap_or_default(),
            created: self.created,
            pid: self.pid(),
            exit: state.lifecycle.exited(),
            byte_log_bytes: state.log.max_bytes(),
            viewers: state.viewers.len(),
        }
    }

    /// Returns the content of the terminal's journal; `None` if the registry removed the terminal.
    pub(crate) fn journal_record(&self) -> Option<JournalRecord> {
        let mut state = self.state();
        if state.lifecycle.is_closed() {
            return None;
        }
        let metadata = JournalMetadata {
            id: self.id.to_string(),
            spec: TerminalSpec { size: state.size.value, ..self.spec.clone() },
            cwd: self.current_cwd(&state),
            title: state.title.value.clone(),
            epoch: state.log.epoch(),
            next: state.log.next(),
            created: unix_nanos(self.created),
            saved: unix_nanos(SystemTime::now()),
            slept: state.slept_at.map(unix_nanos),
            exit: state.lifecycle.exited().as_ref().map(SavedExit::of),
        };
        Some(JournalRecord::new(metadata, &mut state.log))
    }

    /// Returns the values whose change requires a save of the journal.
    pub(crate) fn journal_fingerprint(&self) -> JournalFingerprint {
        let state = self.state();
        (
            state.log.next(),
            state.title.value.clone(),
            self.current_cwd(&state),
            state.size.value,
            state.lifecycle.exited().is_some(),
            state.slept_at,
        )
    }

    /// Waits until `ready` returns a value. Calls it when input was written and when the terminal
    /// has exited. Cancel-safe.
    async fn wait_until<T>(&self, mut ready: impl FnMut(&TerminalState) -> Option<T>) -> T {
        wait_until(&self.progress, || ready(&self.state())).await
    }

    /// Records the exit, closes the PTY and drops queued input.
    fn finish(&self, state: &mut TerminalState, status: ExitStatus, held_by_background: bool) {
        state.lifecycle.exit(TerminalExit {
            status,
            final_offset: state.log.next(),
            ended_at: SystemTime::now(),
            held_by_background,
        });
        state.inputs.end();
        state.wake_viewers();
        self.progress.notify_waiters();
    }

    /// Records that the registry removed the terminal. Its task ends with its last viewer.
    pub(crate) fn mark_removed(&self) {
        self.state().lifecycle.remove();
        self.wake.notify_one();
    }

    /// Records `now` as the time at which the agent, and not the program, ends the terminal. Also
    /// records the working directory, while the process still exists.
    pub(crate) fn mark_slept(&self, now: SystemTime) {
        let mut state = self.state();
        if state.lifecycle.exited().is_some() {
            return;
        }
        state.slept_at.get_or_insert(now);
        let (cwd, at) = (self.current_cwd(&state), state.log.next());
        state.cwd.set(cwd, at);
    }
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("id", &self.id).field("pid", &self.pid()).finish_non_exhaustive()
    }
}

// === impl TerminalState ===

impl<T: PartialEq> Versioned<T> {
    /// Creates a value that is not sent to viewers as a change.
    fn initial(value: T) -> Self {
        Self { value, at: 0, version: 0 }
    }

    /// Sets the value, which applies from the log offset `at`. Returns true if it changed.
    fn set(&mut self, value: T, at: u64) -> bool {
        let changed = self.value != value;
        if changed {
            *self = Self { value, at, version: self.version + 1 };
        }
        changed
    }
}

impl TerminalState {
    fn new(log: ByteLog, size: WindowSize) -> Self {
        Self {
            lifecycle: Lifecycle::Starting,
            inputs: InputSequencer::new(log.epoch()),
            log,
            writers: AttachedWriters::default(),
            viewers: BTreeMap::new(),
            next_viewer: 0,
            title: Versioned::default(),
            cwd: Versioned::default(),
            cwd_reported: false,
            foreground: Versioned::default(),
            size: Versioned::initial(size),
            resizes: VecDeque::new(),
            snapshots: SnapshotRequests::default(),
            slept_at: None,
            write_failed: false,
            paused_since: None,
            poll_at: None,
            changed_since_poll: false,
            ever_attached: false,
        }
    }

    fn wake_viewers(&self) {
        self.viewers.values().for_each(|slot| slot.wake.notify_one());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        process::Command,
    };

    use super::*;
    use crate::{
        child::{Children, OrphanPolicy},
        terminal::pty::PtyPair,
    };

    #[tokio::test]
    async fn lifecycle_skips_stages_but_never_goes_back() {
        let exit = |code| TerminalExit {
            status: ExitStatus::Code(code),
            final_offset: 0,
            ended_at: SystemTime::UNIX_EPOCH,
            held_by_background: false,
        };
        let children = Children::new(OrphanPolicy::Leave);
        let pty = || {
            let pair = PtyPair::open(WindowSize::default()).expect("a PTY");
            pair.spawn(Command::new("true"), &children).expect("a program").0
        };
        let panics = |arrow: &dyn Fn(&mut Lifecycle), mut lifecycle: Lifecycle| {
            catch_unwind(AssertUnwindSafe(|| arrow(&mut lifecycle))).is_err()
        };
        let mut lifecycle = Lifecycle::Starting;
        lifecycle.close();
        lifecycle.drain();
        assert!(matches!(lifecycle, Lifecycle::Starting), "only a running terminal is closed or drained");
        lifecycle.start(pty());
        assert!(matches!(lifecycle, Lifecycle::Running(_)) && lifecycle.pty().is_some());
        lifecycle.close();
        assert!(matches!(lifecycle, Lifecycle::Closing(_)));
        lifecycle.drain();
        lifecycle.close();
        assert!(lifecycle.is_draining() && lifecycle.pty().is_some());
        lifecycle.exit(exit(1));
        lifecycle.exit(exit(2));
        lifecycle.close();
        lifecycle.drain();
        assert!(matches!(lifecycle, Lifecycle::Exited(_)) && lifecycle.pty().is_none());
        lifecycle.remove();
        lifecycle.exit(exit(3));
        assert!(lifecycle.is_closed());
        assert_eq!(lifecycle.exited(), Some(exit(1)), "the first exit counts");
        lifecycle.remove();
        assert!(lifecycle.is_closed(), "a terminal may be removed twice");
        for lifecycle in [Lifecycle::Running(Arc::new(pty())), lifecycle] {
            let panicked = panics(&|lifecycle| lifecycle.start(pty()), lifecycle);
            assert_eq!(panicked, cfg!(debug_assertions), "only a new terminal starts");
        }
        for lifecycle in [Lifecycle::Starting, Lifecycle::Running(Arc::new(pty()))] {
            let panicked = panics(&Lifecycle::remove, lifecycle);
            assert_eq!(panicked, cfg!(debug_assertions), "only an ended terminal is removed");
        }
    }
}
