//! The registry: all processes of the workspace, within the bounds of the claim's policy, and the owner of their tasks.

use std::{
    collections::HashMap,
    os::unix::process::CommandExt,
    panic::AssertUnwindSafe,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Info, Process, ProcessError, ProcessId, StdinProgress, Watcher,
    state::State,
    task::{Pipes, Task},
};
use crate::{
    child::{Children, Target},
    claim::Claim,
    intent::{Intent, Intents},
    spawn::{Launcher, Program, SpawnError, spawn_failed},
};

/// How long an ended process is kept.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// Ended processes kept at most; beyond it the one that was started first goes.
const ENDED_KEPT: usize = 128;
/// Output that ended processes hold at most, in bytes; beyond it the one that was started first goes.
const ENDED_BYTES: u64 = 32 * 1024 * 1024;
/// Streams of all processes at once; another is refused.
const STREAMS: usize = 1024;
/// Longest request id, in bytes.
const REQUEST_ID_BYTES: usize = 64;
/// What a killed process still gets to be reaped, when all are ended.
const REAP: Duration = Duration::from_secs(1);

/// All processes. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Processes {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    launcher: Launcher,
    children: Children,
    intents: Arc<Intents>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    streams: Arc<Semaphore>,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    /// Oldest first.
    processes: Vec<Arc<Process>>,
    /// Nothing new: the workspace ends.
    ending: bool,
}

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Program, environment and folder.
    pub program: Program,
    /// After which it is ended.
    pub timeout: Option<Duration>,
    /// Whether it gets a pipe for stdin; otherwise /dev/null.
    pub stdin: bool,
    /// Chosen by the client so that it may ask again; may be empty.
    pub request_id: String,
}

