//! Processes: commands without a PTY. Independent of protobuf.
//!
//! Each process has one task. It alone uses the pipes and decides when the process has ended.
//! Watchers read the two byte logs at positions of their own. While a watcher is connected, the
//! task reads a pipe only as far as this evicts no output that the watcher has not read. A command
//! that prints more has to wait. Writes and requests to end are recorded in the shared state, and
//! the task acts on them. Signals are sent at once.

mod error;
mod registry;
mod run;
mod stdin;
mod task;
mod watcher;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use rustix::process::Signal;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::stdin::StdinQueue;
pub use self::{
    error::ProcessError,
    registry::{ProcessRegistry, ProcessSpec},
    run::{RunOutcome, RunSpec},
    stdin::StdinProgress,
    watcher::{ProcessEvent, ProcessWatcher},
};
use crate::{
    activity::notices::SleepCause,
    admission::AdmissionGate,
    byte_log::ByteLog,
    child::{ExitStatus, ProcessGroup, signals},
    util::{lock, random_id},
};

/// Time for which a process with a full log waits while no watcher is connected. After that the
/// oldest output is discarded.
const UNWATCHED_HOLD: Duration = Duration::from_secs(60);
/// Time for which a process with a full log waits for a stalled watcher once termination was
/// requested. After that the watcher gets a gap.
const STALLED_HOLD: Duration = Duration::from_millis(250);

/// Default time between TERM and KILL.
const GRACE: Duration = Duration::from_secs(5);

/// Identifies a process within the workspace. Twelve random characters of lower-case base32.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(String);

/// One of the two outputs of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// How and when a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessExit {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Offset after the last byte of stdout and of stderr.
    pub final_offsets: [u64; 2],
    /// True if the `timeout` of the command terminated it.
    pub timed_out: bool,
    /// True if a background process of the command still held an output when the process counted as
    /// ended.
    pub held_by_background: bool,
    /// Offset after the last byte of stdin that was read from the pipe. `None` if it is unknown, or
    /// if the process has no stdin.
    pub stdin_read: Option<u64>,
    /// Set if the agent ended the process because the workspace fell asleep or the agent stopped.
    pub sleep_cause: Option<SleepCause>,
    pub ended_at: SystemTime,
}

/// Description of a process for clients.
#[derive(Debug, Clone)]
pub struct ProcessInfo {
    pub id: ProcessId,
    /// Epoch of both byte logs.
    pub epoch: u64,
    /// Program and arguments, truncated to 4 KiB.
    pub argv: Vec<String>,
    /// Working directory as requested.
    pub cwd: String,
    /// Time after the start at which the command is terminated. `None` means no limit.
    pub timeout: Option<Duration>,
    /// Process id in the agent's PID namespace.
    pub pid: u32,
    pub started: SystemTime,
    /// Set once the process has ended and its output is complete.
    pub exit: Option<ProcessExit>,
}

/// State of one process, shared by its task, its watchers and the registry.
#[derive(Debug)]
struct Process {
    /// Description without the exit, which the state has. The environment is not retained, because
    /// it may contain secrets.
    info: ProcessInfo,
    request_id: String,
    /// Process group of the command; may outlive the command itself.
    group: ProcessGroup,
    gate: Arc<AdmissionGate>,
    state: Mutex<ProcessState>,
    /// Wakes watchers after new output and after the end.
    output_ready: Notify,
    /// Wakes the task after a watcher read output, joined or left, and after a client wrote or
    /// requested the end.
    task_wakeup: Notify,
    /// Wakes writers after stdin was consumed or closed.
    stdin_progress: Notify,
    /// Cancelled when the process is removed from the table. No request can find it from then on.
    removed: CancellationToken,
}

impl ProcessId {
    fn random() -> Self {
        Self(random_id())
    }
}

