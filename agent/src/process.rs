//! Processes: commands without a PTY. Independent of protobuf.
//!
//! Each process has one task. It alone uses the pipes and decides when the process has ended.
//! Watchers read the two byte logs at positions of their own. While a watcher is connected, the
//! task reads a pipe only as far as this evicts no output that the watcher has not read. A command
//! that prints more has to wait. Writes and requests to end are recorded in the shared state, and
//! the task acts on them. Signals are sent at once.

mod error;
mod output;
mod registry;
mod retention;
mod run;
mod start;
mod state;
mod stdin;
mod table;
mod task;
mod termination;
#[cfg(test)]
mod tests;
mod watcher;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rustix::process::Pid;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::state::ProcessState;
pub use self::{
    error::ProcessError,
    registry::ProcessRegistry,
    run::{RunOutcome, RunSpec},
    start::ProcessSpec,
    stdin::StdinProgress,
    watcher::{ProcessEvent, ProcessWatcher},
};
use crate::{
    activity::warning::SleepCause,
    admission::{AdmissionGate, Attempt, Intent},
    child::{ProcessGroup, signals},
};

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
    pub status: crate::child::ExitStatus,
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
    id: ProcessId,
    request_id: String,
    /// Truncated to 4 KiB. The environment is not retained, because it may contain secrets.
    argv: Vec<String>,
    cwd: String,
    timeout: Option<Duration>,
    pid: Pid,
    started: SystemTime,
    epoch: u64,
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
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Self((0..12).map(|_| char::from(ALPHABET[fastrand::usize(..ALPHABET.len())])).collect())
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
        ProcessInfo {
            id: self.id.clone(),
            epoch: self.epoch,
            argv: self.argv.clone(),
            cwd: self.cwd.clone(),
            timeout: self.timeout,
            pid: self.pid.as_raw_nonzero().get().unsigned_abs(),
            started: self.started,
            exit: self.state().exit.clone(),
        }
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

    /// Writes to stdin, and closes it after `data` if `end` is set. Returns once the bytes are in
    /// the pipe, or once stdin is closed.
    async fn write(
        &self,
        epoch: u64,
        offset: u64,
        data: Bytes,
        end: bool,
    ) -> Result<StdinProgress, ProcessError> {
        if epoch != self.epoch {
            return Err(ProcessError::StaleEpoch { epoch: self.epoch });
        }
        loop {
            let progressed = self.stdin_progress.notified();
            tokio::pin!(progressed);
            progressed.as_mut().enable();
            if let Some(progress) = Attempt::retry_while_held(|| self.offer_stdin(offset, &data, end)).await?
            {
                return Ok(progress);
            }
            progressed.await;
        }
    }

    /// Waits until all bytes of stdin before `offset` are read from the pipe, or until stdin is
    /// closed. Returns whether the process has closed its stdin or has ended.
    async fn wait_until_stdin_read(&self, offset: u64) -> bool {
        loop {
            let progressed = self.stdin_progress.notified();
            tokio::pin!(progressed);
            progressed.as_mut().enable();
            {
                let mut state = self.state();
                let over = state.leader_ended();
                match state.stdin.as_mut().map_or(Some(true), |stdin| stdin.is_read(offset)) {
                    Some(is_read) => return !is_read,
                    None if over => return true,
                    None => {}
                }
            }
            self.task_wakeup.notify_one();
            progressed.await;
        }
    }

    fn offer_stdin(
        &self,
        offset: u64,
        data: &Bytes,
        end: bool,
    ) -> Result<Option<StdinProgress>, Attempt<ProcessError>> {
        let mut state = self.state();
        let over = state.leader_ended();
        let stdin = state.stdin.as_mut().ok_or(ProcessError::BadField {
            field: "process_id",
            allowed: "the id of a process started with stdin",
        })?;
        if over {
            stdin.close();
        }
        let offered =
            stdin.offer(offset, data, end, || self.gate.try_admit(Intent::Keystroke, data.len()))?;
        drop(state);
        if offered.accepted {
            self.task_wakeup.notify_one();
        }
        Ok(offered.progress)
    }

    /// Requests termination of the whole group: HUP and TERM now, KILL after `grace`.
    fn end(&self, grace: Duration) {
        let mut state = self.state();
        let shortest = state.requested_grace.map_or(grace, |before| before.min(grace));
        state.requested_grace = Some(shortest);
        drop(state);
        self.task_wakeup.notify_one();
    }

    /// Returns whether the process has ended and its group is empty.
    fn is_gone(&self) -> bool {
        self.is_finished() && !self.group.has_members()
    }

    fn is_finished(&self) -> bool {
        self.state().finished_at.is_some()
    }

    fn state(&self) -> MutexGuard<'_, ProcessState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}
