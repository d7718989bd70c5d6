//! The registry of all processes. It enforces the limits of the claim's policy and owns the
//! processes' tasks.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ProcessError, ProcessId, ProcessInfo, ProcessSpec, ProcessWatcher, StdinProgress, run::ALL_OUTPUT_BYTES,
    table::ProcessTable,
};
use crate::{
    activity::warning::SleepCause,
    admission::{AdmissionGate, Attempt, Intent},
    child::Children,
    claim::Claim,
    spawn::{Launcher, SpawnError},
};

/// Limit on watchers of all processes. The next one fails with TOO_MANY_STREAMS.
const MAX_STREAMS: usize = 1024;
/// Maximum length of a request id in bytes.
const MAX_REQUEST_ID_BYTES: usize = 64;
/// Time that [`ProcessRegistry::end_all`] waits after the KILL for processes to be reaped.
const REAP_GRACE: Duration = Duration::from_secs(1);
/// Interval at which [`ProcessRegistry::end_all`] checks whether all processes have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// All processes of the workspace. Clones share one state.
#[derive(Debug, Clone)]
pub struct ProcessRegistry {
    pub(super) shared: Arc<RegistryShared>,
}

#[derive(Debug)]
pub(super) struct RegistryShared {
    pub(super) launcher: Launcher,
    pub(super) children: Children,
    pub(super) gate: Arc<AdmissionGate>,
    pub(super) tasks: TaskTracker,
    pub(super) cancel: CancellationToken,
    streams: Arc<Semaphore>,
    /// Remaining bytes of the budget for outputs that [`ProcessRegistry::run`] collects.
    pub(super) run_bytes: Arc<Semaphore>,
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
        let claim = self.claim()?;
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
        table.add(process.clone());
        drop(table);
        // Joined before the task runs, so that not even the first byte can be discarded.
        let watcher = ProcessWatcher::join(process.clone(), [0, 0], permit);
        self.shared.supervise(process, task);
        Ok(watcher?)
    }

    /// Watches a process from the offsets `at` of stdout and stderr on.
    pub fn watch(&self, id: &ProcessId, epoch: u64, at: [u64; 2]) -> Result<ProcessWatcher, ProcessError> {
        let process = self.find(id)?;
        if process.epoch != epoch {
            return Err(ProcessError::StaleEpoch { epoch: process.epoch });
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
        let processes = self.shared.table().all().to_vec();
        processes.iter().map(|process| process.info()).collect()
    }

    /// Returns the number of processes that have not ended.
    pub fn running(&self) -> usize {
        self.shared.table().running()
    }

    /// Ends all processes when the workspace falls asleep or the agent shuts down. Their exits carry
    /// `cause`. Later starts fail. Every group gets HUP and
    /// TERM at once and KILL after `grace`; watchers do not delay that. Returns once all groups are
    /// empty, or 1 s after the KILL.
    pub async fn end_all(&self, grace: Duration, cause: SleepCause) {
        let mut left = {
            let mut table = self.shared.table();
            table.shutting_down = true;
            table.all().to_vec()
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
                let left: Vec<_> = left.iter().map(|process| process.id.to_string()).collect();
                tracing::error!(?left, "processes still run 1 s after SIGKILL");
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    fn find(&self, id: &ProcessId) -> Result<Arc<super::Process>, ProcessError> {
        let found = self.shared.table().find(id);
        match found {
            Some(process) => Ok(process),
            None => {
                self.claim()?;
                Err(ProcessError::NotFound(id.clone()))
            }
        }
    }

    fn claim(&self) -> Result<Arc<Claim>, ProcessError> {
        self.shared.launcher.claims().borrow().clone().ok_or(ProcessError::Spawn(SpawnError::Unclaimed))
    }

    fn acquire_permit(&self) -> Result<OwnedSemaphorePermit, ProcessError> {
        let permits = self.shared.streams.clone();
        permits.try_acquire_owned().map_err(|_| ProcessError::TooManyStreams { limit: MAX_STREAMS })
    }
}

impl RegistryShared {
    pub(super) fn table(&self) -> MutexGuard<'_, ProcessTable> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for RegistryShared {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