impl From<String> for ProcessId {
    /// Accepts any text; an unknown id is reported as not found when it is used.
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Process {
    fn info(&self) -> ProcessInfo {
        ProcessInfo { exit: self.state().exit.clone(), ..self.info.clone() }
    }

    /// Signals the process group. Fails with `Ended` if the group has no members.
    fn signal(&self, name: &str) -> Result<(), ProcessError> {
        let signal = signals::by_name(name)
            .ok_or(ProcessError::BadField { field: "signal", allowed: "a signal name such as TERM" })?;
        if self.group.signal(signal) {
            return Ok(());
        }
        let exit = self.state().exit.clone();
        Err(ProcessError::Ended { exit: exit.map(|exit| exit.status) })
    }

    /// Requests termination of the whole group: HUP and TERM now, KILL after `grace`.
    fn end(&self, grace: Duration) {
        let mut state = self.state();
        let shortest = state.requested_grace.map_or(grace, |before| before.min(grace));
        state.requested_grace = Some(shortest);
        drop(state);
        self.task_wakeup.notify_one();
    }

    /// Begins a termination that was requested, and sends the signals that are due.
    fn send_due_signals(&self, termination: &mut Termination, now: Instant) {
        let mut state = self.state();
        let requested = state.requested_grace.take();
        state.terminating |= requested.is_some();
        drop(state);
        let requested = requested.map_or(&[][..], |grace| termination.request(now, grace));
        for signal in requested.iter().chain(termination.due(now)) {
            self.group.signal(*signal);
        }
    }

    /// Returns whether the process has ended and its group is empty.
    fn is_gone(&self) -> bool {
        self.is_finished() && !self.group.has_members()
    }

    fn is_finished(&self) -> bool {
        self.state().finished_at.is_some()
    }

    fn state(&self) -> MutexGuard<'_, ProcessState> {
        lock(&self.state)
    }
}

#[derive(Debug)]
struct ProcessState {
    outputs: [OutputLog; 2],
    stdin: Option<StdinQueue>,
    /// Set when the command itself has ended; its output may continue.
    leader: Option<ExitStatus>,
    /// Set when the command and its output have ended.
    exit: Option<ProcessExit>,
    /// Set when the task has ended and no more events follow. If `exit` is `None` then, the task
    /// panicked.
    finished_at: Option<Instant>,
    /// Grace period before KILL of a requested termination. `None` once the task has taken the
    /// request.
    requested_grace: Option<Duration>,
    /// Cause of the sleep that ends the process, if one does.
    sleep_cause: Option<SleepCause>,
    /// True once termination was requested. A stalled watcher must not delay it.
    terminating: bool,
    /// The process is removed from the table as soon as it has finished, because no client can ask
    /// for it.
    remove_when_finished: bool,
    /// Offsets that each connected watcher has read up to.
    watchers: HashMap<u64, [u64; 2]>,
    next_watcher: u64,
    /// Time since which the process waits for a watcher to join or to read.
    held_since: Option<Instant>,
    /// The wait was too long, so new output replaces the oldest. A watcher that joins ends this,
    /// unless termination was requested.
    discarding: bool,
}

impl ProcessState {
    fn new(epoch: u64, byte_log_bytes: usize, stdin: bool) -> Self {
        Self {
            outputs: [(); 2].map(|()| OutputLog { log: ByteLog::new(epoch, byte_log_bytes), closed: false }),
            stdin: stdin.then(StdinQueue::default),
            leader: None,
            exit: None,
            finished_at: None,
            requested_grace: None,
            sleep_cause: None,
            terminating: false,
            remove_when_finished: false,
            watchers: HashMap::new(),
            next_watcher: 0,
            held_since: None,
            discarding: false,
        }
    }

    fn leader_ended(&self) -> bool {
        self.leader.is_some() || self.finished_at.is_some()
    }

    fn output(&mut self, stream: OutputStream) -> &mut OutputLog {
        &mut self.outputs[stream as usize]
    }