impl Processes {
    /// None yet.
    pub fn new(launcher: Launcher, children: Children, intents: Arc<Intents>) -> Self {
        let inner = Inner {
            launcher,
            children,
            intents,
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            all: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts a command and watches it from its first byte; must run within the runtime. Blocks for the time of a fork.
    pub fn start(&self, start: Start) -> Result<Watcher, ProcessError> {
        if start.request_id.len() > REQUEST_ID_BYTES {
            return Err(ProcessError::BadField { field: "request_id", allowed: "at most 64 characters" });
        }
        let claim = self.claim()?;
        let place = self.place()?;
        let mut all = self.inner.all();
        if all.ending {
            return Err(ProcessError::ShuttingDown);
        }
        let again = |p: &&Arc<Process>| !start.request_id.is_empty() && p.request_id == start.request_id;
        if let Some(process) = all.processes.iter().find(again) {
            return Watcher::join(process.clone(), [0, 0], place);
        }
        all.make_room(claim.policy.max_processes)?;
        self.inner.intents.admit(Intent::ClientStart)?;
        let (process, task) = self.inner.spawn(start, &claim)?;
        all.processes.push(process.clone());
        drop(all);
        // Joined before the task runs, so that not even the first byte could be let go.
        let watcher = Watcher::join(process.clone(), [0, 0], place);
        let owned = guarded(process, task, Arc::downgrade(&self.inner));
        self.inner.tasks.spawn(self.inner.cancel.clone().run_until_cancelled_owned(owned));
        watcher
    }

    /// Goes on watching behind `stdout` and `stderr` bytes.
    pub fn watch(&self, id: &ProcessId, epoch: u64, at: [u64; 2]) -> Result<Watcher, ProcessError> {
        let process = self.find(id)?;
        if process.epoch != epoch {
            return Err(ProcessError::StaleEpoch { epoch: process.epoch });
        }
        Watcher::join(process, at, self.place()?)
    }

    /// Feeds stdin; answers when the bytes are in the pipe.
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

    /// Signals a process's group.
    pub fn signal(&self, id: &ProcessId, signal: &str) -> Result<(), ProcessError> {
        self.find(id)?.signal(signal)
    }

    /// All that are kept, oldest first.
    pub fn list(&self) -> Vec<Info> {
        let processes = self.inner.all().processes.clone();
        processes.iter().map(|process| process.info()).collect()
    }

    /// Processes that run.
    pub fn running(&self) -> usize {
        self.inner.all().running()
    }

    /// The end of the workspace: nothing new, and every group is told to end, and killed after `grace`.
    pub async fn end_all(&self, grace: Duration) {
        let processes = {
            let mut all = self.inner.all();
            all.ending = true;
            all.processes.clone()
        };
        let running: Vec<_> = processes.into_iter().filter(|p| p.state().exit.is_none()).collect();
        for process in &running {
            process.end(grace);
        }
        for process in &running {
            if timeout(grace + REAP, process.over()).await.is_err() {
                tracing::error!(process = %process.id, "a process did not end");
            }
        }
    }

    /// Forgets a process.
    pub(super) fn forget(&self, process: &Arc<Process>) {
        self.inner.forget(process);
    }

    fn find(&self, id: &ProcessId) -> Result<Arc<Process>, ProcessError> {
        let found = self.inner.all().processes.iter().find(|process| process.id == *id).cloned();
        match found {
            Some(process) => Ok(process),
            None => {
                self.claim()?;
                Err(ProcessError::NotFound(id.clone()))
            }
        }
    }

    fn claim(&self) -> Result<Arc<Claim>, ProcessError> {
        self.inner.launcher.claims().borrow().clone().ok_or(ProcessError::Spawn(SpawnError::Unclaimed))
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, ProcessError> {
        let places = self.inner.streams.clone();
        places.try_acquire_owned().map_err(|_| ProcessError::TooManyStreams { limit: STREAMS })
    }
}

impl Inner {
    fn spawn(&self, start: Start, claim: &Claim) -> Result<(Arc<Process>, Task), ProcessError> {
        let mut command = self.launcher.command(&start.program)?;
        command.stdin(if start.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = start.program.argv.first().cloned().unwrap_or_default();
        let mut child = self.children.spawn(&mut command).map_err(|e| spawn_failed(&program, e))?;
        let pipes = Pipes::of(&mut child).map_err(|e| {
            self.children.signal(child.pid, Target::Group, Signal::KILL);
            spawn_failed(&program, e)
        })?;
        let process = Arc::new(Process {
            id: ProcessId::random(),
            request_id: start.request_id,
            program: start.program,
            timeout: start.timeout,
            pid: child.pid,
            started: SystemTime::now(),
            epoch: claim.epoch,
            children: self.children.clone(),
            intents: self.intents.clone(),
            state: Mutex::new(State::new(claim.epoch, claim.policy.ring_bytes, start.stdin)),
            wake: Notify::new(),
            moved: Notify::new(),
            fed: Notify::new(),
        });
        tracing::info!(process = %process.id, pid = %process.pid, program, "started a process");
        let task = Task::new(process.clone(), pipes, child.ended);
        Ok((process, task))
    }

    fn forget(&self, process: &Arc<Process>) {
        self.all().processes.retain(|other| !Arc::ptr_eq(other, process));
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl All {
    fn running(&self) -> usize {
        self.processes.iter().filter(|process| process.state().exit.is_none()).count()
    }

    /// Lets go of ended processes until what is kept is within its bounds, and refuses one too many.
    fn make_room(&mut self, limit: usize) -> Result<(), ProcessError> {
        if self.running() >= limit {
            return Err(ProcessError::TooManyProcesses { limit });
        }
        let held: HashMap<ProcessId, u64> =
            self.processes.iter().filter_map(|p| Some((p.id.clone(), p.held_after_end()?))).collect();
        let (mut count, mut bytes) = (held.len(), held.values().sum::<u64>());
        self.processes.retain(|process| match held.get(&process.id) {
            Some(of_it) if count > ENDED_KEPT || bytes > ENDED_BYTES => {
                count -= 1;
                bytes -= of_it;
                false
            }
            _ => true,
        });
        Ok(())
    }
}

impl Process {
    /// Asks for its end.
    pub(super) fn end(&self, grace: Duration) {
        let mut state = self.state();
        let sooner = state.end_wanted.map_or(grace, |before| before.min(grace));
        state.end_wanted = Some(sooner);
        drop(state);
        self.moved.notify_one();
    }

    /// Waits until all is over.
    async fn over(&self) {
        loop {
            let wake = self.wake.notified();
            tokio::pin!(wake);
            wake.as_mut().enable();
            {
                let state = self.state();
                if state.exit.is_some() || state.fault {
                    return;
                }
            }
            wake.await;
        }
    }

    /// Bytes of output it holds, if it has ended.
    fn held_after_end(&self) -> Option<u64> {
        let state = self.state();
        state.exit.as_ref()?;
        Some(state.outputs.iter().map(|output| output.log.next() - output.log.oldest()).sum())
    }
}

/// A task that panics takes its own process along and nothing else; what has ended is forgotten in time.
async fn guarded(process: Arc<Process>, task: Task, inner: std::sync::Weak<Inner>) {
    if AssertUnwindSafe(task.run()).catch_unwind().await.is_err() {
        tracing::error!(process = %process.id, "the task of a process panicked; the process is killed");
        process.children.signal(process.pid, Target::Group, Signal::KILL);
        process.state().fault = true;
        process.wake.notify_waiters();
        process.fed.notify_waiters();
    }
    sleep(KEPT).await;
    if let Some(inner) = inner.upgrade() {
        inner.forget(&process);
    }
}
