//! The registry of all processes, running and retained ended ones. It enforces the limits of the
//! claim's policy, starts processes, and owns their tasks.

#[cfg(test)]
mod tests;

use std::{
    os::unix::process::CommandExt,
    panic::AssertUnwindSafe,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Process, ProcessError, ProcessId, ProcessInfo, ProcessState, ProcessWatcher, StdinProgress, Termination,
    task::ProcessTask,
};
use crate::{
    activity::notices::SleepCause,
    admission::{AdmissionGate, Attempt, Intent},
    child::Children,
    claim::Claim,
    spawn::{Launcher, Program, spawn_failed, truncate_argv},
    util::{lock, sleep_until},
};

/// Limit on watchers of all processes. The next one fails with TOO_MANY_STREAMS.
const MAX_STREAMS: usize = 1024;
/// Maximum length of a request id in bytes.
const MAX_REQUEST_ID_BYTES: usize = 64;
/// Time that [`ProcessRegistry::end_all`] waits after the KILL for processes to be reaped.
const REAP_GRACE: Duration = Duration::from_secs(1);
/// Interval at which [`ProcessRegistry::end_all`] checks whether all processes have ended.
const END_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Bytes of output that all running calls may collect together. When they are used up, further
/// output is dropped and the results are marked as truncated.
const ALL_OUTPUT_BYTES: usize = 128 * 1024 * 1024;

/// Limit on retained ended processes. Beyond it the process that ended first is removed. Later
/// requests for it report that it does not exist.
const MAX_ENDED: usize = 128;
/// Limit on the output of all retained ended processes together, in bytes. Beyond it the process
/// that ended first loses all its output. Its exit is retained, and a watcher gets a gap.
const MAX_ENDED_BYTES: u64 = 32 * 1024 * 1024;

/// Time for which an ended process is retained.
const RETENTION: Duration = Duration::from_secs(10 * 60);
/// Interval at which a group under termination is checked for members. No event reports the exit of
/// the last member.
const GROUP_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// All processes of the workspace. Clones share one state.
#[derive(Debug, Clone)]
pub struct ProcessRegistry {
    shared: Arc<RegistryShared>,
}

#[derive(Debug)]
struct RegistryShared {
    launcher: Launcher,
    children: Children,
    gate: Arc<AdmissionGate>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    streams: Arc<Semaphore>,
    /// Remaining bytes of the budget for outputs that [`ProcessRegistry::run`] collects.
    run_bytes: Arc<Semaphore>,
    table: Mutex<ProcessTable>,
}