    /// Registers a watcher that has read up to `taken`, and returns its id.
    fn join(&mut self, taken: [u64; 2]) -> u64 {
        self.discarding &= self.terminating;
        let id = self.next_watcher;
        self.next_watcher += 1;
        self.watchers.insert(id, taken);
        id
    }

    fn record_taken(&mut self, watcher: u64, taken: [u64; 2]) {
        if let Some(before) = self.watchers.get_mut(&watcher) {
            *before = taken;
        }
    }

    fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// Returns the number of bytes in both logs.
    fn held_bytes(&self) -> u64 {
        self.outputs.iter().map(|output| output.log.next() - output.log.oldest()).sum()
    }

    /// Discards all output in the logs. Later output is still recorded.
    fn discard_output(&mut self) {
        for output in &mut self.outputs {
            output.log.clear();
        }
    }

    /// Returns the number of bytes of `stream` that may be read from the pipe now.
    fn read_capacity(&self, stream: OutputStream) -> usize {
        let slowest = self.watchers.values().map(|taken| taken[stream as usize]).min();
        // Without a watcher all output is required, because a watcher may reconnect.
        let required_from = if self.discarding { u64::MAX } else { slowest.unwrap_or(0) };
        self.outputs[stream as usize].log.capacity_from(required_from)
    }

    /// Returns whether an open output has no space left in its log, so that the command waits.
    fn is_held(&self) -> bool {
        [OutputStream::Stdout, OutputStream::Stderr]
            .iter()
            .any(|stream| !self.outputs[*stream as usize].closed && self.read_capacity(*stream) == 0)
    }

    /// Starts to discard output if the process has waited for too long. Otherwise returns the time
    /// of the next check, or `None` if the process does not wait.
    fn check_hold(&mut self, now: Instant) -> Option<Instant> {
        let limit = match (self.is_watched(), self.terminating) {
            (true, false) => None,
            (true, true) => Some(STALLED_HOLD),
            (false, false) => Some(UNWATCHED_HOLD),
            (false, true) => Some(Duration::ZERO),
        };
        let Some(limit) = limit.filter(|_| !self.discarding && self.is_held()) else {
            self.held_since = None;
            return None;
        };
        let at = *self.held_since.get_or_insert(now) + limit;
        if at > now {
            return Some(at);
        }
        self.discarding = true;
        None
    }
}

#[derive(Debug)]
struct OutputLog {
    log: ByteLog,
    /// True once the pipe is no longer read.
    closed: bool,
}

/// Progress of the termination of one process, by request or by timeout.
#[derive(Debug, Default)]
struct Termination {
    deadline: Option<Instant>,
    kill_at: Option<Instant>,
    killed: bool,
    /// True if the timeout of the command caused the termination.
    timed_out: bool,
}

impl Termination {
    fn new(deadline: Option<Instant>) -> Self {
        Self { deadline, ..Self::default() }
    }

    /// Returns whether termination has begun and KILL is still due.
    fn is_under_way(&self) -> bool {
        self.kill_at.is_some() && !self.killed
    }

