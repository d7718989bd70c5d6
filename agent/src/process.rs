//! Processes: commands without a PTY. Knows neither proto nor the files.
//!
//! Each process has one task, which alone reads its pipes and decides when it has ended. Watchers read the two byte logs with
//! positions of their own; while one is connected the pipes wait for it rather than lose a byte. What people do to a process
//! (write, signal) they leave in its state, and the task acts on it.

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
    admission::{AdmissionGate, Attempt, Intent},
    child::{ProcessGroup, signals},
};

/// Names a process within the workspace, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(String);

/// Which of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessExit {
    /// Code or signal.
    pub status: crate::child::ExitStatus,
    /// The offset after the last byte of each output.
    pub final_offsets: [u64; 2],
    /// Its `timeout` was over.
    pub timed_out: bool,
    /// Something it left behind still held its output.
    pub held_by_background: bool,
    /// When it was over.
    pub ended_at: SystemTime,
}

/// What a client may know of a process.
#[derive(Debug, Clone)]
pub struct ProcessInfo {
    /// Its name for ever.
    pub id: ProcessId,
    /// The life of its byte logs.
    pub epoch: u64,
    /// Program and arguments; the first 4 KiB of them.
    pub argv: Vec<String>,
    /// As asked for.
    pub cwd: String,
    /// After which it is ended.
    pub timeout: Option<Duration>,
    /// As the agent sees it.
    pub pid: u32,
    /// When it was started.
    pub started: SystemTime,
    /// Set when it is over.
    pub exit: Option<ProcessExit>,
}

/// One process; its task, its watchers and the registry share it.
#[derive(Debug)]
struct Process {
    id: ProcessId,
    request_id: String,
    /// As much as is shown; what a client put into the environment is not kept.
    argv: Vec<String>,
    cwd: String,
    timeout: Option<Duration>,
    pid: Pid,
    started: SystemTime,
    epoch: u64,
    /// All that it started and that did not leave it; may live on when it has ended.
    group: ProcessGroup,
    gate: Arc<AdmissionGate>,
    state: Mutex<ProcessState>,
    /// For watchers: there is output, or an end.
    output_ready: Notify,
    /// For the task: somebody took output, wrote, or wants an end.
    task_wakeup: Notify,
    /// For writers: stdin was taken or closed.
    stdin_progress: Notify,
    /// It is no longer in the table: nobody can ask for it again.
    removed: CancellationToken,
}

impl ProcessId {
    fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Self((0..12).map(|_| char::from(ALPHABET[fastrand::usize(..ALPHABET.len())])).collect())
    }
}

impl From<String> for ProcessId {
    /// Any text may be asked for; one that names no process is not found.
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

    /// Sends a signal to its group, for as long as anybody is in it.
    fn signal(&self, name: &str) -> Result<(), ProcessError> {
        let signal = signals::by_name(name)
            .ok_or(ProcessError::BadField { field: "signal", allowed: "a signal's name, such as TERM" })?;
        if self.group.signal(signal) {
            return Ok(());
        }
        let exit = self.state().exit.clone();
        Err(ProcessError::Ended { exit: exit.map(|exit| exit.status) })
    }

    /// Feeds stdin; answers when the bytes are in the pipe.
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
            let fed = self.stdin_progress.notified();
            tokio::pin!(fed);
            fed.as_mut().enable();
            if let Some(progress) = Attempt::retry_while_held(|| self.offer_stdin(offset, &data, end)).await?
            {
                return Ok(progress);
            }
            fed.await;
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
            allowed: "a process that was started with stdin",
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

    /// Asks for its end, and for that of all in its group.
    fn end(&self, grace: Duration) {
        let mut state = self.state();
        let sooner = state.requested_grace.map_or(grace, |before| before.min(grace));
        state.requested_grace = Some(sooner);
        drop(state);
        self.task_wakeup.notify_one();
    }

    /// It has ended, and nobody is left in its group.
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