impl ProcessRegistry {
    /// Creates an empty registry.
    pub fn new(launcher: Launcher, children: Children, gate: Arc<AdmissionGate>) -> Self {
        let shared = RegistryShared {
            launcher,
            children,
            gate,
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            run_bytes: Arc::new(Semaphore::new(ALL_OUTPUT_BYTES)),
            table: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts a command and watches it from its first byte, or watches the process that an earlier
    /// call with the same request id started. Waits while the admission gate holds the request.
    /// Requires a Tokio runtime. Blocks for the time of a fork (about 1 ms).
    pub async fn start(&self, start: ProcessSpec) -> Result<ProcessWatcher, ProcessError> {
        Attempt::retry_while_held(|| self.try_start(&start)).await
    }

    fn try_start(&self, start: &ProcessSpec) -> Result<ProcessWatcher, Attempt<ProcessError>> {
        if start.request_id.len() > MAX_REQUEST_ID_BYTES {
            return Err(
                ProcessError::BadField { field: "request_id", allowed: "at most 64 bytes long" }.into()
            );
        }
        let claim = self.shared.launcher.claim().map_err(ProcessError::from)?;
        let permit = self.acquire_permit()?;
        let mut table = self.shared.table();
        if let Some(process) = table.by_request_id(&start.request_id) {
            return Ok(ProcessWatcher::join(process, [0, 0], permit)?);
        }
        table.check_limit(claim.policy.max_processes)?;
        self.shared.gate.try_admit(Intent::ClientStart, 0)?;
        if table.shutting_down {
            return Err(ProcessError::ShuttingDown.into());
        }
        let (process, task) = self.shared.spawn(start.clone(), &claim)?;
        table.processes.push(process.clone());
        drop(table);
        // Joined before the task runs, so that not even the first byte can be discarded.
        let watcher = ProcessWatcher::join(process.clone(), [0, 0], permit);
        self.shared.supervise(process, task);
        Ok(watcher?)
    }

    /// Watches a process from the offsets `at` of stdout and stderr on.
    pub fn watch(&self, id: &ProcessId, epoch: u64, at: [u64; 2]) -> Result<ProcessWatcher, ProcessError> {
        let process = self.find(id)?;
        if process.info.epoch != epoch {
            return Err(ProcessError::StaleEpoch { epoch: process.info.epoch });
        }
        ProcessWatcher::join(process, at, self.acquire_permit()?)
    }

    /// Writes to stdin, and closes it after `data` if `end` is set. Returns once the bytes are in
    /// the pipe, or once stdin is closed.
    pub async fn write(
        &self,
        id: &ProcessId,
        epoch: u64,
        offset: u64,
        data: Bytes,
        end: bool,
    ) -> Result<StdinProgress, ProcessError> {
        self.find(id)?.write(epoch, offset, data, end).await
    }

    /// Waits until all bytes of stdin before `offset` are read from the pipe, or until stdin is
    /// closed. Returns whether the process has closed its stdin or has ended.
    pub async fn wait_until_stdin_read(&self, id: &ProcessId, offset: u64) -> Result<bool, ProcessError> {
        Ok(self.find(id)?.wait_until_stdin_read(offset).await)
    }

    /// Sends a signal by name, such as `INT`, to the group of a process.
    pub fn signal(&self, id: &ProcessId, signal: &str) -> Result<(), ProcessError> {
        self.find(id)?.signal(signal)
    }

    /// Lists all processes, including retained ended ones, oldest first.
    pub fn list(&self) -> Vec<ProcessInfo> {
        let processes = self.shared.table().processes.clone();
        processes.iter().map(|process| process.info()).collect()
    }

    /// Removes a process whose id no client knows.
    pub(super) fn remove(&self, process: &Arc<Process>) {
        self.shared.table().remove(process);
    }

    /// Returns the budget for outputs that [`Self::run`] collects, in bytes.
    pub(super) fn run_bytes(&self) -> Arc<Semaphore> {
        self.shared.run_bytes.clone()
    }

    /// Returns the number of processes that have not ended.
    pub fn running(&self) -> usize {
        self.shared.table().processes.iter().filter(|process| !process.is_finished()).count()
    }

    /// Ends all processes when the workspace falls asleep or the agent shuts down. Their exits
    /// carry `cause`. Later starts fail. Every group gets HUP and TERM at once and KILL after
    /// `grace`; watchers do not delay that. Returns once all groups are empty, or 1 s after the
    /// KILL.
    pub async fn end_all(&self, grace: Duration, cause: SleepCause) {
        let mut left = {
            let mut table = self.shared.table();
            table.shutting_down = true;
            table.processes.clone()
        };
        let until = Instant::now() + grace + REAP_GRACE;
        for process in &left {
            // A process that ended before did not end because of the sleep.
            if !process.state().leader_ended() {
                process.state().sleep_cause = Some(cause);
            }
            process.end(grace);
        }
        loop {
            left.retain(|process| !process.is_gone());
            if left.is_empty() {
                return;
            }
            if Instant::now() >= until {
                let left: Vec<_> = left.iter().map(|process| process.info.id.to_string()).collect();
                tracing::error!(?left, "processes still run 1 s after SIGKILL");
                return;
            }
            sleep(END_POLL_INTERVAL).await;
        }
    }

    fn find(&self, id: &ProcessId) -> Result<Arc<super::Process>, ProcessError> {
        let found = self.shared.table().processes.iter().find(|process| process.info.id == *id).cloned();
        match found {
            Some(process) => Ok(process),
            None => Err(self
                .shared
                .launcher
                .claim()
                .map_or_else(Into::into, |_| ProcessError::NotFound(id.clone()))),
        }
    }

    fn acquire_permit(&self) -> Result<OwnedSemaphorePermit, ProcessError> {
        let permits = self.shared.streams.clone();
        permits.try_acquire_owned().map_err(|_| ProcessError::TooManyStreams { limit: MAX_STREAMS })
    }
}

impl RegistryShared {
    fn table(&self) -> MutexGuard<'_, ProcessTable> {
        lock(&self.table)
    }
}

impl Drop for RegistryShared {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[derive(Debug, Default)]
struct ProcessTable {
    processes: Vec<Arc<Process>>,
    /// The agent is shutting down, so no process may be added.
    shutting_down: bool,
}

impl ProcessTable {
    /// Finds the process that an earlier call with this request id started.
    fn by_request_id(&self, request_id: &str) -> Option<Arc<Process>> {
        let same = |process: &&Arc<Process>| !request_id.is_empty() && process.request_id == request_id;
        self.processes.iter().find(same).cloned()
    }

    /// Fails if `limit` processes are running or watched. A watched process counts after its end
    /// too, because its output cannot be discarded.
    fn check_limit(&self, limit: usize) -> Result<(), ProcessError> {
        let taken = |process: &&Arc<Process>| !process.is_finished() || process.state().is_watched();
        if self.processes.iter().filter(taken).count() >= limit {
            return Err(ProcessError::TooManyProcesses { limit });
        }
        Ok(())
    }