    /// Requests termination with KILL after `grace`, or earlier if KILL is due earlier already.
    /// Returns the signals to send now.
    fn request(&mut self, now: Instant, grace: Duration) -> &'static [Signal] {
        let began = self.kill_at.is_some();
        let at = now + grace;
        self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
        // CONT, because a stopped process cannot handle the other signals.
        if began { &[] } else { &[Signal::HUP, Signal::TERM, Signal::CONT] }
    }

    /// Returns the signals that are due, and records them as sent.
    fn due(&mut self, now: Instant) -> &'static [Signal] {
        if self.is_under_way() && self.kill_at <= Some(now) {
            self.killed = true;
            return &[Signal::KILL];
        }
        if self.deadline.is_some_and(|at| at <= now) {
            self.deadline = None;
            if self.kill_at.is_none() {
                self.timed_out = true;
                self.kill_at = Some(now + GRACE);
                return &[Signal::TERM, Signal::CONT];
            }
        }
        &[]
    }

    /// Returns the time at which [`Self::due`] has to be called again.
    fn next_deadline(&self) -> Option<Instant> {
        let kill = self.kill_at.filter(|_| !self.killed);
        [kill, self.deadline].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_watcher_does_not_delay_end() {
        let start = Instant::now();
        let mut state = ProcessState::new(1, 4, false);
        let watcher = state.join([0, 0]);
        state.outputs[0].log.push(b"1234");
        assert_eq!(
            state.check_hold(start),
            None,
            "a stalled watcher is waited for until termination is requested"
        );
        state.terminating = true;
        assert_eq!(state.check_hold(start), Some(start + STALLED_HOLD));
        state.record_taken(watcher, [4, 0]);
        assert_eq!(state.check_hold(start + STALLED_HOLD), None);
        state.outputs[0].log.push(b"5678");
        let again = start + STALLED_HOLD * 2;
        assert_eq!(state.check_hold(again), Some(again + STALLED_HOLD), "progress restarts the time limit");
        assert_eq!(state.check_hold(again + STALLED_HOLD), None);
        assert_eq!(state.read_capacity(OutputStream::Stdout), 4);
        state.join([4, 0]);
        assert_eq!(
            state.read_capacity(OutputStream::Stdout),
            4,
            "a watcher that joins later does not stop the discarding"
        );
    }

    #[test]
    fn unwatched_output_is_discarded_after_a_minute() {
        let start = Instant::now();
        let mut state = ProcessState::new(1, 4, false);
        assert_eq!(state.check_hold(start), None);
        state.outputs[0].log.push(b"1234");
        assert!(state.is_held());
        let start = start + UNWATCHED_HOLD * 3;
        assert_eq!(
            state.check_hold(start),
            Some(start + UNWATCHED_HOLD),
            "time before the log was full does not count"
        );
        assert_eq!(state.check_hold(start + UNWATCHED_HOLD / 2), Some(start + UNWATCHED_HOLD));
        assert_eq!(state.check_hold(start + UNWATCHED_HOLD), None);
        assert_eq!(state.read_capacity(OutputStream::Stdout), 4);
        let watcher = state.join([4, 0]);
        assert_eq!(state.read_capacity(OutputStream::Stdout), 4);
        state.outputs[0].log.push(b"5678");
        assert!(state.is_held(), "a connected watcher is waited for");
        assert_eq!(state.check_hold(start + UNWATCHED_HOLD * 9), None);
        state.record_taken(watcher, [6, 0]);
        assert_eq!(state.read_capacity(OutputStream::Stdout), 2);
        state.watchers.remove(&watcher);
        assert_eq!(state.check_hold(start + UNWATCHED_HOLD * 9), Some(start + UNWATCHED_HOLD * 10));
    }

    #[test]
    fn timeout_sends_term_then_kill_after_grace() {
        let start = Instant::now();
        let mut termination = Termination::new(Some(start + Duration::from_secs(60)));
        assert!(termination.due(start).is_empty());
        let timeout = termination.next_deadline().unwrap();
        assert_eq!(termination.due(timeout), [Signal::TERM, Signal::CONT]);
        assert!(termination.timed_out);
        assert_eq!(termination.next_deadline(), Some(timeout + GRACE));
        assert_eq!(termination.due(timeout + GRACE), [Signal::KILL]);
        assert_eq!(termination.next_deadline(), None);
    }

    #[test]
    fn repeated_request_only_shortens_grace() {
        let start = Instant::now();
        let mut termination = Termination::new(None);
        assert!(!termination.request(start, Duration::from_secs(9)).is_empty());
        assert!(termination.request(start, Duration::from_secs(2)).is_empty());
        assert!(termination.request(start, Duration::from_secs(5)).is_empty());
        assert_eq!(termination.next_deadline(), Some(start + Duration::from_secs(2)));
        assert!(!termination.timed_out);
    }
}