    /// Removes ended processes, and discards their output, until both limits hold. Watched
    /// processes are left alone.
    fn enforce_bounds(&mut self) {
        let mut retained: Vec<(Instant, Arc<Process>)> =
            self.processes.iter().filter_map(|p| Some((retained_since(p)?, p.clone()))).collect();
        retained.sort_by_key(|(ended, _)| *ended);
        let too_many = retained.len().saturating_sub(MAX_ENDED);
        for (_, process) in retained.drain(..too_many) {
            self.remove(&process);
        }
        let mut held: u64 = retained.iter().map(|(_, process)| process.state().held_bytes()).sum();
        for (_, process) in retained {
            if held <= MAX_ENDED_BYTES {
                break;
            }
            let mut state = process.state();
            held -= state.held_bytes();
            state.discard_output();
        }
    }

    fn remove(&mut self, process: &Arc<Process>) {
        self.processes.retain(|other| !Arc::ptr_eq(other, process));
        process.removed.cancel();
    }
}

/// Returns the time at which the process ended. `None` if it runs or has watchers.
fn retained_since(process: &Process) -> Option<Instant> {
    let state = process.state();
    state.finished_at.filter(|_| !state.is_watched())
}

/// A command for [`super::ProcessRegistry::start`].
#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// Program, environment and working directory.
    pub program: Program,
    /// Time after the start at which the command is terminated. `None` means no limit.
    pub timeout: Option<Duration>,
    /// True if stdin is a pipe that clients can write to. Otherwise stdin is /dev/null.
    pub stdin: bool,
    /// Client-chosen id of at most 64 bytes that makes a retry return the same process; may be
    /// empty.
    pub request_id: String,
}

impl RegistryShared {
    /// Spawns the child. Its output is not read before the task runs.
    fn spawn(&self, start: ProcessSpec, claim: &Claim) -> Result<(Arc<Process>, ProcessTask), ProcessError> {
        let mut command = self.launcher.command(&start.program)?;
        command.stdin(if start.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = start.program.argv.first().cloned().unwrap_or_default();
        let child = self.children.spawn(&mut command).map_err(|e| spawn_failed(&program, e))?;
        let process = Arc::new(Process {
            info: ProcessInfo {
                id: ProcessId::random(),
                epoch: claim.epoch,
                argv: truncate_argv(&start.program.argv),
                cwd: start.program.cwd,
                timeout: start.timeout,
                pid: child.pid.as_raw_nonzero().get().unsigned_abs(),
                started: SystemTime::now(),
                exit: None,
            },
            request_id: start.request_id,
            group: child.group.clone(),
            gate: self.gate.clone(),
            state: Mutex::new(ProcessState::new(claim.epoch, claim.policy.byte_log_bytes, start.stdin)),
            output_ready: Notify::new(),
            task_wakeup: Notify::new(),
            stdin_progress: Notify::new(),
            removed: CancellationToken::new(),
        });
        let task = ProcessTask::new(process.clone(), child).map_err(|e| {
            process.group.signal(Signal::KILL);
            spawn_failed(&program, e)
        })?;
        tracing::info!(process = %process.info.id, pid = process.info.pid, program, "process started");
        Ok((process, task))
    }

    /// Spawns the task that serves the process until it is removed.
    fn supervise(self: &Arc<Self>, process: Arc<Process>, task: ProcessTask) {
        // Boxed, because `run_until_cancelled_owned` would contain the future three times.
        let life = Box::pin(run_to_removal(process, task, Arc::downgrade(self)));
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(life));
    }
}

/// Runs the process to its end, then retains it until it is removed (by age or by the table's
/// limits) and a requested termination of its group is complete.
async fn run_to_removal(process: Arc<Process>, task: ProcessTask, shared: Weak<RegistryShared>) {
    let mut termination = run_guarded(&process, task).await;
    let remove_at = Instant::now() + RETENTION;
    let remove = || {
        if let Some(shared) = shared.upgrade() {
            shared.table().remove(&process);
        }
    };
    if process.state().remove_when_finished {
        remove();
    }
    loop {
        let now = Instant::now();
        process.send_due_signals(&mut termination, now);
        let ends = termination.is_under_way() && process.group.has_members();
        let removed = process.removed.is_cancelled();
        if removed && !ends {
            return;
        }
        // A watcher may have left, so that the limits now apply to this process.
        if let Some(shared) = shared.upgrade() {
            shared.table().enforce_bounds();
        }
        let wake_at = if ends { now + GROUP_POLL_INTERVAL } else { remove_at };
        tokio::select! {
            () = sleep_until(Some(wake_at)) => {}
            () = process.task_wakeup.notified() => {}
            () = process.removed.cancelled(), if !removed => {}
        }
        if !removed && Instant::now() >= remove_at {
            remove();
        }
    }
}

/// Runs the task. If it panics, only its own process is killed.
async fn run_guarded(process: &Process, task: ProcessTask) -> Termination {
    match AssertUnwindSafe(task.run()).catch_unwind().await {
        Ok(termination) => termination,
        Err(_) => {
            tracing::error!(process = %process.info.id, "process task panicked; killing the process");
            process.group.signal(Signal::KILL);
            process.state().finished_at = Some(Instant::now());
            process.output_ready.notify_waiters();
            process.stdin_progress.notify_waiters();
            Termination::new(None)
        }
    }
}
